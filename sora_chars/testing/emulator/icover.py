"""The routes of icover: the asset library and uploads (contracts: Seedance assets, apiyi)."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .ark import ENDPOINTS, answer
from .files import File
from .responses import PLAIN_JSON, Rejection, Reply, encoded
from .seedance_assets import DEFAULT_GROUP, TYPES
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from .faults import Fault
    from .seedance_assets import EmulatedAsset
    from .state import EmulatorState

ASSETS = "/api/asset-library/assets"
ASSET = ASSETS + "/{id}"
PRESIGN = "/api/storage/presign"
STORAGE = "/icover-storage"
STORED = STORAGE + "/{name}"
MAX_LABEL_LENGTH = 64
MAX_PAGE_SIZE = 100
TEXT = "text/plain; charset=utf-8"


def error(status: int, message: str) -> Reply:
    """Return an error of icover's own, which is plain text."""
    return Reply(status, f"[client] {message}".encode(), TEXT)


def admit(authorization: str, api_key: str | None) -> Reply | None:
    """Check the Authorization header; return the response that rejects it, or None."""
    scheme, _, key = authorization.partition(" ")
    if scheme != "Bearer" or not key or (api_key is not None and key != api_key):
        return error(401, "invalid asset library key")
    return None


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body, and start to process the file."""
    body = await _json_object(request)
    _check(body, ASSET_FIELDS)
    if "imageUrl" not in body:
        raise Rejection(error(400, "imageUrl is required"))
    group_id = str(body.get("groupId", DEFAULT_GROUP))
    if group_id not in state.seedance.groups:
        raise Rejection(error(404, "group not found"))
    url = str(body["imageUrl"])
    asset = state.seedance.create(
        asset_type=str(body.get("assetType", "Image")),
        group_id=group_id,
        name=str(body.get("label", "")),
        url=url,
        file=state.files.find(url),
    )
    state.counts.assets += 1
    for fault in state.faults.take("asset"):
        asset.apply(fault.kind, fault.settings)
    return answer("CreateAsset", {"Id": asset.asset_id})


async def poll(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the record of an asset."""
    asset = _find(state, request)
    asset.polls += 1
    return answer("GetAsset", asset.record())


async def delete(state: EmulatorState, request: web.Request) -> Reply:
    """Delete an asset. The second time is an error."""
    del state.seedance.assets[_find(state, request).asset_id]
    return answer("DeleteAsset", {})


async def assets(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a page of assets, newest first, with a field of icover's own."""
    page, size = (request.query.get(name, default) for name, default in (("pageNumber", "1"), ("pageSize", "100")))
    if not (page.isdecimal() and int(page) >= 1 and size.isdecimal() and 1 <= int(size) <= MAX_PAGE_SIZE):
        raise Rejection(error(400, "pageSize must be 1 to 100"))
    group_id = request.query.get("groupId")
    found = [
        asset.record() | {"_library": "virtual"}
        for asset in reversed(state.seedance.assets.values())
        if group_id in {None, asset.group_id}
    ]
    first = (int(page) - 1) * int(size)
    return answer("ListAssets", {"TotalCount": len(found), "Items": found[first : first + int(size)]})


async def presign(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the address of an upload, and where the file is then public."""
    body = await _json_object(request)
    _check(body, PRESIGN_FIELDS)
    name = f"{state.task_store.new_id()}.{body.get('ext', 'jpg')}"
    path = f"uploads/seedance/{name}"
    state.seedance.uploads[name] = str(body.get("contentType", "image/jpeg"))
    data = {
        "uploadUrl": f"{state.url}{STORAGE}/{name}?X-Amz-Signature={secrets.token_hex(16)}",
        "publicUrl": state.files.root + path,
    }
    return Reply(HTTPStatus.OK, encoded({"code": 0, "message": "ok", "data": data}), PLAIN_JSON)


async def store(state: EmulatorState, request: web.Request) -> Reply:
    """Store a file at an announced address, as S3-compatible storage does: the signature is the only credential."""
    name = request.path.removeprefix(STORAGE + "/")
    if request.headers.get("Authorization") or "X-Amz-Signature" not in request.query:
        raise Rejection(Reply(400, b"<Error><Code>InvalidArgument</Code></Error>", "application/xml"))
    if state.seedance.uploads.get(name) != request.headers.get("Content-Type"):
        raise Rejection(Reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", "application/xml"))
    mime = state.seedance.uploads.pop(name)
    state.files.add(f"uploads/seedance/{name}", File(mime, await request.read()))
    state.counts.uploads += 1
    return Reply(HTTPStatus.OK, b"", TEXT)


def _find(state: EmulatorState, request: web.Request) -> EmulatedAsset:
    asset = state.seedance.assets.get(request.path.removeprefix(ASSETS + "/"))
    if asset is None:
        raise Rejection(error(404, "asset not found"))
    return asset


def _check(body: Mapping[str, object], fields: Mapping[str, Callable[[object], str | None]]) -> None:
    for name, value in body.items():
        if name not in fields:
            raise Rejection(error(400, f"{name} is not a known parameter"))
        if (problem := fields[name](value)) is not None:
            raise Rejection(error(400, f"{name} {problem}"))


def _text(limit: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        valid = isinstance(value, str) and 0 < len(value.strip()) <= len(value) <= limit
        return None if valid else f"must be a string of 1 to {limit} characters"

    return check


ASSET_FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "imageUrl": lambda value: None if is_url(value) else "must be an http or https URL",
    "label": _text(MAX_LABEL_LENGTH),
    "groupId": _text(100),
    "assetType": lambda value: None if value in TYPES else "must be Image, Video or Audio",
}
PRESIGN_FIELDS: Mapping[str, Callable[[object], str | None]] = {"ext": _text(10), "contentType": _text(100)}


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as problem:
        raise Rejection(error(400, "the request body is not valid JSON")) from problem
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(error(400, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)


ROUTES: Mapping[tuple[str, str], tuple[str, str, Callable[[EmulatorState, web.Request], Awaitable[Reply]]]] = {
    ("POST", ASSETS): ("asset", "icover", create),
    ("GET", ASSETS): ("asset_other", "icover", assets),
    ("GET", ASSET): ("asset_poll", "icover", poll),
    ("DELETE", ASSET): ("asset_other", "icover", delete),
    ("POST", PRESIGN): ("asset_other", "icover", presign),
    ("PUT", STORED): ("asset_upload", "storage", store),
}
"""The name of each route in faults, the provider that it belongs to, and its handler."""


def _own_error(fault: Fault, _endpoint: str) -> Reply:
    return error(fault.integer("status"), fault.text("message"))


FAULTS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object], Callable[..., Reply] | None]] = {
    "icover_error": (
        "Seedance: icover's own error, as plain text",
        ENDPOINTS,
        {"status": 502, "message": "upstream error"},
        _own_error,
    ),
}
"""The faults of icover: description, targets, settings and response."""
