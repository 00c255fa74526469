"""The network of a provider: sessions of the caller, redirects, proxies, TLS and secrets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs
import pytest
from aiohttp import web

from sora_chars import CharacterSession, Kie, Kkiai, NoAnswerError, SoraCharsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Reply = Callable[[web.Request], web.Response]
    Start = Callable[[Reply], Awaitable["Server"]]

KEY = "sk-test-4f81-0123456789"
FROM_TASK: dict[str, Any] = {"from_task": "task_1", "clip": "1,3"}
CHARACTER = {"id": "ch_1", "username": "a.b", "display_name": "Rex"}


@attrs.define(eq=False)
class Server:
    """A server that gives every request the same response. `requests` holds their headers."""

    reply: Reply
    url: str = ""
    requests: list[dict[str, str]] = attrs.field(factory=list)

    async def serve(self, request: web.Request) -> web.Response:
        """Record the request and respond."""
        self.requests.append(dict(request.headers))
        return self.reply(request)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Return a function that starts such a server."""
    runners: list[web.AppRunner] = []

    async def starter(reply: Reply) -> Server:
        server = Server(reply)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return server

    yield starter
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """Run a tiny HTTP proxy that responds for every host; yield its URL and the heads of its requests."""
    heads: asyncio.Queue[str] = asyncio.Queue()
    content = b'{"code":200,"msg":"success","data":12.5}'

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.put_nowait((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://user:secret@127.0.0.1:{port}", heads


async def test_callers_session(start: Start) -> None:
    """An aiohttp session that was passed in lends its connector, adds no headers, and stays open."""
    server = await start(lambda _: web.json_response({"code": 200, "data": 7.5}))
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as http:
        for _ in range(2):
            async with CharacterSession(Kie(KEY, base_url=server.url, http=http)) as session:
                assert await session.credit() == 7.5
            assert not http.closed
    assert not any("X-Mine" in headers for headers in server.requests)
    assert [headers["Authorization"] for headers in server.requests] == [f"Bearer {KEY}"] * 2


async def test_own_session_is_closed(start: Start) -> None:
    """Without one, the connections open and close with the character session."""
    server = await start(lambda _: web.json_response({"code": 200, "data": 7.5}))
    kie = Kie(KEY, base_url=server.url)
    async with CharacterSession(kie) as session:
        await session.credit()
        opened = kie._transport._open
        assert opened is not None
    assert all(client.closed for client in opened.values())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", [Kie, Kkiai])
async def test_no_redirect_is_followed(status: int, kind: type[Kie | Kkiai], start: Start) -> None:
    """A redirect raises an error: the other host gets neither the key nor the paid request."""
    other = await start(lambda _: web.json_response(CHARACTER))
    away = {"Location": f"{other.url}/sora/v1/characters"}
    server = await start(lambda _: web.Response(status=status, headers=away))
    async with CharacterSession(kind(KEY, base_url=server.url)) as session:
        prompt: dict[str, Any] = {"prompt": "A dog"} if kind is Kie else {}
        with pytest.raises(SoraCharsError, match=str(status)):
            await session.create(**FROM_TASK, **prompt)
    assert len(server.requests) == 1
    assert other.requests == []


async def test_echoed_key_is_hidden(start: Start) -> None:
    """A key that the server repeats in its message is masked in the error."""
    server = await start(
        lambda request: web.json_response({"code": 401, "msg": f"{request.headers['Authorization']} is wrong"})
    )
    async with Kie(KEY, base_url=server.url) as kie:
        with pytest.raises(SoraCharsError, match=r"Bearer \*\*\* is wrong") as caught:
            await kie.credit()
    assert KEY not in f"{caught.value} {caught.value!r} {vars(caught.value)}"


@pytest.mark.parametrize("spelling", ["slashes", "escapes", "utf-16"])
async def test_escaped_key_is_hidden(start: Start, spelling: str) -> None:
    """A key that the server repeats with JSON escapes, or in UTF-16, is in no result and in no ledger entry."""
    key = f"{KEY}/0123456789"
    escaped = "".join(f"\\u{ord(character):04x}" for character in key)
    echoed = {"slashes": key.replace("/", "\\/"), "escapes": escaped, "utf-16": key}[spelling]
    text = f'{{"id": "ch_1", "username": "rex", "error_code": "{echoed}"}}'
    body = text.encode("utf-16" if spelling == "utf-16" else "utf-8")
    server = await start(lambda _: web.Response(body=body, content_type="application/json"))
    async with CharacterSession(Kkiai(key, base_url=server.url)) as session:
        character = await session.create(from_task="a" * 32, clip="1,3", key="k")
        entry = await session.entry("k")
    assert entry
    assert character.raw["error_code"] == entry.result["raw"]["error_code"] == "***"


@pytest.mark.parametrize("size", [8_000, 100_000])
async def test_long_headers_are_read(size: int, start: Start) -> None:
    """A paid answer with headers beyond aiohttp's default limit of 8 kB is read."""
    server = await start(lambda _: web.json_response(CHARACTER, headers={"Set-Cookie": "x" * size}))
    async with CharacterSession(Kkiai(KEY, base_url=server.url)) as session:
        assert (await session.create(**FROM_TASK)).id == CHARACTER["id"]
    assert len(server.requests) == 1


async def test_proxy(proxy: tuple[str, asyncio.Queue[str]]) -> None:
    """With a proxy, requests go to it and name their real host, which is not resolved here."""
    url, heads = proxy
    async with Kie(KEY, base_url="http://api.kie.invalid", proxy=url) as kie:
        assert await kie.credit() == 12.5
    head = heads.get_nowait()
    assert head.startswith("GET http://api.kie.invalid/api/v1/chat/credit HTTP/1.1\r\n")
    assert "\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in head
    assert heads.empty()


async def test_unreachable_proxy(unused_tcp_port: int) -> None:
    """An unreachable proxy is a transient, harmless error that does not show its password."""
    proxy = f"http://user:secret@127.0.0.1:{unused_tcp_port}"
    async with Kie(KEY, base_url="http://api.kie.invalid", proxy=proxy) as kie:
        with pytest.raises(NoAnswerError) as caught:
            await kie.fetch("t")
    assert (caught.value.transient, caught.value.harmless) == (True, True)
    assert "secret" not in f"{caught.value} {caught.value.__cause__!r}"


async def test_tls_failure(start: Start) -> None:
    """A host without valid TLS is a permanent error: the request is not repeated."""
    server = await start(lambda _: web.json_response({}))
    async with CharacterSession(Kkiai(KEY, base_url=server.url.replace("http", "https"))) as session:
        with pytest.raises(NoAnswerError) as caught:
            await session.create(**FROM_TASK)
    assert (caught.value.transient, caught.value.harmless) == (False, True)
    assert server.requests == []


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_success_statuses(status: int, start: Start) -> None:
    """Any 2xx status is a success, also with a display name."""
    server = await start(lambda _: web.json_response(CHARACTER, status=status))
    async with CharacterSession(Kkiai.gateway("geekai", KEY, base_url=server.url)) as session:
        character = await session.create(**FROM_TASK)
    assert (character.id, character.mention, character.name) == ("ch_1", "@a.b", "Rex")
