"""Wavespeed's route for Kling's elements as plain functions: requests to bodies, responses to values.

Source: WaveSpeedAI docs, "Kling Elements Advanced", "Error Codes" and "Upload Files"
(September 2026), and public clients for what the pages leave open: the money in a
message, and the result as text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import RequestRejectedError, ServiceUnavailableError, printable
from sora_chars.ids import as_id
from sora_chars.models import FAIL, SUCCESS, Accepts, MediaRule, TaskFailure, TaskSnapshot, is_whole_url
from sora_chars.responses import as_code, as_number, parse_json

from . import kling_codec as kling
from .gateway_reply import Reply, read_created, read_polled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sora_chars.errors import ProviderError
    from sora_chars.models import Character, CharacterRequest
    from sora_chars.responses import Response

LABEL = "Wavespeed"
MODEL = "kwaivgi/kling-elements-advanced"
CREATE_PATH = f"/api/v3/{MODEL}"
UPLOAD_PATH = "/api/v3/media/upload/binary"
BALANCE_PATH = "/api/v3/balance"
VIDEO: MediaRule = attrs.evolve(kling.VIDEO, local="upload")
ACCEPTS: Accepts = attrs.evolve(
    kling.ACCEPTS,
    video=VIDEO,
    images=attrs.evolve(kling.IMAGES, local="upload"),
)
"""What Wavespeed accepts: Kling's limits, and its own route for uploads."""

_STATES: Mapping[str, str] = {
    "completed": SUCCESS,
    **dict.fromkeys(("failed", "cancelled", "timeout", "deleted"), FAIL),  # the last three by Wavespeed's own clients
}
_POLICY = (RequestRejectedError, "Change the source, the name or the description. It breaks the content policy.")
_SOURCE = (RequestRejectedError, "Check that the URLs of the video and the images are public.")
_FAULT = (ServiceUnavailableError, "")
_KINDS: Mapping[int, tuple[type[ProviderError], str]] = {
    1200: _POLICY,
    1400: (RequestRejectedError, ""),
    1401: (RequestRejectedError, ""),
    1402: _SOURCE,
    1403: (RequestRejectedError, ""),
    1405: (RequestRejectedError, ""),
    5000: _FAULT,
    5003: _FAULT,
    5004: _FAULT,
}
_MONEY = ("insufficient credit", "insufficient fund", "balance")


def task_path(task_id: str) -> str:
    """Return the path of a poll. The id is quoted already."""
    return f"/api/v3/predictions/{task_id}/result"


def element_body(request: CharacterRequest, *, video: str | None, images: Sequence[str]) -> dict[str, Any]:
    """Return the body of the create: Kling's members under Wavespeed's names, with flat lists of URLs."""
    body: dict[str, Any] = {
        "name": request.name,
        "description": request.prompt,
        "reference_type": "image_refer",
        "element_voice_id": request.voice,
    }
    if video is None:
        body["frontal_image"], *body["refer_images"] = images
    else:
        body |= {"reference_type": "video_refer", "element_video_list": [video]}
    return {name: value for name, value in body.items() if value is not None}


def _read(response: Response) -> Reply:
    """Read the envelope `{"code", "message", "data"}`."""
    reply = partial(Reply, response=response, label=LABEL, kinds=_KINDS, money=_MONEY)
    try:
        body = parse_json(response.body, exact_integers=True)
    except ValueError:
        body = None
    match body:
        case {"code": given} if (code := as_code(given)) is not None:
            data = body.get("data")
            task = data if isinstance(data, dict) and as_id(data.get("id")) else None
            message = body.get("message")
            return reply(is_own=True, task=task, code=code, message=message if isinstance(message, str) else "")
        case _:
            return reply(is_own=False)


def read_element(response: Response, *, provider: str) -> TaskSnapshot:
    """Return the first snapshot in the response to a create.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    return read_created(_read(response), model=MODEL, state="created", provider=provider)


def read_record(response: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Return the snapshot in the response to a poll, or `seen` itself if the response has not changed.

    Raises:
        TaskNotFoundError: Wavespeed shows no such task.
        MissingCharacterError: The task succeeded without an element id.
        ProviderError: The poll failed.
    """
    return read_polled(_read, read_snapshot, response, task_id=task_id, provider=provider, seen=seen)


def read_snapshot(record: Mapping[str, Any], *, provider: str) -> TaskSnapshot:
    """Return the snapshot in a record of a poll or of a callback.

    Raises:
        MissingCharacterError: The task succeeded without an element id.
    """
    task_id = as_id(record.get("id")) or ""
    status = record.get("status")
    state = _STATES.get(status, status) if isinstance(status, str) else ""
    ended = state in {SUCCESS, FAIL}
    created_at = _seconds(record.get("created_at"))
    milliseconds = as_number(record.get("executionTime"))
    return TaskSnapshot(
        task_id=task_id,
        provider=provider,
        state=state,
        model=MODEL,
        result=record.get("outputs") if ended else None,
        character=_character(record.get("outputs"), task_id, provider) if state == SUCCESS else None,
        failure=_failure(record) if state == FAIL else None,
        created_at=created_at,
        completed_at=created_at + milliseconds / 1000 if ended and created_at is not None and milliseconds else None,
        raw=record,
    )


def _character(outputs: Any, task_id: str, provider: str) -> Character:
    """Return the character in the first output, which is an object, or the same object as JSON text."""
    element = outputs[0] if isinstance(outputs, list) and outputs else None
    if isinstance(element, str):
        try:
            element = parse_json(element, exact_integers=True)
        except ValueError:
            element = None
    if isinstance(element, dict) and (element_id := as_id(element.get("element_id"))):
        return kling.character_of(element, element_id, task_id=task_id, provider=provider)
    raise kling.missing_element(outputs, task_id=task_id, provider=provider, label=LABEL)


def _failure(record: Mapping[str, Any]) -> TaskFailure:
    status = record.get("status")
    message = record.get("error") or ("" if status == "failed" else status)
    return TaskFailure(as_id(record.get("code") or None), printable(message) if isinstance(message, str) else "")


def _seconds(text: Any) -> float | None:
    """Return an ISO 8601 time, whose fraction may have nanoseconds, in seconds since the epoch."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if time is None else time.replace(tzinfo=time.tzinfo or UTC).timestamp()


def claimed_task(body: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Return the task id and the record in the body of a callback: the bare record, or one in an envelope."""
    record = body.get("data", body) if isinstance(body, dict) else None
    task_id = as_id(record.get("id")) if isinstance(record, dict) else None
    return (task_id, record) if task_id and isinstance(record, dict) else None


def read_upload(response: Response) -> str:
    """Return the URL of an uploaded file.

    Raises:
        ProviderError: The upload failed.
    """
    url = _read_data(response).get("download_url")
    if not is_whole_url(url):
        raise _read(response).unreadable("no download_url")
    return str(url)


def read_balance(response: Response) -> float:
    """Return the balance of the account in US dollars.

    Raises:
        ProviderError: It was not sent.
    """
    balance = as_number(_read_data(response).get("balance"))
    if balance is None:
        raise _read(response).unreadable("no balance")
    return balance


def _read_data(response: Response) -> Mapping[str, Any]:
    """Return the `data` of a successful response."""
    reply = _read(response)
    if not reply.is_success:
        raise reply.error()
    data = parse_json(response.body).get("data")
    return data if isinstance(data, dict) else {}
