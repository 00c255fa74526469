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
ANSWER_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
ANSWER = ANSWER_HEAD + b"abcdefgh"
STEPS: tuple[Step, ...] = get_args(Step)


@attrs.define(eq=False)
class Server:
    """A server that answers each POST of ten bytes, and GET, with `answer`. It notes what arrived per connection."""

    answer: bytes = ANSWER
    url: str = ""
    arrived: list[bytearray] = attrs.field(factory=list[bytearray])
    ended: asyncio.Queue[bytearray] = attrs.field(factory=asyncio.Queue)
    grown: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        got = bytearray()
        self.arrived.append(got)
        while piece := await reader.read(1000):
            got += piece
            self.grown.set()
            if got.endswith((BODY, b"GET /task HTTP/1.1\r\n\r\n")) and self.answer:
                writer.write(self.answer)
            if not self.answer:
                break
        writer.close()
        self.ended.put_nowait(got)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A running one."""
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    """A proxy before the server, which leaves nothing behind."""
    before = asyncio.all_tasks()
    async with FaultProxy(server.url) as proxy:
        yield proxy
    assert proxy.connections == 0
    assert {task.get_name() for task in asyncio.all_tasks() - before if "fault proxy" in task.get_name()} == set()


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client's connection."""
    return await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))


async def reset_through(url: str, request: bytes = HEAD + BODY) -> None:
    """Send a request through a proxy of its own, which resets the connection."""
    async with FaultProxy(url) as proxy:
        with pytest.raises(ConnectionResetError):
            await ask(proxy, request)


async def ask(proxy: FaultProxy, request: bytes = HEAD + BODY) -> bytes:
    """Send a request on a connection of its own, and return all that came back until the proxy closed it."""
    reader, writer = await connect(proxy)
    writer.write(request)
    got = await reader.read()
    writer.close()
    await writer.wait_closed()
    return got


CUTS: dict[FaultName, tuple[bytes, bytes]] = {  # what reaches the server, and what the client
    "cut_before_request": (b"", b""),
    "cut_after_headers": (HEAD, b""),
    "cut_after_body": (HEAD + BODY, b""),
    "cut_before_response": (HEAD + BODY, b""),
    "cut_mid_response": (HEAD + BODY, ANSWER_HEAD + b"abcd"),
}


@pytest.mark.parametrize("name", CUTS)
async def test_a_cut_lets_through_what_it_says(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """Each cut ends both connections, after just as much has reached the server and the client."""
    proxy.faults.append(NetworkFault(name))
    to_server, to_client = CUTS[name]
    assert await ask(proxy) == to_client
    assert await server.ended.get() == to_server
    assert proxy.faults == []
    assert len(server.arrived) == 1


@pytest.mark.parametrize("name", CUTS)
async def test_a_cut_can_be_a_reset(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """With `reset` the client is reset, and the server gets the same."""
    proxy.faults.append(NetworkFault(name, reset=True))
    with pytest.raises(ConnectionResetError):
        await ask(proxy)
    assert await server.ended.get() == CUTS[name][0]


async def test_a_cut_after_the_answer_is_not_one_before(server: Server, proxy: FaultProxy) -> None:
    """The server has answered before `cut_before_response`, and need not have before `cut_after_body`."""
    reached: list[Step] = []

    async def note(step: Step, _: ProxiedRequest) -> None:
        reached.append(step)

    proxy.on_step = note
    server.answer = b""  # it hangs up instead
    proxy.faults += [NetworkFault("cut_after_body"), NetworkFault("cut_before_response")]
    assert [await ask(proxy), await ask(proxy)] == [b"", b""]
    assert reached == [*STEPS[:3], *STEPS[:3]]
    server.answer = ANSWER
    proxy.faults.append(NetworkFault("cut_before_response"))
    assert await ask(proxy) == b""
    assert reached[6:] == [*STEPS[:4]]


@pytest.mark.parametrize("status", [200, 502, 504, 524])
async def test_a_page_comes_instead_of_the_answer(status: int, server: Server, proxy: FaultProxy) -> None:
    """The server did its work, the client gets HTML of that status, and the connection lives on."""
    proxy.faults.append(NetworkFault("page", status=status))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: text/html\r\n" in head
    assert (await reader.readuntil(b"</html>")).startswith(b"<html>")
    writer.write(HEAD + BODY)
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    assert server.arrived == [(HEAD + BODY) * 2]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("name", ["none", "delay", "slow_bytes"])
async def test_what_is_only_slow_comes_whole(name: FaultName, server: Server, proxy: FaultProxy) -> None:
    """A delayed or a slow answer is the answer, no sooner than it says; and the next one is at once."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    proxy.faults.append(NetworkFault(name, seconds=0.1))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    pieces = [await reader.read(1000)]
    while sum(map(len, pieces)) < len(ANSWER):
        pieces.append(await reader.read(1000))
    assert b"".join(pieces) == ANSWER
    assert name == "none" or loop.time() - began >= 0.09  # a clock may tick early
    assert (len(pieces) > 5) == (name == "slow_bytes")
    assert server.arrived == [HEAD + BODY]
    writer.close()
    await writer.wait_closed()


async def test_half_open_swallows_everything(server: Server, proxy: FaultProxy) -> None:
    """Nothing reaches the server, nothing comes back, nothing is closed until the client is."""
    proxy.faults.append(NetworkFault("half_open"))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY + HEAD)
    await proxy.wait_for_step("forward_head")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.02)
    assert proxy.connections == 1
    assert server.arrived == [b""]
    writer.close()
    await writer.wait_closed()
    assert await server.ended.get() == b""


async def test_faults_strike_in_turn_and_by_method(server: Server, proxy: FaultProxy) -> None:
    """A request takes the first fault that its method fits; `none` lets one pass."""
    get = b"GET /task HTTP/1.1\r\n\r\n"
    proxy.faults += [
        NetworkFault("none", method="POST"),
        NetworkFault("cut_mid_response", method="POST"),
        NetworkFault("cut_before_response", method="GET"),
    ]
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    assert await ask(proxy, get) == b""
    assert await ask(proxy) == ANSWER[:-4]
    writer.write(get)
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    writer.close()
    await writer.wait_closed()
    assert sorted(map(len, server.arrived)) == sorted([len(HEAD + BODY + get), len(get), len(HEAD + BODY)])


async def test_each_step_is_told_before_it_is_carried_out(server: Server, proxy: FaultProxy) -> None:
    """While `on_step` holds a step back, just what came before it has arrived."""
    held: asyncio.Queue[tuple[Step, ProxiedRequest]] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)

    async def hold(step: Step, request: ProxiedRequest) -> None:
        held.put_nowait((step, request))
        await go_on.acquire()

    proxy.on_step = hold
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    sizes = {"forward_body": len(HEAD), "await_response": len(HEAD + BODY), "return_rest": len(ANSWER) - 4}
    for expected in STEPS:
        step, request = await held.get()
        assert (step, request[:2]) == (expected, ("POST", "/task"))
        await proxy.wait_for_step(step, method="POST")
        if step in {"forward_body", "await_response"}:
            while len(server.arrived[0]) < sizes[step]:
                server.grown.clear()
                await server.grown.wait()
            assert len(server.arrived[0]) == sizes[step]
        elif step == "return_rest":
            assert len(await reader.readexactly(sizes[step])) == sizes[step]
        go_on.release()
    assert await reader.readexactly(4) == b"efgh"
    assert proxy.steps == dict.fromkeys([("POST", step) for step in STEPS], 1)
    writer.close()
    await writer.wait_closed()


async def test_seen_waits_for_its_step(proxy: FaultProxy) -> None:
    """It returns at the second answer, not at the first."""
    waiting = asyncio.create_task(proxy.wait_for_step("response_returned", times=2))
    other = asyncio.create_task(proxy.wait_for_step("response_returned", method="GET"))
    reader, writer = await connect(proxy)
    writer.write(HEAD + BODY)
    await proxy.wait_for_step("response_returned")
    assert not waiting.done()
    writer.write(HEAD + BODY)
    await waiting
    assert await reader.readexactly(2 * len(ANSWER)) == 2 * ANSWER
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
async def test_what_it_cannot_parse_is_refused_loudly(sent: bytes, server: Server) -> None:
    """Such a request is reset, none of it is forwarded, and closing the proxy raises."""
    with pytest.raises((ValueError, asyncio.LimitOverrunError)):
        await reset_through(server.url, sent)
    assert await server.ended.get() == b""


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"SMTP\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_answer_it_cannot_parse_is_refused_loudly(answer: bytes, server: Server) -> None:
    """The client gets none of it, and closing the proxy raises."""
    server.answer = answer
    with pytest.raises(ValueError, match="does not understand"):
        await reset_through(server.url)


async def test_closing_resets_what_is_open(server: Server) -> None:
    """Connections at rest, delayed and half open end with the proxy."""
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


async def test_a_server_that_is_gone(unused_tcp_port: int) -> None:
    """Clients are hung up on."""
    async with FaultProxy(f"http://127.0.0.1:{unused_tcp_port}") as proxy:
        assert await ask(proxy, b"") == b""


def test_a_fault_that_there_is_not() -> None:
    """A wrong name is told at once."""
    with pytest.raises(ValueError, match="cut_mid_response"):
        NetworkFault("cut")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # that is the point
