"""The receiver in aiohttp, and in Starlette and FastAPI under uvicorn."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import time
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, Kie
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.callbacks import sign
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    Server = Callable[[CallbackReceiver, socket.socket], AbstractAsyncContextManager[None]]

JSON = b"Content-Type: application/json"


@asynccontextmanager
async def aiohttp_server(receiver: CallbackReceiver, listener: socket.socket) -> AsyncGenerator[None]:
    """Serve an aiohttp application with the receiver as its sub-application."""
    app = web.Application()
    app.add_subapp("/hooks/kie/", receiver.aiohttp_app())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    yield
    await runner.cleanup()


def starlette_app(receiver: CallbackReceiver) -> Starlette:
    """Return a Starlette application with the receiver mounted."""
    return Starlette(routes=[Mount("/hooks/kie", receiver.asgi)])


def fastapi_app(receiver: CallbackReceiver) -> FastAPI:
    """Return a FastAPI application with the receiver mounted."""
    app = FastAPI()
    app.mount("/hooks/kie", receiver.asgi)
    return app


def uvicorn_server(make: Callable[[CallbackReceiver], object]) -> Server:
    """Return a server that runs the application of `make` under uvicorn, in this event loop."""

    @asynccontextmanager
    async def serve(receiver: CallbackReceiver, listener: socket.socket) -> AsyncGenerator[None]:
        config = uvicorn.Config(make(receiver), lifespan="on", log_config=None, ws="none")  # type: ignore[arg-type] # ASGI's types
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield  # the socket listens already, so an early connection waits in its backlog
        server.should_exit = True
        await serving

    return serve


SERVERS: dict[str, Server] = {
    "aiohttp": aiohttp_server,
    "starlette": uvicorn_server(starlette_app),
    "fastapi": uvicorn_server(fastapi_app),
    "bare": uvicorn_server(lambda receiver: receiver.asgi),
}


class Stage:
    """A running receiver with one task that only the test ends, and raw access to its port."""

    def __init__(self, emulator: Emulator, session: CharacterSession, receiver: CallbackReceiver, port: int) -> None:
        self.emulator = emulator
        self.session = session
        self.receiver = receiver
        self.port = port
        self.path = b""

    async def start(self) -> str:
        """Start the task and set `path` to the path of its callback."""
        self.emulator.fault("stuck")
        handle = await self.session.submit(from_task="a" * 32, clip="1,3", prompt="A dog")
        self.path = httpx.URL(str(self.emulator.tasks[handle.task_id].callback_url)).raw_path
        return handle.task_id

    async def send(self, *headers: bytes, body: bytes = b"", method: bytes = b"POST", path: bytes | None = None) -> int:
        """Send bytes as they are and return the status of the response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [b"%s %s HTTP/1.1" % (method, self.path if path is None else path), b"Host: test", *headers]
        writer.write(b"\r\n".join([*lines, b"", body]))
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
        return status

    async def post(self, body: bytes, *headers: bytes) -> int:
        """Send a body of declared length as JSON."""
        return await self.send(JSON, b"Content-Length: %d" % len(body), *headers, body=body)


@pytest.fixture(params=SERVERS)
async def stage(request: pytest.FixtureRequest) -> AsyncGenerator[Stage]:
    """Run the receiver under each server."""
    serve = SERVERS[request.param]
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    async with Emulator(speed=100, hmac_key="whsec") as emulator:
        kie = Kie("key", base_url=emulator.url, callback_url=f"http://127.0.0.1:{port}/hooks/kie")
        async with CharacterSession(kie, polling=FixedInterval(3600)) as session:
            receiver = CallbackReceiver(session, "whsec", body_limit=10_000, body_timeout=0.05)
            async with serve(receiver, listener):
                yield Stage(emulator, session, receiver, port)


async def test_callback_ends_wait(stage: Stage) -> None:
    """A signed callback ends a wait whose polls are an hour apart."""
    task_id = await stage.start()
    handle = stage.session.resume(task_id)
    stage.emulator.finish(task_id)
    await stage.receiver.expect(task_id)
    await handle.result()
    assert handle.woken_by == "callback"


async def test_responses_are_json(stage: Stage) -> None:
    """A response, here a rejection, is JSON in kie.ai's own form, and names the allowed method."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{stage.port}") as client:
        response = await client.get("/hooks/kie/token")
    assert response.json() == {"code": 405, "msg": "Callback rejected: the method must be POST."}
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.headers["Content-Type"].startswith("application/json")


async def test_rejections(stage: Stage) -> None:
    """Each invalid request gets the status of its reason, and never a 500."""
    task_id = await stage.start()
    record = b'{"data":{"taskId":"%s","state":"success"}}' % task_id.encode()
    length = b"Content-Length: %d" % len(record)
    assert await stage.send(method=b"GET") == 405
    assert await stage.send(JSON, length, body=record, path=b"/hooks/kie/wrong-token") == 401
    assert await stage.send(JSON, length, body=record, path=b"/hooks/kie/%ff%fe") == 401
    assert await stage.send(b"Content-Type: text/plain", length, body=record) == 401  # unsigned
    assert await stage.post(b"") == 400
    assert await stage.post(b"\xff\x00{") == 400
    assert await stage.post(b"[" * 9_000) == 400
    assert await stage.post(record) == 401  # unsigned
    assert await stage.post(record, b"X-Webhook-Timestamp: 1", b"X-Webhook-Signature: \xff\xfe\xc3") == 401
    assert await stage.post(record, b"X-Webhook-Timestamp: \xd9\xa1", b"X-Webhook-Signature: a") == 401
    assert not stage.session.resume(task_id).done()


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_compressed_body(stage: Stage, compress: Callable[[bytes], bytes]) -> None:
    """A compressed body is read under every framework, and its limit is that of the inflated bytes."""
    task_id = await stage.start()
    timestamp = str(int(time.time()))
    body = compress(b'{"data":{"taskId":"%s","state":"success"}}' % task_id.encode())
    encoding = b"Content-Encoding: " + (b"gzip" if compress is gzip.compress else b"deflate")
    signature = sign("whsec", task_id, timestamp)
    signed = (b"X-Webhook-Timestamp: " + timestamp.encode(), b"X-Webhook-Signature: " + signature.encode())
    assert await stage.post(body, encoding, *signed) == 200
    assert await stage.post(compress(b" " * 10_001), encoding, *signed) == 413


async def test_oversized(stage: Stage) -> None:
    """A body that is too large is rejected by its declared length, or while it arrives if none is declared."""
    await stage.start()
    assert await stage.send(JSON, b"Content-Length: 10001") == 413
    chunk = b"%x\r\n%s\r\n" % (6000, b" " * 6000)
    assert await stage.send(JSON, b"Transfer-Encoding: chunked", body=chunk * 2) == 413


@pytest.mark.parametrize("together", [True, False], ids=["with the head", "later"])
async def test_body_arrives(stage: Stage, *, together: bool) -> None:
    """A body is read whether it arrives together with its head or later."""
    task_id = await stage.start()
    timestamp = str(int(time.time()))
    body = b'{"data":{"taskId":"%s","state":"success"}}' % task_id.encode()
    head = (
        b"POST %s HTTP/1.1" % stage.path,
        b"Host: test",
        JSON,
        b"Content-Length: %d" % len(body),
        b"X-Webhook-Timestamp: " + timestamp.encode(),
        b"X-Webhook-Signature: " + sign("whsec", task_id, timestamp).encode(),
        *((b"Connection: close",) if together else (b"Expect: 100-continue",)),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    writer.write(b"\r\n".join([*head, b"", body if together else b""]))
    if not together:
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"  # waiting for the body
        writer.write(body)
    assert int((await reader.readline()).split()[1]) == 200
    writer.close()
    await writer.wait_closed()
    assert (await stage.receiver.expect(task_id, timeout=0)).raw["data"]["taskId"] == task_id


async def test_slow_sender(stage: Stage) -> None:
    """A body that does not arrive is rejected after `body_timeout`."""
    await stage.start()
    assert await stage.send(JSON, b"Content-Length: 100", body=b"{") == 408


async def test_sender_disconnects(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A sender that disconnects within its body leaves one log line, and no traceback."""
    await stage.start()
    stage.receiver.body_timeout = 60
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    writer.write(b"POST %s HTTP/1.1\r\nHost: test\r\n%s\r\nContent-Length: 100\r\n\r\n{" % (stage.path, JSON))
    await writer.drain()
    writer.write_eof()
    await reader.read()
    writer.close()
    await stage.emulator.until(lambda: [r for r in caplog.records if event_of(r) == "callback.rejected"])
    (line,) = [r for r in caplog.records if event_of(r) == "callback.rejected"]
    assert line.__dict__["reason"] == "Callback rejected: the connection ended within the body."
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\nzz\r\n"),
        (b"Content-Encoding: gzip\r\nContent-Length: 9", b"no gzip.."),
    ],
    ids=["chunks", "gzip"],
)
async def test_malformed_transfer(stage: Stage, header: bytes, body: bytes) -> None:
    """A body that turns out malformed while it is read is rejected."""
    await stage.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    head = (b"POST %s HTTP/1.1" % stage.path, b"Host: test", JSON, b"Expect: 100-continue", header, b"", b"")
    writer.write(b"\r\n".join(head))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"  # the receiver is reading the body
    writer.write(body)
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    assert status in {400, 408}  # aiohttp's C parser drops malformed chunks silently, which ends in the timeout
