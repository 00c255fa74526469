"""Adapters that mount a callback receiver in aiohttp applications and in ASGI applications."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from aiohttp import web

from sora_chars.errors import InvalidCallbackError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, MutableMapping

    Body: TypeAlias = AsyncIterable[bytes] | bytes
    Handle: TypeAlias = Callable[[str, str, Mapping[str, str], Body], Awaitable[tuple[int, dict[str, Any]]]]
    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]

ACCEPTED = {"code": 200, "msg": "success"}  # the answer that kie.ai's docs show
_ACCEPTED_JSON = json.dumps(ACCEPTED).encode()
# RFC 9110, section 15.5.6 requires Allow with status 405, and section 10.2.1 permits it with any other.
_HEADERS = {"Allow": "POST", "Content-Type": "application/json"}


def _encode(payload: Mapping[str, Any]) -> bytes:
    return _ACCEPTED_JSON if payload == ACCEPTED else json.dumps(payload).encode()


def _interrupted() -> InvalidCallbackError:
    return InvalidCallbackError("Callback rejected: the connection ended within the body.", status=400)


def aiohttp_app(handle: Handle) -> web.Application:
    """Return an aiohttp application that passes every request to `handle`."""

    async def respond(request: web.Request) -> web.Response:
        content = request.content
        is_complete = content.is_eof() and not content.exception()
        body = content.read_nowait() if is_complete else _aiohttp_body(request)
        status, payload = await handle(request.method, request.path, request.headers, body)
        return web.Response(body=_encode(payload), status=status, headers=_HEADERS)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    return app


async def _aiohttp_body(request: web.Request) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (OSError, web.RequestPayloadError) as error:
        raise _interrupted() from error


@attrs.frozen
class AsgiApp:
    """An ASGI 3 application that passes every HTTP request to `handle`.

    It is an object and not a method: uvicorn takes a bound coroutine method for an
    application of ASGI 2.
    """

    handle: Handle

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan of the server, as the ASGI specification defines."""
        match scope["type"]:
            case "http":
                await self._respond(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case _:  # lifespan: there is nothing to start or to stop
                for phase in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{phase}.complete"})

    async def _respond(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, payload = await self.handle(scope["method"], scope["path"], headers, _asgi_body(receive))
        body = _encode(payload)
        response_headers = {**_HEADERS, "Content-Length": str(len(body))}
        pairs = [(name.lower().encode(), value.encode()) for name, value in response_headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


async def _asgi_body(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _interrupted()
        yield message.get("body", b"")
        more = message.get("more_body", False)
