"""How an answer travels: plainly, or in the ways in which networks spoil it."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web

from .responses import Reply

RESET = Reply(0, b"")
"""Stands for no answer at all: the connection is reset."""
PIECES = 8


async def plainly(request: web.Request, reply: Reply, _fault: object = None) -> web.StreamResponse:
    """Send the answer as it is."""
    if reply is RESET:
        return _hang_up(request, reset=True)
    return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type})


async def later(request: web.Request, reply: Reply, seconds: float) -> web.StreamResponse:
    """Send it after so many real seconds."""
    await asyncio.sleep(seconds)
    return await plainly(request, reply)


async def close(request: web.Request, _reply: Reply, _fault: object) -> web.StreamResponse:
    """Close the connection instead of answering."""
    return _hang_up(request, reset=False)


async def truncated(request: web.Request, reply: Reply, _fault: object) -> web.StreamResponse:
    """Promise the whole body, send half of it, close."""
    response = await _begin(request, reply)
    await response.write(reply.body[: len(reply.body) // 2])
    return _hang_up(request, reset=False)


async def slowly(request: web.Request, reply: Reply, seconds: float) -> web.StreamResponse:
    """Spread the body over so many real seconds."""
    response = await _begin(request, reply)
    size = len(reply.body) // PIECES + 1
    for start in range(0, len(reply.body), size):
        await response.write(reply.body[start : start + size])
        await asyncio.sleep(seconds / PIECES)
    await response.write_eof()
    return response


async def _begin(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = {"Content-Type": reply.content_type, "Content-Length": str(len(reply.body))}
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    return response


def _hang_up(request: web.Request, *, reset: bool) -> web.StreamResponse:
    """Drop the connection; what is returned then goes nowhere, aiohttp only wants something."""
    transport = request.transport
    if transport is not None:
        if reset:
            close_by_reset(transport)
        transport.close()
    return web.Response()


def close_by_reset(transport: asyncio.BaseTransport) -> None:
    """Have the kernel send RST instead of FIN when it is closed, as it does where nothing may linger."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
