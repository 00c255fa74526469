"""How the SQLite ledger groups its commits, and what its polls read."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import Entry, EntryState, Ledger, StaleEntryError, open_ledger
from sora_chars.ledger.stores import sqlite_statements as statements
from sora_chars.ledger.stores.sqlite import SqliteStore
from sora_chars.ledger.stores.sqlite_thread import CommitThread
from tests.support.sqlite_ledger import connect, register, run_in, running

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger that does not exist yet."""
    return tmp_path / "characters.db"


async def test_commits_are_synced(path: Path) -> None:
    """The writer syncs the write-ahead log at every commit, which survives a power loss."""
    async with open_ledger(path) as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        journal = await run_in(store._writer, lambda cursor: cursor.execute("PRAGMA journal_mode").fetchone())
        synchronous = await run_in(store._writer, lambda cursor: cursor.execute("PRAGMA synchronous").fetchone())
        assert (journal, synchronous) == (("wal",), (2,))


async def traced(ledger: Ledger) -> list[str]:
    """Return a list to which the writer's connection adds every statement."""
    store = ledger._store
    assert isinstance(store, SqliteStore)
    seen: list[str] = []
    await run_in(store._writer, lambda cursor: cursor.connection.set_trace_callback(seen.append))
    return seen


async def test_concurrent_writes_share_commits(path: Path) -> None:
    """A thousand concurrent writes take fewer than 50 transactions and 100 statements."""
    async with open_ledger(path) as ledger:
        seen = await traced(ledger)
        await asyncio.gather(*(register(ledger, f"k-{number}") for number in range(1000)))
        assert seen.count("COMMIT") < 50
        assert sum(statement.startswith("INSERT") for statement in seen) < 100
        assert len([entry async for entry in ledger.entries()]) == 1000


async def test_single_statement_needs_no_transaction(path: Path) -> None:
    """A group that needs one statement runs it without BEGIN and COMMIT."""
    async with open_ledger(path) as ledger:
        seen = await traced(ledger)
        await asyncio.gather(*(running(ledger, f"k-{number}") for number in range(16)))
        assert [statement.split()[0] for statement in seen] == ["INSERT", "UPDATE", "UPDATE"]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every commit thread adds the size of each group."""
    sizes: list[int] = []
    run_jobs = CommitThread._run_jobs

    def counted(self: CommitThread, jobs: Any) -> list[Any]:
        sizes.append(len(jobs))
        return run_jobs(self, jobs)

    monkeypatch.setattr(CommitThread, "_run_jobs", counted)
    return sizes


async def test_ends_of_tasks_wait_for_other_writes(path: Path, groups: list[int]) -> None:
    """Ends of tasks are committed with the next other record, or once there are 32."""
    async with Ledger(SqliteStore(path, spacing=3600)) as ledger:
        entries = [await running(ledger, f"k-{number}") for number in range(33)]
        groups.clear()
        ended = asyncio.gather(*(ledger.transition(entry, EntryState.SUCCEEDED) for entry in entries[:30]))
        for _ in range(10):
            await ledger.get("k-0")
        assert groups == [1] * 10  # the reads
        await register(ledger, "k-urgent")
        assert groups[10:] == [31]
        assert {entry.state for entry in await ended} == {EntryState.SUCCEEDED}
        many = [await running(ledger, f"m-{number}") for number in range(32)]
        groups.clear()
        await asyncio.gather(*(ledger.transition(entry, EntryState.FAILED) for entry in many))
        assert groups == [32]
        remaining = asyncio.gather(*(ledger.transition(entry, EntryState.FAILED) for entry in entries[30:]))
        await asyncio.sleep(0)
    assert groups == [32, 3]  # closing loses none
    assert {entry.state for entry in await remaining} == {EntryState.FAILED}


@pytest.mark.parametrize(("count", "rows"), [(12, 16), (40, 16), (40, 1)])
async def test_each_transition_of_a_group_has_its_own_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int, rows: int
) -> None:
    """In one group, stale transitions raise; all others succeed, and put a removed entry back.

    They run in one statement, in several, and one by one, as with an old SQLite.
    """
    monkeypatch.setattr(statements, "ROWS_PER_STATEMENT", rows)
    async with open_ledger(path) as ledger:
        entries = [await running(ledger, f"k-{number}") for number in range(count)]
        with connect(path) as other:
            other.execute("DELETE FROM entries WHERE key = 'k-7'")
        ahead = await ledger.transition(entries[3], EntryState.FAILED, error={"message": "first"})
        twice = [(entries[9], EntryState.SUCCEEDED, [1]), (entries[9], EntryState.SUCCEEDED, [2])]
        changes = [
            *((entry, EntryState.SUCCEEDED, [entry.key]) for entry in entries if entry is not entries[9]),
            *twice,
        ]
        outcomes = await asyncio.gather(
            *(ledger.transition(entry, to, result=result) for entry, to, result in changes), return_exceptions=True
        )
        for (entry, _, result), outcome in zip(changes[:-2], outcomes[:-2], strict=True):
            if entry is entries[3]:
                assert isinstance(outcome, StaleEntryError)
                assert outcome.entry == ahead
            else:
                assert isinstance(outcome, Entry)
                assert outcome == await ledger.get(entry.key)
                assert outcome.result == result
        assert {type(outcome) for outcome in outcomes[-2:]} == {Entry, StaleEntryError}


async def test_jobs_of_one_loop_iteration_are_one_group(path: Path, groups: list[int]) -> None:
    """The thread does not start with the first job before the others are there."""
    async with open_ledger(path) as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        groups.clear()
        jobs: list[asyncio.Future[object]] = []
        for _ in range(3):
            jobs.append(run_in(store._writer, lambda _: None))
            time.sleep(0.01)  # noqa: ASYNC251 # lets the thread run, and not the loop
        await asyncio.gather(*jobs)
    assert groups == [3]


async def test_polls_read_no_entries_without_commits(path: Path) -> None:
    """While no process commits, a poll reads only SQLite's data version."""
    store = SqliteStore(path, poll_interval=0.001)
    async with Ledger(store) as ledger:
        pending = await register(ledger)
        statements_run: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def trace(statement: str) -> None:
            loop.call_soon_threadsafe(statements_run.put_nowait, statement)

        await run_in(store._reader, lambda cursor: cursor.connection.set_trace_callback(trace))
        change = asyncio.create_task(ledger.changed(pending, timeout=30))
        seen = [await statements_run.get() for _ in range(60)]
        assert sum("json_each" in statement for statement in seen) == 1
        assert seen.count("PRAGMA data_version") > 10
        sending = await ledger.transition(pending, EntryState.SENDING)
        assert await change == sending
