"""The documented rules for kie.ai's inputs and rate limits.

They are written independently of the checks in the SDK.
"""

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
"""An id of this form is accepted as a video that was made before the emulator started."""


def span_problem(value: object, max_seconds: int) -> str | None:
    """Return what is wrong with `timestamps`, or None.

    The value must be "x,y" in seconds, and span 1 to `max_seconds` seconds.
    """
    match = TIMESTAMPS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return 'must be a string "x,y" of seconds'
    seconds = Decimal(match[2]) - Decimal(match[1])
    if not 1 <= seconds <= max_seconds:
        return f"must span 1 to {max_seconds} seconds"
    return None


def is_url(value: object) -> bool:
    """Whether the value is an absolute http or https URL."""
    if not isinstance(value, str) or any(character.isspace() for character in value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, an unclosed bracket
        return False


def _text(max_length: int = 5000) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a string"
        return None if len(value) <= max_length else f"must be at most {max_length} characters"

    return check


def _nonempty_text(max_length: int = 5000) -> Callable[[object], str | None]:
    text = _text(max_length)
    return lambda value: "must not be empty" if isinstance(value, str) and not value.strip() else text(value)


def _one_of(*values: str) -> Callable[[object], str | None]:
    return lambda value: None if value in values else f"must be one of {', '.join(values)}"


def _object(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _url(value: object) -> str | None:
    return None if is_url(value) else "must be an http or https URL"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be a boolean"


def _single_url(value: object) -> str | None:
    urls = cast("list[object]", value) if isinstance(value, list) else []
    if len(urls) != 1:
        return "must be an array of exactly 1 URL"
    return None if is_url(urls[0]) else "must hold http or https URLs"


def _image_urls(value: object) -> str | None:
    urls = cast("list[object]", value) if isinstance(value, list) else []
    if not 1 <= len(urls) <= 2:  # noqa: PLR2004 - pages disagree about one or two
        return "must be an array of 1 or 2 URLs"
    return None if all(map(is_url, urls)) else "must hold http or https URLs"


def _texts(max_items: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        items = cast("list[object]", value) if isinstance(value, list) else [None]
        valid = len(items) <= max_items and all(isinstance(item, str) and item for item in items)
        return None if valid else f"must be an array of at most {max_items} strings"

    return check


@attrs.frozen
class Rules:
    """The rules for one JSON object.

    Attributes:
        required: The fields that the object must have.
        fields: The fields that the object may have. Each check returns what is wrong with
            a value, or None.
    """

    required: tuple[str, ...]
    fields: Mapping[str, Callable[[object], str | None]]


_VIDEO = {
    "prompt": _nonempty_text(10_000),
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
            "origin_task_id": _nonempty_text(),
            "timestamps": lambda value: span_problem(value, 4),
            "character_prompt": _nonempty_text(),
            "character_user_name": _nonempty_text(40),
            "safety_instruction": _text(),
        },
    ),
    "sora-2-characters": Rules(
        ("character_file_url",),
        {"character_file_url": _single_url, "character_prompt": _text(), "safety_instruction": _text()},
    ),
    "sora-2-text-to-video": Rules(("prompt",), _VIDEO),
    "sora-2-image-to-video": Rules(("prompt", "image_urls"), _VIDEO | {"image_urls": _single_url}),
}
TASK_RULES = Rules(
    ("model", "input"),
    {"model": _nonempty_text(200), "input": _object, "callBackUrl": _url, "progressCallBackUrl": _url},
)
OMNI_RULES = Rules(
    ("descriptions", "image_urls"),
    {
        "descriptions": _nonempty_text(),
        "image_urls": _image_urls,
        "audio_ids": _texts(100),
        "character_name": _nonempty_text(),
    },
)


def problem(rules: Rules, values: Mapping[str, object]) -> tuple[int, str] | None:
    """Return the code and message of the first problem, or None.

    The code is 500 for a missing field, as observed, and 422 for a wrong value.
    """
    for name in rules.required:
        if values.get(name) is None:
            return 500, f"{name} is required"
    for name, value in values.items():
        if name not in rules.fields:
            return 422, f"{name} is not a known parameter"
        if (error := rules.fields[name](value)) is not None:
            return 422, f"{name} {error}"
    return None


@attrs.define(eq=False)
class SlidingWindow:
    """A rate limit: at most `limit` requests within any `seconds`.

    Rejected requests do not count.
    """

    limit: int
    seconds: float
    _admitted: deque[float] = attrs.field(factory=deque, init=False)

    def admit(self, now: float) -> bool:
        """Count a request at the time `now`, or return False if the limit is reached."""
        while self._admitted and self._admitted[0] <= now - self.seconds:
            self._admitted.popleft()
        if len(self._admitted) >= self.limit:
            return False
        self._admitted.append(now)
        return True
