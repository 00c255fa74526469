"""The routes of HeyGen: avatars, consent and uploads (contracts: HeyGen)."""

from __future__ import annotations

import json
import secrets
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import BodyPartReader

from .responses import HTML, PLAIN_JSON, Rejection, Reply, encoded
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from .faults import Fault
    from .heygen_looks import Look
    from .state import EmulatorState

    Handler = Callable[[EmulatorState, web.Request], Awaitable[Reply]]

AVATARS = "/v3/avatars"
LOOKS = AVATARS + "/looks"
LOOK = LOOKS + "/{id}"
CONSENT = AVATARS + "/{group_id}/consent"
UPLOAD = "/v3/assets"
CONSENT_PAGE = "/heygen-consent"
PAGE = CONSENT_PAGE + "/{token}"
MAX_UPLOAD_BYTES = 32 * 1024 * 1024
MAX_LIMIT = 50
ENDPOINTS = ("avatar", "avatar_poll", "avatar_other")
CODES: Mapping[str, tuple[int, str]] = {
    "internal_error": (500, "Something went wrong"),
    "service_unavailable": (503, "The service is unavailable"),
    "gateway_timeout": (504, "The upstream did not answer in time"),
    "rate_limit_exceeded": (429, "Too many requests"),
    "resource_not_ready": (409, "The file is still processed"),
    "insufficient_credit": (402, "Insufficient credit"),
    "quota_exceeded": (429, "The quota is used up"),
    "plan_upgrade_required": (403, "Upgrade your plan"),
    "trial_limit_exceeded": (403, "The limit of the trial is reached"),
    "avatar_not_found": (404, "Avatar not found"),
    "invalid_parameter": (400, "Invalid parameter"),
    "unauthorized": (401, "Unauthorized"),
}
"""Each code with its HTTP status and message."""


def error(code: str, message: str = "", *, retry_after: str | None = None) -> Reply:
    """Return an error by its code."""
    status, text = CODES[code]
    body = {"error": {"code": code, "message": message or text}}
    return Reply(status, encoded(body), PLAIN_JSON, retry_after=retry_after)


def data(value: object, **more: object) -> Reply:
    """Return a successful answer."""
    return Reply(HTTPStatus.OK, encoded({"data": value, **more}), PLAIN_JSON)


def template(path: str) -> str:
    """Return the template of a path with the id of a group; any other path as it is."""
    is_consent = path.startswith(f"{AVATARS}/") and path.endswith("/consent") and path.count("/") == CONSENT.count("/")
    return CONSENT if is_consent else path


def admit(key: str, api_key: str | None) -> Reply | None:
    """Check the X-Api-Key header; return the response that rejects it, or None."""
    return error("unauthorized") if not key or (api_key is not None and key != api_key) else None


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body, and start to make a look."""
    body = await _json_object(request)
    for name in ("type", "name", "file"):
        if name not in body:
            raise Rejection(error("invalid_parameter", f"{name} is required"))
    for name, value in body.items():
        if name not in FIELDS or not FIELDS[name](value):
            raise Rejection(error("invalid_parameter", f"{name} is not valid"))
    group_id = body.get("avatar_group_id")
    if group_id is not None and group_id not in state.heygen.groups:
        raise Rejection(error("avatar_not_found", "the group does not exist"))
    file = cast("Mapping[str, str]", body["file"])
    kind = str(body["type"])
    if problem := _file_problem(state, kind, file):
        raise Rejection(error("invalid_parameter", problem))
    look = state.heygen.create(kind, str(body["name"]), group_id if isinstance(group_id, str) else None)
    state.counts.avatars += 1
    for fault in state.faults.take("avatar"):
        _apply(look, fault)
    return data({"avatar_item": look.record(), "avatar_group": state.heygen.group(look)})


async def poll(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a look."""
    look = _find(state, request)
    look.polls += 1
    return data(look.record())


async def delete(state: EmulatorState, request: web.Request) -> Reply:
    """Delete a look. The second time is an error."""
    del state.heygen.looks[_find(state, request).look_id]
    return data(None)


async def avatars(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a page of groups, newest first."""
    found = [state.heygen.group(look) for look in reversed(state.heygen.first_looks())]
    return _page(request, found)


async def looks(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a page of looks, newest first."""
    group_id = request.query.get("group_id")
    every = reversed(state.heygen.looks.values())
    return _page(request, [look.record() for look in every if group_id in {None, look.group_id}])


async def consent(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the page on which the person of a group consents, a new one each time."""
    await _json_object(request)
    group_id = request.path.removeprefix(f"{AVATARS}/").removesuffix("/consent")
    if group_id not in state.heygen.groups:
        raise Rejection(error("avatar_not_found", "the group does not exist"))
    token = secrets.token_urlsafe(16)
    state.heygen.pages[token] = group_id
    return data({"url": f"{state.url}{CONSENT_PAGE}/{token}?lang=en"})


async def consent_page(state: EmulatorState, request: web.Request) -> Reply:
    """Show the page of consent, which the person sends back to consent."""
    group_id = state.heygen.pages.get(request.path.removeprefix(f"{CONSENT_PAGE}/"))
    if group_id is None:
        return Reply(HTTPStatus.NOT_FOUND, b"<h1>The link has expired</h1>", HTML)
    name = escape(state.heygen.groups[group_id])
    if request.method == "POST":
        state.heygen.consent(group_id)
        return Reply(HTTPStatus.OK, f"<h1>Thank you. {name} is made now.</h1>".encode(), HTML)
    form = f"<h1>Do you consent to the avatar {name}?</h1><form method=post><button>I consent</button></form>"
    return Reply(HTTPStatus.OK, form.encode(), HTML)


async def upload(state: EmulatorState, request: web.Request) -> Reply:
    """Store the `file` of a multipart/form-data body."""
    content: bytes | None = None
    kind = ""
    if request.content_type == "multipart/form-data":
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                content = bytes(await part.read(decode=False))
                kind = str(part.filename).rpartition(".")[2].lower()
    if not content:
        return error("invalid_parameter", "file is required")
    if len(content) > MAX_UPLOAD_BYTES:
        return error("invalid_parameter", "file must have at most 32 MB")
    asset_id = secrets.token_hex(16)
    state.heygen.files[asset_id] = kind
    state.counts.uploads += 1
    return data({"asset_id": asset_id})


def _find(state: EmulatorState, request: web.Request) -> Look:
    look = state.heygen.looks.get(request.path.removeprefix(f"{LOOKS}/"))
    if look is None:
        raise Rejection(error("avatar_not_found"))
    return look


def _page(request: web.Request, found: list[dict[str, object]]) -> Reply:
    limit, token = request.query.get("limit", "20"), request.query.get("token", "0")
    if not (limit.isdecimal() and 1 <= int(limit) <= MAX_LIMIT and token.isdecimal()):
        raise Rejection(error("invalid_parameter", "limit must be 1 to 50"))
    if request.query.get("ownership", "private") != "private":
        return data([], has_more=False, next_token=None)
    end = int(token) + int(limit)
    more = end < len(found)
    return data(found[int(token) : end], has_more=more, next_token=str(end) if more else None)


def _file_problem(state: EmulatorState, kind: str, file: Mapping[str, str]) -> str | None:
    if file["type"] != "asset_id":
        return None
    if file["asset_id"] not in state.heygen.files:
        return "the asset does not exist"
    is_video = state.heygen.files[file["asset_id"]] == "mp4"
    return None if is_video is (kind == "digital_twin") else "the asset is of the wrong kind"


def _file(value: object) -> bool:
    match value:
        case {"type": "url", "url": url, **rest}:
            return not rest and is_url(url)
        case {"type": "asset_id", "asset_id": str(asset_id), **rest}:
            return not rest and bool(asset_id)
        case {"type": "base64", "media_type": str(), "data": str(), **rest}:
            return not rest
        case _:
            return False


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


FIELDS: Mapping[str, Callable[[object], bool]] = {
    "type": lambda value: value in {"digital_twin", "photo"},
    "name": _text,
    "file": _file,
    "avatar_group_id": _text,
}
"""Whether the value of a field is allowed."""


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as problem:
        raise Rejection(error("invalid_parameter", "the body is not valid JSON")) from problem
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(error("invalid_parameter", "the body must be a JSON object"))
    return cast("dict[str, object]", value)


def _coded_error(fault: Fault, _endpoint: str) -> Reply:
    return error(fault.text("code"), fault.text("message"), retry_after=fault.text("retry_after") or None)


def _apply(look: Look, fault: Fault) -> None:
    if fault.kind == "heygen_consent":
        look.needs_consent = True
    elif fault.kind == "heygen_stuck":
        look.never_end()
    else:
        look.failure = (fault.text("code"), fault.text("message"))


ROUTES: Mapping[tuple[str, str], tuple[str, str, Handler]] = {
    ("POST", AVATARS): ("avatar", "heygen", create),
    ("GET", AVATARS): ("avatar_other", "heygen", avatars),
    ("GET", LOOKS): ("avatar_other", "heygen", looks),
    ("GET", LOOK): ("avatar_poll", "heygen", poll),
    ("DELETE", LOOK): ("avatar_other", "heygen", delete),
    ("POST", CONSENT): ("avatar_other", "heygen", consent),
    ("POST", UPLOAD): ("avatar_other", "heygen", upload),
    ("GET", PAGE): ("avatar_other", "storage", consent_page),
    ("POST", PAGE): ("avatar_other", "storage", consent_page),
}
"""The name of each route in faults, the provider that it belongs to, and its handler."""

FAULTS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object], Callable[[Fault, str], Reply] | None]] = {
    "heygen_error": (
        "HeyGen: an error by its code",
        ENDPOINTS,
        {"code": tuple(CODES), "message": "", "retry_after": ""},
        _coded_error,
    ),
    "heygen_consent": ("HeyGen: the person must consent", ("avatar",), {}, None),
    "heygen_stuck": ("HeyGen: the look is never ready", ("avatar",), {}, None),
    "heygen_fail": (
        "HeyGen: the look fails",
        ("avatar",),
        {"code": "video_too_short", "message": "The video must have at least 15 seconds"},
        None,
    ),
}
"""The faults of avatars: description, targets, settings and response. Those without one change the look."""
