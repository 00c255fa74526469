"""Two entries with one task: some providers return the same task for two equal creates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sora_chars import Character, Entry, EntryState, Ledger, TaskSnapshot, open_ledger
from sora_chars.session.writer import LedgerWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE = TaskSnapshot(task_id="t1", provider="kie", state="success", character=Character(id="ch_1", provider="kie"))


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """A ledger in memory."""
    async with open_ledger("memory:") as opened:
        yield opened


async def sending(ledger: Ledger, key: str) -> Entry:
    """Register a request and record that it is being sent."""
    entry = await ledger.register(key=key, provider="kie", kind="character", request={})
    return await ledger.transition(entry, EntryState.SENDING, token_digest=f"d-{key}")


async def states(ledger: Ledger) -> list[EntryState]:
    """List the states of all entries."""
    return [entry.state async for entry in ledger.entries()]


@pytest.mark.parametrize("writers", [1, 2])
async def test_both_entries_end(ledger: Ledger, writers: int) -> None:
    """When the task ends, both entries end, whether this process recorded both, one or none of them."""
    recorded = [LedgerWriter(ledger) for _ in range(writers)]
    for number, key in enumerate(("a", "b")):
        await recorded[number % writers].record_answer(await sending(ledger, key), EntryState.RUNNING, task_id="t1")
    for writer in recorded:
        await writer.record_result(DONE)
    assert await states(ledger) == [EntryState.SUCCEEDED] * 2


async def test_another_entry_that_was_recovered(ledger: Ledger) -> None:
    """An entry that another process recorded ends with the one of this process once this process has recovered it."""
    other, writer = LedgerWriter(ledger), LedgerWriter(ledger)
    recovered = await other.record_answer(await sending(ledger, "a"), EntryState.RUNNING, task_id="t1")
    await writer.record_answer(await sending(ledger, "b"), EntryState.RUNNING, task_id="t1")
    writer.remember(recovered)
    await writer.record_result(DONE)
    assert await states(ledger) == [EntryState.SUCCEEDED] * 2


async def test_the_same_entry_again(ledger: Ledger) -> None:
    """An entry that is remembered twice needs no query when its task ends."""
    writer = LedgerWriter(ledger)
    run = await writer.record_answer(await sending(ledger, "a"), EntryState.RUNNING, task_id="t1")
    writer.remember(run)
    assert writer._running["kie", "t1"] is run
