"""kie.ai's job API as plain functions: requests into bodies, answers into values. No network, no clock.

Source: kie.ai docs (Market API) and recorded traffic of April 2026; where they disagree, both are read.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from sora_chars.errors import MissingCharacterError, TaskNotFoundError, printable
from sora_chars.ids import is_id
from sora_chars.models import FAIL, SUCCESS, Character, CharacterRequest, ModelInfo, TaskFailure, TaskSnapshot
from sora_chars.transport import GATEWAY_FAULTS, Response, parse_json

from .kie_envelope import Envelope, read_data, read_envelope, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

FROM_TASK_MODEL = "sora-2-characters-pro"
FROM_VIDEO_MODEL = "sora-2-characters"
_CHARACTER_MODELS = {FROM_TASK_MODEL, FROM_VIDEO_MODEL}
_TEXT_LIMIT = 5000
_NAME_LIMIT = 40
_ENDED_WITHOUT_RECORD = {408, 501}

# Requests


def character_problems(request: CharacterRequest) -> list[str]:
    """Which of the documented limits of the two character models the request breaks."""
    problems = [
        f"{field}: at most {_TEXT_LIMIT} characters, got {len(text)}"
        for field, text in (("prompt", request.prompt), ("safety", request.safety))
        if text and len(text) > _TEXT_LIMIT
    ]
    if request.from_task is None:
        if request.clip is not None:
            problems.append(
                f"clip: {FROM_VIDEO_MODEL} takes a whole video of 1 to 4 s, got {request.clip}; cut the video, "
                "or use from_task"
            )
        return problems
    if request.clip is None:
        problems.append('clip: is required with from_task, as "start,end" in seconds')
    elif not 1 <= request.clip.seconds <= 4:  # noqa: PLR2004 # the contract's
        problems.append(f"clip: must span 1 to 4 s, got {request.clip} ({request.clip.seconds} s)")
    if not (request.prompt and request.prompt.strip()):
        problems.append("prompt: is required with from_task and must not be empty")
    if request.name is not None and not 1 <= len(request.name.strip()) <= len(request.name) <= _NAME_LIMIT:
        problems.append(f"name: 1 to {_NAME_LIMIT} characters, got {len(request.name)}")
    return problems


def character_task(request: CharacterRequest, *, video_url: str | None) -> dict[str, Any]:
    """The createTask body of a character: from a finished task, or from the video at `video_url`."""
    members: dict[str, Any]
    if request.from_task is None:
        model, members = FROM_VIDEO_MODEL, {"character_file_url": [video_url]}
    else:
        model = FROM_TASK_MODEL
        members = {
            "origin_task_id": request.from_task,
            "timestamps": str(request.clip),
            "character_user_name": request.name,
        }
    members |= {"character_prompt": request.prompt, "safety_instruction": request.safety}
    return {"model": model, "input": {name: value for name, value in members.items() if value is not None}}


# Answers


def read_task_id(answer: Response) -> str:
    """The id in createTask's answer.

    Raises:
        NoAnswerError: accepted without an id that is one, or a gateway's code (408, 504): the outcome is unknown.
        ProviderError: refused.
    """
    envelope = read_envelope(answer)
    match envelope:
        case Envelope(code=200, data={"taskId": str(task_id)}) if is_id(task_id):
            return task_id
        case Envelope(code=code) if code == 200 or code in GATEWAY_FAULTS:  # noqa: PLR2004
            raise unreadable(answer, "no task id")
        case _:
            raise envelope.error()


def read_record(answer: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """The snapshot in recordInfo's answer; `seen` itself if it came of the same answer.

    Raises:
        TaskNotFoundError: the task is unknown, or not visible yet.
        MissingCharacterError: success of a character model without an id.
        ProviderError: as `read_data`.
    """
    digest, retry_after = hash((answer.status, answer.body)), answer.retry_after
    if seen and seen.digest == digest and seen.retry_after == retry_after:
        return seen
    envelope = read_envelope(answer)
    if isinstance(envelope.data, dict) and (envelope.code == 200 or "state" in envelope.data):  # noqa: PLR2004
        snapshot = read_snapshot(envelope.data, provider=provider, wrong=lambda why: unreadable(answer, why))
        if snapshot.task_id != task_id:
            raise unreadable(answer, "another task's record")
        return attrs.evolve(snapshot, task_id=task_id, retry_after=retry_after, digest=digest)
    if envelope.code in _ENDED_WITHOUT_RECORD:
        failure = TaskFailure(str(envelope.code), printable(envelope.message))
        return TaskSnapshot(task_id=task_id, provider=provider, state=FAIL, failure=failure)
    if envelope.code == 200:  # noqa: PLR2004
        raise TaskNotFoundError(f"kie.ai has no record of task {printable(task_id)}.", status=answer.status)
    error = envelope.error()
    if envelope.code == 404:  # noqa: PLR2004
        raise TaskNotFoundError(error.message, status=answer.status, code=404)
    raise error


def _text(value: Any, _: Any = None) -> str | None:
    return None if value is None or value == "" else str(value)


def _number(value: Any, _: Any = None) -> float | None:
    """A finite number from a number or its text; None from anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


@attrs.frozen(eq=False, repr=False)
class _Record:
    """`data` of recordInfo and of callbacks. `cost_time` is seconds, the times are epoch milliseconds (recorded)."""

    task_id: str
    state: str | None = None
    model: str | None = None
    param: Any = None
    result_json: Any = None
    fail_code: str | None = None
    fail_msg: str | None = None
    complete_time: float | None = None
    create_time: float | None = None
    credits_consumed: float | None = None
    progress: float | None = None


def _required_text(value: Any, _: Any = None) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("must be non-empty text")


@cache
def _converter() -> cattrs.Converter:
    """Make cattrs read with our lenient readers: by the declared type of each field, under kie.ai's camelCase names."""
    hooks: dict[str, Callable[[Any, Any], Any]] = {
        "str": _required_text,
        "str | None": _text,
        "float | None": _number,
        "Any": lambda value, _: value,
    }
    fields: dict[str, Any] = {
        field.name: override(rename=_camel(field.name), struct_hook=hooks[str(field.type)])
        for field in attrs.fields(_Record)
    }
    converter = cattrs.Converter()
    converter.register_structure_hook(_Record, make_dict_structure_fn(_Record, converter, **fields))
    return converter


def read_snapshot(data: Any, *, provider: str, wrong: Callable[[str], Exception]) -> TaskSnapshot:
    """The snapshot in a record; `wrong` makes the error of a record that cannot be read.

    Raises:
        MissingCharacterError: success of a character model without an id.
    """
    try:
        record = _converter().structure(data, _Record)
    except cattrs.BaseValidationError as error:
        raise wrong("; ".join(cattrs.transform_error(error, path="data"))) from error
    state = record.state or ""
    result = _decode(record.result_json) if state == SUCCESS else None
    character = _character(result, record, provider) if state == SUCCESS else None
    return TaskSnapshot(
        task_id=record.task_id,
        provider=provider,
        state=state,
        model=record.model,
        result=result,
        character=character,
        failure=TaskFailure(record.fail_code, printable(record.fail_msg or "")) if state == FAIL else None,
        created_at=_seconds(record.create_time),
        completed_at=_seconds(record.complete_time),
        credits=record.credits_consumed,
        progress=record.progress,
        raw=data,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _decode(result_json: Any) -> Any:
    """A JSON string inside the JSON, or what stands there when it is none."""
    if not isinstance(result_json, str):
        return result_json
    try:
        return parse_json(result_json) if result_json else None
    except ValueError:
        return result_json


def _character(result: Any, record: _Record, provider: str) -> Character | None:
    found = _character_id(result)
    if found is None:
        if record.model not in _CHARACTER_MODELS:
            return None
        raise MissingCharacterError(
            f"Task {printable(record.task_id)} succeeded, but its result holds no character id: "
            f"{printable(record.result_json)}",
            hint="The payload is in the error; ask kie.ai.",
            provider=provider,
            task_id=record.task_id,
            payload=record.result_json,
        )
    character_id, username = found
    return Character(
        id=character_id,
        provider=provider,
        username=username,
        name=_asked_name(record.param),
        task_id=record.task_id,
        raw=result,
    )


def _asked_name(param: Any) -> str | None:
    """The name in the request that the record repeats: JSON in a string, with its `input` once more so (recorded)."""
    match _decode(param):
        case {"input": asked}:
            asked = _decode(asked)
            return _text(asked.get("character_user_name")) if isinstance(asked, dict) else None
        case _:
            return None


def _character_id(result: Any) -> tuple[str, str | None] | None:
    """Id and user name, from the four places in which sources put them, in this order."""
    match result:
        case {"character_id": str(id_)} if id_:
            return id_, _text(result.get("character_user_name"))
        case {"resultObject": {"character_id": str(id_), **rest}} if id_:
            return id_, _text(rest.get("character_user_name"))
        case {"character_id_list": str(id_) | [str(id_), *_]} if id_:
            return id_, None
        case {"characterId": str(id_)} if id_:
            return id_, None
        case _:
            return None


def read_omni(answer: Response, *, provider: str) -> Character:
    """The character of omni/character/create. The errors are those of `read_task_id`."""
    envelope = read_envelope(answer)
    match envelope:
        case Envelope(code=200, data={"characterId": str(id_)}) if is_id(id_):
            return Character(id=id_, provider=provider, raw=envelope.data)
        case Envelope(code=200):
            raise MissingCharacterError(
                f"kie.ai reported success without a character id: {printable(envelope.data)}",
                hint="It may have been charged; ask kie.ai before trying again.",
                provider=provider,
                task_id=None,
                payload=envelope.data,
            )
        case Envelope(code=code) if code in GATEWAY_FAULTS:
            raise unreadable(answer, "no result in time")
        case _:
            raise envelope.error()


def read_upload(answer: Response) -> str:
    """The URL of an uploaded file."""
    match read_data(answer):
        case {"downloadUrl": str(url)} if url:
            return url
        case _:
            raise unreadable(answer, "no downloadUrl")


def read_credit(answer: Response) -> float:
    """How many credits are left."""
    credit = _number(read_data(answer))
    if credit is None:
        raise unreadable(answer, "no number")
    return credit


def read_models(answer: Response) -> list[ModelInfo]:
    """The models on offer."""
    match read_data(answer):
        case {"models": list(models)}:
            return [
                ModelInfo(
                    model=model["model"],
                    title=_text(model.get("title")),
                    provider=_text(model.get("provider")),
                    task_type=_text(model.get("taskType")),
                    raw=model,
                )
                for model in models
                if isinstance(model, dict) and isinstance(model.get("model"), str)
            ]
        case _:
            raise unreadable(answer, "no list of models")
