"""What the documentation allows in the input of kie.ai's models, and how often. Written apart from the SDK's checks."""

from __future__ import annotations

import re
from collections import deque
from decimal import Decimal
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TIMESTAMPS = re.compile(r"([0-9]+(?:\.[0-9]+)?),([0-9]+(?:\.[0-9]+)?)")
KIE_ID = re.compile(r"[0-9a-f]{32}|task_[\w.-]+_[0-9]+")
"""An id of this shape that the emulator did not make is taken for a video made before it started."""


def span_problem(value: object, longest: int) -> str | None:
    """What is wrong with `timestamps`: "x,y" in seconds, 1 to `longest` seconds apart; or None."""
    match = TIMESTAMPS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return 'must be a string "x,y" of seconds'
    start, end = Decimal(match[1]), Decimal(match[2])
    if not 1 <= end - start <= longest:
        return f"must span 1 to {longest} seconds"
    return None


def is_url(value: object) -> bool:
    """Whether it is an absolute http or https URL."""
    if not isinstance(value, str) or any(character.isspace() for character in value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, an unclosed bracket
        return False


def _text(longest: int = 5000) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a string"
        return None if len(value) <= longest else f"must be at most {longest} characters"

    return check


def _filled(longest: int = 5000) -> Callable[[object], str | None]:
    text = _text(longest)
    return lambda value: "must not be empty" if isinstance(value, str) and not value.strip() else text(value)


def _one_of(*values: str) -> Callable[[object], str | None]:
    return lambda value: None if value in values else f"must be one of {', '.join(values)}"


def _object(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _url(value: object) -> str | None:
    return None if is_url(value) else "must be an http or https URL"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be a boolean"


def _urls(least: int, most: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if not isinstance(value, list) or not least <= len(cast("list[object]", value)) <= most:
            return (
                f"must be an array of {least} to {most} URLs"
                if least != most
                else f"must be an array of exactly {most} URL"
            )
        return None if all(map(is_url, cast("list[object]", value))) else "must hold http or https URLs"

    return check


def _texts(most: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        items = cast("list[object]", value) if isinstance(value, list) else [None]
        right = len(items) <= most and all(isinstance(item, str) and item for item in items)
        return None if right else f"must be an array of at most {most} strings"

    return check


@attrs.frozen
class Rules:
    """The fields that an object may have, each with its check, and those that it must have."""

    required: tuple[str, ...]
    fields: Mapping[str, Callable[[object], str | None]]


_VIDEO = {
    "prompt": _filled(10_000),
    "aspect_ratio": _one_of("portrait", "landscape"),
    "n_frames": _one_of("10", "15"),
    "remove_watermark": _flag,
    "character_id_list": _texts(5),
    "upload_method": _one_of("s3", "oss"),
}
INPUT_RULES: dict[str, Rules] = {
    "sora-2-characters-pro": Rules(
        ("origin_task_id", "timestamps", "character_prompt"),
        {
            "origin_task_id": _filled(),
            "timestamps": lambda value: span_problem(value, 4),
            "character_prompt": _filled(),
            "character_user_name": _filled(40),
            "safety_instruction": _text(),
        },
    ),
    "sora-2-characters": Rules(
        ("character_file_url",),
        {"character_file_url": _urls(1, 1), "character_prompt": _text(), "safety_instruction": _text()},
    ),
    "sora-2-text-to-video": Rules(("prompt",), _VIDEO),
    "sora-2-image-to-video": Rules(("prompt", "image_urls"), _VIDEO | {"image_urls": _urls(1, 1)}),
}
TASK_RULES = Rules(
    ("model", "input"),
    {"model": _filled(200), "input": _object, "callBackUrl": _url, "progressCallBackUrl": _url},
)
OMNI_RULES = Rules(
    ("descriptions", "image_urls"),
    {
        "descriptions": _filled(),
        "image_urls": _urls(1, 1),
        "audio_ids": _texts(100),
        "character_name": _filled(),
    },
)


def problem(rules: Rules, values: Mapping[str, object]) -> tuple[int, str] | None:
    """The first thing wrong, as code and message: 500 for a missing field, as seen; 422 for a wrong one."""
    for name in rules.required:
        if values.get(name) is None:
            return 500, f"{name} is required"
    for name, value in values.items():
        if name not in rules.fields:
            return 422, f"{name} is not a known parameter"
        if (trouble := rules.fields[name](value)) is not None:
            return 422, f"{name} {trouble}"
    return None


@attrs.define(eq=False)
class Window:
    """At most `limit` within any `seconds`: a sliding window; what it turns away does not count."""

    limit: int
    seconds: float
    _admitted: deque[float] = attrs.field(factory=deque, init=False)

    def admits(self, now: float) -> bool:
        """Take a place at the time `now`, or say that none is free."""
        while self._admitted and self._admitted[0] <= now - self.seconds:
            self._admitted.popleft()
        if len(self._admitted) >= self.limit:
            return False
        self._admitted.append(now)
        return True
