"""HeyGen's avatars as plain functions: requests to bodies, responses to values. No network, no clock.

HeyGen answers `{"data": ...}`, or `{"error": {"code", "message"}}`. An avatar is a look of a group, and the id of the
look is the id of the task and of the character. Source: HeyGen's OpenAPI of version 3 (July 2026).
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sora_chars.errors import TaskNotFoundError, printable
from sora_chars.ids import as_id
from sora_chars.models import (
    FAIL,
    SUCCESS,
    Accepts,
    Character,
    MediaRule,
    TaskFailure,
    TaskSnapshot,
    TextRule,
    is_url,
)
from sora_chars.responses import as_number, json_object

from .heygen_envelope import read_data, read_envelope, unreadable
from .named_keys import key_suffix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.models import CharacterRequest
    from sora_chars.responses import Response

AVATARS_PATH = "/v3/avatars"
LOOKS_PATH = AVATARS_PATH + "/looks"
UPLOAD_PATH = "/v3/assets"
PAGE_SIZE = 50  # records of a page of a list
PENDING_CONSENT = "pending_consent"
"""The state of a look that waits for the consent of the person whom the clip shows."""

_MIB = 1024 * 1024
VIDEO = MediaRule(
    local="upload",
    formats=("mp4",),
    max_bytes=32 * _MIB,
    seconds=(15, math.inf),
    note="of one speaker; the size is that of uploads",
)
ACCEPTS = Accepts(
    video=VIDEO,
    images=MediaRule(local="upload", formats=("jpeg", "png"), max_bytes=32 * _MIB),
    name=TextRule(required=True),
)
"""What HeyGen accepts. Source: HeyGen's OpenAPI, "Create avatar" and "Upload asset"."""

_STATES: Mapping[str, str] = {"completed": SUCCESS, "failed": FAIL}


def avatar_body(request: CharacterRequest, *, key: str, file: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of the create: a clip makes a digital twin, a photo a photo avatar."""
    kind = "photo" if request.images else "digital_twin"
    return {"type": kind, "name": f"{request.name}{key_suffix(key)}", "file": dict(file)}


def read_created(response: Response, *, model: str, provider: str) -> TaskSnapshot:
    """Return the first snapshot in the response to a create. An id names the look, whatever the status is.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    body = json_object(response) or {}
    data = body.get("data")
    look = data.get("avatar_item", data) if isinstance(data, dict) else None
    if isinstance(look, dict) and (look_id := as_id(look.get("id"))):
        return _snapshot(look, look_id, provider=provider, model=model)
    read_envelope(response, paid=True)
    raise unreadable(response, "no look id")


def read_look(response: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Return the snapshot in the response to a poll.

    Args:
        response: The response.
        task_id: Id of the look.
        provider: Name of the provider.
        seen: Last snapshot of the look. It is returned itself if the response has not changed.

    Raises:
        TaskNotFoundError: HeyGen shows no such look.
        ProviderError: The poll failed.
    """
    digest = hash((response.status, response.body, response.retry_after))
    if seen and seen.digest == digest:
        return seen
    look = read_data(response)
    if as_id(look.get("id")) not in {None, task_id}:
        raise unreadable(response, "another look's record")
    if not isinstance(look.get("status"), str):
        raise unreadable(response, "no status")
    model = seen.model if seen else None
    return _snapshot(look, task_id, provider=provider, model=model, retry_after=response.retry_after, digest=digest)


def _snapshot(
    look: Mapping[str, Any],
    look_id: str,
    *,
    provider: str,
    model: str | None = None,
    retry_after: float | None = None,
    digest: int | None = None,
) -> TaskSnapshot:
    status = look.get("status")
    state = _STATES.get(status, status) if isinstance(status, str) else "processing"
    finished = state in {SUCCESS, FAIL}
    return TaskSnapshot(
        task_id=look_id,
        provider=provider,
        state=state,
        model=model or _model(look.get("avatar_type")),
        result=look if finished else None,
        character=_character(look, look_id, provider) if state == SUCCESS else None,
        failure=_failure(look.get("error")) if state == FAIL else None,
        created_at=_seconds(look.get("created_at")),
        retry_after=retry_after,
        raw=look,
        digest=digest,
    )


def model_of(request: CharacterRequest) -> str:
    """Return the model by which durations are learned."""
    return "heygen-photo" if request.images else "heygen-digital_twin"


def _model(avatar_type: object) -> str | None:
    """Return the model of a look whose create is not known; `avatar_type` is "digital_twin" or "photo_avatar"."""
    return f"heygen-{avatar_type.removesuffix('_avatar')}" if isinstance(avatar_type, str) and avatar_type else None


def _character(look: Mapping[str, Any], look_id: str, provider: str) -> Character:
    name = look.get("name")
    picture = look.get("preview_image_url")
    return Character(
        id=look_id,
        provider=provider,
        name=name if isinstance(name, str) and name else None,
        picture_url=picture if is_url(picture) else None,
        task_id=look_id,
        usage={"type": "avatar", "avatar_id": look_id},
        raw=look,
    )


def _failure(error: object) -> TaskFailure:
    match error:
        case {"code": code, **rest}:
            return TaskFailure(printable(code or "", limit=100) or None, printable(rest.get("message") or ""))
        case _:
            return TaskFailure(None, "")


def _seconds(time: object) -> float | None:
    """Return a time in seconds since the epoch, or as text of ISO 8601, as seconds since the epoch."""
    if (number := as_number(time)) is not None:
        return number
    found: datetime | None = None
    with suppress(ValueError):
        found = datetime.fromisoformat(time) if isinstance(time, str) else None
    return found.timestamp() if found and found.tzinfo else None


def group_of(snapshot: TaskSnapshot) -> str | None:
    """Return the id of the group of a look, by which its page of consent is requested."""
    return as_id(snapshot.raw.get("group_id")) if isinstance(snapshot.raw, dict) else None


def read_consent(response: Response) -> str:
    """Return the URL of the page on which a person consents.

    Raises:
        ProviderError: The response holds none.
    """
    url = read_data(response).get("url")
    if not (isinstance(url, str) and is_url(url) and url.isprintable()):
        raise unreadable(response, "no page of consent")
    return url


def read_asset(response: Response) -> str:
    """Return the id of an uploaded file.

    Raises:
        ProviderError: The response holds none.
    """
    asset_id = as_id(read_data(response).get("asset_id"))
    if asset_id is None:
        raise unreadable(response, "no asset id")
    return asset_id


def read_page(response: Response) -> tuple[list[Mapping[str, Any]], str | None]:
    """Return the records of a page of a list, and the token of the next page.

    Raises:
        ProviderError: The list was not sent.
    """
    body = read_envelope(response)
    records = body.get("data")
    if not isinstance(records, list):
        raise unreadable(response, "no list")
    token = body.get("next_token") if body.get("has_more") is not False else None
    return [record for record in records if isinstance(record, dict)], token if isinstance(token, str) else None


def is_look(record: Mapping[str, Any]) -> bool:
    """Return whether a record of the list is a look rather than a group of looks."""
    return "group_id" in record or "avatar_type" in record


def looks(records: list[Mapping[str, Any]], *, provider: str) -> list[TaskSnapshot]:
    """Return the looks in records of a list, each as the task that made it."""
    return [_snapshot(record, look_id, provider=provider) for record in records if (look_id := as_id(record.get("id")))]


def is_named(record: object, suffix: str) -> bool:
    """Return whether the name of a record ends in the digest of a key."""
    name = record.get("name") if isinstance(record, dict) else None
    return isinstance(name, str) and name.endswith(suffix)


def read_deleted(response: Response) -> None:
    """Check that a look is gone, whether it was deleted now or before.

    Raises:
        ProviderError: The request was rejected.
    """
    if response.status == HTTPStatus.NO_CONTENT:
        return
    with suppress(TaskNotFoundError):
        read_envelope(response)
