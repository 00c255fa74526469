"""A ledger in a PostgreSQL database, which the processes of many machines may share.

Statements go through a pool. One more connection, the line, is held all the time: it holds the advisory lock by which
others see that this process lives, and hears of what they moved. A pooler that lends a connection for one transaction
only, as PgBouncer may, can carry neither: connect past it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, LiteralString

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from sora_chars.errors import ConfigurationError, LedgerError, printable
from sora_chars.ledger.entry import COLUMNS, MOVING, NAMING, from_row, getter, to_row
from sora_chars.ratelimit.distributed import Lease

from . import postgres_quota

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import By, Entry
    from sora_chars.ledger.notifier import Waiters
    from sora_chars.ledger.states import EntryState
    from sora_chars.ratelimit.distributed import CapacityRequest, QuotaStore

log = logging.getLogger("sora_chars.ledger")

UPGRADES: tuple[LiteralString, ...] = (
    """
    CREATE TABLE sora_chars_entries (
        place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        key text NOT NULL UNIQUE,
        provider text NOT NULL,
        kind text NOT NULL,
        state text NOT NULL,
        request_json text NOT NULL,
        token_digest text,
        task_id text,
        holder text,
        result_json text,
        error_json text,
        credits double precision,
        created_at double precision NOT NULL,
        updated_at double precision NOT NULL,
        version integer NOT NULL
    );
    CREATE INDEX ON sora_chars_entries (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX ON sora_chars_entries (token_digest) WHERE token_digest IS NOT NULL;
    """,
    postgres_quota.TABLES,
    """
    ALTER TABLE sora_chars_entries RENAME COLUMN place TO row_id;
    ALTER TABLE sora_chars_entries RENAME COLUMN holder TO owner;
    UPDATE sora_chars_entries SET state = 'pending' WHERE state = 'asked';
    UPDATE sora_chars_entries SET state = 'rejected' WHERE state = 'refused';
    UPDATE sora_chars_entries SET error_json = replace(
        replace(error_json, '"type":"RequestRefusedError"', '"type":"RequestRejectedError"'),
        '"passing":', '"transient":'
    ) WHERE error_json IS NOT NULL;
    """,
    postgres_quota.RENAMES,
)
"""Each script takes the tables from one version to the next; the table `sora_chars_ledger` keeps which they have."""

_CHANNEL = "sora_chars_ledger"
_CONNECTIONS = 10
_MOVED = (*MOVING, *NAMING)
_to_moved = getter(_MOVED)
_INSERT = (
    f"INSERT INTO sora_chars_entries ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"  # noqa: S608 # our own names
    " ON CONFLICT (key) DO NOTHING RETURNING key"
)
_REPLACE = (
    f"WITH moved AS (UPDATE sora_chars_entries SET {', '.join(f'{name} = %s' for name in _MOVED)}"  # noqa: S608 # our own names
    " WHERE key = %s AND version = %s RETURNING key, version)"
    f" SELECT pg_notify('{_CHANNEL}', version || ' ' || key) FROM moved"
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM sora_chars_entries WHERE"  # noqa: S608 # our own names
_FIND: dict[By, str] = {
    "key": f"{_SELECT} key = %s",
    "task": f"{_SELECT} provider = %s AND task_id = %s LIMIT 1",
    "token": f"{_SELECT} token_digest = %s LIMIT 1",
}
_PAGE = f"SELECT row_id, {', '.join(COLUMNS)} FROM sora_chars_entries WHERE state = ANY(%s) AND row_id"  # noqa: S608 # our own names
_PAGES = {False: f"{_PAGE} > %s ORDER BY row_id LIMIT %s", True: f"{_PAGE} < %s ORDER BY row_id DESC LIMIT %s"}
_LAST = 2**63 - 1

_KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""A machine that lost its power hangs up nowhere. Both sides find out within half a minute, not after two hours."""


class PostgresStore:
    """The tables in the database at `url`, made and upgraded when it is opened.

    `patience`: seconds to wait for a connection, `lock_patience` for what somebody else keeps locked. A statement whose
    connection dies is tried once more: every statement here may run twice and do the same.

    Raises:
        ConfigurationError: the URL cannot be read.
    """

    def __init__(self, url: str, *, patience: float = 5.0, lock_patience: float = 15.0) -> None:
        try:
            conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # whose text shows the URL, and the password in it
            raise ConfigurationError("ledger: this postgresql:// URL cannot be read.") from None
        self._url = url
        self._patience = patience
        self._lock_patience = lock_patience
        self.owner = ""

    async def open(self, waiters: Waiters) -> None:
        """Take a new name, connect, and bring the tables up to date."""
        self.owner = uuid.uuid4().hex
        try:
            line = await self._connect()
        except psycopg.Error as error:
            raise _failure(error) from error
        try:
            await _upgrade(line)
        except BaseException as error:
            await line.close()
            if isinstance(error, psycopg.Error):
                raise _failure(error) from error
            raise
        self._pool = AsyncConnectionPool(
            self._url,
            kwargs={"autocommit": True, **_KEEPALIVES},
            min_size=0,
            max_size=_CONNECTIONS,
            open=False,
            configure=self._configure,
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=self._patience,
        )
        await self._pool.open()
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._served_at = time.monotonic()
        self._line = line
        self._listening = asyncio.create_task(self._listen(waiters), name="sora_chars ledger line")

    async def aclose(self) -> None:
        """Hang up."""
        self._listening.cancel()
        await asyncio.wait((self._listening,))
        await self._line.close()
        await self._pool.close()

    async def insert(self, entry: Entry) -> Entry:
        """Keep the entry unless its key is there."""
        return entry if await self._run(_INSERT, to_row(entry)) else await self._kept(entry) or entry

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Keep `after` if `before` is there, and tell everybody."""
        values = (*_to_moved(after), after.key, before.version)
        return after if await self._run(_REPLACE, values) else await self._kept(after)

    async def find(self, by: By, *values: str) -> Entry | None:
        """Look it up."""
        rows = await self._run(_FIND[by], values)
        return from_row(rows[0]) if rows else None

    async def page(
        self, states: Collection[EntryState], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Read one page in the order of the identity column."""
        start = after if after is not None else _LAST if newest_first else 0
        rows = await self._run(_PAGES[newest_first], ([state.value for state in states], start, size))
        return [(row[0], from_row(row[1:])) for row in rows]

    async def is_dead(self, owner: str) -> bool:
        """Try its lock, for as long as the statement lasts, and shared with others who try."""
        rows = await self._run("SELECT pg_try_advisory_xact_lock_shared(%s)", (_number(owner),))
        return bool(rows[0][0])

    @property
    def quota_store(self) -> QuotaStore:
        """This database."""
        return self

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """Take a part of a limit that the processes on this database share."""
        rows = await self._run(postgres_quota.ACQUIRE, (self.owner, *attrs.astuple(request)))
        return Lease(*rows[0])

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """Take part no more."""
        await self._run(postgres_quota.RELEASE, (has, grace, name, self.owner))

    async def _kept(self, entry: Entry) -> Entry | None:
        """What is there instead of `entry`; itself when a first try did keep it and its answer was lost."""
        kept = await self.find("key", entry.key)
        return entry if kept == entry else kept

    async def _run(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        came = time.monotonic()
        tried = False
        async with self._turns:  # not in the pool's own line, where a busy database looks like one that is away
            while True:
                try:
                    return await self._served(statement, values, since=came)
                except PoolTimeout as error:
                    raise _failure(f"no connection in {self._patience:g} seconds") from error
                except psycopg.Error as error:
                    died = isinstance(error, psycopg.OperationalError) and not isinstance(error, LockNotAvailable)
                    if tried or not died:
                        raise _failure(error) from error
                came, tried = time.monotonic(), True

    async def _served(self, statement: str, values: Sequence[object], *, since: float) -> list[tuple[Any, ...]]:
        """Patience begins when the last who had a connection gave it back: then all in line hear at once of a fault."""
        patience = max(since, self._served_at) + self._patience - time.monotonic()
        async with self._pool.connection(patience) as connection:
            try:
                cursor = await connection.execute(statement.encode(), values)
                return await cursor.fetchall()
            finally:
                self._served_at = time.monotonic()

    async def _configure(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        await connection.execute(f"SET lock_timeout = {round(self._lock_patience * 1000)}".encode())

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """The line. It listens before it locks: an old one that hangs may hold the lock for a while."""
        patience = max(2, round(self._patience))
        line = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=patience, **_KEEPALIVES
        )
        try:
            await line.execute(_SERVER_KEEPALIVES)
            await line.execute(f"LISTEN {_CHANNEL}".encode())
            await line.execute("SELECT pg_advisory_lock(%s)", (_number(self.owner),))
        except BaseException:
            await line.close()
            raise
        return line

    async def _listen(self, waiters: Waiters) -> None:
        """Wake those who wait for what was moved; after a fault all of them, since nobody knows what was missed."""
        while True:
            try:
                async for notice in self._line.notifies():  # pragma: no branch # it ends by an error only
                    version, _, key = notice.payload.partition(" ")
                    waiters.wake(key, int(version))
            except psycopg.Error as error:
                log.warning("ledger.line_lost", extra={"error": printable(error)})
                await self._line.close()
                self._line = await self._connect_again()
                waiters.wake_all()

    async def _connect_again(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        while True:
            await asyncio.sleep(self._patience / 10)
            with contextlib.suppress(psycopg.Error):
                return await self._connect()


async def _upgrade(line: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    async with line.transaction():
        await line.execute("SELECT pg_advisory_xact_lock(%s)", (_number("upgrade"),))
        await line.execute("CREATE TABLE IF NOT EXISTS sora_chars_ledger (version integer NOT NULL)")
        row = await (await line.execute("DELETE FROM sora_chars_ledger RETURNING version")).fetchone()
        version: int = row[0] if row else 0
        if version > len(UPGRADES):
            raise LedgerError(f"The ledger is of version {version}, newer than this package knows ({len(UPGRADES)}).")
        for script in UPGRADES[version:]:
            await line.execute(script)
        await line.execute("INSERT INTO sora_chars_ledger VALUES (%s)", (len(UPGRADES),))


def _number(name: str) -> int:
    """The advisory lock of a name."""
    return int.from_bytes(hashlib.sha256(f"sora_chars {name}".encode()).digest()[:8], signed=True)


def _failure(error: psycopg.Error | str) -> LedgerError:
    return LedgerError(f"The ledger's database could not be used: {printable(error)}.")
