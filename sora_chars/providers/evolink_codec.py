"""Evolink's route for Kling's elements as plain functions: requests to bodies, responses to values.

Source: EvoLink docs, "Kling Custom Element", "Get Task Detail" and "Get Credits"
(September 2026).
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import printable
from sora_chars.ids import as_id
from sora_chars.models import FAIL, SUCCESS, Accepts, MediaRule, TaskFailure, TaskSnapshot
from sora_chars.responses import as_code, as_number, parse_json

from . import kling_codec as kling
from .gateway_reply import Reply, read_created, read_polled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sora_chars.models import Character, CharacterRequest
    from sora_chars.responses import Response

LABEL = "Evolink"
MODEL = "kling-custom-element"
CREATE_PATH = "/v1/videos/generations"
CREDITS_PATH = "/v1/credits"
VIDEO: MediaRule = attrs.evolve(kling.VIDEO, local="hosting")
ACCEPTS: Accepts = attrs.evolve(
    kling.ACCEPTS,
    video=VIDEO,
    images=attrs.evolve(kling.IMAGES, local="hosting"),
    voice=(),
)
"""What Evolink accepts: Kling's limits, without uploads and without a voice."""
HOSTED: Accepts = attrs.evolve(
    ACCEPTS,
    video=attrs.evolve(kling.VIDEO, local="upload"),
    images=attrs.evolve(kling.IMAGES, local="upload"),
)
"""What Evolink accepts where the caller hosts local files."""

_STATES: Mapping[str, str] = {"completed": SUCCESS, "failed": FAIL, "cancelled": FAIL}
_MONEY = ("insufficient quota", "insufficient_quota")


def task_path(task_id: str) -> str:
    """Return the path of a poll. The id is quoted already."""
    return f"/v1/tasks/{task_id}"


def element_body(
    request: CharacterRequest, *, callback_url: str | None, video: str | None, images: Sequence[str]
) -> dict[str, Any]:
    """Return the body of the create: Kling's members as parameters of a model."""
    body: dict[str, Any] = {
        "model": MODEL,
        "model_params": kling.element_members(request, video=video, images=images),
    }
    return body if callback_url is None else body | {"callback_url": callback_url}


def _read(response: Response) -> Reply:
    """Read a task, or the error `{"error": {"code", "message", "type"}}`."""
    reply = partial(Reply, response=response, label=LABEL, money=_MONEY)
    try:
        body = parse_json(response.body, exact_integers=True)
    except ValueError:
        body = None
    match body:
        case {"id": id_, "status": str()} if as_id(id_):
            return reply(is_own=True, task=body)
        case {"error": {"message": str(message)} as error}:
            kind = error.get("type")
            return reply(
                is_own=True,
                code=as_code(error.get("code")),
                message=f"{message} ({kind})" if isinstance(kind, str) else message,
            )
        case dict() if response.status == HTTPStatus.OK:
            return reply(is_own=True)
        case _:
            return reply(is_own=False)


def read_element(response: Response, *, provider: str) -> TaskSnapshot:
    """Return the first snapshot in the response to a create.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    return read_created(_read(response), model=MODEL, state="pending", provider=provider)


def read_record(response: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Return the snapshot in the response to a poll, or `seen` itself if the response has not changed.

    Raises:
        TaskNotFoundError: Evolink shows no such task.
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
    return TaskSnapshot(
        task_id=task_id,
        provider=provider,
        state=state,
        model=MODEL,
        result=record.get("result_data") if state in {SUCCESS, FAIL} else None,
        character=_character(record.get("result_data"), task_id, provider) if state == SUCCESS else None,
        failure=_failure(record) if state == FAIL else None,
        created_at=as_number(record.get("created")),
        progress=as_number(record.get("progress")),
        raw=record,
    )


def _character(result: Any, task_id: str, provider: str) -> Character:
    """Return the character in the result, which holds the members of an element, or a list of elements as Kling's."""
    match result:
        case {"elements": [dict() as element, *_]}:
            pass
        case dict():
            element = result
        case _:
            element = {}
    if element_id := as_id(element.get("element_id")):
        made = kling.character_of(element, element_id, task_id=task_id, provider=provider)
        members = {"element_list": [{"element_id": element_id}]}
        return attrs.evolve(made, usage={"prompt": "<<<element_1>>>", "model_params": members})
    raise kling.missing_element(result, task_id=task_id, provider=provider, label=LABEL)


def _failure(record: Mapping[str, Any]) -> TaskFailure:
    error = record.get("error")
    if not isinstance(error, dict):
        return TaskFailure(None, "" if record.get("status") == "failed" else str(record.get("status")))
    message = error.get("message")
    return TaskFailure(as_id(error.get("code")), printable(message) if isinstance(message, str) else "")


def claimed_task(body: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Return the task id and the record in the body of a callback, which is the task."""
    task_id = as_id(body.get("id")) if isinstance(body, dict) else None
    return (task_id, body) if task_id else None


def read_credits(response: Response) -> float:
    """Return the credits that the account has left.

    Raises:
        ProviderError: They were not sent.
    """
    reply = _read(response)
    if not reply.is_success:
        raise reply.error()
    match parse_json(response.body):
        case {"data": {"user": {"remaining_credits": amount}}} if (number := as_number(amount)) is not None:
            return number
        case _:
            raise reply.unreadable("no remaining_credits")
