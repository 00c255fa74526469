"""The lock of the openings and closings of a session."""

from __future__ import annotations

import asyncio

from sora_chars.session.mutex import Mutex


def test_is_released_after_the_end_of_its_loop() -> None:
    """A lock whose event loop was closed is released without an error, and is free in another loop."""
    mutex = Mutex()
    loop = asyncio.new_event_loop()
    holder = loop.run_until_complete(mutex.acquire())
    loop.close()

    async def acquire() -> asyncio.Future[None]:
        return await mutex.acquire()

    other = asyncio.run(acquire())
    mutex.release(holder)
    mutex.release(other)
    assert not asyncio.run(is_held(mutex))


async def is_held(mutex: Mutex) -> bool:
    """Return whether the lock is held by this asyncio task."""
    return mutex.is_held_here
