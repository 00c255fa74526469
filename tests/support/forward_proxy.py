"""A forward proxy on loopback: it tunnels CONNECT, and relays requests whose target is an absolute URL."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import attrs

if TYPE_CHECKING:
    from types import TracebackType


@attrs.define(eq=False)
class ForwardProxy:
    """A proxy that resolves every host to loopback.

    Attributes:
        status: The status line of its response to CONNECT.
        heads: The heads of the requests that it received, in order.
        url: Where it listens.
    """

    status: str = "200 Connection established"
    heads: list[str] = attrs.field(factory=list, init=False)
    url: str = attrs.field(default="", init=False)
    _server: asyncio.Server = attrs.field(init=False)
    _connections: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    @property
    def lines(self) -> list[str]:
        """The first lines of the requests that it received, without the versions."""
        return [head.partition("\r\n")[0].rpartition(" ")[0] for head in self.heads]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            method, target, _ = head.split(" ", 2)
            if method == "CONNECT":
                writer.write(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
                port = int(target.rpartition(":")[2]) if self.status.startswith("200") else 0
                first = b""
            else:
                port = urlsplit(target).port or 80
                first = head.encode()
            if port:
                await self._tunnel(port, first, reader, writer)

    async def _tunnel(
        self, port: int, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect to a port of loopback, and copy in both directions until either side closes."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(server_writer):
            server_writer.write(first)
            both = [
                asyncio.create_task(_copy(reader, server_writer)),
                asyncio.create_task(_copy(server_reader, writer)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
