from __future__ import annotations

import asyncio
import json
import logging
import socket
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp
import attrs
import pytest

from sora_chars.errors import (
    NoAnswerError,
    RateLimitedError,
    ServiceUnavailableError,
    SessionClosedError,
    WrongLoopError,
)
from sora_chars.testing.emulator.transmission import close_by_reset
from sora_chars.transport import Response, Transport, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from sora_chars.ratelimit.window import Kind

    Step = Callable[["Connection"], Awaitable[None]]

KEY = "sk-SECRET-0123456789"
MEGABYTE = 1024 * 1024
KINDS: tuple[Kind, ...] = ("create", "poll", "other")


@attrs.define(eq=False)
class Connection:
    """One connection that a client opened, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: RawServer

    async def request(self) -> bytes:
        """Read one request to its end, and count it."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.server.requests.append(head + body)
        return head + body

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Drop the connection with a RST."""
        close_by_reset(self.writer.transport)
        self.writer.transport.abort()


@attrs.define(eq=False)
class RawServer:
    """A server that handles each connection by the next of its steps, the last one for ever."""

    steps: list[Step]
    url: str = ""
    connections: int = 0
    requests: list[bytes] = attrs.field(factory=list[bytes])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self.connections += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        try:
            await step(Connection(reader, writer, self))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    """Start servers on loopback; all are closed after the test."""
    servers: list[asyncio.Server] = []

    async def start(*steps: Step, port: int = 0) -> RawServer:
        raw = RawServer(list(steps))
        server = await asyncio.start_server(raw.serve, "127.0.0.1", port)
        servers.append(server)
        raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return raw

    yield start
    for server in servers:
        server.close()


Serve = "Callable[..., Awaitable[RawServer]]"


def transport_to(url: str, *, timeout: float = 1.0, **options: Any) -> Transport:
    """A transport of the provider "raw"; creates time out after a second."""
    return Transport(provider="raw", base_url=url, api_key=KEY, timeout=timeout, **options)


@attrs.define(eq=False)
class Opened:
    """A transport that is open in the block."""

    transport: Transport

    async def __aenter__(self) -> Transport:
        await self.transport.enter()
        return self.transport

    async def __aexit__(self, *_: object) -> None:
        await self.transport.leave()


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer on a connection that ends with it."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n".encode() + body


def answers(data: bytes) -> Step:
    """Read the request, send `data`."""

    async def step(connection: Connection) -> None:
        await connection.request()
        await connection.send(data)

    return step


def read(answer: Response) -> Any:
    """JSON, where "429" and "500" are said inside HTTP 200."""
    value = parse_json(answer.body)
    if value == 429:
        raise RateLimitedError("busy", retry_after=answer.retry_after)
    if value == 500:
        raise ServiceUnavailableError("down")
    return value


def raw(answer: Response) -> bytes:
    """The body."""
    return answer.body


async def cut_at_once(connection: Connection) -> None:
    """Reset the connection before anything was read."""
    connection.reset()


async def cut_after_the_head(connection: Connection) -> None:
    """Reset it when the head of the request is here."""
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.reset()


async def cut_after_the_body(connection: Connection) -> None:
    """Reset it when the whole request is here."""
    await connection.request()
    connection.reset()


async def close_after_the_body(connection: Connection) -> None:
    """Close it, politely, when the whole request is here."""
    await connection.request()


async def cut_in_the_head_of_the_answer(connection: Connection) -> None:
    """Begin to answer, and reset."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-")
    connection.reset()


async def cut_in_the_answer(connection: Connection) -> None:
    """Promise a body, send half of it, close."""
    await connection.request()
    await connection.send(http(b'{"id": 1}')[:-4])


async def say_nothing(connection: Connection) -> None:
    """Half-open: take everything, answer nothing, until the client leaves."""
    await connection.request()
    await connection.reader.read()


async def trickle(connection: Connection) -> None:
    """A byte now and then, for ever."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not connection.reader.at_eof():
        await connection.send(b" ")
        await asyncio.sleep(0.001)


CUTS = [
    cut_at_once,
    cut_after_the_head,
    cut_after_the_body,
    close_after_the_body,
    cut_in_the_head_of_the_answer,
    cut_in_the_answer,
    say_nothing,
    trickle,
    answers(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
async def test_a_paid_request_is_never_sent_twice(cut: Step, serve: Any) -> None:
    """Wherever the answer is lost, the server sees one connection, and the error does not call it harmless."""
    server = await serve(cut)
    async with Opened(transport_to(server.url, timeout=0.2)) as transport:
        with pytest.raises(NoAnswerError, match=rf"raw gave no answer to POST {server.url}/create: .") as caught:
            await transport.request("POST", f"{server.url}/create", read, kind="create", json={"a": 1})
    assert not caught.value.harmless
    assert caught.value.provider == "raw"
    assert server.connections == 1


async def test_a_paid_request_on_a_dropped_kept_connection_is_not_sent_again(serve: Any) -> None:
    """A connection that the server drops between two requests loses the second one, and nobody resends it."""

    async def answer_once(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        await connection.request()
        connection.reset()

    server = await serve(answer_once)
    async with Opened(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, read) == 1
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={})
    assert not caught.value.harmless
    assert len(server.requests) == 2


@pytest.mark.parametrize("cut", CUTS[:6], ids=lambda cut: cut.__name__)
@pytest.mark.parametrize("kind", ["poll", "other"])
async def test_a_free_request_is_repeated(cut: Step, kind: Kind, serve: Any) -> None:
    """A look whose answer was lost is sent again, and the answer that comes counts."""
    times = 1 if cut is cut_in_the_answer else 2  # aiohttp itself sends a GET again when no answer has begun
    server = await serve(*[cut] * times, answers(http(b"7")))
    async with Opened(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, read, kind=kind) == 7
    assert server.connections == times + 1


async def test_a_free_request_is_given_up_in_the_end(serve: Any) -> None:
    """A poll is tried twice; the watcher has its own budget for the rest."""
    server = await serve(cut_in_the_answer)
    async with Opened(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("GET", server.url, read, kind="poll")
    assert caught.value.harmless
    assert len(server.requests) == 2


async def test_a_refused_connection_is_harmless(serve: Any) -> None:
    """A paid request that never left is sent again, until somebody listens; it arrives once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tries: list[RawServer | None] = []

    @asynccontextmanager
    async def on_send() -> AsyncGenerator[None]:
        tries.append(await serve(answers(http(b"8")), port=port) if tries else None)
        yield

    url = f"http://127.0.0.1:{port}"
    async with Opened(transport_to(url)) as transport:
        assert await transport.request("POST", url, read, kind="create", on_send=on_send, json={}) == 8
    assert [len(server.requests) if server else 0 for server in tries] == [0, 1]


async def test_a_broken_handshake_is_harmless_and_final(serve: Any) -> None:
    """A server that speaks no TLS got nothing, and will not learn it by a second try."""
    server = await serve(lambda connection: connection.send(b"no TLS here\r\n"))
    url = server.url.replace("http", "https")
    async with Opened(transport_to(url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", url, read, kind="create", json={})
    assert (caught.value.harmless, caught.value.transient) == (True, False)
    assert server.connections == 1


async def test_a_handshake_that_nobody_answers_is_harmless(serve: Any) -> None:
    """A paid request that found no connection in time never left, and is sent again."""
    twice = asyncio.Event()

    async def take(connection: Connection) -> None:
        if connection.server.connections == 2:
            twice.set()
        await connection.reader.read()

    server = await serve(take)
    url = server.url.replace("http", "https")
    async with Opened(transport_to(url, timeout=0.1)) as transport:
        request = asyncio.create_task(transport.request("POST", url, read, kind="create", json={}))
        await twice.wait()
        request.cancel()
        await asyncio.wait([request])
    assert request.cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_429_is_sent_again_after_the_pause(kind: Kind, serve: Any) -> None:
    """Rejected is not created: even a paid request goes out again, once the account's pause is over."""
    times: list[float] = []

    @asynccontextmanager
    async def on_send() -> AsyncGenerator[None]:
        times.append(asyncio.get_running_loop().time())
        yield

    server = await serve(answers(http(b"429")), answers(http(b"7")))
    async with Opened(transport_to(server.url)) as transport:
        assert await transport.request("POST", server.url, read, kind=kind, on_send=on_send, json={}) == 7
        paused = transport.account.cooldown
    assert len(server.requests) == 2
    assert times[1] >= paused.until >= times[0] + 1.0
    assert paused.consecutive_429s == 0


async def test_an_answer_that_is_no_429_ends_the_row(serve: Any) -> None:
    """A server error shows that the account is no longer turned away; no answer at all shows nothing."""
    server = await serve(answers(http(b"500")))
    async with Opened(transport_to(server.url)) as transport:
        transport.account.cooldown.consecutive_429s = 3
        with pytest.raises(ServiceUnavailableError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={})
        assert (transport.account.cooldown.consecutive_429s, caught.value.harmless) == (0, False)
        server.steps = [cut_after_the_body]
        transport.account.cooldown.consecutive_429s = 3
        with pytest.raises(NoAnswerError):
            await transport.request("POST", server.url, read, kind="create", json={})
        assert transport.account.cooldown.consecutive_429s == 3


@pytest.mark.parametrize("kind", ["create", "poll"])
async def test_time_outs_say_how_long(kind: Kind, serve: Any) -> None:
    """A request that is not answered in time is no answer, with the seconds it was given."""
    server = await serve(say_nothing)
    async with Opened(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 s"):
            await transport.request("GET", server.url, read, kind=kind, timeout=0.05)


async def test_an_answer_of_16_mib_is_read_and_no_more(serve: Any) -> None:
    """A body up to the limit is read whole, and one byte more is refused without reading the rest."""
    server = await serve(answers(http(bytes(16 * MEGABYTE))), answers(http(bytes(16 * MEGABYTE + 1))))
    async with Opened(transport_to(server.url, timeout=20.0)) as transport:
        assert len(await transport.request("POST", server.url, raw, kind="create")) == 16 * MEGABYTE
        with pytest.raises(NoAnswerError, match=f"larger than {16 * MEGABYTE} bytes"):
            await transport.request("POST", server.url, raw, kind="create")


async def test_the_key_goes_out_and_comes_nowhere_else(serve: Any) -> None:
    """The request carries the key; a body that repeats it is read without it."""

    async def echo(connection: Connection) -> None:
        await connection.send(http(await connection.request()))

    server = await serve(echo)
    async with Opened(transport_to(server.url)) as transport:
        body = await transport.request("POST", server.url, raw, kind="create", json={"a": 1})
    assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]
    assert b"Authorization: Bearer ***" in body


async def test_a_short_key_does_not_eat_the_answer(serve: Any) -> None:
    """A test key that is a word of the protocol leaves the body as it came."""
    server = await serve(answers(http(b'"success"')))
    async with Opened(Transport(provider="raw", base_url=server.url, api_key="success")) as transport:
        assert await transport.request("GET", server.url, read) == "success"


JUNK = [f"HTTP/1.1 {KEY}\r\n\r\n", f"{KEY}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{KEY}\x01: {KEY}\r\n\r\n"]
CHUNKED = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n"
HALF = f"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\nX: {KEY}\r\n\r\n{KEY}"


@pytest.mark.parametrize("junk", [*JUNK, CHUNKED, HALF], ids=["status", "line", "header", "chunk", "half"])
async def test_an_error_shows_no_key(junk: str, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a server does with the key, it is in no error, no cause of one, no traceback and no log."""
    caplog.set_level(logging.DEBUG)
    server = await serve(answers(junk.encode()))
    async with Opened(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={})
    shown = [str(vars(record)) for record in caplog.records] + traceback.format_exception(caught.value)
    error: BaseException | None = caught.value
    while error:
        shown += [str(error), repr(error), str(vars(error))]
        error = error.__cause__ or error.__context__
    assert "SECRET" not in "".join(shown)


async def test_the_exchange_is_logged_without_secrets(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Debug records hold what was said, and neither the key nor a callback's token nor a link's signature."""
    caplog.set_level(logging.DEBUG, logger="sora_chars.transport")
    body = {"callBackUrl": "https://a.invalid/cb/TOKEN", "video": "https://b.invalid/v.mp4?sig=SIGNATURE", "model": "m"}
    answer = json.dumps({"param": json.dumps(body), "key": KEY, "state": "waiting"}).encode()
    server = await serve(answers(http(answer)), say_nothing)
    async with Opened(transport_to(server.url, timeout=0.2)) as transport:
        await transport.request("POST", f"{server.url}/x?sig=SIGNATURE", raw, kind="create", json=body)
        with pytest.raises(NoAnswerError):
            await transport.request("POST", server.url, raw, kind="create", params={"taskId": "t1"})
    first, second = caplog.records
    assert {first.message, second.message} == {"exchange"}
    facts = vars(first)
    assert (facts["provider"], facts["method"], facts["status"]) == ("raw", "POST", 200)
    assert facts["url"] == f"{server.url}/x?***"
    assert '"model": "m"' in facts["sent"]
    assert "waiting" in facts["answer"]
    assert (vars(second)["status"], vars(second)["sent"]) == ("TimeoutError", '{"taskId": "t1"}')
    shown = "".join(str(vars(record)) for record in caplog.records)
    assert not [secret for secret in ("TOKEN", "SIGNATURE", "SECRET") if secret in shown]


async def test_a_redirect_is_not_followed(serve: Any) -> None:
    """The key goes to the host it was meant for, and the redirect comes back as it is."""
    elsewhere = await serve(answers(http(b"1")))
    server = await serve(answers(http(b"7", status="302 Found", headers=f"Location: {elsewhere.url}\r\n")))
    async with Opened(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, lambda answer: answer.status) == 302
    assert elsewhere.connections == 0


async def test_requests_under_way_are_bounded(serve: Any) -> None:
    """No more than `connections` requests are sent at once; nobody times out waiting for the others."""
    under_way, most = 0, 0

    async def count(connection: Connection) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await connection.request()
        await asyncio.sleep(0.4)
        under_way -= 1
        await connection.send(http(b"1"))

    server = await serve(count)
    async with Opened(transport_to(server.url, connections=2, timeout=2.0)) as transport:
        calls = (transport.request("POST", server.url, read, kind="create", json={}) for _ in range(12))
        assert await asyncio.gather(*calls) == [1] * 12
    assert most == 2


async def test_a_cancelled_request_gives_its_place_back(serve: Any) -> None:
    """Cancelled while it waits for its answer, a request frees its connection for the next."""
    arrived = asyncio.Event()

    async def arrive(connection: Connection) -> None:
        arrived.set()
        await connection.reader.read()

    server = await serve(arrive, answers(http(b"7")))
    async with Opened(transport_to(server.url, connections=1)) as transport:
        lost = asyncio.create_task(transport.request("GET", server.url, read))
        await arrived.wait()
        lost.cancel()
        assert await transport.request("GET", server.url, read) == 7
    assert lost.cancelled()


async def test_a_body_is_made_anew_for_each_try(serve: Any) -> None:
    """An upload that is repeated sends its whole body again."""
    server = await serve(cut_after_the_body, answers(http(b"7")))
    bodies = iter([b"first", b"second"])
    async with Opened(transport_to(server.url)) as transport:
        assert await transport.request("POST", server.url, read, body=lambda: next(bodies)) == 7
    assert [request.rpartition(b"\r\n\r\n")[2] for request in server.requests] == [b"first", b"second"]


async def test_the_last_user_closes_the_connections(serve: Any) -> None:
    """Two users share the connections; they are open until both have left, and open again for the next."""
    server = await serve(answers(http(b"7")))
    transport = transport_to(server.url)
    async with Opened(transport):
        async with Opened(transport):
            pass
        assert await transport.request("GET", server.url, read) == 7
    with pytest.raises(SessionClosedError, match=r"raw is closed.*async with"):
        await transport.request("GET", server.url, read)
    async with Opened(transport):
        assert await transport.request("GET", server.url, read) == 7


def unexpected() -> NoReturn:
    """Stand for what must not be entered."""
    pytest.fail("nothing is about to be sent")


async def test_a_session_passed_in_is_used_and_not_closed(serve: Any) -> None:
    """The caller's aiohttp session is its own to close; a closed one is an error before anything counts as sent."""
    server = await serve(answers(http(b"7")))
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as own:
        transport = transport_to(server.url, http=own)
        async with Opened(transport):
            assert await transport.request("GET", server.url, read) == 7
        assert not own.closed
        async with Opened(transport):
            await own.close()
            with pytest.raises(SessionClosedError, match="raw is closed"):
                await transport.request("GET", server.url, read, on_send=unexpected)
    assert b"X-Mine: yes" in server.requests[0]


def test_another_event_loop_is_told_before_anything_is_sent() -> None:
    """Connections that one `asyncio.run` left open say so in the next, to users and to requests."""
    transport = transport_to("http://127.0.0.1:9")
    with asyncio.Runner() as runner:
        runner.run(transport.enter())

        async def use() -> None:
            for call in (transport.enter(), transport.request("GET", "http://127.0.0.1:9", read)):
                with pytest.raises(WrongLoopError, match="connections of raw belong to another event loop"):
                    await call

        with asyncio.Runner() as other:
            other.run(use())
        runner.run(transport.leave())
