"""The lock of a provider that is used in one event loop after another."""

from __future__ import annotations

import asyncio

from sora_chars.providers.loop_lock import LoopLock


async def contend(lock: LoopLock, count: int) -> int:
    """Let coroutines compete for a lock, and return how many held it at most at once."""
    holders: list[int] = []
    held = 0

    async def hold() -> None:
        nonlocal held
        async with lock.held():
            held += 1
            await asyncio.sleep(0)
            holders.append(held)
            held -= 1

    await asyncio.gather(*(hold() for _ in range(count)))
    return max(holders)


def test_serves_one_loop_after_another() -> None:
    """One coroutine holds the lock at a time, also in a second event loop."""
    lock = LoopLock()
    assert [asyncio.run(contend(lock, 5)) for _ in range(2)] == [1, 1]
