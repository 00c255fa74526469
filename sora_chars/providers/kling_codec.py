"""Kling's elements as plain functions: requests to bodies, responses to values. No network, no clock.

Source: Kling docs, "Element" (September 2026), and recorded responses. Where the two
disagree, both forms are read.
"""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sora_chars.errors import MissingCharacterError, ProviderError, TaskNotFoundError, printable
from sora_chars.ids import as_id
from sora_chars.models import FAIL, SUCCESS, Accepts, Character, MediaRule, TaskFailure, TaskSnapshot, TextRule
from sora_chars.responses import as_number

from .kling_envelope import json_value, read_data, read_envelope, unreadable
from .kling_voices import VOICE_MODEL, is_voice, voice_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sora_chars.models import CharacterRequest
    from sora_chars.responses import Response

MODEL = "kling-elements"
ELEMENTS_PATH = "/v1/general/advanced-custom-elements"
DELETE_PATH = "/v1/general/delete-advanced-elements"
_NO_RESOURCE = 1203
_MIB = 1024 * 1024
VIDEO = MediaRule(
    local="hosting",
    formats=("mp4", "mov"),
    max_bytes=200 * _MIB,
    seconds=(3, 8),
    sizes=((1920, 1080), (1080, 1920)),
    note="of a realistic person",
)
IMAGES = MediaRule(
    count=(2, 4),
    local="inline",
    formats=("jpeg", "png"),
    max_bytes=10 * _MIB,
    min_pixels=300,
    ratio=(0.4, 2.5),
    note="the frontal one first",
)
ACCEPTS = Accepts(
    video=VIDEO,
    images=IMAGES,
    name=TextRule(max_length=20, required=True),
    prompt=TextRule(max_length=100, required=True),
    voice=("video", "images"),
)
"""What Kling accepts. Source: Kling docs, "Create element"."""

_STATES: Mapping[str, str] = {"succeed": SUCCESS, "succeeded": SUCCESS, "failed": FAIL}
_SENDABLE_KEY = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_-]{1,64}")  # a key of digits could be the id of another task


def external_id(key: str) -> str:
    """Return the `external_task_id` of a key: the key, or its digest if the key does not fit into a path."""
    if _SENDABLE_KEY.fullmatch(key):
        return key
    return f"key-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:40]}"


def element_body(
    request: CharacterRequest, *, key: str, callback_url: str | None, video: str | None, images: Sequence[str]
) -> dict[str, Any]:
    """Return the body of the create. `video` is a URL; each of `images` is a URL or base64."""
    body = {
        **element_members(request, video=video, images=images),
        "element_voice_id": request.voice,
        "tag_list": [{"tag_id": "o_102"}],  # a character
        "callback_url": callback_url,
        "external_task_id": external_id(key),
    }
    return {name: value for name, value in body.items() if value is not None}


def element_members(request: CharacterRequest, *, video: str | None, images: Sequence[str]) -> dict[str, Any]:
    """Return the members of a create that describe the element, which Kling's gateways take too."""
    members: dict[str, Any] = {"element_name": request.name, "element_description": request.prompt}
    if video is None:
        frontal, *others = images
        references = [{"image_url": image} for image in others]
        members["reference_type"] = "image_refer"
        members["element_image_list"] = {"frontal_image": frontal, "refer_images": references}
    else:
        members["reference_type"] = "video_refer"
        members["element_video_list"] = {"refer_videos": [{"video_url": video}]}
    return members


def read_created(response: Response, *, provider: str, model: str = MODEL) -> TaskSnapshot | None:
    """Return the first snapshot in the response to a create. A task id names the task, whatever the code is.

    None if the `external_task_id` belongs to a task that was made before.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    match json_value(response):
        case {"data": {"task_id": found} as record} if task_id := as_id(found):
            return TaskSnapshot(task_id=task_id, provider=provider, state=_state(record) or "submitted", model=model)
        case _:
            envelope = read_envelope(response, paid=True)
    if envelope.code == 0:
        raise unreadable(response, "no task id")
    if envelope.is_duplicate:
        return None
    raise envelope.error(paid=True)


def read_record(
    response: Response, *, task_id: str, provider: str, model: str = MODEL, seen: TaskSnapshot | None = None
) -> TaskSnapshot:
    """Return the snapshot in the response to a poll.

    Args:
        response: The response.
        task_id: Id of the task that was polled, or its external id.
        provider: Name of the provider.
        model: What the task makes: elements or voices.
        seen: Last snapshot of the task. It is returned itself if the response has not changed.

    Raises:
        TaskNotFoundError: Kling shows no such task.
        MissingCharacterError: The task succeeded without an element id.
        ProviderError: The poll failed.
    """
    digest = hash((response.status, response.body))
    if seen and seen.digest == digest and seen.retry_after == response.retry_after:
        return seen
    envelope = read_envelope(response)
    if envelope.code != 0:
        raise _task_error(envelope.error(), task_id)
    record = envelope.data
    if not isinstance(record, dict):
        raise unreadable(response, "no record")
    if task_id not in {as_id(record.get("task_id")), _external_id(record)}:
        raise unreadable(response, "another task's record")
    return read_snapshot(record, provider=provider, model=model, retry_after=response.retry_after, digest=digest)


def read_lookup(response: Response, *, external_id: str, provider: str, model: str = MODEL) -> TaskSnapshot | None:
    """Return the task of an `external_task_id`, or None if Kling shows none.

    A success without an element id is returned as a task that is still running: the poll
    that follows reports it.

    Raises:
        ProviderError: The question was rejected.
    """
    envelope = read_envelope(response)
    if envelope.code != 0:
        error = envelope.error()
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise error
    record = envelope.data
    if not isinstance(record, dict) or not as_id(record.get("task_id")):
        raise unreadable(response, "no record")
    if _external_id(record) not in {None, external_id}:
        raise unreadable(response, "another task's record")
    try:
        return read_snapshot(record, provider=provider, model=model)
    except MissingCharacterError:
        return TaskSnapshot(task_id=str(record["task_id"]), provider=provider, state="succeed", model=model)


def _task_error(error: ProviderError, task_id: str) -> ProviderError:
    if error.status != HTTPStatus.NOT_FOUND:
        return error
    return TaskNotFoundError(
        f"Kling shows no task {printable(task_id)}: {error.message}",
        hint="A new task becomes visible within seconds. A task of another account or host is never shown.",
        status=error.status,
        code=error.code,
        request_id=error.request_id,
    )


def _external_id(record: Mapping[str, Any]) -> str | None:
    info = record.get("task_info")
    return as_id(info.get("external_task_id")) if isinstance(info, dict) else None


def read_snapshot(
    record: Mapping[str, Any],
    *,
    provider: str,
    model: str = MODEL,
    retry_after: float | None = None,
    digest: int | None = None,
) -> TaskSnapshot:
    """Return the snapshot in a record of a poll, of a list or of a callback.

    Raises:
        MissingCharacterError: The task succeeded without the id of an element or a voice.
    """
    task_id = as_id(record.get("task_id")) or ""
    state = _state(record)
    ended = state in {SUCCESS, FAIL}
    makes_voice = model == VOICE_MODEL or is_voice(record)
    message = record.get("task_status_msg")
    return TaskSnapshot(
        task_id=task_id,
        provider=provider,
        state=state,
        model=VOICE_MODEL if makes_voice else MODEL,
        result=record.get("task_result") if ended else None,
        character=_character(record, task_id, provider) if state == SUCCESS and not makes_voice else None,
        voice=voice_of(record, task_id, provider) if state == SUCCESS and makes_voice else None,
        failure=TaskFailure(None, printable(message or "")) if state == FAIL else None,
        created_at=_seconds(record.get("created_at")),
        completed_at=_seconds(record.get("updated_at")) if ended else None,
        credits=as_number(record.get("final_unit_deduction")),
        retry_after=retry_after,
        raw=record,
        digest=digest,
    )


def _state(record: Mapping[str, Any]) -> str:
    state = record.get("task_status")
    return _STATES.get(state, state) if isinstance(state, str) else ""


def _character(record: Mapping[str, Any], task_id: str, provider: str) -> Character:
    match record.get("task_result"):
        case {"elements": [{"element_id": found} as element, *_]} if element_id := as_id(found):
            return character_of(element, element_id, task_id=task_id, provider=provider)
        case payload:
            raise missing_element(payload, task_id=task_id, provider=provider, label="Kling")


def missing_element(payload: Any, *, task_id: str, provider: str, label: str) -> MissingCharacterError:
    """Return the error for a task that succeeded without an element id. `label` is the name of the service."""
    return MissingCharacterError(
        f"Task {printable(task_id)} succeeded, but its result holds no element id: {printable(payload)}",
        hint=f"Ask {label} about the result, which `payload` holds.",
        provider=provider,
        task_id=task_id,
        payload=payload,
    )


def character_of(element: Mapping[str, Any], element_id: str, *, task_id: str | None, provider: str) -> Character:
    """Return the character of an element. Its id is an integer beyond 2**53 in JSON, and text here."""
    name = element.get("element_name")
    return Character(
        id=element_id,
        provider=provider,
        name=name if isinstance(name, str) and name else None,
        task_id=task_id,
        usage={"prompt": "<<<element_1>>>", "element_list": [{"element_id": element_id}]},
        raw=element,
    )


def read_list(response: Response, *, provider: str) -> tuple[list[TaskSnapshot], int]:
    """Return the readable records of a page of the list, and the number of all its records."""
    records = read_data(response)
    if not isinstance(records, list):
        raise unreadable(response, "no list")
    found: list[TaskSnapshot] = []
    for record in records:
        if isinstance(record, dict) and as_id(record.get("task_id")):
            try:
                found.append(read_snapshot(record, provider=provider))
            except MissingCharacterError:
                continue
    return found, len(records)


def read_deleted(response: Response) -> None:
    """Read the response to a delete. Kling answers 1201 or 1203 for an element that is gone, which counts as deleted.

    Another 404 means that a proxy serves no such route.

    Raises:
        ProviderError: The request was rejected.
    """
    envelope = read_envelope(response)
    if envelope.code != 0 and not envelope.is_invalid_parameter and envelope.code != _NO_RESOURCE:
        raise envelope.error()


def claimed_task(record: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Return the task id and the record, in the older form, of the body of a callback.

    Elements send the bare record. Newer routes send `id`, `status`, `external_id` and
    `outputs`. An envelope is accepted too.
    """
    if isinstance(record, dict) and isinstance(record.get("data"), dict):
        record = record["data"]
    if not isinstance(record, dict):
        return None
    if task_id := as_id(record.get("task_id")):
        return task_id, record
    if task_id := as_id(record.get("id")):
        older = {
            "task_id": task_id,
            "task_status": record.get("status"),
            "task_status_msg": record.get("message"),
            "created_at": record.get("create_time"),
            "updated_at": record.get("update_time"),
            "task_result": {"elements": record.get("outputs")},
        }
        return task_id, older
    return None


def _seconds(milliseconds: Any) -> float | None:
    number = as_number(milliseconds)
    return None if number is None else number / 1000
