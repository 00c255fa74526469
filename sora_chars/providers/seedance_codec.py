"""Seedance's assets as plain functions: requests to calls, responses to values. No network, no clock.

Ark and icover answer with the same records. They differ in how they are called: `seedance_icover.py` has icover's
routes, and `seedance_ark.py` Ark's.

Sources: Volcengine Ark docs, "Private asset library"; apiyi docs, "Seedance 2.0 asset library" (2026).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sora_chars.errors import TaskNotFoundError, printable
from sora_chars.ids import as_id
from sora_chars.models import FAIL, SUCCESS, Accepts, Character, MediaRule, TaskFailure, TaskSnapshot, TextRule
from sora_chars.responses import json_object

from .named_keys import SUFFIX_LENGTH, key_suffix
from .seedance_envelope import read_result, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.models import CharacterRequest
    from sora_chars.models.accepts import Local
    from sora_chars.responses import Response

PAGE_SIZE = 100  # assets of a page of the list
_MIB = 1024 * 1024
_MAX_NAME_LENGTH = 64 - SUFFIX_LENGTH  # Ark takes 64; the rest is the digest of the key
_DEFAULT_NAME = "character"
_STATES: Mapping[str, str] = {"Active": SUCCESS, "Failed": FAIL}
_TYPES = {"Image", "Video", "Audio"}
VIDEO = MediaRule(
    formats=("mp4", "mov"),
    max_bytes=50 * _MIB,
    seconds=(2, 15),
    pixels=(409_600, 927_408),
    frame_rates=(24, 60),
    note="480p or 720p",
)
LARGE_VIDEO = MediaRule(
    formats=("mp4", "mov"), max_bytes=200 * _MIB, seconds=(2, 30), frame_rates=(24, 60), note="up to 4K"
)
IMAGES = MediaRule(
    formats=("jpeg", "png", "webp"), max_bytes=30 * _MIB - 1, min_pixels=300, max_pixels=6000, ratio=(0.4, 2.5)
)


def accepted(local: Local, *, large_clips: bool = False) -> Accepts:
    """Return what the asset library accepts. Source: Volcengine Ark docs, "Private asset library".

    Args:
        local: What happens to local files.
        large_clips: Whether the limits of the newer page for China apply to clips.
    """
    return Accepts(
        video=attrs.evolve(LARGE_VIDEO if large_clips else VIDEO, local=local),
        images=attrs.evolve(IMAGES, local=local),
        name=TextRule(max_length=_MAX_NAME_LENGTH),
    )


ACCEPTS = accepted("upload")
"""What the asset library accepts by icover, which takes uploads."""


@attrs.frozen
class Call:
    """A request to the asset library: its method, its path below the base URL, and its options."""

    method: str
    path: str
    options: Mapping[str, Any] = attrs.field(factory=dict)


class Door(Protocol):
    """How the asset library is called."""

    def create(self, *, url: str, asset_type: str, name: str, group_id: str | None) -> Call:
        """Return the call that makes an asset."""
        ...

    def fetch(self, asset_id: str) -> Call:
        """Return the call that polls an asset."""
        ...

    def list(self, page: int, *, name: str, group_id: str | None) -> Call:
        """Return the call for a page of assets. `name` may narrow it down."""
        ...

    def delete(self, asset_id: str) -> Call:
        """Return the call that deletes an asset."""
        ...


def asset_name(request: CharacterRequest, key: str) -> str:
    """Return the name of the asset, which ends in the digest of the key."""
    return f"{request.name or _DEFAULT_NAME}{key_suffix(key)}"


def model_name(asset_type: object) -> str | None:
    """Return the model by which durations are learned, such as "seedance-video"; None for an unknown type."""
    return f"seedance-{asset_type.lower()}" if isinstance(asset_type, str) and asset_type in _TYPES else None


def read_created(response: Response, *, asset_type: str, provider: str) -> TaskSnapshot:
    """Return the first snapshot in the response to a create. An id names the asset, whatever the status is.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    match json_object(response):
        case {"Result": {"Id": found}} if asset_id := as_id(found):
            return TaskSnapshot(task_id=asset_id, provider=provider, state="Processing", model=model_name(asset_type))
        case _:
            read_result(response, paid=True)
            raise unreadable(response, "no asset id")


def read_asset(response: Response, *, task_id: str, provider: str, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Return the snapshot in the response to a poll.

    Args:
        response: The response.
        task_id: Id of the asset.
        provider: Name of the provider.
        seen: Last snapshot of the asset. It is returned itself if the response has not changed.

    Raises:
        TaskNotFoundError: The asset library shows no such asset.
        ProviderError: The poll failed.
    """
    digest = hash((response.status, response.body))
    if seen and seen.digest == digest and seen.retry_after == response.retry_after:
        return seen
    record = read_result(response)
    if record.get("Id", task_id) != task_id:
        raise unreadable(response, "another asset's record")
    if not isinstance(record.get("Status"), str):
        raise unreadable(response, "no status")
    return attrs.evolve(
        _snapshot(record, task_id, provider=provider, model=seen.model if seen else None),
        retry_after=response.retry_after,
        digest=digest,
    )


def _snapshot(record: Mapping[str, Any], asset_id: str, *, provider: str, model: str | None = None) -> TaskSnapshot:
    status = record.get("Status")
    state = _STATES.get(status, status) if isinstance(status, str) else ""
    model = model_name(record.get("AssetType")) or model
    finished = state in {SUCCESS, FAIL}
    return TaskSnapshot(
        task_id=asset_id,
        provider=provider,
        state=state,
        model=model,
        result=record if finished else None,
        character=_character(record, asset_id, model, provider) if state == SUCCESS else None,
        failure=_failure(record.get("Error")) if state == FAIL else None,
        created_at=_seconds(record.get("CreateTime")),
        completed_at=_seconds(record.get("UpdateTime")) if finished else None,
        raw=record,
    )


def _character(record: Mapping[str, Any], asset_id: str, model: str | None, provider: str) -> Character:
    name = record.get("Name")
    role = model.removeprefix("seedance-") if model else None
    return Character(
        id=asset_id,
        provider=provider,
        name=name if isinstance(name, str) and name else None,
        task_id=asset_id,
        usage=usage_of(asset_id, role) if role else None,
        raw=record,
    )


def usage_of(asset_id: str, role: str) -> Mapping[str, Any]:
    """Return how a request for a Seedance video names an asset.

    The prompt mentions it by its kind and its number among those of that kind, never by its id.
    """
    kind = f"{role}_url"
    return {
        "prompt": f"{role.capitalize()} 1",
        "content": [{"type": kind, kind: {"url": f"asset://{asset_id}"}, "role": f"reference_{role}"}],
    }


def _failure(error: object) -> TaskFailure:
    match error:
        case {"Code": code, "Message": message}:
            return TaskFailure(printable(code, limit=100) or None, printable(message or ""))
        case _:
            return TaskFailure(None, "")


def _seconds(time: object) -> float | None:
    try:
        found = datetime.fromisoformat(time) if isinstance(time, str) else None
    except ValueError:
        return None
    return found.timestamp() if found and found.tzinfo else None


def read_list(response: Response, *, page: int, provider: str) -> tuple[list[TaskSnapshot], bool]:
    """Return the readable assets of a page of the list, and whether more pages follow.

    icover leaves the assets of other accounts out of a page, so a short page is not the last one.

    Raises:
        ProviderError: The list was not sent.
    """
    result = read_result(response)
    items = result.get("Items")
    if not isinstance(items, list):
        raise unreadable(response, "no list")
    found = [
        _snapshot(item, asset_id, provider=provider)
        for item in items
        if isinstance(item, dict) and (asset_id := as_id(item.get("Id")))
    ]
    total = result.get("TotalCount")
    follows = page * PAGE_SIZE < total if isinstance(total, int) else len(items) == PAGE_SIZE
    return found, follows


def read_deleted(response: Response) -> None:
    """Check that an asset is gone, whether it was deleted now or before.

    Raises:
        ProviderError: The request was rejected.
    """
    with suppress(TaskNotFoundError):
        read_result(response)


def name_of(snapshot: TaskSnapshot) -> str:
    """Return the name of an asset in a list, also of one that has no character yet."""
    name = snapshot.raw.get("Name") if isinstance(snapshot.raw, dict) else None
    return name if isinstance(name, str) else ""
