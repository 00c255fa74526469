"""The memory store keeps a limited number of finished entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sora_chars import Entry, EntryState, Ledger, LedgerError, open_ledger
from sora_chars.ledger.stores import memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RUNNING = (EntryState.SENDING, EntryState.RUNNING)
DONE = (*RUNNING, EntryState.SUCCEEDED)


@pytest.fixture
async def ledger(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    """Open a memory ledger that keeps three finished entries."""
    monkeypatch.setattr(memory, "_MAX_FINISHED", 3)
    async with open_ledger("memory:") as opened:
        yield opened


async def put(ledger: Ledger, number: int, *states: EntryState) -> Entry:
    """Register a key and take its entry through states."""
    key = f"k-{number}"
    entry = await ledger.register(key=key, provider="kie", kind="character", request={})
    for to in states:
        task_id = f"t-{number}" if to is EntryState.RUNNING else None
        digest = f"d-{number}" if to is EntryState.SENDING else None
        entry = await ledger.transition(entry, to, task_id=task_id, token_digest=digest)
    return entry


async def keys(ledger: Ledger, *states: EntryState, newest_first: bool = False) -> list[str]:
    """List the keys of the entries in `states`, by default of all."""
    entries = ledger.entries(states=states or tuple(EntryState), newest_first=newest_first)
    return [entry.key async for entry in entries]


@pytest.mark.parametrize(
    "states",
    [DONE, (*RUNNING, EntryState.FAILED), (EntryState.SENDING, EntryState.REJECTED), (EntryState.REJECTED,)],
    ids=str,
)
async def test_removes_what_finished_first(ledger: Ledger, states: tuple[EntryState, ...]) -> None:
    """The last three finished entries are kept, in whatever state; older ones are not found any more."""
    unfinished = [await put(ledger, number, *states[:-1]) for number in range(5)]
    for number in (4, 2, 0, 1, 3):
        await ledger.transition(unfinished[number], states[-1])
    assert await keys(ledger) == ["k-0", "k-1", "k-3"]
    for number in range(5):
        found = (
            await ledger.get(f"k-{number}"),
            await ledger.by_task("kie", f"t-{number}"),
            await ledger.by_token(f"d-{number}"),
        )
        entry = unfinished[number] if number in {0, 1, 3} else None
        expected = entry and (entry.key, entry.task_id and entry.key, entry.token_digest and entry.key)
        assert tuple(one and one.key for one in found) == (expected or (None, None, None))


@pytest.mark.parametrize(
    "states", [(), (EntryState.SENDING,), RUNNING, (EntryState.SENDING, EntryState.UNKNOWN)], ids=str
)
async def test_keeps_unfinished_entries(ledger: Ledger, states: tuple[EntryState, ...]) -> None:
    """Entries that are pending, sending, running or unknown are kept, however many others finish."""
    for number in range(10):
        await put(ledger, number, *states)
    for number in range(10, 20):
        await put(ledger, number, *DONE)
    assert await keys(ledger) == [*(f"k-{number}" for number in range(10)), "k-17", "k-18", "k-19"]
    assert (await put(ledger, 0)).state is (states or [EntryState.PENDING])[-1]


async def test_resent_entry_is_unfinished(ledger: Ledger) -> None:
    """A rejected entry that is sent again is unfinished, and the last to finish when it is rejected again."""
    rejected = await put(ledger, 0, EntryState.REJECTED)
    sending = await ledger.transition(rejected, EntryState.SENDING)
    for number in range(1, 5):
        await put(ledger, number, *DONE)
    assert await keys(ledger) == ["k-0", "k-2", "k-3", "k-4"]
    await ledger.transition(sending, EntryState.REJECTED)
    assert await keys(ledger) == ["k-0", "k-3", "k-4"]


async def test_removed_key_is_new(ledger: Ledger) -> None:
    """A removed key registers anew, in the last place, and its old entry cannot change."""
    old = await put(ledger, 0, EntryState.REJECTED)
    for number in range(1, 4):
        await put(ledger, number, *DONE)
    with pytest.raises(LedgerError, match="no longer has the entry of key k-0"):
        await ledger.transition(old, EntryState.SENDING)
    assert (await put(ledger, 0)).state is EntryState.PENDING
    assert await keys(ledger) == ["k-1", "k-2", "k-3", "k-0"]


async def test_shared_task_is_still_found(ledger: Ledger) -> None:
    """After the removal of an entry, another entry with the same task id is found by it."""
    await put(ledger, 0, *DONE)
    sending = await put(ledger, 9, EntryState.SENDING)
    await ledger.transition(sending, EntryState.RUNNING, task_id="t-0")
    for number in range(1, 4):
        await put(ledger, number, *DONE)
    found = await ledger.by_task("kie", "t-0")
    assert found
    assert found.key == "k-9"
    assert await ledger.get("k-0") is None


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_during_removals(monkeypatch: pytest.MonkeyPatch, *, newest_first: bool) -> None:
    """Removals between two pages, of the last entry of a page too, neither hide an entry nor repeat one."""
    monkeypatch.setattr(memory, "_MAX_FINISHED", 500)
    async with open_ledger("memory:") as ledger:
        for number in range(500):
            await put(ledger, number, *DONE)
        await put(ledger, 500)
        order = [f"k-{number}" for number in range(501)]
        assert (
            await keys(ledger, EntryState.SUCCEEDED, newest_first=newest_first) == order[:500][:: 1 - 2 * newest_first]
        )
        seen: list[str] = []
        async for entry in ledger.entries(newest_first=newest_first):
            seen.append(entry.key)
            if len(seen) == 200:  # the page ends here
                for number in range(1000, 1350):
                    await put(ledger, number, *DONE)
        if newest_first:
            assert seen == [*order[:300:-1]]
        else:
            assert seen == [*order[:200], *order[350:], *(f"k-{number}" for number in range(1000, 1350))]


async def test_removal_leaves_nothing_behind(ledger: Ledger) -> None:
    """The dictionaries of the store stay at the same size."""
    store = ledger._store
    assert isinstance(store, memory.MemoryStore)
    sizes: set[tuple[int, ...]] = set()
    for number in range(100):
        await put(ledger, number, *DONE)
        if number > 10:
            sizes.add(tuple(len(table) for table in (store._entries, store._row_ids, store._finished, store._keys)))
    assert len(sizes) == 1


async def test_closing_logs_unfinished_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """What the process takes with it is logged with keys and task ids, and only what may have been paid."""
    async with open_ledger("memory:") as opened:
        for number, states in enumerate(((), DONE, RUNNING, (*RUNNING[:1], EntryState.UNKNOWN)), 1):
            await put(opened, number, *states)
    [record] = caplog.records
    assert "key k-3: t-3; key k-4: unknown" in record.getMessage()
    assert vars(record)["entries"] == 2
