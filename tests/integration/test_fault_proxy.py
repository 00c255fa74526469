"""The fault proxy between raw clients and a raw server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest

from sora_chars.testing.proxy import FaultName, FaultProxy, NetworkFault, ProxiedRequest, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEAD = b"POST /task HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n"
BODY = b"0123456789"
RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
RESPONSE = RESPONSE_HEAD + b"abcdefgh"
STEPS: tuple[Step, ...] = get_args(Step)


@attrs.define(eq=False)
class Server:
    """A server that answers each POST of ten bytes, and each GET, with `response`.

    `received` holds the bytes of each connection.
    """

    response: bytes = RESPONSE
    url: str = ""
    received: list[bytearray] = attrs.field(factory=list)
    ended: asyncio.Queue[bytearray] = attrs.field(factory=asyncio.Queue)
    has_received: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        content = bytearray()
        self.received.append(content)
        while piece := await reader.read(1000):
            content += piece
            self.has_received.set()
            if content.endswith((BODY, b"GET /task HTTP/1.1\r\n\r\n")) and self.response:
                writer.write(self.response)
            if not self.response:
                break
        writer.close()
        self.ended.put_nowait(content)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A running server."""
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the server; it leaves no connection and no asyncio task."""
    before = asyncio.all_tasks()
    async with FaultProxy(server.url) as proxy:
        yield proxy
    assert proxy.connections == 0
    assert {task.get_name() for task in asyncio.all_tasks() - before if "fault proxy" in task.get_name()} == set()


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to the proxy."""
    return await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))


async def reset_through(url: str, request: bytes = HEAD + BODY) -> None:
    """Send a request through a new proxy, and expect a connection reset."""
    async with FaultProxy(url) as proxy:
        with pytest.raises(ConnectionResetError):
            await exchange(proxy, request)


async def exchange(proxy: FaultProxy, request: bytes = HEAD + BODY) -> bytes:
    """Send a request on a new connection, and return what arrives until the proxy closes it."""
    reader, writer = await connect(proxy)
    writer.write(request)
    content = await reader.read()
    writer.close()
    await writer.wait_closed()
    return content


CUTS: dict[FaultName, tuple[bytes, bytes]] = {  # what the server receives, and what the client receives
    "cut_before_request": (b"", b""),
    "cut_after_headers": (HEAD, b""),
    "cut_after_body": (HEAD + BODY, b""),
    "cut_before_response": (HEAD + BODY, b""),
    "cut_mid_response": (HEAD + BODY, RESPONSE_HEAD + b"abcd"),
}


@pytest.mark.parametrize("name", CUTS)
async def test_cuts(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """Each cut ends both connections at its step."""
    proxy.faults.append(NetworkFault(name))
    to_server, to_client = CUTS[name]
    assert await exchange(proxy) == to_client
    assert await server.ended.get() == to_server
    assert proxy.faults == []
    assert len(server.received) == 1


@pytest.mark.parametrize("name", CUTS)
async def test_cuts_by_reset(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """With `reset` the client gets RST, and the server receives the same bytes."""
    proxy.faults.append(NetworkFault(name, reset=True))
    with pytest.raises(ConnectionResetError):
        await exchange(proxy)
    assert await server.ended.get() == CUTS[name][0]


async def test_cuts_before_and_after_the_response(server: Server, proxy: FaultProxy) -> None:
    """`cut_before_response` waits for the server's response; `cut_after_body` does not."""
    reached: list[Step] = []

    async def record(step: Step, _: ProxiedRequest) -> None:
        reached.append(step)

    proxy.on_step = record
    server.response = b""  # it disconnects instead
    proxy.faults += [NetworkFault("cut_after_body"), NetworkFault("cut_before_response")]
    assert [await exchange(proxy), await exchange(proxy)] == [b"", b""]
    assert reached == [*STEPS[:3], *STEPS[:3]]
    server.response = RESPONSE
    proxy.faults.append(NetworkFault("cut_before_response"))
    assert await exchange(proxy) == b""
    assert reached[6:] == [*STEPS[:4]]


@pytest.mark.parametrize("status", [200, 502, 504, 524])
async def test_page_replaces_the_response(status: int, server: Server, proxy: FaultProxy) -> None:
    """The server receives the request, the client gets an HTML page, and the connection stays open."""
    proxy.faults.append(NetworkFault("page", status=status))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: text/html\r\n" in head
    assert (await reader.readuntil(b"</html>")).startswith(b"<html>")
    writer.write(HEAD + BODY)
    assert await reader.readexactly(len(RESPONSE)) == RESPONSE
    assert server.received == [(HEAD + BODY) * 2]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("name", ["none", "delay", "slow_bytes"])
async def test_slow_responses_are_complete(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """A late or slow response is complete, and takes at least the given time."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    proxy.faults.append(NetworkFault(name, seconds=0.1))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    pieces = [await reader.read(1000)]
    while sum(map(len, pieces)) < len(RESPONSE):
        pieces.append(await reader.read(1000))
    assert b"".join(pieces) == RESPONSE
    assert name == "none" or loop.time() - started >= 0.09  # a clock may tick early
    assert (len(pieces) > 5) == (name == "slow_bytes")
    assert server.received == [HEAD + BODY]
    writer.close()
    await writer.wait_closed()


async def test_half_open(server: Server, proxy: FaultProxy) -> None:
    """Nothing is forwarded, returned or closed until the client disconnects."""
    proxy.faults.append(NetworkFault("half_open"))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY + HEAD)
    await proxy.wait_for_step("forward_head")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.02)
    assert proxy.connections == 1
    assert server.received == [b""]
    writer.close()
    await writer.wait_closed()
    assert await server.ended.get() == b""


async def test_faults_apply_in_order_and_by_method(server: Server, proxy: FaultProxy) -> None:
    """A request takes the first fault whose method matches; `none` changes nothing."""
    get = b"GET /task HTTP/1.1\r\n\r\n"
    proxy.faults += [
        NetworkFault("none", method="POST"),
        NetworkFault("cut_mid_response", method="POST"),
        NetworkFault("cut_before_response", method="GET"),
    ]
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    assert await reader.readexactly(len(RESPONSE)) == RESPONSE
    assert await exchange(proxy, get) == b""
    assert await exchange(proxy) == RESPONSE[:-4]
    writer.write(get)
    assert await reader.readexactly(len(RESPONSE)) == RESPONSE
    writer.close()
    await writer.wait_closed()
    assert sorted(map(len, server.received)) == sorted([len(HEAD + BODY + get), len(get), len(HEAD + BODY)])


async def test_on_step_precedes_each_step(server: Server, proxy: FaultProxy) -> None:
    """While `on_step` delays a step, only the steps before it are carried out."""
    reached: asyncio.Queue[tuple[Step, ProxiedRequest]] = asyncio.Queue()
    proceed = asyncio.Semaphore(0)

    async def wait(step: Step, request: ProxiedRequest) -> None:
        reached.put_nowait((step, request))
        await proceed.acquire()

    proxy.on_step = wait
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    sizes = {"forward_body": len(HEAD), "await_response": len(HEAD + BODY), "return_rest": len(RESPONSE) - 4}
    for expected in STEPS:
        step, request = await reached.get()
        assert (step, request[:2]) == (expected, ("POST", "/task"))
        await proxy.wait_for_step(step, method="POST")
        if step in {"forward_body", "await_response"}:
            while len(server.received[0]) < sizes[step]:
                server.has_received.clear()
                await server.has_received.wait()
            assert len(server.received[0]) == sizes[step]
        elif step == "return_rest":
            assert len(await reader.readexactly(sizes[step])) == sizes[step]
        proceed.release()
    assert await reader.readexactly(4) == b"efgh"
    assert proxy.steps == dict.fromkeys([("POST", step) for step in STEPS], 1)
    writer.close()
    await writer.wait_closed()


async def test_wait_for_step(proxy: FaultProxy) -> None:
    """With `times=2` it returns at the second response, not at the first."""
    waiting = asyncio.create_task(proxy.wait_for_step("response_returned", times=2))
    other = asyncio.create_task(proxy.wait_for_step("response_returned", method="GET"))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    await proxy.wait_for_step("response_returned")
    assert not waiting.done()
    writer.write(HEAD + BODY)
    await waiting
    assert await reader.readexactly(2 * len(RESPONSE)) == 2 * RESPONSE
    assert not other.done()
    other.cancel()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST / HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"\xff\r\n\r\n",
        b"GET /" + b"a" * 100_000,
    ],
    ids=lambda text: text[:12],
)
async def test_rejects_unsupported_requests(sent: bytes, server: Server) -> None:
    """The connection of an unsupported request is reset, and closing the proxy raises."""
    with pytest.raises((ValueError, asyncio.LimitOverrunError)):
        await reset_through(server.url, sent)
    assert await server.ended.get() == b""


@pytest.mark.parametrize("response", [b"HTTP/1.1 200 OK\r\n\r\n", b"SMTP\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_rejects_unsupported_responses(response: bytes, server: Server) -> None:
    """The client gets nothing of an unsupported response, and closing the proxy raises."""
    server.response = response
    with pytest.raises(ValueError, match="does not understand"):
        await reset_through(server.url)


async def test_closing_resets_connections(server: Server) -> None:
    """Closing the proxy resets idle, delayed and half-open connections."""
    async with FaultProxy(server.url) as proxy:
        clients: list[Any] = [await connect(proxy) for _ in range(3)]
        proxy.faults += [NetworkFault("half_open"), NetworkFault("delay", seconds=60)]
        for _, writer in clients[:2]:
            writer.write(HEAD + BODY)
        await proxy.wait_for_step("forward_head", times=2)
        assert proxy.connections == 3
    assert proxy.connections == 0
    for reader, writer in clients:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_unreachable_server(unused_tcp_port: int) -> None:
    """The proxy disconnects the client if the server cannot be reached."""
    async with FaultProxy(f"http://127.0.0.1:{unused_tcp_port}") as proxy:
        assert await exchange(proxy, b"") == b""


def test_rejects_unknown_faults() -> None:
    """An unknown name is an error that lists the known ones."""
    with pytest.raises(ValueError, match="cut_mid_response"):
        NetworkFault("cut")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # that is the point
