"""The time-outs of a request, and the deadline of a caller that waits for it to be sent."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

NOTICEABLE = 0.1
"""Seconds from which a wait is logged, and from which a timer counts as late."""

_CONNECT_TIMEOUT = 15.0  # seconds
_READ_GRACE = 1.0  # seconds for reading an answer that may lie in the socket after that

submit_deadline: ContextVar[float] = ContextVar("submit_deadline", default=math.inf)
"""Loop time until which a create of this context may connect. A request that was sent may take longer."""


@lru_cache
def client_timeout(seconds: float) -> aiohttp.ClientTimeout:
    """Return the time-outs of a request. Connecting gets less time: without a connection nothing was sent."""
    return aiohttp.ClientTimeout(total=seconds, connect=min(_CONNECT_TIMEOUT, seconds / 2))


def create_timeout(seconds: float) -> aiohttp.ClientTimeout:
    """Return the time-out for connecting. `time_limit` bounds the whole create."""
    left = submit_deadline.get() - asyncio.get_running_loop().time()
    return aiohttp.ClientTimeout(total=None, connect=max(0.001, min(_CONNECT_TIMEOUT, seconds / 2, left)))


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncGenerator[None]:
    """Raise `TimeoutError` in the block after `seconds`, but first read an answer that has arrived.

    A blocked event loop, or a process that was stopped, finds the timer and the answer at the same time.
    """
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def expire_at(due: float) -> None:
        timers[:] = [loop.call_at(due, expire, due)]

    def expire(due: float) -> None:
        now = loop.time()
        if now - due > NOTICEABLE:
            expire_at(now + _READ_GRACE)
        else:
            limit.reschedule(now)

    async with asyncio.timeout(None) as limit:
        expire_at(loop.time() + seconds)
        try:
            yield
        finally:
            timers[0].cancel()
