"""A raw TCP server, the ways in which it handles a connection, and a transport that uses it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.testing.emulator.transmission import close_by_reset
from sora_chars.transport import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Step = Callable[["Connection"], Awaitable[None]]
KEY = "sk-SECRET-0123456789"


@attrs.define(eq=False)
class Connection:
    """One connection of a client, on the server's side."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: RawServer

    async def request(self) -> bytes:
        """Read one whole request, and store it."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.server.requests.append(head + body)
        return head + body

    async def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close the connection with RST."""
        close_by_reset(self.writer.transport)
        self.writer.transport.abort()


@attrs.define(eq=False)
class RawServer:
    """A server that handles each connection by the next of its steps, and repeats the last one."""

    steps: list[Step]
    url: str = ""
    connections: int = 0
    requests: list[bytes] = attrs.field(factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self.connections += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        try:
            await step(Connection(reader, writer, self))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        finally:
            writer.close()


@asynccontextmanager
async def serving_raw(*steps: Step) -> AsyncGenerator[RawServer]:
    """Give a raw server on loopback."""
    raw = RawServer(list(steps))
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """Return a response after which the server closes the connection."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n".encode() + body


def responds(data: bytes) -> Step:
    """Return a step that reads the request and sends `data`."""

    async def step(connection: Connection) -> None:
        await connection.request()
        await connection.send(data)

    return step


async def cut_at_once(connection: Connection) -> None:
    """Reset the connection without reading."""
    connection.reset()


async def cut_after_head(connection: Connection) -> None:
    """Reset the connection after the head of the request."""
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.reset()


async def cut_after_body(connection: Connection) -> None:
    """Reset the connection after the whole request."""
    await connection.request()
    connection.reset()


async def close_after_body(connection: Connection) -> None:
    """Close the connection after the whole request."""
    await connection.request()


async def cut_in_response_head(connection: Connection) -> None:
    """Reset the connection in the head of the response."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-")
    connection.reset()


async def cut_in_response(connection: Connection) -> None:
    """Announce a body, send half of it, and close the connection."""
    await connection.request()
    await connection.send(http(b'{"id": 1}')[:-4])


async def never_respond(connection: Connection) -> None:
    """Read the request, and send nothing until the client disconnects."""
    await connection.request()
    await connection.reader.read()


async def trickle(connection: Connection) -> None:
    """Send one byte at a time, without end."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not connection.reader.at_eof():
        await connection.send(b" ")
        await asyncio.sleep(0.001)


CUTS = [
    cut_at_once,
    cut_after_head,
    cut_after_body,
    close_after_body,
    cut_in_response_head,
    cut_in_response,
    never_respond,
    trickle,
    responds(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
]


def transport_to(url: str, *, timeout: float = 1.0, **options: Any) -> Transport:
    """Return a transport of the provider "raw" whose creates time out after 1 second."""
    return Transport(provider="raw", base_url=url, api_key=KEY, timeout=timeout, **options)


@attrs.define(eq=False)
class OpenTransport:
    """Opens a transport for the block."""

    transport: Transport

    async def __aenter__(self) -> Transport:
        await self.transport.enter()
        return self.transport

    async def __aexit__(self, *_: object) -> None:
        await self.transport.leave()
