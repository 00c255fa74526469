"""What the emulator answers, as plain values: no server in sight, so that faults and rules stay pure."""

from __future__ import annotations

import json

import attrs

KIE_JSON = "application/json;charset=UTF-8"  # byte for byte as recorded, without the space aiohttp would write
PLAIN_JSON = "application/json"
HTML = "text/html; charset=utf-8"


@attrs.frozen
class Reply:
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = KIE_JSON


class Refusal(Exception):  # noqa: N818 - not an error of the emulator but its answer
    """Ends a handler early with the answer it carries."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def compact(value: object) -> str:
    """JSON as kie.ai writes it: no spaces, text unescaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def encoded(value: object) -> bytes:
    """Compact JSON as bytes; a lone surrogate becomes "?" as Java would send it."""
    return compact(value).encode(errors="replace")


def kie(code: int, message: str, data: object = None, *, status: int = 200) -> Reply:
    """kie.ai's envelope: the code is in the body, the HTTP status stays 200 (contracts: kie.ai, Envelope)."""
    return Reply(status, encoded({"code": code, "msg": message, "data": data}))


def upload(code: int, message: str, data: object = None) -> Reply:
    """The envelope of kie.ai's upload host, which adds `success` and has another content type (recorded)."""
    done = data is not None
    body: dict[str, object] = {"success": done, "code": code, "msg": message}
    return Reply(200, encoded(body | ({"data": data} if done else {})), PLAIN_JSON)


def kkiai_error(shape: int, status: int, *, message: str, type: str, code: str) -> Reply:  # noqa: A002 - its name
    """An error of kkiai.com in one of the seven shapes of its family (contracts: kkiai.com, Errors)."""
    detail = {"message": message, "type": type, "param": "", "code": code}
    shapes: dict[int, object] = {
        1: {"error": detail},
        2: {"code": code, "message": message, "data": None},
        3: {"error": message},
        4: {"description": message, "type": type, "code": code},
        6: {"error": detail},
    }
    if shape == 5:  # noqa: PLR2004 - numbered as in the contract
        return Reply(200, b"<!doctype html><title>Gateway</title><div id=root></div>", HTML)
    if shape == 7:  # noqa: PLR2004
        return Reply(status, message.encode(), "text/plain; charset=utf-8")
    return Reply(200 if shape == 6 else status, encoded(shapes[shape]), PLAIN_JSON)  # noqa: PLR2004
