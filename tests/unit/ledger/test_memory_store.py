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
    """Give a ledger in memory that keeps three finished entries."""
    monkeypatch.setattr(memory, "_MAX_FINISHED", 3)
    async with open_ledger("memory:") as opened:
        yield opened


async def put(ledger: Ledger, number: int, *ways: EntryState) -> Entry:
    """Ask under a key, and move its entry through states."""
    key = f"k-{number}"
    entry = await ledger.register(key=key, provider="kie", kind="character", request={})
    for to in ways:
        task_id = f"t-{number}" if to is EntryState.RUNNING else None
        digest = f"d-{number}" if to is EntryState.SENDING else None
        entry = await ledger.transition(entry, to, task_id=task_id, token_digest=digest)
    return entry


async def keys(ledger: Ledger, *states: EntryState, newest_first: bool = False) -> list[str]:
    """List the keys of the entries in `states`, or of all."""
    entries = ledger.entries(states=states or tuple(EntryState), newest_first=newest_first)
    return [entry.key async for entry in entries]


@pytest.mark.parametrize(
    "ways",
    [DONE, (*RUNNING, EntryState.FAILED), (EntryState.SENDING, EntryState.REJECTED), (EntryState.REJECTED,)],
    ids=str,
)
async def test_the_first_to_finish_is_forgotten(ledger: Ledger, ways: tuple[EntryState, ...]) -> None:
    """Of what is finished, however, the last few are kept, and nothing of the others is found any more."""
    begun = [await put(ledger, number, *ways[:-1]) for number in range(5)]
    for number in (4, 2, 0, 1, 3):
        await ledger.transition(begun[number], ways[-1])
    assert await keys(ledger) == ["k-0", "k-1", "k-3"]
    for number in range(5):
        found = (
            await ledger.get(f"k-{number}"),
            await ledger.by_task("kie", f"t-{number}"),
            await ledger.by_token(f"d-{number}"),
        )
        entry = begun[number] if number in {0, 1, 3} else None
        expected = entry and (entry.key, entry.task_id and entry.key, entry.token_digest and entry.key)
        assert tuple(one and one.key for one in found) == (expected or (None, None, None))


@pytest.mark.parametrize(
    "ways", [(), (EntryState.SENDING,), RUNNING, (EntryState.SENDING, EntryState.UNKNOWN)], ids=str
)
async def test_what_is_not_finished_is_kept(ledger: Ledger, ways: tuple[EntryState, ...]) -> None:
    """However many they are and however much is finished after them, a wish, a task and a doubt stay."""
    for number in range(10):
        await put(ledger, number, *ways)
    for number in range(10, 20):
        await put(ledger, number, *DONE)
    assert await keys(ledger) == [*(f"k-{number}" for number in range(10)), "k-17", "k-18", "k-19"]
    assert (await put(ledger, 0)).state is (ways or [EntryState.PENDING])[-1]


async def test_what_was_refused_and_is_sent_again_is_kept(ledger: Ledger) -> None:
    """An entry that leaves its end behind does not count as finished, and is the last one when it ends again."""
    refused = await put(ledger, 0, EntryState.REJECTED)
    sending = await ledger.transition(refused, EntryState.SENDING)
    for number in range(1, 5):
        await put(ledger, number, *DONE)
    assert await keys(ledger) == ["k-0", "k-2", "k-3", "k-4"]
    await ledger.transition(sending, EntryState.REJECTED)
    assert await keys(ledger) == ["k-0", "k-3", "k-4"]


async def test_a_key_that_was_forgotten_is_new(ledger: Ledger) -> None:
    """It comes last, as what was asked last, and whoever still holds its old entry cannot move it."""
    old = await put(ledger, 0, EntryState.REJECTED)
    for number in range(1, 4):
        await put(ledger, number, *DONE)
    with pytest.raises(LedgerError, match="no longer has the entry of key k-0"):
        await ledger.transition(old, EntryState.SENDING)
    assert (await put(ledger, 0)).state is EntryState.PENDING
    assert await keys(ledger) == ["k-1", "k-2", "k-3", "k-0"]


async def test_a_task_of_two_entries_outlives_one(ledger: Ledger) -> None:
    """Forgetting an entry takes no name from another that bears it too."""
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
async def test_pages_stay_right_while_entries_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, *, newest_first: bool
) -> None:
    """What is forgotten between two pages, the place they meet at too, neither hides an entry nor shows one twice."""
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


async def test_forgetting_keeps_memory_flat(ledger: Ledger) -> None:
    """What was forgotten leaves nothing behind."""
    store = ledger._store
    assert isinstance(store, memory.MemoryStore)
    sizes: set[tuple[int, ...]] = set()
    for number in range(100):
        await put(ledger, number, *DONE)
        if number > 10:
            sizes.add(tuple(len(kept) for kept in (store._entries, store._row_ids, store._finished, store._keys)))
    assert len(sizes) == 1
