"""Entries that no process carries on, and old entries, in every store."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import CharacterSession, EntryState, InvalidRequestError, Kie, open_ledger
from sora_chars.ledger import listing
from sora_chars.ledger.stores import postgres, postgres_statements, sqlite_upkeep

if TYPE_CHECKING:
    from sora_chars import Entry, Ledger

DAY = 86_400.0


async def register(ledger: Ledger, key: str, provider: str = "kie") -> Entry:
    """Register a request."""
    return await ledger.register(key=key, provider=provider, kind="character", request={"from_task": "t"})


async def entry_in(ledger: Ledger, key: str, state: EntryState, **facts: Any) -> Entry:
    """Register a request, and take its entry to a state."""
    entry = await register(ledger, key)
    if state is EntryState.PENDING:
        return entry
    entry = await ledger.transition(entry, EntryState.SENDING)
    if state is EntryState.SENDING:
        return entry
    task_id = None if state in {EntryState.UNKNOWN, EntryState.REJECTED} else f"task-{key}"
    return await ledger.transition(entry, state, task_id=task_id, **facts)


async def due_keys(ledger: Ledger, *, idle: float = 60.0, limit: int = 500) -> list[str]:
    """List the keys that are due."""
    return [entry.key async for entry in ledger.due(idle=idle, limit=limit)]


async def test_due_entries_end_with_a_full_page(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further page is read once the limit is reached, also at the end of a page."""
    monkeypatch.setattr(listing, "_PAGE_SIZE", 2)
    now = [1000.0]
    async with open_ledger(ledger_url, clock=lambda: now[0]) as ledger:
        for number in range(5):
            await register(ledger, f"new-{number}")
        now[0] = 2000.0
        assert await due_keys(ledger, limit=4) == ["new-0", "new-1", "new-2", "new-3"]


async def test_due_entries_come_in_the_order_of_their_last_change(ledger_url: str) -> None:
    """Unfinished entries without an owner are due after a while, those that changed longest ago first."""
    now = [1000.0]
    async with open_ledger(ledger_url, clock=lambda: now[0]) as ledger:
        for number, state in enumerate(EntryState):
            now[0] = 1000.0 - number
            if state is not EntryState.DELETED:
                await entry_in(ledger, state, state, claim=False)
        for number in range(3):
            await register(ledger, f"new-{number}")
        now[0] = 1060.5
        assert await due_keys(ledger) == ["new-0", "new-1", "new-2", "running", "pending"]
        assert await due_keys(ledger, limit=4) == ["new-0", "new-1", "new-2", "running"]
        assert await due_keys(ledger, idle=65.0) == ["new-0", "new-1", "new-2"]
        assert await due_keys(ledger, idle=100.0) == []


async def test_entries_of_living_processes_are_not_due(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is due once its owner has ended, however many pages of others come before it."""
    monkeypatch.setattr(postgres, "OWNER_GRACE", 0.2)
    async with open_ledger(shared_url) as ledger:
        async with open_ledger(shared_url, clock=lambda: 100.0) as other:
            await asyncio.gather(*(entry_in(other, f"k-{number:03}", EntryState.RUNNING) for number in range(250)))
            async with open_ledger(shared_url, clock=lambda: 200.0) as mine:
                await entry_in(mine, "mine", EntryState.RUNNING)
                await entry_in(mine, "free", EntryState.RUNNING, claim=False)
                assert await due_keys(ledger) == ["free"]
            assert await due_keys(ledger) == ["free", "mine"]
        assert len(await due_keys(ledger)) == 252


async def test_a_session_finds_what_its_providers_can_carry_on(ledger_url: str) -> None:
    """A session yields the entries of its own providers only, and checks the options."""
    async with open_ledger(ledger_url, clock=lambda: 100.0) as ledger:
        await register(ledger, "mine")
        await register(ledger, "foreign", provider="gone")
        later = open_ledger("memory:")
        async with CharacterSession(Kie(api_key="key"), ledger=ledger) as session:
            ledger._clock = later._clock
            assert [entry.key async for entry in session.due()] == ["mine"]
            await register(ledger, "also mine")
            assert len([entry async for entry in session.due(idle=0, limit=2)]) == 2  # the foreign one does not count
            wrong: list[dict[str, Any]] = [{"idle": -1.0}, {"idle": float("nan")}, {"limit": 0}]
            for options in wrong:
                with pytest.raises(InvalidRequestError, match=r"must be a (whole number from|finite number)"):
                    await anext(session.due(**options))


async def test_prune_keeps_what_may_be_paid(ledger_url: str) -> None:
    """Old entries that have ended are removed with their attempts; others stay, and so do those in doubt."""
    now = [0.0]
    async with open_ledger(ledger_url, clock=lambda: now[0]) as ledger:
        for state in set(EntryState) - {EntryState.DELETED}:
            await entry_in(ledger, state, state, result={} if state is EntryState.SUCCEEDED else None)
        doubt = {"message": "a page of the gateway", "charged": "maybe"}
        await entry_in(ledger, "rejected in doubt", EntryState.REJECTED, error=doubt)
        await ledger.restart(await entry_in(ledger, "retried", EntryState.FAILED), EntryState.PENDING)
        entry = await ledger.transition(await ledger.get("retried"), EntryState.SENDING)  # type: ignore[arg-type]
        await ledger.transition(entry, EntryState.FAILED, task_id="t-2")
        deleted = await entry_in(ledger, "deleted", EntryState.SUCCEEDED, result={})
        await ledger.transition(deleted, EntryState.DELETED, result={})
        now[0] = 10 * DAY
        await entry_in(ledger, "new", EntryState.FAILED)
        assert await ledger.prune(older_than=11 * DAY) == 0
        counts = [await ledger.prune(older_than=days * DAY, dry_run=True) for days in (11, 5)]
        assert counts == [0, 5]
        assert await ledger.prune(older_than=5 * DAY) == 5
        kept = {entry.key async for entry in ledger.entries()}
        assert kept == {"pending", "sending", "running", "unknown", "rejected in doubt", "new"}
        assert await ledger.attempts("retried") == []
        assert await ledger.by_task("kie", "task-succeeded") is None
        assert (await register(ledger, "succeeded")).state is EntryState.PENDING


@pytest.mark.parametrize("age", [float("nan"), -1.0, 10**400, "5", None])
async def test_prune_takes_an_age(ledger_url: str, age: Any) -> None:
    """What is no number of seconds removes nothing."""
    async with open_ledger(ledger_url, clock=lambda: DAY) as ledger:
        await entry_in(ledger, "old", EntryState.FAILED)
        await entry_in(ledger, "last", EntryState.FAILED)
        ledger._clock = lambda: 3 * DAY
        for dry_run in (True, False):
            with pytest.raises(InvalidRequestError, match=r"^older_than must be a finite number of seconds, at least"):
                await ledger.prune(older_than=age, dry_run=dry_run)
        assert len([entry async for entry in ledger.entries()]) == 2


async def test_prune_works_in_groups(ledger_url: str) -> None:
    """More entries than one transaction removes are removed too, except the last row of an SQLite file."""
    async with open_ledger(ledger_url, clock=lambda: 0.0) as ledger:
        await asyncio.gather(*(entry_in(ledger, f"k-{number}", EntryState.FAILED) for number in range(1100)))
        ledger._clock = lambda: DAY
        count = await ledger.prune(older_than=1.0, dry_run=True)
        assert count in {1099, 1100}
        assert await ledger.prune(older_than=1.0) == count


async def test_a_pruned_ledger_is_searched(shared_url: str) -> None:
    """Entries that come after a pruning are found, and those that were removed are not."""
    async with open_ledger(shared_url, clock=lambda: 0.0) as ledger:
        await entry_in(ledger, "first dog", EntryState.FAILED)
        await entry_in(ledger, "second dog", EntryState.FAILED)
        assert len([entry async for entry in ledger.entries(query="dog")]) == 2
        ledger._clock = lambda: DAY
        await ledger.prune(older_than=1.0)
        await entry_in(ledger, "third dog", EntryState.FAILED)
        found = {entry.key async for entry in ledger.entries(query="dog")}
        assert found - {"second dog"} == {"third dog"}


async def test_a_pruned_entry_is_not_taken_for_lost(shared_url: str) -> None:
    """A process goes on when another one removes entries that it has written."""
    async with open_ledger(shared_url, clock=lambda: 0.0) as ledger:
        for key in "ab":
            await entry_in(ledger, key, EntryState.FAILED)
        async with open_ledger(shared_url) as other:
            assert await other.prune(older_than=DAY)
        assert (await entry_in(ledger, "c", EntryState.RUNNING)).state is EntryState.RUNNING
        assert (await register(ledger, "d")).state is EntryState.PENDING


async def test_due_entries_are_found_by_a_partial_index(shared_url: str) -> None:
    """The search for idle entries reads an index that holds unfinished entries only."""
    async with open_ledger(shared_url):
        pass
    if shared_url.startswith("sqlite:"):
        with closing(sqlite3.connect(shared_url.removeprefix("sqlite:///"))) as file:
            plan = str(file.execute(f"EXPLAIN QUERY PLAN {sqlite_upkeep.IDLE}", (1.0, -1.0, "", 10)).fetchall())
        assert "USING INDEX entries_idle" in plan
        assert "TEMP B-TREE" not in plan
    else:
        with psycopg.connect(shared_url) as database:
            database.execute("SET enable_seqscan = off")
            for after, values in ((False, (1.0, 10)), (True, (1.0, 0.5, "k", 10))):
                statement = f"EXPLAIN {postgres_statements.IDLE[after]}"
                plan = str(database.execute(statement.encode(), values).fetchall())
                assert "using sora_chars_entries_updated_at_key_idx" in plan
                assert "Sort" not in plan
