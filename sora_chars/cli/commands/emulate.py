"""`sora-chars emulate`: the emulator as a server of its own."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import click

from sora_chars.cli.context import Job, speaking
from sora_chars.cli.options import seconds
from sora_chars.cli.runner import CommandInterruptedError, run
from sora_chars.errors import ConfigurationError
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.faults import KINDS
from sora_chars.transport import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_GREETING = """\
kie.ai and kkiai.com, emulated: {url}
What it serves and what it saw:  {url}/

  export KIE_API_KEY=any KKIAI_API_KEY=any
  sora-chars create --base-url {url} --upload-url {url} \\
    --from-task 0123456789abcdef0123456789abcdef --clip 1,3 --prompt "A friendly cartoon dog"
  sora-chars create --provider kkiai --base-url {url} --video https://example.com/dog.mp4 --clip 1,3

  Kie("any", base_url="{url}", upload_url="{url}")
  Kkiai("any", base_url="{url}")

Ctrl-C ends it."""


def span(text: str) -> tuple[float, float]:
    """LO,HI in seconds."""
    low, _, high = text.partition(",")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = math.nan, math.nan
    if not 0 <= bounds[0] <= bounds[1] < math.inf:
        raise click.BadParameter(f"{text!r} is not LO,HI in seconds, as in 5,20.")
    return bounds


def fault(text: str) -> tuple[str, dict[str, Any]]:
    """KIND[:NAME=VALUE,...] as the kind and its settings; the emulator says which there are."""
    kind, _, settings = text.partition(":")
    known = KINDS[kind].settings if kind in KINDS else {}
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        is_text = name == "on" or isinstance(known.get(name), str)
        try:
            values[name] = value if is_text else parse_json(value)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not KIND[:NAME=VALUE,...]: {setting!r} is no number.") from error
    return kind, values


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides ids, durations and chances.")
@click.option(
    "--speed", type=seconds, default="1", show_default=True, metavar="X", help="Emulated seconds in a second."
)
@click.option(
    "--durations", type=span, default="5,20", show_default=True, metavar="LO,HI", help="Seconds that a task takes."
)
@click.option("--strict-limits", is_flag=True, help="HeapEntry away more than 20 creates in 10 s, or 10 polls in 1 s.")
@click.option("--hmac-key", metavar="KEY", help="Sign callbacks with it.")
@click.option(
    "--fault",
    "faults",
    type=fault,
    multiple=True,
    metavar="KIND[:on=..,rate=..,times=..,...]",
    help="Let something go wrong, as in lost_response:on=create,rate=0.1,times=null. May be repeated.",
)
@speaking
@click.pass_obj
def emulate(job: Job, /, *, faults: Sequence[tuple[str, dict[str, Any]]], **settings: Any) -> None:
    """Serve both providers from here, until Ctrl-C."""
    emulator = Emulator(**settings)
    for kind, values in faults:
        try:
            emulator.fault(kind, **values)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(str(error), param_hint="--fault") from error
    try:
        run(job, _serve(job, emulator))
    except CommandInterruptedError:
        job.screen.note("Ended.")


async def _serve(job: Job, emulator: Emulator) -> None:
    try:
        await emulator.start()
        if job.screen.as_json:
            job.screen.show_json({"url": emulator.url})
        else:
            click.echo(_GREETING.format(url=emulator.url))
        await asyncio.Event().wait()
    except OSError as error:
        hint = "Another --port may be free; 0 takes one that is."
        raise ConfigurationError(f"The emulator cannot listen: {error}.", hint=hint) from error
    finally:
        await emulator.aclose()
