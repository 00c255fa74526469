"""A lock for providers, which may be used in one event loop after another."""

from __future__ import annotations

import asyncio

import attrs


@attrs.define(eq=False)
class LoopLock:
    """An `asyncio.Lock`, which belongs to one event loop, for the loop that runs."""

    _lock: asyncio.Lock | None = attrs.field(default=None, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)

    def held(self) -> asyncio.Lock:
        """Return the lock of the running event loop, for `async with`."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock = asyncio.Lock()
            self._loop = loop
        return self._lock
