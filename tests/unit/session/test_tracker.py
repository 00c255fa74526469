"""Which process polls a recorded task: its owner, or another one after the owner's death."""

from __future__ import annotations

import asyncio

import pytest

from sora_chars.errors import MissingCharacterError, SessionClosedError
from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import end_state
from sora_chars.models import TaskSnapshot
from tests.support.log_events import events
from tests.support.shared_database import (
    DONE,
    FALLBACK_INTERVAL,
    INTERVAL,
    Database,
    owner_of,
    record_running,
    start_process,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
def database() -> Database:
    """Return a database for processes to share."""
    return Database()


@pytest.mark.parametrize("claimed", [True, False])
async def test_polls_tasks_without_another_owner(database: Database, claimed: bool) -> None:  # noqa: FBT001 # a parameter
    """A task that this process owns, or that has no owner, is owned and polled by the strategy."""
    async with start_process(database, "a") as process:
        entry = await record_running(process.ledger, claimed=claimed)
        task = await process.tracker.join(process.provider, entry)
        await asyncio.sleep(4.5 * INTERVAL)
        assert (task.polled_elsewhere, len(process.provider.polls), await owner_of(process.ledger)) == (False, 5, "a")
        process.provider.end = 0
        assert await task.future == DONE
        assert (await process.ledger.get("k-1")).state is EntryState.SUCCEEDED  # type: ignore[union-attr] # it is there


async def test_records_a_success_without_a_character(database: Database) -> None:
    """The wait raises, and the entry is failed with the result of the provider."""
    nothing = MissingCharacterError("none", provider="fake", task_id="t1", payload={"a": 1})
    async with start_process(database, "a", seen=nothing) as process:
        task = await process.tracker.join(process.provider, await record_running(process.ledger))
        with pytest.raises(MissingCharacterError):
            await task.future
        entry = await process.ledger.get("k-1")
        assert entry
        assert (entry.state, entry.result["result"]) == (EntryState.FAILED, {"a": 1})


async def test_first_snapshot_avoids_a_write(database: Database) -> None:
    """A task that was submitted just now is watched without another write."""
    async with start_process(database, "a") as process:
        entry = await record_running(process.ledger)
        new = TaskSnapshot(task_id="t1", provider="fake", state="waiting")
        task = await process.tracker.join(process.provider, entry, new)
        assert (task.snapshot, task.polled_elsewhere) == (new, False)
        assert await process.tracker.join(process.provider, entry) is task
        assert await process.ledger.get("k-1") == entry


async def test_does_not_poll_ended_entries(database: Database) -> None:
    """An ended entry resolves its future at once, without a poll."""
    async with start_process(database, "a", callback_url="https://me.invalid") as process:
        to, facts = end_state(DONE, "character")
        entry = await process.ledger.transition(await record_running(process.ledger, digest="d"), to, **facts)
        task = await process.tracker.join(process.provider, entry)
        assert (task.future.result(), process.provider.polls) == (DONE, [])


async def test_polls_owned_tasks_at_the_fallback_interval(database: Database) -> None:
    """A task whose owner is alive is polled rarely, in case the owner hangs."""
    async with start_process(database, "a") as first, start_process(database, "b") as second:
        task = await second.tracker.join(second.provider, await record_running(first.ledger))
        await asyncio.sleep(3.5 * FALLBACK_INTERVAL)
        assert (task.polled_elsewhere, len(second.provider.polls), await owner_of(second.ledger)) == (True, 3, "a")
        second.provider.end = 0
        assert await task.future == DONE


async def test_takes_over_from_a_dead_owner(database: Database) -> None:
    """When the owner dies, one waiting process polls the task, and the other tracks that process."""
    async with start_process(database, "b") as second, start_process(database, "c") as third:
        async with start_process(database, "a") as first:
            entry = await record_running(first.ledger)
            tasks = [await process.tracker.join(process.provider, entry) for process in (second, third)]
            await asyncio.sleep(0.5 * FALLBACK_INTERVAL)
            assert second.provider.polls == third.provider.polls == []
        await asyncio.sleep(0.5 * FALLBACK_INTERVAL)
        winner, loser = (second, third) if await owner_of(second.ledger) == "b" else (third, second)
        assert sorted(task.polled_elsewhere for task in tasks) == [False, True]
        assert len(winner.provider.polls) > len(loser.provider.polls)
        second.provider.end = third.provider.end = 0
        assert [await task.future for task in tasks] == [DONE, DONE]
        await asyncio.sleep(FALLBACK_INTERVAL)
        checks = [process.store.checks for process in (second, third)]
        await asyncio.sleep(FALLBACK_INTERVAL)
        assert [process.store.checks for process in (second, third)] == checks  # no owner is checked any more


async def test_takes_over_when_the_claim_was_lost(database: Database) -> None:
    """A process that lost a claim takes the task over when the new owner dies as well."""
    async with start_process(database, "c") as third:
        async with start_process(database, "b") as second:
            async with start_process(database, "a") as first:
                entry = await record_running(first.ledger)
                task = await third.tracker.join(third.provider, entry)
            await second.ledger.transition(entry, EntryState.RUNNING)
            await asyncio.sleep(5.0)
            assert (task.polled_elsewhere, await owner_of(third.ledger)) == (True, "b")
        await asyncio.sleep(5.0)
        assert (task.polled_elsewhere, await owner_of(third.ledger)) == (False, "c")


async def test_claims_an_orphaned_task_on_joining(database: Database) -> None:
    """Joining a task whose owner has died claims it, or tracks the process that claimed it first."""
    async with start_process(database, "b") as second, start_process(database, "c") as third:
        async with start_process(database, "a") as first:
            entry = await record_running(first.ledger)
        second.store.takes = third.store.takes = 1.0
        tasks = await asyncio.gather(*(process.tracker.join(process.provider, entry) for process in (second, third)))
        assert [task.polled_elsewhere for task in tasks] == [False, True]
        assert await owner_of(second.ledger) == "b"


async def test_skips_tasks_that_end_during_a_take_over(database: Database) -> None:
    """Of several tasks to be claimed in sequence, those that end in between are not claimed."""
    async with start_process(database, "b") as second:
        async with start_process(database, "a") as first:
            entries = [await record_running(first.ledger, number) for number in (1, 2)]
            tasks = [await second.tracker.join(second.provider, entry) for entry in entries]
            second.store.takes = 5.0
        await asyncio.sleep(3.0)  # the first task is being claimed
        tasks[1].finish(DONE)
        second.provider.end = 0
        assert await tasks[0].future == DONE
        assert await owner_of(second.ledger, 2) == "a"


async def test_stops_tracking_a_task_that_ends_during_a_lost_claim(database: Database) -> None:
    """A task that ends while another process claims it is no longer tracked."""
    async with start_process(database, "b") as second, start_process(database, "c") as third:
        async with start_process(database, "a") as first:
            entry = await record_running(first.ledger)
            task = await second.tracker.join(second.provider, entry)
            second.store.takes = 5.0
        await asyncio.sleep(2.0)  # the task is being claimed
        await third.ledger.transition(entry, EntryState.RUNNING)
        task.finish(DONE)
        await asyncio.sleep(10.0)
        assert await owner_of(second.ledger) == "c"
        assert second.tracker._owner_checks
        assert second.tracker._owner_checks.done()


async def test_owner_checks_survive_a_fault(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the ledger is logged, and a later owner check takes the task over."""
    async with start_process(database, "b") as second:
        async with start_process(database, "a") as first:
            task = await second.tracker.join(second.provider, await record_running(first.ledger))
            second.store.faults = 2
        await asyncio.sleep(5.0)
        assert events(caplog.records) == ["tracker.failed"] * 2
        assert (task.polled_elsewhere, await owner_of(second.ledger)) == (False, "b")


async def test_join_survives_a_fault(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """If the owner cannot be checked, the task is watched, and claimed by the next owner check."""
    async with start_process(database, "b") as second:
        async with start_process(database, "a") as first:
            entry = await record_running(first.ledger)
        second.store.faults = 1
        task = await second.tracker.join(second.provider, entry)
        assert task.polled_elsewhere
        await asyncio.sleep(2.0)
        assert events(caplog.records) == ["tracker.failed"]
        assert (task.polled_elsewhere, await owner_of(second.ledger)) == (False, "b")


async def test_join_raises_after_closing(database: Database) -> None:
    """Joining a task while the session closes raises, because the wait would never end."""
    async with start_process(database, "a") as first, start_process(database, "b") as second:
        entry = await record_running(first.ledger)
        joining = asyncio.create_task(second.tracker.join(second.provider, entry))
        await second.tracker.aclose()
        with pytest.raises(SessionClosedError, match="before the task of key k-1 could be watched"):
            await joining
        assert second.watcher._pollers == {}


async def test_owner_checks_start_again(database: Database) -> None:
    """After all tracked tasks have ended, the next one is tracked again."""
    async with start_process(database, "b") as second:
        async with start_process(database, "a") as first:
            earlier = await second.tracker.join(second.provider, await record_running(first.ledger))
            second.provider.end = 0
            await earlier.future
            await asyncio.sleep(5.0)
            later = await second.tracker.join(second.provider, await record_running(first.ledger, 2))
        await later.future
        assert len(second.provider.polls) == 2
