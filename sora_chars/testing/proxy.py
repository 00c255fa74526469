"""A TCP proxy for tests: it relays requests to a server and fails them at named steps."""

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

Step: TypeAlias = Literal[
    "forward_head", "forward_body", "await_response", "return_half", "return_rest", "response_returned"
]
"""What the proxy does next for a request.

Before `forward_head` the server has received nothing, before `forward_body` the request's
head, and before `await_response` the whole request. Before `return_half` the client has
received nothing, before `return_rest` the response's head and half of its body, and at
`response_returned` the whole response.
"""
FaultName: TypeAlias = Literal[
    "none",
    "cut_before_request",
    "cut_after_headers",
    "cut_after_body",
    "cut_before_response",
    "cut_mid_response",
    "half_open",
    "delay",
    "slow_bytes",
    "page",
]

_CUTS: dict[FaultName, Step] = {
    "cut_before_request": "forward_head",
    "cut_after_headers": "forward_body",
    "cut_after_body": "await_response",
    "cut_before_response": "return_half",
    "cut_mid_response": "return_rest",
}
_PAGE = b"<html><body><h1>Sorry, this site cannot be reached</h1></body></html>"
_REQUEST_LINE = re.compile(r"(?!HEAD|CONNECT)([A-Z]+) (\S+) HTTP/1\.1")
"""HEAD and CONNECT are excluded: their responses have no body of Content-Length bytes."""
_STATUS_LINE = re.compile(r"HTTP/1\.1 [2-5]\d\d .*")


@attrs.frozen
class NetworkFault:
    """A network failure that `FaultProxy` applies to one request.

    The names:
        cut_before_request: The connection ends before anything is forwarded.
        cut_after_headers: It ends after the request's head was forwarded.
        cut_after_body: It ends after the whole request was forwarded; the server does
            its work.
        cut_before_response: It ends after the server responded; nothing is returned.
        cut_mid_response: It ends after half of the response was returned.
        half_open: The request is swallowed; nothing is returned and nothing is closed.
        delay: The response is returned `seconds` late.
        slow_bytes: The response is returned byte by byte, spread over `seconds`.
        page: The server responds, and an HTML page with HTTP `status` is returned.
        none: The request is relayed without a failure.

    Attributes:
        name: One of the names above.
        method: The requests that the fault applies to: "POST" for creates, "GET" for
            polls, None for all.
        reset: Whether a cut sends RST instead of FIN.
        seconds: The time that `delay` and `slow_bytes` take.
        status: The HTTP status of `page`.
    """

    name: FaultName = attrs.field(validator=attrs.validators.in_(get_args(FaultName)))
    method: str | None = attrs.field(default=None, kw_only=True)
    reset: bool = attrs.field(default=False, kw_only=True)
    seconds: float = attrs.field(default=0.05, kw_only=True)
    status: int = attrs.field(default=502, kw_only=True)


class ProxiedRequest(NamedTuple):
    """A request that the proxy relays, and the fault that applies to it."""

    method: str
    path: str
    fault: NetworkFault


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class _Message(NamedTuple):
    start: re.Match[str]
    """The match of the first line."""
    head: bytes
    """The first line and the headers, as received."""
    body: bytes


class _CutError(Exception):
    """Ends a connection because a fault demands it."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@attrs.define(eq=False)
class FaultProxy:
    """A proxy on a free loopback port; give the client `url` instead of the server's URL.

    The proxy understands HTTP/1.1 with Content-Length. Each request takes the first entry
    of `faults` whose method matches:

        async with FaultProxy(emulator.url) as proxy:
            proxy.faults.append(NetworkFault("cut_after_body", method="POST"))
            kie = Kie("any-key", base_url=proxy.url)

    Attributes:
        target: The server's URL, as `http://host:port`.
        on_step: Awaited before each step of each request is carried out.
        faults: The faults still to be applied, in order.
        steps: How many requests of a method have reached a step.
        url: Where the proxy listens.

    Raises:
        ValueError: On closing, if a message came that the proxy does not understand. It
            cuts the connection of such a message.
    """

    target: str
    on_step: Callable[[Step, ProxiedRequest], Awaitable[None]] | None = attrs.field(default=None, kw_only=True)
    faults: list[NetworkFault] = attrs.field(factory=list, init=False)
    steps: Counter[tuple[str, Step]] = attrs.field(factory=Counter, init=False)
    url: str = attrs.field(default="", init=False)
    _connections: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _errors: list[Exception] = attrs.field(factory=list, init=False)
    _step_reached: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _server: asyncio.Server = attrs.field(init=False)

    @property
    def connections(self) -> int:
        """The number of connected clients."""
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
        if self._errors:
            raise self._errors[0]

    async def wait_for_step(self, step: Step, *, method: str | None = None, times: int = 1) -> None:
        """Wait until `times` requests, of one method or of any, have reached a step."""
        while sum(n for (m, s), n in self.steps.items() if s == step and method in {None, m}) < times:
            await self._step_reached.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(_Connection(reader, writer)), name="fault proxy")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, client: _Connection) -> None:
        reset = True  # if the proxy is closed while the connection is open
        try:
            await self._relay(client)
        except _CutError as cut:
            reset = cut.reset
        except (OSError, asyncio.IncompleteReadError):  # the client or the server disconnected
            reset = False
        except (ValueError, asyncio.LimitOverrunError) as error:
            self._errors.append(error)
        finally:
            await _close(client, reset=reset)

    async def _relay(self, client: _Connection) -> None:
        address = urlsplit(self.target)
        server = _Connection(*await asyncio.open_connection(address.hostname, address.port))
        try:
            while True:
                await self._exchange(client, server)
        finally:
            await _close(server, reset=False)

    async def _exchange(self, client: _Connection, server: _Connection) -> None:
        message = await _read(client.reader, _REQUEST_LINE)
        method = message.start[1]
        request = ProxiedRequest(method, message.start[2], self._next_fault(method))
        await self._step("forward_head", request)
        if request.fault.name == "half_open":
            await client.reader.read()  # until the client disconnects
            raise _CutError(reset=False)
        await _write(server, message.head)
        await self._step("forward_body", request)
        await _write(server, message.body)
        await self._step("await_response", request)
        response = await _read(server.reader, _STATUS_LINE)
        await self._return(client, request, response)

    async def _return(self, client: _Connection, request: ProxiedRequest, response: _Message) -> None:
        """Return the server's response to the client, or what the fault makes of it."""
        fault = request.fault
        await self._step("return_half", request)
        if fault.name == "page":
            text = "HTTP/1.1 {} Page\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n"
            response = response._replace(head=text.format(fault.status, len(_PAGE)).encode(), body=_PAGE)
        elif fault.name == "delay":
            await asyncio.sleep(fault.seconds)
        seconds = fault.seconds if fault.name == "slow_bytes" else 0.0
        half = len(response.body) // 2
        await _write(client, response.head + response.body[:half], seconds=seconds / 2)
        await self._step("return_rest", request)
        await _write(client, response.body[half:], seconds=seconds / 2)
        await self._step("response_returned", request)

    def _next_fault(self, method: str) -> NetworkFault:
        for fault in self.faults:
            if fault.method in {None, method}:
                self.faults.remove(fault)
                return fault
        return NetworkFault("none")

    async def _step(self, step: Step, request: ProxiedRequest) -> None:
        self.steps[request.method, step] += 1
        self._step_reached.set()
        self._step_reached.clear()  # `set` has already scheduled every waiter
        if self.on_step:
            await self.on_step(step, request)
        if _CUTS.get(request.fault.name) == step:
            raise _CutError(reset=request.fault.reset)


async def _read(reader: asyncio.StreamReader, first_line: re.Pattern[str]) -> _Message:
    """Read one message whose first line matches the pattern."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    headers = email.message_from_bytes(rest)
    start = first_line.fullmatch(first.decode("latin-1"))
    default = "0" if first_line is _REQUEST_LINE or b" 204 " in first else "unknown"
    length = headers.get("Content-Length", default)
    if start is None or not length.isdecimal() or "Transfer-Encoding" in headers or "Expect" in headers:
        raise ValueError(f"the proxy does not understand {first!r} with {headers.items()}")
    return _Message(start, head, await reader.readexactly(int(length)))


async def _write(peer: _Connection, content: bytes, *, seconds: float = 0.0) -> None:
    """Write the content at once, or byte by byte within `seconds`."""
    size = 1 if seconds else max(1, len(content))
    for start in range(0, len(content), size):
        peer.writer.write(content[start : start + size])
        await peer.writer.drain()
        if seconds:
            await asyncio.sleep(seconds / len(content))


async def _close(peer: _Connection, *, reset: bool) -> None:
    with suppress(OSError):  # the connection may be closed already
        if reset:
            close_by_reset(peer.writer.transport)
            peer.writer.transport.abort()
        peer.writer.close()
        await peer.writer.wait_closed()
