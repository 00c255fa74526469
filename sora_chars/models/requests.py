"""Requests for characters, and the rules for the fields of all requests."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import attrs

from sora_chars.errors import InvalidRequestError, printable
from sora_chars.ids import strip_blanks
from sora_chars.redaction import masked_repr

from .sources import Source, is_url, path_of, source_problems, to_source, to_sources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_KEY_LENGTH = 200  # characters
_MAX_IMAGES = 4
_NOT_IN_ID = re.compile(r"""[\s"'`/\\]""")
_ELSEWHERE: Mapping[str, str] = {
    "image": "images=[...]",
    "image_urls": "images=[...]",
    "url": "video",
    "timestamps": "clip",
    "start": "clip=(start, end)",
    "end": "clip=(start, end)",
    "description": "prompt",
    "descriptions": "prompt",
    "audio_ids": "voice",
    "username": "name",
    "model": "TaskRequest(model=..., input=...)",
    "input": "TaskRequest(model=..., input=...)",
}
"""What to use in place of names that people expect, from other tools and from the providers' pages."""


def raise_if_invalid(problems: list[str], *, what: str) -> None:
    """Raise one `InvalidRequestError` that lists all `problems`; do nothing if there are none.

    Args:
        problems: One line for each broken rule, such as "clip must be given".
        what: The subject of the message, such as "The batch".
    """
    if problems:
        raise InvalidRequestError(f"{what} was not sent: {'; '.join(problems)}.", problems=tuple(problems))


def seconds_problems(field: str, value: object, *, finite: bool = False) -> list[str]:
    """Return the problems of a time that the caller passed, none or one. A time-out may be `math.inf`, for no limit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_endless = value == math.inf and not finite
        if 0 <= value <= sys.float_info.max or is_endless:
            return []
    kind = "finite number" if finite else "number"
    return [f"{field} must be a {kind} of seconds, at least 0, got {printable(repr(value), limit=60)}"]


def check_seconds(field: str, value: object, *, finite: bool = False) -> None:
    """Check an option that is a number of seconds.

    Raises:
        InvalidRequestError: It is none, or less than 0, or infinite where it must be `finite`.
    """
    if problems := seconds_problems(field, value, finite=finite):
        raise InvalidRequestError(f"{problems[0]}.", problems=tuple(problems))


def _bound(value: Any) -> float:
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0; a provider may not parse "-0"
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"clip must have numbers of seconds as bounds, got {printable(repr(value), limit=60)}"
        raise InvalidRequestError(f"{problem}.", problems=(problem,)) from error


@attrs.frozen
class Clip:
    """The part of a video between two points in time.

    `str(clip)` gives the notation of the providers, such as "3.55,5.55".

    Args:
        start: Seconds from the start of the video, 0 or more.
        end: Seconds from the start of the video, greater than `start`.

    Raises:
        InvalidRequestError: A bound is negative or not a finite number, or the end is not after the start.
    """

    start: float = attrs.field(converter=_bound)
    end: float = attrs.field(converter=_bound)

    def __attrs_post_init__(self) -> None:
        problems: list[str] = []
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            problems.append(f'clip must have finite bounds in seconds, got "{self.start},{self.end}"')
        elif not 0 <= self.start < self.end:
            problems.append(f'clip must satisfy 0 <= start < end in seconds, got "{self}"')
        if problems:
            raise InvalidRequestError(f"{'; '.join(problems)}.", problems=tuple(problems))

    @classmethod
    def parse(cls, text: str) -> Clip:
        """Parse "start,end" in seconds, such as "3.55,5.55"; spaces around the numbers are allowed.

        Raises:
            InvalidRequestError: The text is not two numbers, or they are not the bounds of a clip.
        """
        parts = text.split(",")
        try:
            start, end = map(float, parts)
        except ValueError:
            problem = f'clip must be "start,end" in seconds, such as "3.55,5.55", got {printable(text)!r}'
            raise InvalidRequestError(f"{problem}.", problems=(problem,)) from None
        return cls(start, end)

    @property
    def seconds(self) -> float:
        """The length of the clip in seconds, rounded to the microsecond: "2.3,3.3" is 1.0, not 0.9999999999999996."""
        return round(self.end - self.start, 6)

    def __str__(self) -> str:
        return f"{_plain(self.start)},{_plain(self.end)}"


def _plain(seconds: float) -> str:
    """Return the shortest text that parses to the same number, without an exponent: 3.0 gives "3"."""
    text = repr(seconds)
    if "e" in text:
        from decimal import Decimal  # noqa: PLC0415 # only bounds below 0.1 ms or from 10**16 s need it

        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def _to_clip(value: Any) -> Any:
    """Convert the forms in which a request gives its clip; any other value is returned as it is."""
    match value:
        case str():
            return Clip.parse(value)
        case (start, end):
            return Clip(start, end)
        case _:
            return value


ClipLike: TypeAlias = Clip | str | tuple[float, float]
"""A `Clip`, "start,end" or (start, end), in seconds."""


def type_problems(field: str, value: object, allowed: tuple[type, ...], what: str) -> list[str]:
    """Check a type at run time, for callers without a type checker."""
    return [] if isinstance(value, allowed) else [f"{field} must be {what}, got {type(value).__name__}"]


def _text_problems(**fields: object) -> list[str]:
    return [line for name, value in fields.items() for line in type_problems(name, value, (str, NoneType), "text")]


def key_problems(key: Any) -> list[str]:
    """Return the problems of an idempotency key, none or one."""
    if key is None or (isinstance(key, str) and 0 < len(key) <= _MAX_KEY_LENGTH and key.isprintable()):
        return []
    return [f"key must be 1 to {_MAX_KEY_LENGTH} printable characters, got {printable(repr(key), limit=60)}"]


def _task_id_problems(task_id: Any) -> list[str]:
    if not isinstance(task_id, str):
        return []
    if not task_id:
        return ["from_task must not be empty"]
    if _NOT_IN_ID.search(task_id):
        found = printable(repr(task_id), limit=60)
        return [f"from_task must be the id of a task, without spaces, quotes and slashes, got {found}"]
    return []


def _image_problems(images: tuple[object, ...] | None) -> list[str]:
    if images is None:
        return []
    if not 1 <= len(images) <= _MAX_IMAGES:
        return [f"images must hold 1 to {_MAX_IMAGES} images, got {len(images)}"]
    return [line for number, image in enumerate(images) for line in source_problems(f"images[{number}]", image)]


class CharacterFields(TypedDict, total=False):
    """The fields of a `CharacterRequest`, as keyword arguments of `create`, `submit` and `register`."""

    from_task: str | None
    video: Source | None
    images: Sequence[Source] | None
    clip: ClipLike | None
    name: str | None
    prompt: str | None
    safety: str | None
    voice: str | None
    key: str | None


class RowFields(CharacterFields, total=False):
    """A row of `create_many`: the fields of a `CharacterRequest`, and optionally its provider."""

    provider: str | None


@attrs.frozen(kw_only=True)
class CharacterRequest:
    """A request for a character from a video or from images.

    The source is a task that has finished at the same provider, a video, or images:
    give exactly one of `from_task`, `video` and `images`. Which other fields a provider
    requires or allows is checked before anything is sent.

    Attributes:
        from_task: Id of a finished task whose video shows the character.
        video: http(s) URL or local path of a video. "~" and file:// URLs are accepted. A
            local file is uploaded to the provider's temporary storage, where the
            provider takes uploads. The character may end with that file: kie.ai's pages
            state lifetimes of 24 hours, 3 days and 14 days.
        images: 1 to 4 images, each an http(s) URL or a local path. The first one shows
            the character from the front. Uploads are as temporary as those of `video`.
        clip: The part of the video that shows the character: a `Clip`, "start,end"
            or (start, end), in seconds.
        name: Name of the character.
        prompt: Description of the character.
        safety: Safety instruction for the character, such as "No blood".
        voice: The provider's id of a voice. kie.ai takes several, separated by commas.
        key: Idempotency key of 1 to 200 printable characters. Requests with one key are
            sent and paid once. Without one, each request gets a new key.

    Raises:
        InvalidRequestError: Not exactly one source was given, or a field has the wrong type.
    """

    from_task: str | None = attrs.field(default=None, converter=strip_blanks)
    video: Source | None = attrs.field(default=None, converter=attrs.converters.optional(to_source), repr=masked_repr)
    images: tuple[Source, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(to_sources), repr=masked_repr
    )
    clip: Clip | None = attrs.field(default=None, converter=_to_clip)
    name: str | None = None
    prompt: str | None = None
    safety: str | None = None
    voice: str | None = attrs.field(default=None, converter=strip_blanks)
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = _text_problems(
            from_task=self.from_task, name=self.name, prompt=self.prompt, safety=self.safety, voice=self.voice
        )
        sources = {"from_task": self.from_task, "video": self.video, "images": self.images}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            problems.append(f"exactly one of from_task, video and images must be given, got {found}")
        problems += _task_id_problems(self.from_task)
        problems += [] if self.video is None else source_problems("video", self.video)
        problems += _image_problems(self.images)
        problems += type_problems("clip", self.clip, (Clip, NoneType), 'a Clip, "start,end" or (start, end)')
        if self.voice == "":
            problems.append("voice must not be empty")
        raise_if_invalid(problems + key_problems(self.key), what="The character request")

    @classmethod
    def from_untrusted(cls, fields: object, /, *, key: str | None = None) -> CharacterRequest:
        """Return a request made of input from a stranger, such as the JSON body of a web request.

        A video and images must be URLs: a path would upload a file of this computer.
        The input cannot choose the key, a time-out or the provider.

            request = CharacterRequest.from_untrusted(await http_request.json())

        Args:
            fields: The input: a mapping with the fields of a `CharacterRequest` except `key`.
            key: Idempotency key, chosen by the caller.

        Raises:
            InvalidRequestError: The input is invalid. Answer HTTP status 422 with `problems`.
        """
        if not isinstance(fields, Mapping):
            problem = f"request must be an object, got {type(fields).__name__}"
            raise InvalidRequestError(f"The character request was not sent: {problem}.", problems=(problem,))
        given: dict[str, Any] = dict(fields)
        problems = unknown_fields(given, _UNTRUSTED_FIELDS)
        problems += _path_problems("video", given.get("video"))
        images = given.get("images")
        if images is not None and not isinstance(images, list | tuple):
            problems.append(f"images must be a list of URLs, got {type(images).__name__}")
        for number, image in enumerate(images if isinstance(images, list | tuple) else ()):
            problems += _path_problems(f"images[{number}]", image)
        raise_if_invalid(problems, what="The character request")
        return cls(**given, key=key)

    @property
    def video_url(self) -> str | None:
        """The URL of the video; None for a local path or another source."""
        return str(self.video) if is_url(self.video) else None

    @property
    def video_path(self) -> Path | None:
        """The local path of the video; None for a URL or another source."""
        return None if self.video is None else path_of(self.video)


FIELDS = tuple(field.name for field in attrs.fields(CharacterRequest))
"""The fields of a request for a character."""
_UNTRUSTED_FIELDS = tuple(name for name in FIELDS if name != "key")


def _path_problems(field: str, value: object) -> list[str]:
    if value is None or is_url(to_source(value) if isinstance(value, str) else value):
        return []
    if isinstance(value, str) and value[:5].lower() == "data:":
        return source_problems(field, value)
    return [f"{field} must be an http(s) URL"]


def unknown_fields(given: Mapping[str, object], allowed: Sequence[str]) -> list[str]:
    """Return a line for each name that is no field, with the field or the class that was probably meant."""
    lines: list[str] = []
    for name in given:
        if name in allowed:
            continue
        text = str(name)
        close = difflib.get_close_matches(text[:_MAX_KEY_LENGTH], allowed, n=1)
        meant = _ELSEWHERE.get(text) or (close[0] if close else "")
        advice = f"use {meant}" if meant else f"the fields are {', '.join(allowed)}"
        lines.append(f"{printable(text, limit=60)} must not be given, since there is no such field; {advice}")
    return lines
