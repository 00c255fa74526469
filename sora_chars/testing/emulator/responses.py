"""The emulator's responses as plain values, independent of the HTTP server."""

from __future__ import annotations

import json
from http import HTTPStatus

import attrs

KIE_JSON = "application/json;charset=UTF-8"  # byte for byte as recorded, without the space aiohttp would write
PLAIN_JSON = "application/json"
HTML = "text/html; charset=utf-8"


@attrs.frozen
class Reply:
    """An HTTP response before it is sent. `retry_after` is its header of that name."""

    status: int
    body: bytes
    content_type: str = KIE_JSON
    retry_after: str | None = None


class Rejection(Exception):  # noqa: N818 - not an error of the emulator but its response
    """Ends a handler early with the response that it carries."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def compact(value: object) -> str:
    """Return JSON as kie.ai writes it: without spaces, with non-ASCII text unescaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def encoded(value: object) -> bytes:
    """Return compact JSON as bytes. A lone surrogate becomes "?", as Java would send it."""
    return compact(value).encode(errors="replace")


def kie(code: int, message: str, data: object = None, *, status: int = HTTPStatus.OK) -> Reply:
    """Return kie.ai's envelope (contracts: kie.ai, Envelope).

    The code is in the body; the HTTP status is 200 whatever the code is.
    """
    return Reply(status, encoded({"code": code, "msg": message, "data": data}))


def upload(code: int, message: str, data: object = None) -> Reply:
    """Return the envelope of kie.ai's upload host, as recorded.

    It has the additional member `success` and another content type.
    """
    succeeded = data is not None
    body: dict[str, object] = {"success": succeeded, "code": code, "msg": message}
    return Reply(HTTPStatus.OK, encoded(body | ({"data": data} if succeeded else {})), PLAIN_JSON)


def kkiai_error(shape: int, status: int, *, message: str, type: str, code: str) -> Reply:  # noqa: A002 - its name
    """Return an error in one of the seven shapes that kkiai.com's gateways use.

    The shapes are numbered as in the contract (contracts: kkiai.com, Errors).
    """
    detail = {"message": message, "type": type, "param": "", "code": code}
    body: object
    match shape:
        case 1:
            body = {"error": detail}
        case 2:
            body = {"code": code, "message": message, "data": None}
        case 3:
            body = {"error": message}
        case 4:
            body = {"description": message, "type": type, "code": code}
        case 5:
            return Reply(HTTPStatus.OK, b"<!doctype html><title>Gateway</title><div id=root></div>", HTML)
        case 6:
            return Reply(HTTPStatus.OK, encoded({"error": detail}), PLAIN_JSON)
        case _:
            return Reply(status, message.encode(), "text/plain; charset=utf-8")
    return Reply(status, encoded(body), PLAIN_JSON)
