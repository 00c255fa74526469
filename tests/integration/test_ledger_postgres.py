"""The PostgreSQL ledger under faults: what passes goes unnoticed, what lasts is said, and both end by themselves."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from sora_chars import Entry, EntryState, Ledger, LedgerError, open_ledger
from sora_chars.ledger.stores import postgres as module
from sora_chars.ledger.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


class Server(Protocol):
    """The fixture's server."""

    def start(self, how: str = "start") -> None:
        """Start, or "restart"."""

    def stop(self) -> None:
        """Stop."""

    def sql(self, statement: str) -> None:
        """Run a statement."""


KILL_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'"


def ask(ledger: Ledger, key: str = "k-1") -> Coroutine[Any, Any, Entry]:
    """Ask for something."""
    return ledger.register(key=key, provider="kie", kind="character", request={})


@pytest.fixture
def server(postgres: Server) -> Iterator[Server]:
    """Give a server that a test may stop."""
    yield postgres
    postgres.start("restart")


@pytest.fixture
def quick(postgres_url: str) -> Ledger:
    """Give a ledger without much patience."""
    return Ledger(PostgresStore(postgres_url, connect_timeout=0.5))


async def heard(ledger: Ledger, other: Ledger, key: str) -> None:
    """Wait until moves in one ledger wake who waits in the other."""
    asked = await ask(other, key)
    waits = asyncio.create_task(ledger.changed(asked, timeout=30))
    moved = await other.transition(asked, EntryState.SENDING)
    assert await waits == moved


async def has_lock(ledger: Ledger, owner: str) -> None:
    """Wait until a owner is seen alive."""
    async with asyncio.timeout(10):
        while await ledger.is_dead(owner):  # noqa: ASYNC110 # the other side reconnects when it does
            await asyncio.sleep(0.01)


async def test_killed_connections_are_not_noticed(postgres_url: str, postgres: Server) -> None:
    """After all connections were killed, writes, reads, waits and the lock go on by themselves, and no call fails."""
    async with open_ledger(postgres_url) as ledger, open_ledger(postgres_url) as other:
        asked = await ask(ledger)
        await asyncio.gather(*(ask(ledger, f"k-{number}") for number in range(30)))
        waits = asyncio.create_task(ledger.changed(asked, timeout=30))
        for _ in range(2):
            await asyncio.to_thread(postgres.sql, KILL_ALL)
            await asyncio.gather(*(ask(ledger, f"k-{number}") for number in range(30)))
        moved = await other.transition(asked, EntryState.SENDING)
        assert await waits == moved
        await has_lock(other, ledger.owner)
        await has_lock(ledger, other.owner)
        await heard(ledger, other, "k-after")


async def test_a_server_that_is_away_is_said(
    quick: Ledger, postgres_url: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is down every call says so, all at once; when it is up again all goes on, with the same name."""
    async with quick, Ledger(PostgresStore(postgres_url, connect_timeout=0.5)) as other:
        asked = await ask(quick)
        owner = quick.owner
        await asyncio.to_thread(server.stop)
        async with asyncio.timeout(20):  # one after the other they would take minutes
            ends = await asyncio.gather(
                *(ask(quick, f"k-{number}") for number in range(2000)),
                quick.transition(asked, EntryState.SENDING),
                quick.get("k-1"),
                quick.is_dead("somebody"),
                return_exceptions=True,
            )
        assert all(isinstance(end, LedgerError) and "database could not be used" in str(end) for end in ends)
        with pytest.raises(LedgerError, match="database could not be used"):
            await Ledger(PostgresStore(postgres_url, connect_timeout=0.5)).open()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while isinstance(await _end(quick.get("k-1")), LedgerError):
                pass
        assert await quick.get("k-1") == asked
        await has_lock(other, owner)
        await heard(other, quick, "k-after")
    lost = [record.levelno for record in caplog.records if record.getMessage() == "ledger.listener_lost"]
    assert lost == [logging.WARNING] * 2


async def _end(work: Coroutine[Any, Any, Entry | None]) -> object:
    try:
        return await work
    except LedgerError as error:
        return error


async def test_no_connection_waits_for_hours_for_a_machine_that_is_gone(postgres_url: str) -> None:
    """All give up a server that no longer answers to anything, within half a minute."""
    store = PostgresStore(postgres_url)
    async with Ledger(store), store._pool.connection() as connection:
        for one in (store._listener, connection):
            options = {name: int(value) for name, value in one.info.get_parameters().items() if value.isdigit()}
            lasts = options["keepalives_idle"] + options["keepalives_interval"] * options["keepalives_count"]
            assert (lasts, options["tcp_user_timeout"]) == (25, 25_000)


async def test_a_busy_database_is_waited_for(quick: Ledger, postgres_url: str) -> None:
    """Of many calls at once, those that wait for others longer than they would for a connection fail none the more."""
    async with quick, await psycopg.AsyncConnection.connect(postgres_url) as other:
        await ask(quick)
        await other.execute("LOCK TABLE sora_chars_entries")
        asks = [asyncio.create_task(ask(quick, f"k-{number}")) for number in range(50)]
        done, _ = await asyncio.wait(asks, timeout=1)
        assert not done
        await other.commit()
        assert [entry.version for entry in await asyncio.gather(*asks)] == [1] * 50


async def test_a_statement_may_run_twice(postgres_url: str) -> None:
    """An answer lost after its commit does no harm: the same statement again finds its own work and has succeeded."""
    store = PostgresStore(postgres_url)
    async with Ledger(store) as ledger:
        asked = await ask(ledger)
        assert await store.insert(asked) is asked
        sending = await ledger.transition(asked, EntryState.SENDING)
        assert await store.replace(asked, sending) is sending


async def test_a_statement_that_lasts_is_given_up(postgres_url: str) -> None:
    """A statement that the server gives up is tried once more and then said."""
    async with open_ledger(f"{postgres_url}&options=-cstatement_timeout%3D50") as ledger:
        await ask(ledger)
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            await other.execute("LOCK TABLE sora_chars_entries")
            with pytest.raises(LedgerError, match="statement timeout"):
                await ledger.get("k-1")
        assert await ledger.get("k-1") is not None


async def test_a_read_only_database_is_said(postgres_url: str, postgres: Server) -> None:
    """A database that may only be read can be read, says so to whoever writes, and to whoever would make the tables."""
    read_only = f"{postgres_url}&options=-cdefault_transaction_read_only%3Don"
    with pytest.raises(LedgerError, match="read-only"):
        await open_ledger(read_only).open()
    async with open_ledger(postgres_url) as ledger:
        asked = await ask(ledger)
        await asyncio.to_thread(postgres.sql, "ALTER DATABASE test SET default_transaction_read_only = on")
        await asyncio.to_thread(postgres.sql, KILL_ALL)
        assert await ledger.get("k-1") == asked
        with pytest.raises(LedgerError, match="read-only"):
            await ask(ledger, "k-2")
        await asyncio.to_thread(postgres.sql, "ALTER DATABASE test RESET default_transaction_read_only")
        await asyncio.to_thread(postgres.sql, KILL_ALL)
        assert (await ask(ledger, "k-2")).version == 1


async def test_newer_tables_are_left_alone(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a later version of this package are refused."""
    async with open_ledger(postgres_url):
        pass
    monkeypatch.setattr(module, "UPGRADES", ())
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"schema version 4, but this package supports versions up to 0"):
            await open_ledger(postgres_url).open()


async def test_older_tables_are_upgraded(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of an earlier version get the steps they lack, once, also when many open them at the same time."""
    async with open_ledger(postgres_url) as ledger:
        first = await ask(ledger)
    steps = (*module.UPGRADES, "CREATE TABLE more (a int); INSERT INTO more VALUES (1)")
    monkeypatch.setattr(module, "UPGRADES", (*steps, "CREATE TABLE last (a int); NONSENSE"))
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(postgres_url).open()
    monkeypatch.setattr(module, "UPGRADES", steps)
    ledgers = [open_ledger(postgres_url) for _ in range(5)]
    await asyncio.gather(*(ledger.open() for ledger in ledgers))
    assert [await ledger.get("k-1") for ledger in ledgers] == [first] * 5
    await asyncio.gather(*(ledger.aclose() for ledger in ledgers))
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        assert await (await other.execute("SELECT a FROM more")).fetchall() == [(1,)]


async def test_an_opening_given_up_hangs_up(postgres_url: str) -> None:
    """Opening that is cancelled while it waits for another's upgrade leaves no connection, and works afterwards."""
    ledger = open_ledger(postgres_url)
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        await other.execute("SELECT pg_advisory_xact_lock(%s)", (module._lock_id("upgrade"),))
        opening = asyncio.create_task(ledger.open())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with asyncio.timeout(10):
            while await (await other.execute(waiting)).fetchone() != (1,):
                await other.execute("SELECT pg_stat_clear_snapshot()")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with ledger:
        await ask(ledger)


async def test_a_table_that_stays_locked_is_said(postgres_url: str) -> None:
    """Whoever keeps the table locked keeps nobody waiting for ever; reading and writing go on when it is free again."""
    async with Ledger(PostgresStore(postgres_url, lock_timeout=0.1)) as ledger:
        asked = await ask(ledger)
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            await other.execute("LOCK TABLE sora_chars_entries IN ACCESS EXCLUSIVE MODE")
            for use in (ask(ledger, "k-2"), ledger.transition(asked, EntryState.SENDING), ledger.get("k-1")):
                with pytest.raises(LedgerError, match="lock timeout"):
                    await use
        assert (await ledger.transition(asked, EntryState.SENDING)).state is EntryState.SENDING


async def test_a_line_that_cannot_listen_is_closed(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that opens and then fails is closed, and said."""
    monkeypatch.setattr(module, "_SERVER_KEEPALIVES", "NONSENSE")
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(postgres_url).open()


async def test_no_error_shows_the_password(postgres: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an error nor a log line about a database that cannot be reached shows the URL's password."""
    for url in (
        postgres.url("missing").replace("postgres@", "postgres:secret@"),
        "postgresql://me:secret@127.0.0.1:1/x",
    ):
        with pytest.raises(LedgerError) as caught:
            await open_ledger(url).open()
        assert "secret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__} {caplog.text}"
