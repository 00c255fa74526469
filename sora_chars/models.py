"""The values that people meet: what is asked for, what a task looks like, what comes of it.

All are frozen. Each keeps its own rules; what a provider allows is the provider's business (`Provider.check`).
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import attrs

from .errors import InvalidRequestError, TaskFailedError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

SUCCESS = "success"
FAIL = "fail"

_KEY_LIMIT = 200


def refuse(problems: list[str], *, what: str) -> None:
    """Raise one `InvalidRequestError` that names all `problems`, if there are any."""
    if problems:
        raise InvalidRequestError(f"{what} was not sent: {'; '.join(problems)}.", problems=tuple(problems))


def _bound(value: Any) -> float:
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0, so that no provider reads "-0"
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"clip: bounds must be numbers of seconds, got {printable(repr(value), limit=60)}"
        raise InvalidRequestError(f"The clip was not sent: {problem}.", problems=(problem,)) from error


@attrs.frozen
class Clip:
    """The part of a video from `start` to `end`, in seconds. `str(clip)` is how providers write it: "3.55,5.55".

    Raises:
        InvalidRequestError: a bound is no finite number, or negative, or the end is not after the start.
    """

    start: float = attrs.field(converter=_bound)
    end: float = attrs.field(converter=_bound)

    def __attrs_post_init__(self) -> None:
        problems: list[str] = []
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            problems.append(f"clip: both bounds must be finite seconds, got {self.start},{self.end}")
        elif not 0 <= self.start < self.end:
            problems.append(f"clip: needs 0 <= start < end in seconds, got {self}")
        refuse(problems, what="The clip")

    @classmethod
    def parse(cls, text: str) -> Clip:
        """Read "3.55,5.55" (seconds; spaces around the numbers do no harm)."""
        parts = text.split(",")
        try:
            start, end = map(float, parts)
        except ValueError:
            refuse(
                [f'clip: must be "start,end" in seconds, as in "3.55,5.55", got {printable(text)!r}'],
                what="The clip",
            )
            raise  # pragma: no cover - refuse() has raised
        return cls(start, end)

    @property
    def seconds(self) -> float:
        """How long the clip is, to the microsecond, so that 2.3,3.3 is one second and not 0.9999999999999996."""
        return round(self.end - self.start, 6)

    def __str__(self) -> str:
        return f"{_plain(self.start)},{_plain(self.end)}"


def _plain(seconds: float) -> str:
    """The shortest text that reads back to the same number, never with an exponent: 3.0 -> "3"."""
    text = repr(seconds)
    if "e" in text:
        from decimal import Decimal  # noqa: PLC0415 # no clip of a video has such bounds

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
    """Callers without a type checker send anything."""
    return [] if isinstance(value, allowed) else [f"{field}: must be {what}, got {type(value).__name__}"]


def _text_problems(**fields: object) -> list[str]:
    return [line for name, value in fields.items() for line in _type_problems(name, value, (str, NoneType), "text")]


def _key_problems(key: Any) -> list[str]:
    if key is None or (isinstance(key, str) and 0 < len(key) <= _KEY_LIMIT and key.isprintable()):
        return []
    return [f"key: must be 1 to {_KEY_LIMIT} printable characters, got {printable(repr(key), limit=60)}"]


_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)


def _place_problems(field: str, place: object, *allowed: type) -> list[str]:
    """A URL must be a whole one, and a path must not be empty."""
    if isinstance(place, str) and not place.strip():
        return [f"{field}: must not be empty"]
    if is_url(place) and not _URL.fullmatch(str(place)):
        return [f"{field}: must be an http(s) URL with a host and without spaces, got {printable(place)!r}"]
    return _type_problems(field, place, allowed, "a URL or a local path")


def is_url(place: object) -> bool:
    """Whether a video or image is named by an http(s) URL; everything else is a local path."""
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


@attrs.frozen(kw_only=True)
class CharacterRequest:
    """A character to make, from exactly one of `from_task` (a finished task's id) and `video` (a URL or a local path).

    `clip`: a `Clip`, "start,end" or (start, end), seconds. `key` names the wish; the same key never pays twice.

    Raises:
        InvalidRequestError: not exactly one source, or a field of the wrong type.
    """

    from_task: str | None = None
    video: str | os.PathLike[str] | None = None
    clip: Clip | None = attrs.field(default=None, converter=_to_clip)
    name: str | None = None
    prompt: str | None = None
    safety: str | None = None
    key: str | None = None

    def __attrs_post_init__(self) -> None:
        problems = _text_problems(from_task=self.from_task, name=self.name, prompt=self.prompt, safety=self.safety)
        if (self.from_task is None) == (self.video is None):
            came = "neither" if self.video is None else "both"
            problems.append(f"from_task, video: exactly one of the two is needed, got {came}")
        if self.from_task is not None and not str(self.from_task).strip():
            problems.append("from_task: must not be empty")
        problems += _place_problems("video", self.video, str, os.PathLike, NoneType)
        problems += _type_problems("clip", self.clip, (Clip, NoneType), 'a Clip, "start,end" or (start, end)')
        refuse(problems + _key_problems(self.key), what="The character request")

    @property
    def video_url(self) -> str | None:
        """The video's URL, when it is one."""
        return str(self.video) if is_url(self.video) else None

    @property
    def video_path(self) -> Path | None:
        """The video's local path, when it is one."""
        return None if self.video is None or is_url(self.video) else Path(self.video)


@attrs.frozen(kw_only=True)
class TaskRequest:
    """Any model of the kie.ai job API. Its result is the finished `TaskSnapshot`.

    Raises:
        InvalidRequestError: no model, or an input that is no JSON object.
    """

    model: str
    input: Mapping[str, Any] = attrs.field(factory=dict)
    key: str | None = None

    def __attrs_post_init__(self) -> None:
        problems = _key_problems(self.key)
        problems += _type_problems("model", self.model, (str,), "text")
        if not str(self.model).strip():
            problems.append("model: must not be empty")
        try:
            text = json.dumps(self.input, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"input: must be JSON, but {error}")
        else:
            if not text.startswith("{"):
                problems.append(f"input: must be a JSON object, got {type(self.input).__name__}")
        refuse(problems, what="The task request")


@attrs.frozen(kw_only=True)
class OmniCharacterRequest:
    """A character from one image (a URL or a local path), for kie.ai's gemini-omni-video.

    Source: kie.ai docs, omni/character/create (August 2026).

    Raises:
        InvalidRequestError: a field of the wrong type.
    """

    image: str | os.PathLike[str]
    descriptions: str
    name: str | None = None
    audio_ids: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple)
    key: str | None = None

    def __attrs_post_init__(self) -> None:
        problems = _text_problems(name=self.name) + _key_problems(self.key)
        problems += _place_problems("image", self.image, str, os.PathLike)
        problems += _type_problems("descriptions", self.descriptions, (str,), "text")
        for number, audio_id in enumerate(self.audio_ids):
            problems += _type_problems(f"audio_ids[{number}]", audio_id, (str,), "text")
        refuse(problems, what="The omni character request")


Request = CharacterRequest | TaskRequest | OmniCharacterRequest


def as_request(request: Request | None, fields: Mapping[str, Any]) -> Request:
    """The request given, or one for a character made of `fields`.

    Raises:
        InvalidRequestError: both or neither, a field that does not exist, or one that is wrong.
    """
    if request is None:
        allowed = [field.name for field in attrs.fields(CharacterRequest)]
        if unknown := sorted(fields.keys() - allowed):
            raise InvalidRequestError(
                f"{', '.join(unknown)}: no such field. Allowed are {', '.join(allowed)}.", problems=tuple(unknown)
            )
        return CharacterRequest(**fields)
    if fields or not isinstance(request, Request):
        came = f"{type(request).__name__} with {', '.join(fields) or 'no fields'}"
        raise InvalidRequestError(
            f"request: give either a CharacterRequest, TaskRequest or OmniCharacterRequest, or fields; got {came}."
        )
    return request


@attrs.frozen(kw_only=True)
class Character:
    """A character that was made. `mention` is how prompts name it, set off by spaces.

    `picture_url` is a signed link that dies within days, so it stays out of the repr. `raw` is the provider's answer.
    """

    id: str
    provider: str
    username: str | None = None
    name: str | None = None
    permalink: str | None = None
    picture_url: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    raw: Any = attrs.field(default=None, repr=False)

    @property
    def mention(self) -> str | None:
        """The user name with its "@", or None where the provider gives no user name (use `id` there)."""
        return f"@{self.username}" if self.username else None


@attrs.frozen
class TaskFailure:
    """Why a task failed: the provider's code (digits or a word) and its text."""

    code: str | None
    message: str


@attrs.frozen(kw_only=True)
class TaskSnapshot:
    """A task as one answer showed it.

    `state` is the provider's word; `waiting`, `queuing`, `generating`, `success` and `fail` are known, and any
    other means "still running". Times are epoch seconds by the provider's clock, `duration` seconds, `progress` 0-100.
    `retry_after`: seconds until the next look, where the provider asks for that. `raw`: the provider's answer, which
    a handle does not keep while the task runs. `digest` tells two answers apart without reading them.
    """

    task_id: str
    provider: str
    state: str
    model: str | None = None
    result: Any = attrs.field(default=None, repr=False)
    character: Character | None = None
    failure: TaskFailure | None = None
    created_at: float | None = None
    completed_at: float | None = None
    credits: float | None = None
    progress: float | None = None
    retry_after: float | None = attrs.field(default=None, repr=False, eq=False)
    raw: Any = attrs.field(default=None, repr=False, eq=False)
    digest: int | None = attrs.field(default=None, repr=False, eq=False)

    @property
    def finished(self) -> bool:
        """Whether the task has ended, well or not."""
        return self.state in {SUCCESS, FAIL}

    @property
    def duration(self) -> float | None:
        """How long the task ran, in seconds, once it has ended."""
        if self.created_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.created_at)

    def outcome(self) -> Character | TaskSnapshot:
        """What the finished task gave: its character, or for any other model this snapshot itself.

        Raises:
            TaskFailedError: the task failed.
        """
        if self.state != FAIL:
            return self.character or self
        failure = self.failure or TaskFailure(None, "")
        code = f" with code {printable(failure.code, limit=50)}" if failure.code else ""
        reason = printable(failure.message) or "no reason was given"
        raise TaskFailedError(
            f"Task {self.task_id} failed at {self.provider}{code}: {reason}",
            provider=self.provider,
            task_id=self.task_id,
            code=failure.code,
            snapshot=attrs.evolve(self, raw=None),  # which repeats our callback's token; the ledger keeps it without
        )


@attrs.frozen(kw_only=True)
class Eta:
    """How many seconds a task has left: `low` or more with 9 chances in 10, `median` with 5, `high` with 1.

    Reckoned from tasks of the same model, given that this one has not ended yet.
    """

    low: float
    median: float
    high: float


@attrs.frozen
class ModelInfo:
    """One model that a provider offers: `model` is the name to ask for, `task_type` as "text-to-video"."""

    model: str
    title: str | None = None
    provider: str | None = None
    task_type: str | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class UploadProgress:
    """How far the upload of a local file is, in bytes."""

    path: Path
    sent: int
    total: int
