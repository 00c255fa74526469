"""The routes of Kling: create, poll, list and delete of elements (contracts: Kling)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .kling_tasks import never_end
from .kling_validation import body_problem, voice_problem
from .responses import PLAIN_JSON, Rejection, Reply, encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .kling_tasks import KlingTask
    from .state import EmulatorState

ELEMENTS = "/v1/general/advanced-custom-elements"
ELEMENT = ELEMENTS + "/{id}"
VOICES = "/v1/general/custom-voices"
VOICE = VOICES + "/{id}"
DELETE = "/v1/general/delete-advanced-elements"
ERRORS: Mapping[int, tuple[int, str]] = {
    1000: (401, "Authentication failed"),
    1001: (401, "Authorization is empty"),
    1002: (401, "Authorization is invalid"),
    1003: (401, "Authorization is not yet valid"),
    1004: (401, "Authorization has expired"),
    1100: (429, "Account exception"),
    1101: (429, "Account in arrears"),
    1102: (429, "Resource pack depleted or expired"),
    1103: (403, "Unauthorized access to the requested resource"),
    1200: (400, "Invalid request parameters"),
    1201: (400, "Invalid parameters"),
    1202: (404, "Invalid request method"),
    1203: (404, "The requested resource does not exist"),
    1300: (400, "Trigger strategy of the platform"),
    1301: (400, "Trigger the content security policy of the platform"),
    1302: (429, "The API request is too fast"),
    1303: (429, "The number of concurrent tasks exceeds the limit"),
    1304: (429, "Trigger the platform's IP whitelisting policy"),
    5000: (500, "Server internal error"),
    5001: (503, "Server temporarily unavailable, usually due to maintenance"),
    5002: (504, "Server internal timeout"),
}
"""The HTTP status and the message of each code (contracts: Kling, Errors)."""
MAX_PAGE = 1000
MAX_PAGE_SIZE = 500


def reply(code: int, message: str = "", data: object = None, *, state: EmulatorState | None = None) -> Reply:
    """Return Kling's envelope with the HTTP status of its code."""
    status, text = ERRORS.get(code, (HTTPStatus.OK, "SUCCEED"))
    request_id = f"emulator-{len(state.requests)}" if state else "emulator"
    body: dict[str, object] = {"code": code, "message": message or text, "request_id": request_id}
    return Reply(status, encoded(body | ({} if data is None else {"data": data})), PLAIN_JSON)


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body, start the task of an element or a voice, and schedule its callbacks."""
    body = await _json_object(request)
    makes_voice = request.path == VOICES
    if (error := voice_problem(body) if makes_voice else body_problem(body)) is not None:
        raise Rejection(reply(1201, error))
    kling = state.kling
    external_id = body.get("external_task_id")
    if external_id is not None and kling.by_external_id(external_id):
        raise Rejection(reply(1201, f"external_task_id {external_id} already exists"))
    if kling.is_full:
        raise Rejection(reply(1303))
    task = kling.create(body, makes_voice=makes_voice)
    if makes_voice:
        state.counts.voices += 1
    else:
        state.counts.elements += 1
    for fault in state.faults.take("voice" if makes_voice else "element"):
        _apply(task, fault.kind, fault.settings)
    state.kling_callbacks.schedule(task)
    return reply(0, data=task.created_record(), state=state)


async def poll(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the record of a task id, or of a client's id."""
    _, _, name = request.path.rpartition("/")
    task = state.kling.find(name)
    if task is None or task.makes_voice != request.path.startswith(VOICES):
        return reply(1203)
    task.polls += 1
    return reply(0, data=task.record(), state=state)


async def tasks(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a page of records, newest first."""
    page, size = (request.query.get(name, default) for name, default in (("pageNum", "1"), ("pageSize", "30")))
    if not (page.isdecimal() and 1 <= int(page) <= MAX_PAGE and size.isdecimal() and 1 <= int(size) <= MAX_PAGE_SIZE):
        raise Rejection(reply(1201, "pageNum must be 1 to 1000, and pageSize 1 to 500"))
    records = [task.record() for task in reversed(state.kling.tasks.values())]
    first = (int(page) - 1) * int(size)
    return reply(0, data=records[first : first + int(size)], state=state)


async def delete(state: EmulatorState, request: web.Request) -> Reply:
    """Delete an element. The second time is an error."""
    body = await _json_object(request)
    element_id = body.get("element_id")
    if not isinstance(element_id, str):
        raise Rejection(reply(1201, "element_id must be a string"))
    if not state.kling.delete(element_id):
        raise Rejection(reply(1201, "element_id does not exist"))
    return reply(0, data={"element_id": element_id}, state=state)


def admit(authorization: str, api_key: str | None, secret_key: str | None) -> Reply | None:
    """Check the Authorization header; return the response that rejects it, or None.

    Args:
        authorization: The header.
        api_key: The key to accept; None accepts any.
        secret_key: The secret key with which JWTs must be signed; None accepts none.
    """
    scheme, _, token = authorization.partition(" ")
    if not authorization:
        return reply(1001)
    if scheme != "Bearer" or not token:
        return reply(1002)
    if token.count(".") == 2:  # noqa: PLR2004 - a JWT has three parts
        code = _jwt_problem(token, secret_key)
        return reply(code) if code else None
    return reply(1000) if api_key is not None and token != api_key else None


def _jwt_problem(token: str, secret_key: str | None) -> int:
    """Return the code of what is wrong with a JWT, or 0."""
    text, _, signature = token.rpartition(".")
    digest = hmac.digest((secret_key or "").encode(), text.encode(), hashlib.sha256)
    if secret_key is None or _decoded(signature) != digest:
        return 1000
    try:
        header, claims = (cast("dict[str, object]", json.loads(_decoded(part))) for part in text.split("."))
        expires, starts = float(str(claims["exp"])), float(str(claims["nbf"]))
    except (ValueError, KeyError, TypeError):
        return 1002
    if header != {"alg": "HS256", "typ": "JWT"} or not claims.get("iss"):
        return 1002
    if starts > time.time():
        return 1003
    return 1004 if expires <= time.time() else 0


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return b""


def _apply(task: KlingTask, kind: str, settings: Mapping[str, object]) -> None:
    if kind == "kling_stuck":
        never_end(task)
    elif kind == "kling_fail":
        task.failure = str(settings["message"])
    else:
        task.without_element = True


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Rejection(reply(1200, "the request body is not valid JSON")) from error
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(reply(1200, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)
