"""The PostgreSQL ledger under faults: short ones go unnoticed, long ones raise, and it recovers from both."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from sora_chars import Entry, EntryState, Ledger, LedgerError, open_ledger
from sora_chars.ledger.stores import postgres_listener
from sora_chars.ledger.stores import postgres_statements as statements
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ledger.stores.postgres_listener import lock_id
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


class Server(Protocol):
    """The server of the fixture `postgres`."""

    def start(self, how: str = "start") -> None:
        """Start the server, or "restart" it."""

    def stop(self) -> None:
        """Stop the server."""

    def sql(self, statement: str) -> None:
        """Run a statement on the server."""


KILL_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'"


def register(ledger: Ledger, key: str = "k-1") -> Coroutine[Any, Any, Entry]:
    """Register a request."""
    return ledger.register(key=key, provider="kie", kind="character", request={})


@pytest.fixture
def server(postgres: Server) -> Iterator[Server]:
    """A server that a test may stop."""
    yield postgres
    postgres.start("restart")


@pytest.fixture
def quick(postgres_url: str) -> Ledger:
    """A ledger that waits half a second for a connection."""
    return Ledger(PostgresStore(postgres_url, connect_timeout=0.5))


async def until_notified(ledger: Ledger, other: Ledger, key: str) -> None:
    """Wait until `ledger` is notified of a change in `other`."""
    pending = await register(other, key)
    change = asyncio.create_task(ledger.changed(pending, timeout=30))
    sending = await other.transition(pending, EntryState.SENDING)
    assert await change == sending


async def until_alive(ledger: Ledger, owner: str) -> None:
    """Wait until `ledger` sees the owner alive."""
    async with asyncio.timeout(10):
        while await ledger.is_dead(owner):  # noqa: ASYNC110 # the other ledger reconnects by itself
            await asyncio.sleep(0.01)


async def test_killed_connections(postgres_url: str, postgres: Server) -> None:
    """After all connections are killed, no call fails, and notifications and locks work again."""
    async with open_ledger(postgres_url) as ledger, open_ledger(postgres_url) as other:
        pending = await register(ledger)
        await asyncio.gather(*(register(ledger, f"k-{number}") for number in range(30)))
        change = asyncio.create_task(ledger.changed(pending, timeout=30))
        for _ in range(2):
            await asyncio.to_thread(postgres.sql, KILL_ALL)
            await asyncio.gather(*(register(ledger, f"k-{number}") for number in range(30)))
        sending = await other.transition(pending, EntryState.SENDING)
        assert await change == sending
        await until_alive(other, ledger.owner)
        await until_alive(ledger, other.owner)
        await until_notified(ledger, other, "k-after")


async def test_stopped_server(
    quick: Ledger, postgres_url: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is down all calls raise together; once it is up they succeed, with the same owner."""
    async with quick, Ledger(PostgresStore(postgres_url, connect_timeout=0.5)) as other:
        pending = await register(quick)
        owner = quick.owner
        await asyncio.to_thread(server.stop)
        async with asyncio.timeout(20):  # in sequence they would take minutes
            outcomes = await asyncio.gather(
                *(register(quick, f"k-{number}") for number in range(2000)),
                quick.transition(pending, EntryState.SENDING),
                quick.get("k-1"),
                quick.is_dead("another"),
                return_exceptions=True,
            )
        assert all(
            isinstance(outcome, LedgerError) and "database could not be used" in str(outcome) for outcome in outcomes
        )
        with pytest.raises(LedgerError, match="database could not be used"):
            await Ledger(PostgresStore(postgres_url, connect_timeout=0.5)).open()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while isinstance(await _outcome(quick.get("k-1")), LedgerError):
                pass
        assert await quick.get("k-1") == pending
        await until_alive(other, owner)
        await until_notified(other, quick, "k-after")
    lost = [record.levelno for record in caplog.records if event_of(record) == "ledger.listener_lost"]
    assert lost == [logging.WARNING] * 2


async def _outcome(work: Coroutine[Any, Any, Entry | None]) -> object:
    try:
        return await work
    except LedgerError as error:
        return error


async def test_keepalives(postgres_url: str) -> None:
    """Every connection is given up 25 seconds after its server stops responding."""
    store = PostgresStore(postgres_url)
    async with Ledger(store), store._pool.connection() as connection:
        for each in (store._listener.connection, connection):
            options = {name: int(value) for name, value in each.info.get_parameters().items() if value.isdigit()}
            seconds = options["keepalives_idle"] + options["keepalives_interval"] * options["keepalives_count"]
            assert (seconds, options["tcp_user_timeout"]) == (25, 25_000)


async def test_busy_database(quick: Ledger, postgres_url: str) -> None:
    """Calls that queue for a connection longer than the connect timeout do not fail while the database is busy."""
    async with quick, await psycopg.AsyncConnection.connect(postgres_url) as other:
        await register(quick)
        await other.execute("LOCK TABLE sora_chars_entries")
        tasks = [asyncio.create_task(register(quick, f"k-{number}")) for number in range(50)]
        done, _ = await asyncio.wait(tasks, timeout=1)
        assert not done
        await other.commit()
        assert [entry.version for entry in await asyncio.gather(*tasks)] == [1] * 50


async def test_repeated_statements(postgres_url: str) -> None:
    """A statement that runs again after its commit finds its own result and succeeds."""
    store = PostgresStore(postgres_url)
    async with Ledger(store) as ledger:
        pending = await register(ledger)
        assert await store.insert(pending) is pending
        sending = await ledger.transition(pending, EntryState.SENDING)
        assert await store.replace(pending, sending) is sending


async def test_statement_timeout(postgres_url: str) -> None:
    """A statement that the server cancels after its own time limit raises."""
    async with open_ledger(f"{postgres_url}&options=-cstatement_timeout%3D50") as ledger:
        await register(ledger)
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            await other.execute("LOCK TABLE sora_chars_entries")
            with pytest.raises(LedgerError, match="statement timeout"):
                await ledger.get("k-1")
        assert await ledger.get("k-1") is not None


async def test_read_only_database(postgres_url: str, postgres: Server) -> None:
    """In a read-only database reads succeed, and writing and creating the tables raise."""
    read_only = f"{postgres_url}&options=-cdefault_transaction_read_only%3Don"
    with pytest.raises(LedgerError, match="read-only"):
        await open_ledger(read_only).open()
    async with open_ledger(postgres_url) as ledger:
        pending = await register(ledger)
        await asyncio.to_thread(postgres.sql, "ALTER DATABASE test SET default_transaction_read_only = on")
        await asyncio.to_thread(postgres.sql, KILL_ALL)
        assert await ledger.get("k-1") == pending
        with pytest.raises(LedgerError, match="read-only"):
            await register(ledger, "k-2")
        await asyncio.to_thread(postgres.sql, "ALTER DATABASE test RESET default_transaction_read_only")
        await asyncio.to_thread(postgres.sql, KILL_ALL)
        assert (await register(ledger, "k-2")).version == 1


async def test_rejects_a_newer_schema(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening tables of a newer schema version raises every time."""
    async with open_ledger(postgres_url):
        pass
    monkeypatch.setattr(statements, "UPGRADES", ())
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"schema version 6, but this package supports versions up to 0"):
            await open_ledger(postgres_url).open()


async def test_upgrades_an_older_schema(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five concurrent openings run the missing upgrade scripts once; if one fails, none takes effect."""
    async with open_ledger(postgres_url) as ledger:
        first = await register(ledger)
    scripts = (*statements.UPGRADES, "CREATE TABLE more (a int); INSERT INTO more VALUES (1)")
    monkeypatch.setattr(statements, "UPGRADES", (*scripts, "CREATE TABLE last (a int); NONSENSE"))
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(postgres_url).open()
    monkeypatch.setattr(statements, "UPGRADES", scripts)
    ledgers = [open_ledger(postgres_url) for _ in range(5)]
    await asyncio.gather(*(ledger.open() for ledger in ledgers))
    assert [await ledger.get("k-1") for ledger in ledgers] == [first] * 5
    await asyncio.gather(*(ledger.aclose() for ledger in ledgers))
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        assert await (await other.execute("SELECT a FROM more")).fetchall() == [(1,)]


async def test_cancelled_opening(postgres_url: str) -> None:
    """Cancelling an opening that waits for an upgrade closes its connection; the ledger can be opened later."""
    ledger = open_ledger(postgres_url)
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        await other.execute("SELECT pg_advisory_xact_lock(%s)", (lock_id("upgrade"),))
        opening = asyncio.create_task(ledger.open())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with asyncio.timeout(10):
            while await (await other.execute(waiting)).fetchone() != (1,):
                await other.execute("SELECT pg_stat_clear_snapshot()")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with ledger:
        await register(ledger)


async def test_lock_timeout(postgres_url: str) -> None:
    """While the table is locked, calls raise after the lock timeout; once it is free they succeed."""
    async with Ledger(PostgresStore(postgres_url, lock_timeout=0.1)) as ledger:
        pending = await register(ledger)
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            await other.execute("LOCK TABLE sora_chars_entries IN ACCESS EXCLUSIVE MODE")
            for call in (register(ledger, "k-2"), ledger.transition(pending, EntryState.SENDING), ledger.get("k-1")):
                with pytest.raises(LedgerError, match="lock timeout"):
                    await call
        assert (await ledger.transition(pending, EntryState.SENDING)).state is EntryState.SENDING


async def test_listener_fault(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the listener connects and then fails, it is closed and opening raises."""
    monkeypatch.setattr(postgres_listener, "_SERVER_KEEPALIVES", "NONSENSE")
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(postgres_url).open()


async def test_errors_hide_the_password(postgres: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an error nor a log message about an unreachable database shows the URL's password."""
    for url in (
        postgres.url("missing").replace("postgres@", "postgres:secret@"),
        "postgresql://me:secret@127.0.0.1:1/x",
    ):
        with pytest.raises(LedgerError) as caught:
            await open_ledger(url).open()
        assert "secret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__} {caplog.text}"
