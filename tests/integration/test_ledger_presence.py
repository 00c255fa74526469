"""Processes on one PostgreSQL ledger: which of them are alive, whatever happens to their connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import EntryState, InvalidRequestError, Ledger, LedgerError
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ledger.transitions import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = 'test' AND pid <> pg_backend_pid() AND application_name <> %s"
)
CONNECTIONS = "SELECT connections FROM sora_chars_processes WHERE owner = %s"
GRACE = 2.0  # seconds


@pytest.fixture
def make_ledger(postgres_url: str) -> Callable[[], Ledger]:
    """A function that makes a ledger whose processes have two seconds to connect again."""
    return lambda: Ledger(PostgresStore(postgres_url, owner_grace=GRACE))


async def send(ledger: Ledger, key: str) -> None:
    """Register a key and record that it is being sent, as often as it takes."""
    with suppress(LedgerError):
        entry = await ledger.register(key=key, provider="kie", kind="character", request={})
        await ledger.transition(entry, EntryState.SENDING)


async def until_sending(ledger: Ledger, key: str) -> None:
    """Record that a key is being sent, and repeat that until it is on record."""
    while (entry := await ledger.get(key)) is None or entry.state is not EntryState.SENDING:
        await send(ledger, key)


async def collect_verdicts(found: list[object], ledger: Ledger, owner: str, key: str, ended: asyncio.Event) -> None:
    """Ask until `ended` whether the owner is dead, and try to resolve its entry; collect all other outcomes."""
    while not ended.is_set():
        with suppress(LedgerError):  # two connections in a row were killed
            found.append(await ledger.is_dead(owner))
        try:
            found.append(await resolve(ledger, key, never_sent=True))
        except InvalidRequestError as error:
            assert "living process" in str(error)  # noqa: PT017 # other outcomes are collected
        except LedgerError:
            pass


async def count_connections(watcher: psycopg.AsyncConnection[Any], owner: str) -> int:
    """Return how often a process has connected."""
    row = await (await watcher.execute(CONNECTIONS, (owner,))).fetchone()
    return int(row[0]) if row else 0


async def test_lost_connections_are_no_death(make_ledger: Callable[[], Ledger], postgres_url: str) -> None:
    """A process whose connections are killed again and again, for longer than the grace period, is alive.

    Every other time the connections of the process that checks it are killed too.
    """
    ended = asyncio.Event()
    other_url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}application_name=other"
    async with (
        make_ledger() as ledger,
        Ledger(PostgresStore(other_url, owner_grace=GRACE)) as other,
        await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as killer,
    ):
        await until_sending(ledger, "k-1")
        found: list[object] = []
        checks = asyncio.create_task(collect_verdicts(found, other, ledger.owner, "k-1", ended))
        kills = 0
        deadline = time.monotonic() + 2 * GRACE
        while time.monotonic() < deadline or not found:
            before = await count_connections(killer, ledger.owner)
            await killer.execute(KILL, ("other" if kills % 2 else "none",))
            await asyncio.gather(*(send(ledger, f"k-{kills}-{number}") for number in range(5)))
            while await count_connections(killer, ledger.owner) == before:
                pass
            kills += 1
        ended.set()
        await checks
        assert kills > 3
        assert set(found) == {False}


async def test_a_restarted_server_is_no_death(make_ledger: Callable[[], Ledger], postgres: Any) -> None:
    """After the server was restarted, a process is alive as soon as another one can read the database."""
    async with make_ledger() as ledger, make_ledger() as other:
        await until_sending(ledger, "k-1")
        await asyncio.to_thread(postgres.start, "restart")
        async with asyncio.timeout(20):
            while True:
                with suppress(LedgerError):
                    assert not await other.is_dead(ledger.owner)
                    break
        with pytest.raises(InvalidRequestError, match="living process"):
            await resolve(other, "k-1", never_sent=True)


async def test_sessions_that_are_ended_when_idle(
    make_ledger: Callable[[], Ledger], postgres: Any, postgres_url: str
) -> None:
    """Under `idle_session_timeout` a process stays alive, and finds a new connection for its next statement."""
    await asyncio.to_thread(postgres.sql, "ALTER DATABASE test SET idle_session_timeout = '200ms'")
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'test' AND pid <> pg_backend_pid()"
    async with make_ledger() as ledger, await psycopg.AsyncConnection.connect(postgres_url) as watcher:
        await watcher.execute("SET idle_session_timeout = 0")
        await until_sending(ledger, "k-1")
        async with asyncio.timeout(20):
            while await (await watcher.execute(count)).fetchone() != (1,):
                await watcher.rollback()
        assert await ledger.get("k-1")
        async with make_ledger() as other:
            assert not await other.is_dead(ledger.owner)


async def test_owner_without_a_record(make_ledger: Callable[[], Ledger]) -> None:
    """An owner of which nothing is recorded, as after a failover, is dead after the grace period, then at once."""
    async with make_ledger() as ledger:
        for wait in (GRACE, 0.0):
            began = time.monotonic()
            assert await ledger.is_dead("lost")
            assert wait <= time.monotonic() - began < wait + GRACE / 2


async def test_an_owner_that_connects_again(make_ledger: Callable[[], Ledger], postgres_url: str) -> None:
    """An owner that has connected again is alive, although its lock is free once more."""
    async with make_ledger() as ledger, await psycopg.AsyncConnection.connect(postgres_url) as connection:
        check = asyncio.create_task(ledger.is_dead("lost"))
        await asyncio.wait((check,), timeout=GRACE / 4)
        await connection.execute("INSERT INTO sora_chars_processes VALUES ('lost', 1, NULL)")
        await connection.commit()
        assert not await check


async def test_closed_ledger_is_dead_at_once(make_ledger: Callable[[], Ledger]) -> None:
    """A process that has closed its ledger is dead as soon as the server has ended its connection."""
    async with make_ledger() as ledger:
        async with make_ledger() as other:
            owner = other.owner
        began = time.monotonic()
        assert await ledger.is_dead(owner)
        assert time.monotonic() - began < GRACE / 2


async def test_old_records_are_forgotten(make_ledger: Callable[[], Ledger], postgres_url: str) -> None:
    """Opening removes the records of processes that left more than a day ago."""
    async with make_ledger(), make_ledger():
        pass
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("UPDATE sora_chars_processes SET left_at = left_at - interval '25 hours'")
        await connection.commit()
        async with make_ledger() as ledger:
            rows = await (await connection.execute("SELECT owner FROM sora_chars_processes")).fetchall()
            assert rows == [(ledger.owner,)]
