"""The transport and a raw server: lost responses, retries, limits, secrets, closing."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp
import pytest

from sora_chars.errors import (
    ConfigurationError,
    NoAnswerError,
    RateLimitedError,
    ServiceUnavailableError,
    SessionClosedError,
    WrongLoopError,
)
from sora_chars.responses import Response, parse_json
from sora_chars.transport import Transport
from tests.support.log_events import events
from tests.support.raw_server import (
    CUTS,
    KEY,
    Connection,
    OpenTransport,
    RawServer,
    cut_after_body,
    cut_in_response,
    http,
    never_respond,
    responds,
    transport_to,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from sora_chars.kinds import Kind
    from tests.support.raw_server import Step

MEGABYTE = 1024 * 1024
KINDS: tuple[Kind, ...] = ("create", "poll", "other")


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    """A function that starts raw servers on loopback; all are closed after the test."""
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


def read(response: Response) -> Any:
    """Return JSON; the numbers 429 and 500 stand for errors inside HTTP 200."""
    value = parse_json(response.body)
    if value == 429:
        raise RateLimitedError("busy", retry_after=response.retry_after)
    if value == 500:
        raise ServiceUnavailableError("down")
    return value


def raw(response: Response) -> bytes:
    """Return the body."""
    return response.body


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
async def test_create_is_never_sent_twice(cut: Step, serve: Any) -> None:
    """A lost response is one connection and an error that is not harmless."""
    server = await serve(cut)
    async with OpenTransport(transport_to(server.url, timeout=0.2)) as transport:
        with pytest.raises(NoAnswerError, match=rf"raw gave no answer to POST {server.url}/create: .") as caught:
            await transport.request("POST", f"{server.url}/create", read, kind="create", json={"a": 1})
    assert not caught.value.harmless
    assert caught.value.provider == "raw"
    assert server.connections == 1


async def test_create_does_not_meet_a_dropped_connection(serve: Any) -> None:
    """A create opens a connection of its own where the server would drop a kept-alive one at its second request."""

    async def respond_once(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        await connection.request()
        connection.reset()

    server = await serve(respond_once)
    async with OpenTransport(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, read) == 1
        assert await transport.request("POST", server.url, read, kind="create", json={}) == 1
    assert (len(server.requests), server.connections) == (2, 2)


@pytest.mark.parametrize("cut", CUTS[:6], ids=lambda cut: cut.__name__)
@pytest.mark.parametrize("kind", ["poll", "other"])
async def test_repeats_idempotent_requests(cut: Step, kind: Kind, serve: Any) -> None:
    """A request without side effects is sent again if its response is lost."""
    times = 1 if cut is cut_in_response else 2  # aiohttp itself repeats a GET if no response has begun
    server = await serve(*[cut] * times, responds(http(b"7")))
    async with OpenTransport(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, read, kind=kind) == 7
    assert server.connections == times + 1


async def test_poll_is_repeated_once(serve: Any) -> None:
    """A poll is sent twice; the watcher has its own fault budget for more."""
    server = await serve(cut_in_response)
    async with OpenTransport(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("GET", server.url, read, kind="poll")
    assert caught.value.harmless
    assert len(server.requests) == 2


async def test_retries_refused_connections(serve: Any) -> None:
    """A create is retried until the server accepts the connection, and arrives once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tries: list[RawServer | None] = []

    @asynccontextmanager
    async def on_send() -> AsyncGenerator[None]:
        tries.append(await serve(responds(http(b"8")), port=port) if tries else None)
        yield

    url = f"http://127.0.0.1:{port}"
    async with OpenTransport(transport_to(url)) as transport:
        assert await transport.request("POST", url, read, kind="create", on_send=on_send, json={}) == 8
    assert [len(server.requests) if server else 0 for server in tries] == [0, 1]


async def test_failed_handshake_is_harmless(serve: Any) -> None:
    """A failed TLS handshake has sent nothing, and is not retried."""
    server = await serve(lambda connection: connection.send(b"no TLS here\r\n"))
    url = server.url.replace("http", "https")
    async with OpenTransport(transport_to(url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", url, read, kind="create", json={})
    assert (caught.value.harmless, caught.value.transient) == (True, False)
    assert server.connections == 1


async def test_retries_unanswered_handshakes(serve: Any) -> None:
    """A create that could not connect in time was not sent, and is retried."""
    twice = asyncio.Event()

    async def take(connection: Connection) -> None:
        if connection.server.connections == 2:
            twice.set()
        await connection.reader.read()

    server = await serve(take)
    url = server.url.replace("http", "https")
    async with OpenTransport(transport_to(url, timeout=0.1)) as transport:
        request = asyncio.create_task(transport.request("POST", url, read, kind="create", json={}))
        await twice.wait()
        request.cancel()
        await asyncio.wait([request])
    assert request.cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_retries_429_after_the_cooldown(kind: Kind, serve: Any) -> None:
    """A rate-limited request, even a create, is sent again after the account's cool-down."""
    times: list[float] = []

    @asynccontextmanager
    async def on_send() -> AsyncGenerator[None]:
        times.append(asyncio.get_running_loop().time())
        yield

    server = await serve(responds(http(b"429")), responds(http(b"7")))
    async with OpenTransport(transport_to(server.url)) as transport:
        assert await transport.request("POST", server.url, read, kind=kind, on_send=on_send, json={}) == 7
        cooldown = transport.account.cooldown
    assert len(server.requests) == 2
    assert times[1] >= cooldown.until >= times[0] + 1.0
    assert cooldown.consecutive_429s == 0


async def test_other_responses_reset_the_cooldown(serve: Any) -> None:
    """A server error resets the count of consecutive 429s; a lost response does not."""
    server = await serve(responds(http(b"500")))
    async with OpenTransport(transport_to(server.url)) as transport:
        transport.account.cooldown.consecutive_429s = 3
        with pytest.raises(ServiceUnavailableError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={})
        assert (transport.account.cooldown.consecutive_429s, caught.value.harmless) == (0, False)
        server.steps = [cut_after_body]
        transport.account.cooldown.consecutive_429s = 3
        with pytest.raises(NoAnswerError):
            await transport.request("POST", server.url, read, kind="create", json={})
        assert transport.account.cooldown.consecutive_429s == 3


@pytest.mark.parametrize("kind", ["create", "poll"])
async def test_timeout_error_names_the_seconds(kind: Kind, serve: Any) -> None:
    """The error of a timed-out request names its timeout."""
    server = await serve(never_respond)
    async with OpenTransport(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 s"):
            await transport.request("GET", server.url, read, kind=kind, timeout=0.05)


async def test_limits_response_size(serve: Any) -> None:
    """A body of 16 MiB is read; one more byte is an error."""
    server = await serve(responds(http(bytes(16 * MEGABYTE))), responds(http(bytes(16 * MEGABYTE + 1))))
    async with OpenTransport(transport_to(server.url, timeout=20.0)) as transport:
        assert len(await transport.request("POST", server.url, raw, kind="create")) == 16 * MEGABYTE
        with pytest.raises(NoAnswerError, match=f"larger than {16 * MEGABYTE} bytes"):
            await transport.request("POST", server.url, raw, kind="create")


async def test_redacts_the_key_in_responses(serve: Any) -> None:
    """The request has the API key; a body that repeats it is redacted."""

    async def echo(connection: Connection) -> None:
        await connection.send(http(await connection.request()))

    server = await serve(echo)
    async with OpenTransport(transport_to(server.url)) as transport:
        body = await transport.request("POST", server.url, raw, kind="create", json={"a": 1})
    assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]
    assert b"Authorization: Bearer ***" in body


async def test_does_not_redact_short_keys(serve: Any) -> None:
    """A short key that is a word of the protocol is not redacted."""
    server = await serve(responds(http(b'"success"')))
    async with OpenTransport(Transport(provider="raw", base_url=server.url, api_key="success")) as transport:
        assert await transport.request("GET", server.url, read) == "success"


JUNK = [f"HTTP/1.1 {KEY}\r\n\r\n", f"{KEY}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{KEY}\x01: {KEY}\r\n\r\n"]
CHUNKED = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n"
HALF = f"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\nX: {KEY}\r\n\r\n{KEY}"


@pytest.mark.parametrize("junk", [*JUNK, CHUNKED, HALF], ids=["status", "line", "header", "chunk", "half"])
async def test_errors_hold_no_key(junk: str, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server that repeats the key cannot put it into an error, a traceback or a log."""
    caplog.set_level(logging.DEBUG)
    server = await serve(responds(junk.encode()))
    async with OpenTransport(transport_to(server.url)) as transport:
        with pytest.raises(NoAnswerError) as caught:
            await transport.request("POST", server.url, read, kind="create", json={})
    shown = [str(vars(record)) for record in caplog.records] + traceback.format_exception(caught.value)
    error: BaseException | None = caught.value
    while error:
        shown += [str(error), repr(error), str(vars(error))]
        error = error.__cause__ or error.__context__
    assert "SECRET" not in "".join(shown)


async def test_logs_hold_no_secrets(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Debug records of exchanges hold no API key, no callback token and no link signature."""
    caplog.set_level(logging.DEBUG, logger="sora_chars.transport")
    body = {"callBackUrl": "https://a.invalid/cb/TOKEN", "video": "https://b.invalid/v.mp4?sig=SIGNATURE", "model": "m"}
    body_text = json.dumps({"param": json.dumps(body), "key": KEY, "state": "waiting"}).encode()
    server = await serve(responds(http(body_text)), never_respond)
    async with OpenTransport(transport_to(server.url, timeout=0.2)) as transport:
        await transport.request("POST", f"{server.url}/x?sig=SIGNATURE", raw, kind="create", json=body)
        with pytest.raises(NoAnswerError):
            await transport.request("POST", server.url, raw, kind="create", params={"taskId": "t1"})
    first, second = caplog.records
    assert events((first, second)) == ["exchange", "exchange"]
    facts = vars(first)
    assert (facts["provider"], facts["method"], facts["status"]) == ("raw", "POST", 200)
    assert facts["url"] == f"{server.url}/x?***"
    assert '"model": "m"' in facts["sent"]
    assert "waiting" in facts["answer"]
    assert (vars(second)["status"], vars(second)["sent"]) == ("TimeoutError", '{"taskId": "t1"}')
    shown = "".join(str(vars(record)) for record in caplog.records)
    assert not [secret for secret in ("TOKEN", "SIGNATURE", "SECRET") if secret in shown]


async def test_does_not_follow_redirects(serve: Any) -> None:
    """A redirect is returned as the response, so the API key goes to no other host."""
    elsewhere = await serve(responds(http(b"1")))
    server = await serve(responds(http(b"7", status="302 Found", headers=f"Location: {elsewhere.url}\r\n")))
    async with OpenTransport(transport_to(server.url)) as transport:
        assert await transport.request("GET", server.url, lambda response: response.status) == 302
    assert elsewhere.connections == 0


async def test_limits_connections(serve: Any) -> None:
    """At most `connections` requests run at once; waiting for one does not count as time-out."""
    running = 0
    most = 0

    async def count(connection: Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await connection.request()
        await asyncio.sleep(0.02)
        running -= 1
        await connection.send(http(b"1"))

    server = await serve(count)
    async with OpenTransport(transport_to(server.url, connections=2, timeout=0.1)) as transport:
        calls = (transport.request("POST", server.url, read, kind="create", json={}) for _ in range(12))
        assert await asyncio.gather(*calls) == [1] * 12
    assert most == 2


async def test_cancelled_request_frees_its_connection(serve: Any) -> None:
    """A request that is cancelled while it waits frees its connection for the next."""
    arrived = asyncio.Event()

    async def arrive(connection: Connection) -> None:
        arrived.set()
        await connection.reader.read()

    server = await serve(arrive, responds(http(b"7")))
    async with OpenTransport(transport_to(server.url, connections=1)) as transport:
        lost = asyncio.create_task(transport.request("GET", server.url, read))
        await arrived.wait()
        lost.cancel()
        assert await transport.request("GET", server.url, read) == 7
    assert lost.cancelled()


async def test_each_attempt_has_its_own_body(serve: Any) -> None:
    """A repeated upload sends a new body."""
    server = await serve(cut_after_body, responds(http(b"7")))
    bodies = iter([b"first", b"second"])
    async with OpenTransport(transport_to(server.url)) as transport:
        assert await transport.request("POST", server.url, read, body=lambda: next(bodies)) == 7
    assert [request.rpartition(b"\r\n\r\n")[2] for request in server.requests] == [b"first", b"second"]


async def test_last_user_closes_the_connections(serve: Any) -> None:
    """Connections stay open until the last of their users leaves, and can be opened again."""
    server = await serve(responds(http(b"7")))
    transport = transport_to(server.url)
    async with OpenTransport(transport):
        async with OpenTransport(transport):
            pass
        assert await transport.request("GET", server.url, read) == 7
    with pytest.raises(SessionClosedError, match=r"raw is closed.*async with"):
        await transport.request("GET", server.url, read)
    async with OpenTransport(transport):
        assert await transport.request("GET", server.url, read) == 7


def unexpected() -> NoReturn:
    """Fail the test if it is called."""
    pytest.fail("the request must not be sent")


async def test_uses_the_given_aiohttp_session(serve: Any) -> None:
    """A given aiohttp session lends its connector and is not closed; if it is closed, nothing is sent."""
    server = await serve(responds(http(b"7")))
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as own:
        transport = transport_to(server.url, http=own)
        async with OpenTransport(transport):
            assert await transport.request("GET", server.url, read) == 7
        assert not own.closed
        async with OpenTransport(transport):
            await own.close()
            with pytest.raises(SessionClosedError, match="raw is closed"):
                await transport.request("GET", server.url, read, on_send=unexpected)
        with pytest.raises(ConfigurationError, match="aiohttp session is closed"):
            await transport.enter()
    assert b"X-Mine" not in server.requests[0]


def test_rejects_another_event_loop() -> None:
    """Connections that one event loop left open raise WrongLoopError in another."""
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
