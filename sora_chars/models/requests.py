"""The requests that a session accepts, and the rules for their fields."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidRequestError, printable
from sora_chars.ids import strip_blanks
from sora_chars.redaction import masked_repr

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_KEY_LENGTH = 200  # characters


def raise_if_invalid(problems: list[str], *, what: str) -> None:
    """Raise one `InvalidRequestError` that lists all `problems`; do nothing if there are none.

    Args:
        problems: One line for each broken rule, such as "clip must be given".
        what: The subject of the message, such as "The batch".
    """
    if problems:
        raise InvalidRequestError(f"{what} was not sent: {'; '.join(problems)}.", problems=tuple(problems))


def seconds_problems(field: str, value: object) -> list[str]:
    """Return the problems of a time-out that the caller passed, none or one. It may be `math.inf`, for no limit."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return []
    return [f"{field} must be a number of seconds, at least 0, got {printable(repr(value), limit=60)}"]


def _bound(value: Any) -> float:
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0; a provider may not parse "-0"
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"clip must have numbers of seconds as bounds, got {printable(repr(value), limit=60)}"
        raise InvalidRequestError(f"The clip was not sent: {problem}.", problems=(problem,)) from error


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
        raise_if_invalid(problems, what="The clip")

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
            raise InvalidRequestError(f"The clip was not sent: {problem}.", problems=(problem,)) from None
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
    match value:
        case str():
            return Clip.parse(value)
        case (start, end):
            return Clip(start, end)
        case _:
            return value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _type_problems(field: str, value: object, allowed: tuple[type, ...], what: str) -> list[str]:
    """Check a type at run time, for callers without a type checker."""
    return [] if isinstance(value, allowed) else [f"{field} must be {what}, got {type(value).__name__}"]


def _text_problems(**fields: object) -> list[str]:
    return [line for name, value in fields.items() for line in _type_problems(name, value, (str, NoneType), "text")]


def _key_problems(key: Any) -> list[str]:
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


_NOT_IN_ID = re.compile(r"""[\s"'`/\\]""")
_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)


def _source_problems(field: str, source: object, *allowed: type) -> list[str]:
    """Check the source of a video or an image: a URL needs a host, and a path must not be empty."""
    if isinstance(source, str) and not source.strip():
        return [f"{field} must not be empty"]
    if is_url(source) and not _URL.fullmatch(str(source)):
        return [f"{field} must be an http(s) URL with a host and without spaces, got {printable(source)!r}"]
    return _type_problems(field, source, allowed, "a URL or a local path")


def is_url(source: object) -> bool:
    """Return whether the source of a video or an image is an http(s) URL; any other text is a local path."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


@attrs.frozen(kw_only=True)
class CharacterRequest:
    """A request for a character from a video.

    The source is either a task that has finished at the same provider or a video:
    give exactly one of `from_task` and `video`. Which other fields a provider requires
    or allows is checked before anything is sent.

    Attributes:
        from_task: Id of a finished task whose video shows the character.
        video: http(s) URL or local path of a video. Local files are uploaded first,
            where the provider takes uploads.
        clip: The part of the video that shows the character: a `Clip`, "start,end"
            or (start, end), in seconds.
        name: Name of the character.
        prompt: Description of the character.
        safety: Safety instruction for the character, such as "No blood".
        key: Idempotency key of 1 to 200 printable characters. Requests with one key are
            sent and paid once. Without one, each request gets a new key.

    Raises:
        InvalidRequestError: Not exactly one source was given, or a field has the wrong type.
    """

    from_task: str | None = attrs.field(default=None, converter=strip_blanks)
    video: str | os.PathLike[str] | None = attrs.field(default=None, repr=masked_repr)
    clip: Clip | None = attrs.field(default=None, converter=_to_clip)
    name: str | None = None
    prompt: str | None = None
    safety: str | None = None
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = _text_problems(from_task=self.from_task, name=self.name, prompt=self.prompt, safety=self.safety)
        if (self.from_task is None) == (self.video is None):
            given = "neither" if self.video is None else "both"
            problems.append(f"exactly one of from_task and video must be given, got {given}")
        problems += _task_id_problems(self.from_task)
        problems += _source_problems("video", self.video, str, os.PathLike, NoneType)
        problems += _type_problems("clip", self.clip, (Clip, NoneType), 'a Clip, "start,end" or (start, end)')
        raise_if_invalid(problems + _key_problems(self.key), what="The character request")

    @property
    def video_url(self) -> str | None:
        """The URL of the video; None for a local path or another source."""
        return str(self.video) if is_url(self.video) else None

    @property
    def video_path(self) -> Path | None:
        """The local path of the video; None for a URL or another source."""
        return None if self.video is None or is_url(self.video) else Path(self.video)


@attrs.frozen(kw_only=True)
class TaskRequest:
    """A request to any model of the kie.ai job API. Its result is the finished `TaskSnapshot`.

    Attributes:
        model: Name of the model, such as "wan/2-7-image".
        input: JSON object that the model takes. It is sent as it is.
        key: Idempotency key, as in `CharacterRequest`.

    Raises:
        InvalidRequestError: The model is missing, or the input is not a JSON object.
    """

    model: str
    input: Mapping[str, Any] = attrs.field(factory=dict, repr=masked_repr)
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = _key_problems(self.key)
        problems += _type_problems("model", self.model, (str,), "text")
        if not str(self.model).strip():
            problems.append("model must not be empty")
        try:
            text = json.dumps(self.input, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"input must be JSON: {error}")
        else:
            if not text.startswith("{"):
                problems.append(f"input must be a JSON object, got {type(self.input).__name__}")
        raise_if_invalid(problems, what="The task request")


@attrs.frozen(kw_only=True)
class OmniCharacterRequest:
    """A request for a character from one image, for kie.ai's model gemini-omni-video.

    Source: kie.ai docs, "omni/character/create" (August 2026).

    Attributes:
        image: http(s) URL or local path of the image. Local files are uploaded first.
        descriptions: Description of the character.
        name: Name of the character.
        audio_ids: kie.ai's ids of audio files; a single id is accepted too.
        key: Idempotency key, as in `CharacterRequest`.

    Raises:
        InvalidRequestError: A field has the wrong type.
    """

    image: str | os.PathLike[str] = attrs.field(repr=masked_repr)
    descriptions: str
    name: str | None = None
    audio_ids: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple)
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = _text_problems(name=self.name) + _key_problems(self.key)
        problems += _source_problems("image", self.image, str, os.PathLike)
        problems += _type_problems("descriptions", self.descriptions, (str,), "text")
        for number, audio_id in enumerate(self.audio_ids):
            problems += _type_problems(f"audio_ids[{number}]", audio_id, (str,), "text")
        raise_if_invalid(problems, what="The omni character request")


Request = CharacterRequest | TaskRequest | OmniCharacterRequest


def as_request(request: Request | None, fields: Mapping[str, Any]) -> Request:
    """Return `request`, or a `CharacterRequest` made of `fields`.

    Raises:
        InvalidRequestError: Both or neither were given, or a field is unknown or invalid.
    """
    if request is None:
        allowed = [field.name for field in attrs.fields(CharacterRequest)]
        if unknown := sorted(fields.keys() - allowed):
            raise InvalidRequestError(
                f"No such field: {printable(', '.join(unknown))}. Allowed are {', '.join(allowed)}.",
                problems=tuple(unknown),
            )
        return CharacterRequest(**fields)
    if fields or not isinstance(request, Request):
        given = f"{type(request).__name__} with {', '.join(fields) or 'no fields'}"
        raise InvalidRequestError(
            "request must be a CharacterRequest, TaskRequest or OmniCharacterRequest, or be given as fields; "
            f"got {given}."
        )
    return request


def with_changes(request: Request, changes: Mapping[str, Any]) -> Request:
    """Return a request in which some fields have other values.

    Raises:
        InvalidRequestError: A field is unknown or invalid.
    """
    allowed = [field.name for field in attrs.fields(type(request)) if field.name != "key"]
    if unknown := sorted(changes.keys() - allowed):
        raise InvalidRequestError(
            f"No such field: {', '.join(unknown)}. Allowed are {', '.join(allowed)}.", problems=tuple(unknown)
        )
    made: Request = attrs.evolve(request, **changes)
    return made
