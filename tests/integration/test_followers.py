"""Several processes that await one task, on a shared ledger."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, FixedInterval, Kie

if TYPE_CHECKING:
    from sora_chars.testing import Emulator

AWAITERS = 4
REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog", "key": "k"}


async def test_one_task_costs_one_poll(emulator: Emulator, shared_url: str) -> None:
    """The process that sent the request polls; all others read the end from the ledger."""
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(
                CharacterSession(Kie("key", base_url=emulator.url), ledger=shared_url, polling=FixedInterval(0.3))
            )
            for _ in range(AWAITERS)
        ]
        handle = await sessions[0].submit(**REQUEST)
        creates = [session.create(**REQUEST) for session in sessions[1:]]
        waits = [session.wait("k") for session in sessions]
        made, *others = await asyncio.gather(handle.result(), *creates, *waits)
        assert [other.id for other in others] == [made.id] * (2 * AWAITERS - 1)
    assert (emulator.counts.creates, emulator.counts.polls) == (1, 1)
