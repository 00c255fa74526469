"""How a process learns the end of a task that another process has recorded."""

from __future__ import annotations

import asyncio

import pytest

from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import end_state
from sora_chars.models import TaskFailure, TaskSnapshot
from tests.support.log_events import events
from tests.support.shared_database import (
    DONE,
    FALLBACK_INTERVAL,
    INTERVAL,
    Database,
    record_running,
    start_process,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
def database() -> Database:
    """Return a database for processes to share."""
    return Database()


async def test_reads_the_end_that_the_owner_records(database: Database) -> None:
    """As soon as the owner has recorded the end of a task, the other processes read it, and poll nothing."""
    async with start_process(database, "a", end=0) as first, start_process(database, "b", end=0) as second:
        entry = await record_running(first.ledger)
        task = await second.tracker.join(second.provider, entry)
        assert await second.tracker.join(second.provider, entry) is task
        assert second.provider.polls == []
        await (await first.tracker.join(first.provider, entry)).future
        assert (await task.future, first.provider.polls, second.provider.polls) == (DONE, [0.0], [])
        await asyncio.sleep(0)
        assert not second.ledger.notifier.keys


async def test_finds_an_end_recorded_before_the_subscription(database: Database) -> None:
    """An end that is recorded between reading the entry and subscribing to it is found at once."""
    async with start_process(database, "a", end=0) as first, start_process(database, "b", end=0) as second:
        entry = await record_running(first.ledger)
        await (await first.tracker.join(first.provider, entry)).future
        task = await second.tracker.join(second.provider, entry)
        assert (await task.future, second.provider.polls) == (DONE, [])


async def test_survives_a_failed_catch_up(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """If the entry cannot be read again after subscribing, the fallback polls still find the end."""
    async with start_process(database, "a") as first, start_process(database, "b", end=0) as second:
        entry = await record_running(first.ledger)
        second.store.unreadable = True
        task = await second.tracker.join(second.provider, entry)
        assert "tracker.failed" in events(caplog.records)
        second.store.unreadable = False
        assert (await task.future, second.provider.polls) == (DONE, [FALLBACK_INTERVAL])


async def test_reads_the_end_when_another_process_receives_the_callback(database: Database) -> None:
    """The owner of a task reads its end at once when another process has received its callback."""
    async with (
        start_process(database, "a") as first,
        start_process(database, "b", callback_url="https://me.invalid") as second,
    ):
        entry = await record_running(second.ledger, digest="d")
        task = await second.tracker.join(second.provider, entry)
        await asyncio.sleep(0.5 * INTERVAL)
        second.provider.end = 0
        to, facts = end_state(DONE, "character")
        await first.ledger.transition(entry, to, **facts)
        before = asyncio.get_running_loop().time()
        assert (await task.future, asyncio.get_running_loop().time()) == (DONE, before)
        assert second.provider.polls == [0.0]


@pytest.mark.parametrize("unreadable", [True, False])
async def test_polls_when_the_end_cannot_be_read(database: Database, unreadable: bool) -> None:  # noqa: FBT001 # a parameter
    """A process polls the task once if it is notified, but cannot read the end from the ledger."""
    async with start_process(database, "a") as first, start_process(database, "b", end=0) as second:
        entry = await record_running(first.ledger)
        task = await second.tracker.join(second.provider, entry)
        second.store.unreadable = unreadable
        await first.ledger.transition(entry, EntryState.FAILED, task_id="t1", result={"made by": "another program"})
        assert (await task.future, second.provider.polls) == (DONE, [0.0])


async def test_polls_when_the_entry_has_another_attempt(database: Database) -> None:
    """A process that follows a task polls it once if the entry has begun another attempt."""
    async with start_process(database, "a") as first, start_process(database, "b", end=0) as second:
        entry = await record_running(first.ledger)
        task = await second.tracker.join(second.provider, entry)
        await first.ledger.restart(entry, EntryState.UNKNOWN)
        assert (await task.future, second.provider.polls) == (DONE, [0.0])


async def test_ignores_a_new_owner(database: Database) -> None:
    """A process that follows a task does not poll it when another process takes it over."""
    async with start_process(database, "a") as first, start_process(database, "b") as second:
        entry = await record_running(first.ledger)
        await second.tracker.join(second.provider, entry)
        await first.ledger.transition(entry, EntryState.RUNNING)
        await asyncio.sleep(1.0)
        assert second.provider.polls == []


async def test_an_end_that_is_recorded_during_a_poll(database: Database) -> None:
    """A poll that was under way when the end was read does not start the polling again."""
    async with start_process(database, "a") as first, start_process(database, "b") as second:
        entry = await record_running(first.ledger, digest="d")
        second.provider.callback_url = "https://me.invalid"
        task = await second.tracker.join(second.provider, entry)
        second.watcher.nudge("fake", "t1")
        await asyncio.sleep(0)
        to, facts = end_state(DONE, "character")
        await first.ledger.transition(entry, to, **facts)
        assert await task.future == DONE
        await asyncio.sleep(2 * FALLBACK_INTERVAL)
        assert len(second.provider.polls) <= 1


async def test_closing_ends_a_read(database: Database) -> None:
    """A process that closes while it reads an entry leaves no asyncio task behind."""
    async with start_process(database, "a") as first, start_process(database, "b") as second:
        entry = await record_running(first.ledger)
        await second.tracker.join(second.provider, entry)
        await first.ledger.transition(entry, EntryState.RUNNING)
        await second.tracker.aclose()
        assert second.tracker._reads == set()


async def test_polls_given_up_tasks_by_the_strategy(database: Database) -> None:
    """After a person gave an entry up, its waiters poll the task by the strategy."""
    async with start_process(database, "b") as second:
        async with start_process(database, "a") as first:
            entry = await record_running(first.ledger)
            task = await second.tracker.join(second.provider, entry)
            given_up = TaskFailure("given_up", "given up by the user")
            failed = TaskSnapshot(task_id="t1", provider="fake", state="fail", failure=given_up)
            to, facts = end_state(failed, "character")
            await first.ledger.transition(entry, to, **facts)
        await asyncio.sleep(20 * INTERVAL)
        assert (task.polled_elsewhere, task.future.done()) == (False, False)
        assert 20 <= len(second.provider.polls) < 40  # by the strategy, with some more at first
        second.provider.end = 0
        assert await task.future == DONE
