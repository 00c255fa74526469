"""One watcher that is shared by two sessions."""

from __future__ import annotations

import pytest

from sora_chars import CharacterSession, EntryState, FixedInterval, TaskWatcher
from tests.support.fake_providers import FakeProvider, state_of

pytestmark = pytest.mark.looptime


async def test_each_session_records_its_task() -> None:
    """Each session records the end of its own task in its own ledger, whichever session was opened last."""
    watcher = TaskWatcher(polling=FixedInterval(1.0))
    first = CharacterSession(FakeProvider(name="one"), watcher=watcher)
    second = CharacterSession(FakeProvider(name="two"), watcher=watcher)
    async with first, second:
        character = await first.create(from_task="t0", key="mine")
        assert character.id == "ch_1"
        assert await state_of(first) is EntryState.SUCCEEDED
        await second.create(from_task="t0", key="mine")
        assert await state_of(second) is EntryState.SUCCEEDED


async def test_both_sessions_record_a_shared_task() -> None:
    """A task that two sessions wait for is recorded in both ledgers before either wait ends."""
    watcher = TaskWatcher(polling=FixedInterval(100.0))
    first = CharacterSession(FakeProvider(), watcher=watcher)
    second = CharacterSession(FakeProvider(), watcher=watcher)
    async with first, second:
        one = await first.submit(from_task="t0", key="mine")
        other = await second.submit(from_task="t0", key="mine")
        assert other.task_id == one.task_id
        assert not one.done()
        await one
        assert other.done()
        assert [await state_of(session) for session in (first, second)] == [EntryState.SUCCEEDED] * 2


async def test_a_refresh_is_recorded_by_both_sessions() -> None:
    """An end that a refresh finds is recorded in both ledgers, too."""
    watcher = TaskWatcher(polling=FixedInterval(1000.0))
    first = CharacterSession(FakeProvider(), watcher=watcher)
    second = CharacterSession(FakeProvider(), watcher=watcher)
    async with first, second:
        one = await first.submit(from_task="t0", key="mine")
        await second.submit(from_task="t0", key="mine")
        assert (await one.refresh()).finished
        assert [await state_of(session) for session in (first, second)] == [EntryState.SUCCEEDED] * 2


async def test_a_resumed_id_is_recorded() -> None:
    """A task resumed by its id is recorded in the ledger of the session that resumed it."""
    watcher = TaskWatcher(polling=FixedInterval(1.0))
    first = CharacterSession(FakeProvider(end=10), watcher=watcher)
    second = CharacterSession(FakeProvider(), watcher=watcher)
    async with first, second:
        handle = await first.submit(from_task="t0", key="mine")
        await first.resume(handle.task_id)
        assert await state_of(first) is EntryState.SUCCEEDED
