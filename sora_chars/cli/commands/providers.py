"""`sora-chars providers`: what each provider takes, and whether its API key is set."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import click

from sora_chars.cli.options import PROVIDERS, output_options
from sora_chars.cli.render import in_options
from sora_chars.providers.evolink_codec import ACCEPTS as EVOLINK
from sora_chars.providers.heygen_codec import ACCEPTS as HEYGEN
from sora_chars.providers.kie_codec import ACCEPTS as KIE
from sora_chars.providers.kkiai import ACCEPTS as GATEWAY
from sora_chars.providers.kling_codec import ACCEPTS as KLING
from sora_chars.providers.seedance_codec import ACCEPTS as SEEDANCE
from sora_chars.providers.vidu_codec import ACCEPTS as VIDU
from sora_chars.providers.wavespeed_codec import ACCEPTS as WAVESPEED

if TYPE_CHECKING:
    from sora_chars.cli.context import CommandContext
    from sora_chars.models import Accepts

_COLUMNS = ("provider", "key", "set", "known to work")


@attrs.frozen
class _Known:
    """What is known of a provider.

    Attributes:
        variables: The environment variables of its keys, the usual one first; pairs joined by "+".
        alive: What is known of its being alive, with a date.
        limits: Each source and field with its limits.
    """

    variables: tuple[str, ...]
    alive: str
    limits: tuple[tuple[str, str], ...]

    @property
    def has_key(self) -> bool:
        """Whether the environment has a key, or a whole pair."""
        return any(all(os.environ.get(name) for name in pair.split("+")) for pair in self.variables)


def _described(accepts: Accepts) -> tuple[tuple[str, str], ...]:
    return tuple((name, in_options(rule)) for name, rule in accepts.rows())


_SORA_ENDED = "unlikely: Sora ended on 2026-09-24"

_BY_ITS_PAGES = "2026-09, by its pages"
_KNOWN = {
    "kie": _Known(("KIE_API_KEY",), f"images: 2026-08, by its pages; video: {_SORA_ENDED}", _described(KIE)),
    "kling": _Known(
        ("KLING_API_KEY", "KLING_ACCESS_KEY+KLING_SECRET_KEY"),
        f"{_BY_ITS_PAGES} and recorded answers",
        _described(KLING),
    ),
    "wavespeed": _Known(("WAVESPEED_API_KEY",), f"{_BY_ITS_PAGES} and public clients", _described(WAVESPEED)),
    "evolink": _Known(("EVOLINK_API_KEY",), _BY_ITS_PAGES, _described(EVOLINK)),
    "vidu": _Known(("VIDU_API_KEY",), "2026-08, by its pages", _described(VIDU)),
    "heygen": _Known(("HEYGEN_API_KEY",), "2026-07, by its OpenAPI", _described(HEYGEN)),
    "seedance": _Known(
        ("ICOVER_API_KEY", "ARK_ACCESS_KEY+ARK_SECRET_KEY"),
        "2026-07, by the pages of apiyi and of Ark",
        _described(SEEDANCE),
    ),
}


def _known(name: str) -> _Known:
    return _KNOWN.get(name) or _Known((f"{name.upper()}_API_KEY",), _SORA_ENDED, _described(GATEWAY))


@click.command()
@click.argument("name", metavar="[NAME]", type=click.Choice(PROVIDERS), required=False)
@output_options
@click.pass_obj
def providers(context: CommandContext, /, *, name: str | None) -> None:
    """List the providers, or show what one of them takes.

    No request is sent. "set" states whether the key is in the environment.
    """
    names = PROVIDERS if name is None else (name,)
    known = {one: _known(one) for one in names}
    if name is None:
        rows = [
            (one, facts.variables[0], "yes" if facts.has_key else "no", facts.alive) for one, facts in known.items()
        ]
        context.output.show_table(
            {"providers": [_json(one, facts) for one, facts in known.items()]}, rows, columns=_COLUMNS
        )
        return
    facts = known[name]
    rows_of_one = [("key", " or ".join(facts.variables)), ("set", "yes" if facts.has_key else "no")]
    rows_of_one += [("known to work", facts.alive), *facts.limits]
    context.output.show(_json(name, facts), rows_of_one, title=name)


def _json(name: str, facts: _Known) -> dict[str, Any]:
    return {
        "provider": name,
        "variables": list(facts.variables),
        "key_set": facts.has_key,
        "known_to_work": facts.alive,
        "accepts": dict(facts.limits),
    }
