"""The routes of Vidu: create, list and edit of subjects (contracts: Vidu)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .responses import PLAIN_JSON, Rejection, Reply, encoded
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    from .state import EmulatorState

SUBJECTS = "/ent/v2/subjects"
SUBJECT = SUBJECTS + "/{id}"
CREDITS = 5
MAX_NAME_LENGTH = 64
MAX_IMAGE_BYTES = 20 * 1024 * 1024
MAX_VIDEO_BYTES = 100 * 1024 * 1024
MAX_COUNT = 100
DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)
IMAGE_TYPES = {"image/png", "image/jpeg", "image/webp"}
VIDEO_TYPES = {"video/mp4", "video/x-msvideo", "video/quicktime"}


def error(status: int, message: str) -> Reply:
    """Return an error. Its form is not published beyond the status and `message`."""
    return Reply(status, encoded({"code": status, "reason": "Error", "message": message}), PLAIN_JSON)


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body, and make the subject at once."""
    body = await _json_object(request)
    _check(body, required=True)
    subject = {
        "id": str(3_000_000_000_000_000_000 + len(state.subjects)),
        "name": body["name"],
        "images": body.get("images", []),
        "videos": body.get("videos", []),
        "voice_id": body.get("voice_id", ""),
        "style": "",
        "description": "",
        "credits": CREDITS,
    }
    state.subjects[str(subject["id"])] = subject
    state.counts.subjects += 1
    return Reply(HTTPStatus.OK, encoded(subject), PLAIN_JSON)


async def subjects(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a page of subjects, newest first."""
    count, start = (request.query.get(name, default) for name, default in (("count", "10"), ("next_page_token", "0")))
    if not (count.isdecimal() and 1 <= int(count) <= MAX_COUNT and start.isdecimal()):
        raise Rejection(error(400, "count must be 1 to 100"))
    found = [{**subject, "credits": 0} for subject in reversed(state.subjects.values())]
    end = int(start) + int(count)
    page = {"subjects": found[int(start) : end], "next_page_token": str(end) if end < len(found) else ""}
    return Reply(HTTPStatus.OK, encoded(page), PLAIN_JSON)


async def edit(state: EmulatorState, request: web.Request) -> Reply:
    """Change a subject, free of charge."""
    subject = state.subjects.get(request.path.removeprefix(SUBJECTS + "/"))
    if subject is None:
        raise Rejection(error(404, "subject not found"))
    body = await _json_object(request)
    _check(body, required=False)
    subject.update(body)
    return Reply(HTTPStatus.OK, encoded({**subject, "credits": 0}), PLAIN_JSON)


def admit(authorization: str, api_key: str | None) -> Reply | None:
    """Check the Authorization header, whose scheme is Token; return the response that rejects it, or None."""
    scheme, _, token = authorization.partition(" ")
    if scheme != "Token" or not token or (api_key is not None and token != api_key):
        return error(401, "Invalid token")
    return None


def _check(body: Mapping[str, object], *, required: bool) -> None:
    for name, value in body.items():
        if name not in FIELDS:
            raise Rejection(error(400, f"{name} is not a known parameter"))
        if (problem := FIELDS[name](value)) is not None:
            raise Rejection(error(400, f"{name} {problem}"))
    if required and "name" not in body:
        raise Rejection(error(400, "name is required"))
    if required and not (body.get("images") or body.get("videos")):
        raise Rejection(error(400, "images or videos are required"))


def _name(value: object) -> str | None:
    valid = isinstance(value, str) and 0 < len(value.strip()) <= len(value) <= MAX_NAME_LENGTH
    return None if valid else f"must be a string of 1 to {MAX_NAME_LENGTH} characters"


def _media(most: int, types: set[str], limit: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        items = cast("list[object]", value) if isinstance(value, list) else []
        if not 1 <= len(items) <= most:
            return f"must hold 1 to {most} items"
        return next((problem for item in items if (problem := _item_problem(item, types, limit))), None)

    return check


def _item_problem(item: object, types: set[str], limit: int) -> str | None:
    if is_url(item):
        return None
    match = DATA_URL.fullmatch(item) if isinstance(item, str) else None
    if match is None or match[1] not in types:
        return "must hold URLs or data URLs of a supported type"
    try:
        size = len(base64.b64decode(match[2], validate=True))
    except (binascii.Error, ValueError):
        return "must hold valid base64"
    return None if size < limit else f"must hold files below {limit} bytes"


FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "name": _name,
    "images": _media(3, IMAGE_TYPES, MAX_IMAGE_BYTES),
    "videos": _media(1, VIDEO_TYPES, MAX_VIDEO_BYTES + 1),
    "voice_id": lambda value: None if isinstance(value, str) and value else "must be a string",
}


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as problem:
        raise Rejection(error(400, "the request body is not valid JSON")) from problem
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(error(400, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)
