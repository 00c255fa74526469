"""A TCP proxy for tests: it stands between a client and a server, and breaks what goes through it at named steps."""

from __future__ import annotations

import asyncio
import email
import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias, get_args
from urllib.parse import urlsplit

import attrs

from .emulator.transmission import close_by_reset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

Step: TypeAlias = Literal["forward_head", "forward_body", "await_answer", "pass_answer", "pass_rest", "passed"]
"""What comes next for a request: the server has nothing, its head, all of it; the client nothing, half, all."""
FaultName: TypeAlias = Literal[
    "none",
    "cut_before_request",
    "cut_after_headers",
    "cut_after_body",
    "cut_before_answer",
    "cut_mid_answer",
    "half_open",
    "delay",
    "slow_bytes",
    "page",
]

_CUTS: dict[FaultName, Step] = {
    "cut_before_request": "forward_head",
    "cut_after_headers": "forward_body",
    "cut_after_body": "await_answer",
    "cut_before_answer": "pass_answer",
    "cut_mid_answer": "pass_rest",
}
_PAGE = b"<html><body><h1>Sorry, this site cannot be reached</h1></body></html>"
_REQUEST = re.compile(r"(?!HEAD|CONNECT)([A-Z]+) (\S+) HTTP/1\.1")  # those two are answered with less than they say
_ANSWER = re.compile(r"HTTP/1\.1 [2-5]\d\d .*")


@attrs.frozen
class NetworkFault:
    """One thing that goes wrong for one request.

    cut_before_request: nothing is forwarded. cut_after_headers: the head is. cut_after_body: all is, and the server
    does its work. cut_before_answer: the server has answered, nothing is passed on. cut_mid_answer: half is passed
    on. half_open: all is swallowed, nothing ever answered or closed. delay: the answer comes `seconds` late.
    slow_bytes: it comes byte by byte, spread over `seconds`. page: the server has answered, and an HTML page of HTTP
    `status` is passed on instead. none: all goes well.
    """

    name: FaultName = attrs.field(validator=attrs.validators.in_(get_args(FaultName)))
    method: str | None = attrs.field(default=None, kw_only=True)
    """The requests that it may strike: "POST" for creates, "GET" for polls, None for all."""
    reset: bool = attrs.field(default=False, kw_only=True)
    """Whether a cut is a reset (RST), not an orderly end (FIN)."""
    seconds: float = attrs.field(default=0.05, kw_only=True)
    status: int = attrs.field(default=502, kw_only=True)


class Passing(NamedTuple):
    """A request on its way through."""

    method: str
    path: str
    fault: NetworkFault


class _Peer(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class _CutError(Exception):
    """Ends a connection as a fault demands."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@attrs.define(eq=False)
class FaultProxy:
    """A proxy on a loopback port of its own. Give the client `url` for the server's.

    Each request takes the first of `faults` that its method fits. `on_step` is awaited before each step of each
    request is carried out. It understands HTTP/1.1 with Content-Length.

    Raises:
        ValueError: on closing, if something came that it does not understand; such a connection is cut.
    """

    target: str
    """The server's URL: `http://host:port`."""
    on_step: Callable[[Step, Passing], Awaitable[None]] | None = attrs.field(default=None, kw_only=True)
    faults: list[NetworkFault] = attrs.field(factory=list[NetworkFault], init=False)
    steps: Counter[tuple[str, Step]] = attrs.field(factory=Counter, init=False)
    """How many requests of a method have reached a step."""
    url: str = attrs.field(default="", init=False)
    _connections: set[asyncio.Task[None]] = attrs.field(factory=set["asyncio.Task[None]"], init=False)
    _troubles: list[Exception] = attrs.field(factory=list[Exception], init=False)
    _moved: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _server: asyncio.Server = attrs.field(init=False)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        if self._troubles:
            raise self._troubles[0]

    async def seen(self, step: Step, *, method: str | None = None, times: int = 1) -> None:
        """Wait until so many requests (of a method) have reached a step."""
        while sum(n for (m, s), n in self.steps.items() if s == step and method in {None, m}) < times:
            await self._moved.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(_Peer(reader, writer)), name="fault proxy")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, client: _Peer) -> None:
        reset = True  # unless it ends in another way than by the closing of the proxy
        try:
            await self._relay(client)
        except _CutError as cut:
            reset = cut.reset
        except (OSError, asyncio.IncompleteReadError):  # one of the two hung up, so the other is hung up on
            reset = False
        except (ValueError, asyncio.LimitOverrunError) as error:
            self._troubles.append(error)
        finally:
            await _hang_up(client, reset=reset)

    async def _relay(self, client: _Peer) -> None:
        address = urlsplit(self.target)
        server = _Peer(*await asyncio.open_connection(address.hostname, address.port))
        try:
            while True:
                await self._exchange(client, server)
        finally:
            await _hang_up(server, reset=False)

    async def _exchange(self, client: _Peer, server: _Peer) -> None:
        start, head, body = await _message(client.reader, _REQUEST)
        request = Passing(start[1], start[2], self._pick(start[1]))
        await self._step("forward_head", request)
        if request.fault.name == "half_open":
            await client.reader.read()  # until the client gives up
            raise _CutError(reset=False)
        await _write(server, head)
        await self._step("forward_body", request)
        await _write(server, body)
        await self._step("await_answer", request)
        _, head, body = await _message(server.reader, _ANSWER)
        await self._answer(client, request, head, body)

    async def _answer(self, client: _Peer, request: Passing, head: bytes, body: bytes) -> None:
        fault = request.fault
        await self._step("pass_answer", request)
        if fault.name == "page":
            text = "HTTP/1.1 {} Page\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n"
            head, body = text.format(fault.status, len(_PAGE)).encode(), _PAGE
        elif fault.name == "delay":
            await asyncio.sleep(fault.seconds)
        slow = fault.seconds if fault.name == "slow_bytes" else 0.0
        half = len(body) // 2
        await _write(client, head + body[:half], slow=slow / 2)
        await self._step("pass_rest", request)
        await _write(client, body[half:], slow=slow / 2)
        await self._step("passed", request)

    def _pick(self, method: str) -> NetworkFault:
        for fault in self.faults:
            if fault.method in {None, method}:
                self.faults.remove(fault)
                return fault
        return NetworkFault("none")

    async def _step(self, step: Step, request: Passing) -> None:
        self.steps[request.method, step] += 1
        self._moved.set()
        self._moved.clear()  # whoever waits now is woken all the same
        if self.on_step:
            await self.on_step(step, request)
        if _CUTS.get(request.fault.name) == step:
            raise _CutError(reset=request.fault.reset)


async def _message(reader: asyncio.StreamReader, form: re.Pattern[str]) -> tuple[re.Match[str], bytes, bytes]:
    """A message: what its first line says, its head with that line, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    headers = email.message_from_bytes(rest)
    start = form.fullmatch(first.decode("latin-1"))
    length = headers.get("Content-Length", "0" if form is _REQUEST or b" 204 " in first else "unknown")
    if start is None or not length.isdecimal() or "Transfer-Encoding" in headers or "Expect" in headers:
        raise ValueError(f"the proxy does not understand {first!r} with {headers.items()}")
    return start, head, await reader.readexactly(int(length))


async def _write(peer: _Peer, content: bytes, *, slow: float = 0.0) -> None:
    size = 1 if slow else max(1, len(content))
    for start in range(0, len(content), size):
        peer.writer.write(content[start : start + size])
        await peer.writer.drain()
        if slow:
            await asyncio.sleep(slow / len(content))


async def _hang_up(peer: _Peer, *, reset: bool) -> None:
    with suppress(OSError):  # it may be closed already
        if reset:
            close_by_reset(peer.writer.transport)
            peer.writer.transport.abort()
        peer.writer.close()
        await peer.writer.wait_closed()
