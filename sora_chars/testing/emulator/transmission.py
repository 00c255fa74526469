"""Sends a response: intact, or damaged in the ways that networks damage it."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web

from .responses import Reply

RESET = Reply(0, b"")
"""Stands for no response: the connection is reset."""
PIECES = 8


async def send(request: web.Request, reply: Reply, _fault: object = None) -> web.StreamResponse:
    """Send the response intact."""
    if reply is RESET:
        return _disconnect(request, reset=True)
    headers = {"Content-Type": reply.content_type} | ({"Retry-After": reply.retry_after} if reply.retry_after else {})
    return web.Response(status=reply.status, body=reply.body, headers=headers)


async def send_late(request: web.Request, reply: Reply, seconds: float) -> web.StreamResponse:
    """Send the response intact, after so many real seconds."""
    await asyncio.sleep(seconds)
    return await send(request, reply)


async def close(request: web.Request, _reply: Reply, _fault: object) -> web.StreamResponse:
    """Close the connection without a response."""
    return _disconnect(request, reset=False)


async def send_truncated(request: web.Request, reply: Reply, _fault: object) -> web.StreamResponse:
    """Announce the whole body, send half of it, and close the connection."""
    response = await _prepare(request, reply)
    await response.write(reply.body[: len(reply.body) // 2])
    return _disconnect(request, reset=False)


async def send_slowly(request: web.Request, reply: Reply, seconds: float) -> web.StreamResponse:
    """Send the body in pieces, spread over so many real seconds."""
    response = await _prepare(request, reply)
    size = len(reply.body) // PIECES + 1
    for start in range(0, len(reply.body), size):
        await response.write(reply.body[start : start + size])
        await asyncio.sleep(seconds / PIECES)
    await response.write_eof()
    return response


async def _prepare(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = {"Content-Type": reply.content_type, "Content-Length": str(len(reply.body))}
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    return response


def _disconnect(request: web.Request, *, reset: bool) -> web.StreamResponse:
    """Close the connection, and return the response that aiohttp requires but cannot send."""
    transport = request.transport
    if transport is not None:
        if reset:
            close_by_reset(transport)
        transport.close()
    return web.Response()


def close_by_reset(transport: asyncio.BaseTransport) -> None:
    """Make the kernel send RST instead of FIN when the transport is closed.

    A linger time of zero seconds has this effect.
    """
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
