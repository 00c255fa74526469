"""Which providers take which source and field, for the help texts: made from what the providers accept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.models import TextRule
from sora_chars.providers import (
    evolink_codec,
    heygen_codec,
    kie_codec,
    kkiai,
    kling_codec,
    seedance_codec,
    vidu_codec,
    wavespeed_codec,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sora_chars.models import Accepts

ACCEPTS: Mapping[str, Accepts] = {
    "kie": kie_codec.ACCEPTS,
    "kling": kling_codec.ACCEPTS,
    "wavespeed": wavespeed_codec.ACCEPTS,
    "evolink": evolink_codec.ACCEPTS,
    "vidu": vidu_codec.ACCEPTS,
    "seedance": seedance_codec.ACCEPTS,
    "heygen": heygen_codec.ACCEPTS,
    "kkiai": kkiai.ACCEPTS,
}
"""What each provider accepts. The gateways of kkiai's protocol accept what kkiai does."""
_GATEWAYS = {"kkiai": "kkiai and its gateways"}
_SENT = {"upload", "inline"}


def listed(names: Iterable[str]) -> str:
    """Return names of providers as text: "kie, kling and kkiai and its gateways" names the gateways once."""
    *before, last = [_GATEWAYS.get(name, name) for name in names]
    return f"{', '.join(before)} and {last}" if before else last


def local_takers() -> str:
    """Return the providers to which a local video is sent."""
    return listed(name for name, accepts in ACCEPTS.items() if accepts.video and accepts.video.local in _SENT)


def image_counts() -> str:
    """Return how many images each provider takes."""
    counts: dict[tuple[int, int], list[str]] = {}
    for name, accepts in ACCEPTS.items():
        if accepts.images:
            counts.setdefault(accepts.images.count, []).append(name)
    return "; ".join(
        f"{listed(names)} {low}{f' to {high}' if high > low else ''}" for (low, high), names in counts.items()
    )


def clip_takers(source: str) -> str:
    """Return the providers that need a clip with a source."""
    return listed(name for name, accepts in ACCEPTS.items() if accepts.clip and source in accepts.clip.sources)


def requiring(field: str) -> str:
    """Return the providers that require a field, with some of their sources or with all."""
    names: list[str] = []
    for name, accepts in ACCEPTS.items():
        rules = getattr(accepts, field)
        each = [rules] if isinstance(rules, TextRule) else list((rules or {}).values())
        if any(rule.required for rule in each):
            names.append(name)
    return listed(names)
