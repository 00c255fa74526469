"""kie.ai's job API as plain functions: requests to bodies, responses to values. No network, no clock.

Source: kie.ai docs, Market API (createTask, recordInfo, uploads, credit, models), and
recorded traffic of April 2026. Where the two disagree, both forms are read.
"""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from sora_chars.errors import (
    MissingCharacterError,
    ProviderError,
    ServiceUnavailableError,
    TaskNotFoundError,
    printable,
)
from sora_chars.ids import as_id
from sora_chars.models import (
    FAIL,
    SUCCESS,
    Accepts,
    Character,
    CharacterRequest,
    ClipRule,
    MediaRule,
    TaskFailure,
    TaskSnapshot,
    TextRule,
)
from sora_chars.responses import GATEWAY_FAULTS, as_number, json_object, parse_json

from .kie_envelope import Envelope, read_envelope, unreadable
from .kie_uploads import expires_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.responses import Response

FROM_TASK_MODEL = "sora-2-characters-pro"
FROM_VIDEO_MODEL = "sora-2-characters"
_CHARACTER_MODELS = {FROM_TASK_MODEL, FROM_VIDEO_MODEL}
_SUCCESS_CODES = range(200, 300)
_UNNAMED_ID = re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9_-]{8,}")  # no word, such as "success"
_MIB = 1024 * 1024
_TEXT = TextRule(max_length=5000)
_REQUIRED_TEXT = TextRule(max_length=5000, required=True)
VIDEO = MediaRule(
    local="upload",
    formats=("mp4", "webm", "avi", "mov"),
    max_bytes=10 * _MIB,
    seconds=(1, 4),
    note="some pages of kie.ai omit mov",
)
"""The videos that kie.ai's sora-2-characters takes. Source: kie.ai docs, whose form lists mov too."""
ACCEPTS = Accepts(
    from_task=True,
    video=VIDEO,
    images=MediaRule(count=(1, 2), local="upload", max_bytes=20 * _MIB),
    clip=ClipRule(seconds=(1, 4), sources=("from_task",)),
    name={"from_task": TextRule(max_length=40), "video": TextRule(), "images": TextRule()},
    prompt={"from_task": _REQUIRED_TEXT, "video": _TEXT, "images": TextRule(required=True)},
    safety={"from_task": _TEXT, "video": _TEXT},
    voice=("images",),
)
"""What kie.ai accepts. Source: kie.ai docs, sora-2-characters-pro, sora-2-characters and omni/character/create."""
# 408: no result for over 10 minutes. 501: generation failed.
_TERMINAL_CODES = {408, 501}

# Requests


def character_task(request: CharacterRequest, *, video_url: str | None) -> dict[str, Any]:
    """Return the body of createTask for a character from a finished task or from the video at `video_url`."""
    members: dict[str, Any]
    if request.from_task is None:
        model = FROM_VIDEO_MODEL
        members = {"character_file_url": [video_url]}
    else:
        model = FROM_TASK_MODEL
        members = {
            "origin_task_id": request.from_task,
            "timestamps": str(request.clip),
            "character_user_name": request.name,
        }
    members |= {"character_prompt": request.prompt, "safety_instruction": request.safety}
    return {"model": model, "input": {name: value for name, value in members.items() if value is not None}}


# Responses


def read_task_id(response: Response) -> str:
    """Return the task id in the response to createTask. An id names a task whatever the status and the code are.

    Raises:
        NoAnswerError: The outcome is unknown: the request was accepted without a valid id, the code is that of a
            gateway, such as 504, or a gateway wrote a JSON error of its own.
        ProviderError: The request was rejected.
    """
    body = json_object(response) or {}
    data = body.get("data")
    members = data if isinstance(data, dict) else body
    if task_id := as_id(members.get("taskId")) or as_id(members.get("task_id")):
        return task_id
    envelope = read_envelope(response)
    if envelope.code == 0 or envelope.code in _SUCCESS_CODES:
        if task_id := _unnamed_id(data):
            return task_id
        raise unreadable(response, "no task id")
    raise _create_error(envelope)


def _unnamed_id(data: Any) -> str | None:
    """Return the id in the `data` of a success whose member has another name, or that is the id itself."""
    if isinstance(data, dict):
        return as_id(data.get("id")) or as_id(data.get("recordId"))
    found = as_id(data)
    return found if found and _UNNAMED_ID.fullmatch(found) else None


def _create_error(envelope: Envelope) -> ProviderError:
    """Return the error for a create without an id: unknown if kie.ai may not have written the response."""
    error = envelope.error()
    in_doubt = isinstance(error, ServiceUnavailableError) and not (envelope.has_code or error.harmless)
    if in_doubt or envelope.code in GATEWAY_FAULTS:
        return unreadable(envelope.response, "not written by kie.ai")
    return error


def read_record(response: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Return the snapshot in the response to recordInfo.

    Args:
        response: The response.
        task_id: Id of the task that was polled.
        provider: Name of the provider.
        seen: Last snapshot of the task. It is returned itself if the response has not changed.

    Raises:
        TaskNotFoundError: The task is unknown or not visible yet.
        MissingCharacterError: A character model succeeded without a character id.
        ProviderError: As in `read_data`.
    """
    digest = hash((response.status, response.body))
    retry_after = response.retry_after
    if seen and seen.digest == digest and seen.retry_after == retry_after:
        return seen
    envelope = read_envelope(response)
    if isinstance(envelope.data, dict) and (envelope.code == HTTPStatus.OK or "state" in envelope.data):
        snapshot = read_snapshot(envelope.data, provider=provider, wrong=lambda why: unreadable(response, why))
        if snapshot.task_id != task_id:
            raise unreadable(response, "another task's record")
        return attrs.evolve(snapshot, task_id=task_id, retry_after=retry_after, digest=digest)
    if envelope.code in _TERMINAL_CODES:
        failure = TaskFailure(str(envelope.code), printable(envelope.message))
        return TaskSnapshot(task_id=task_id, provider=provider, state=FAIL, failure=failure)
    raise _no_record(envelope, task_id)


def _no_record(envelope: Envelope, task_id: str) -> ProviderError:
    """Return the error for an envelope without a record."""
    status = envelope.response.status
    if envelope.code == HTTPStatus.OK:
        return TaskNotFoundError(f"kie.ai has no record of task {printable(task_id)}.", status=status)
    error = envelope.error()
    if envelope.code == HTTPStatus.NOT_FOUND and envelope.has_code:
        return TaskNotFoundError(error.message, status=status, code=envelope.code)
    return error


def _text(value: Any, _: Any = None) -> str | None:
    return None if value is None or value == "" else str(value)


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


@attrs.frozen(eq=False, repr=False)
class _Record:
    """`data` of recordInfo and of callbacks.

    Times are milliseconds since the epoch, as recorded. Source: kie.ai docs, recordInfo.
    """

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
    if found := as_id(value):
        return found
    raise ValueError("must be an id")


@cache
def _converter() -> cattrs.Converter:
    """Return a converter that reads each field of `_Record` by its type, under kie.ai's camelCase name."""
    hooks: dict[str, Callable[[Any, Any], Any]] = {
        "str": _required_text,
        "str | None": _text,
        "float | None": lambda value, _: as_number(value),
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
    """Return the snapshot in a record of recordInfo or of a callback.

    Args:
        data: The record, parsed from JSON.
        provider: Name of the provider.
        wrong: Makes the error that is raised for a malformed record from the reason.

    Raises:
        MissingCharacterError: A character model succeeded without a character id.
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
    """Parse a JSON string inside the JSON; return any other value as it is."""
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
            hint="Ask kie.ai about the result, which `payload` holds.",
            provider=provider,
            task_id=record.task_id,
            payload=record.result_json,
        )
    character_id, username = found
    return Character(
        id=character_id,
        provider=provider,
        username=username,
        name=_requested_name(record.param),
        task_id=record.task_id,
        usage=_usage(character_id, username),
        expires_at=expires_at(record.param, _seconds(record.create_time)),
        raw=result,
    )


def _usage(character_id: str, username: str | None) -> dict[str, Any]:
    """Return how a Sora video names the character: by its id, and by its user name in the prompt if there is one.

    Source: kie.ai docs, sora-2-text-to-video.
    """
    mention = {"prompt": f"@{username}"} if username else {}
    return mention | {"character_id_list": [character_id]}


def _requested_name(param: Any) -> str | None:
    """Return the name in the request that the record repeats: a JSON string whose `input` is one too, as recorded."""
    match _decode(param):
        case {"input": request_input}:
            members = _decode(request_input)
            return _text(members.get("character_user_name")) if isinstance(members, dict) else None
        case _:
            return None


def _character_id(result: Any) -> tuple[str, str | None] | None:
    """Return the character id and the user name; the sources name four places for the id, tried in this order."""
    if not isinstance(result, dict):
        return None
    for holder in (result, result.get("resultObject")):
        if isinstance(holder, dict) and (id_ := as_id(holder.get("character_id"))):
            return id_, _text(holder.get("character_user_name"))
    listed = result.get("character_id_list")
    first = listed[0] if isinstance(listed, list) and listed else listed
    id_ = as_id(first) or as_id(result.get("characterId"))
    return (id_, None) if id_ else None


def read_omni(response: Response, *, provider: str) -> Character:
    """Return the character in the response to omni/character/create.

    Source: kie.ai docs, omni/character/create (August 2026).

    Raises:
        MissingCharacterError: The request succeeded without a character id.
        NoAnswerError: The outcome is unknown, because the code is that of a gateway, such as 504.
        ProviderError: The request was rejected.
    """
    envelope = read_envelope(response)
    id_ = as_id(envelope.data.get("characterId")) if isinstance(envelope.data, dict) else None
    if id_:
        # Source: kie.ai docs, gemini-omni-video.
        return Character(id=id_, provider=provider, usage={"character_ids": [id_]}, raw=envelope.data)
    match envelope:
        case Envelope(code=0 | 200):
            raise MissingCharacterError(
                f"kie.ai reported success without a character id: {printable(envelope.data)}",
                hint="Ask kie.ai whether the request was charged before you send it again.",
                provider=provider,
                task_id=None,
                payload=envelope.data,
            )
        case _:
            raise _create_error(envelope)
