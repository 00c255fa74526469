"""A create opens a connection of its own, and a caller's aiohttp session changes neither request nor response."""

from __future__ import annotations

import asyncio
import gzip
import json
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from sora_chars import CharacterSession, InsufficientCreditsError, Kie, Limits, SubmissionUnknownError
from sora_chars.errors import NoAnswerError
from sora_chars.transport import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sora_chars.responses import Response

KEY = "sk-SECRET-0123456789"
REQUEST: dict[str, Any] = {"from_task": "7118f712", "clip": "1,3", "prompt": "A dog", "key": "k-1"}
CREATED = {"code": 200, "msg": "success", "data": {"taskId": "task-1"}}


class Server:
    """A keep-alive server that counts connections and creates."""

    def __init__(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.body = body
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        self.status = status
        self.creates: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.ports: list[int] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request, and note which client port it came from."""
        assert request.transport is not None
        self.ports.append(request.transport.get_extra_info("peername")[1])
        if request.method == "POST":
            self.creates.append(request)
            self.bodies.append(await request.read())
        return web.Response(body=self.body, headers=self.headers, status=self.status)


@asynccontextmanager
async def serving(body: object = CREATED, **options: Any) -> AsyncGenerator[Server]:
    """Serve one response to every request."""
    server = Server(body if isinstance(body, bytes) else json.dumps(body).encode(), **options)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncGenerator[Transport]:
    """Give a transport that is open."""
    transport = Transport(provider="raw", base_url=url, api_key=KEY, timeout=1.0, **options)
    await transport.enter()
    try:
        yield transport
    finally:
        await transport.leave()


def read(response: Response) -> Any:
    """Return the JSON of a response."""
    return json.loads(response.body)


def kie(url: str, http: aiohttp.ClientSession | None = None) -> Kie:
    """Return a provider without limits."""
    return Kie(KEY, base_url=url, limits=Limits(), http=http)


@pytest.mark.parametrize("own", [True, False])
async def test_a_create_never_reuses_a_connection(*, own: bool) -> None:
    """GETs share one connection; every create comes from a port of its own, also through a caller's session."""
    async with (
        serving() as server,
        aiohttp.ClientSession() as http,
        opened(server.url, http=None if own else http) as transport,
    ):
        for _ in range(3):
            await transport.request("GET", server.url, read)
            await transport.request("POST", server.url, read, kind="create", json={})
    gets, creates = server.ports[::2], server.ports[1::2]
    assert len(set(gets)) == 1
    assert len({*creates, *gets}) == 4


async def test_a_server_that_closes_idle_connections_puts_no_create_in_doubt() -> None:
    """A server that drops each connection at its second request, as an expired keep-alive does, loses no create."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
        await reader.readexactly(length)
        body = json.dumps(CREATED).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with opened(url) as transport:
            for _ in range(20):
                assert await transport.request("GET", url, read) == CREATED
                assert await transport.request("POST", url, read, kind="create", json={}) == CREATED


async def retry_twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send each request three times, as a retry middleware may."""
    for _ in range(2):
        await handler(request)
    return await handler(request)


SESSIONS: dict[str, Callable[[], aiohttp.ClientSession]] = {
    "retry middleware": lambda: aiohttp.ClientSession(middlewares=(retry_twice,)),
    "raises for status": lambda: aiohttp.ClientSession(raise_for_status=True),
    "no decompression": lambda: aiohttp.ClientSession(auto_decompress=False),
    "content type": lambda: aiohttp.ClientSession(
        headers={"Content-Type": "text/plain", "Authorization": "Basic eA=="}
    ),
    "json as bytes": lambda: aiohttp.ClientSession(json_serialize=lambda value: json.dumps(value).encode()),  # type: ignore[arg-type,return-value]
    "short timeout": lambda: aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1e-9)),
}


@pytest.mark.parametrize("options", SESSIONS)
async def test_one_create_through_any_session(options: str) -> None:
    """Whatever a caller's session does to its own requests, a key is one create with our headers and our body."""
    compressed = gzip.compress(json.dumps(CREATED).encode())
    async with (
        serving(compressed, headers={"Content-Encoding": "gzip"}) as server,
        SESSIONS[options]() as http,
        CharacterSession(kie(server.url, http)) as session,
    ):
        assert (await session.submit(**REQUEST)).task_id == "task-1"
    (create,) = server.creates
    assert create.headers["Authorization"] == f"Bearer {KEY}"
    assert create.headers["Content-Type"] == "application/json"
    assert json.loads(server.bodies[0])["input"]["origin_task_id"] == "7118f712"


async def test_one_create_through_a_session_with_credentials() -> None:
    """A caller's session with basic authentication, which aiohttp refuses to combine with our header, is one create."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's own, of its `auth` option
        http = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "password"))
    async with serving() as server, http, CharacterSession(kie(server.url, http)) as session:
        assert (await session.submit(**REQUEST)).task_id == "task-1"
    (create,) = server.creates
    assert create.headers["Authorization"] == f"Bearer {KEY}"


async def test_a_status_keeps_its_meaning() -> None:
    """Through a session that raises for status, 402 is still an error about credits, and not an unknown outcome."""
    async with (
        serving({"code": 402, "msg": "no credits"}, status=402) as server,
        aiohttp.ClientSession(raise_for_status=True) as http,
        CharacterSession(kie(server.url, http)) as session,
    ):
        with pytest.raises(InsufficientCreditsError):
            await session.submit(**REQUEST)


async def test_what_cannot_be_sent_is_taken_back() -> None:
    """A body that cannot be encoded raises before the first byte: nothing was paid, and nothing is in doubt."""
    async with serving() as server, opened(server.url) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={"a": {1, 2}})
        assert (caught.value.harmless, caught.value.transient) == (True, False)
    assert server.creates == []


async def test_a_handshake_that_hangs_is_taken_back() -> None:
    """A create that times out while its TLS connection is being made was not sent."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with CharacterSession(Kie(KEY, base_url=url, limits=Limits(), timeout=0.4)) as session:
            entry = await session.register(**REQUEST)
            submitting = asyncio.create_task(session.submit(**REQUEST))
            states = []
            while "pending" not in states:
                entry = await session.ledger.changed(entry)
                states.append(entry.state)
            submitting.cancel()
            assert states == ["sending", "pending"]
            assert entry.error["harmless"] is True


async def test_a_lost_answer_stays_unknown() -> None:
    """A create whose answer is lost has left this process, so its outcome is unknown."""

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with CharacterSession(kie(url)) as session:
            with pytest.raises(SubmissionUnknownError):
                await session.submit(**REQUEST)
