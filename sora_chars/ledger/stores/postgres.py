"""A store in a PostgreSQL database, which the processes of several machines may share.

Statements use a pool of connections. One more connection stays open; see
`postgres_listener`. A pooler in transaction mode, as PgBouncer has, does not support it,
so connect directly to the server.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from sora_chars.errors import ConfigurationError, LedgerError, printable
from sora_chars.ledger.entry import from_attempt_row, from_row, to_attempt_row, to_row
from sora_chars.ledger.search import like, searchable_text
from sora_chars.ledger.states import ENDED
from sora_chars.logs import event_logger
from sora_chars.ratelimit.distributed import Lease

from . import postgres_quota
from . import postgres_statements as statements
from .abandoned import Holding
from .postgres_listener import KEEPALIVES, OWNER_GRACE, Connection, Listener, lock_id
from .postgres_upgrade import upgrade

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import Attempt, Entry, Lookup
    from sora_chars.ledger.notifier import ChangeNotifier
    from sora_chars.ledger.states import EntryState
    from sora_chars.ratelimit.distributed import CapacityRequest, QuotaStore

log = event_logger("sora_chars.ledger")

_MANY_ENTRIES = 20_000  # are worth a message before they are indexed
_INDEXED_GROUP = 500  # entries that one statement indexes
_MAX_CONNECTIONS = 10  # in the pool
_UNPREPARED = frozenset(statements.SEARCHES.values())  # a plan for any query may not use the index
_CHECKS_PER_GRACE = 20  # of the lock of an owner that may be dead
_MAX_ROW_ID = 2**63 - 1

_SCHEMA_HINT = "Use ?options=-csearch_path%3DNAME, or PostgresLedger(url, schema=NAME)."
_FOREIGN_OPTIONS = {
    **dict.fromkeys(("schema", "currentSchema", "search_path"), _SCHEMA_HINT),
    **dict.fromkeys(("ssl", "sslMode", "ssl_mode"), "Use ?sslmode=require."),
    **dict.fromkeys(("pgbouncer", "connection_limit", "pool_timeout", "pool_size"), "Remove it."),
}
"""Options that URLs of other libraries have (JDBC, Prisma, asyncpg), and what takes their place."""

_SETTINGS = """
SELECT set_config('lock_timeout', %s, false),
    set_config('search_path', coalesce(%s::text, current_setting('search_path')), false),
    CASE WHEN current_setting('statement_timeout') = '0' THEN set_config('statement_timeout', %s, false) END,
    CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
"""With `synchronous_commit = off`, which may be the default of a server, a role or a
database, a crash of the server loses commits that it has confirmed."""
_LOCAL_PATH = "SELECT set_config('search_path', %s, true)"  # until the end of the transaction
_STATEMENT_MILLISECONDS = 15_000  # for the work of a statement, besides its wait for locks


class PostgresStore:
    """The entries in the database at `url`. Opening creates or upgrades the tables.

    A statement whose connection breaks is repeated once: every statement here has the same
    effect when it runs twice.

    Args:
        url: The URL of the database.
        pool: A pool of the caller's, whose connections run the statements. It must be
            open while the ledger is; the ledger neither opens nor closes it, and leaves
            the settings of its connections alone. One more connection is opened.
        schema: The schema of the tables. None stands for the first of the search path.
        connect_timeout: Seconds to wait for a connection.
        lock_timeout: Seconds to wait for a lock that another process holds.
        owner_grace: Seconds for which the lock of another process must be free before that
            process counts as dead. None stands for 15 seconds.

    Raises:
        ConfigurationError: The URL is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        pool: AsyncConnectionPool[Any] | None = None,
        schema: str | None = None,
        connect_timeout: float = 5.0,
        lock_timeout: float = 15.0,
        owner_grace: float | None = None,
    ) -> None:
        try:
            host = conninfo_to_dict(url).get("host")
        except (psycopg.ProgrammingError, UnicodeError) as error:  # its message may contain the URL with the password
            raise _invalid_url(error) from None
        if "@" in str(host or "")[1:]:  # the rest of a password; the name of a socket may begin with it
            raise _invalid_url()
        self._url = url
        self._given_pool = pool
        self._schema = schema
        self._connect_timeout = connect_timeout
        self._lock_timeout = lock_timeout
        self._owner_grace = OWNER_GRACE if owner_grace is None else owner_grace
        self.owner = ""

    async def open(self, notifier: ChangeNotifier) -> None:
        """Take a new name, connect, and create or upgrade the tables."""
        if type(asyncio.get_running_loop()).__name__ == "ProactorEventLoop":
            raise LedgerError(
                "A PostgreSQL ledger does not work in the default event loop of Windows, since psycopg does not.",
                hint="Use asyncio.Runner(loop_factory=asyncio.SelectorEventLoop).",
            )
        self.owner = uuid.uuid4().hex
        self._listener = Listener(
            self._url, owner=self.owner, connect_timeout=self._connect_timeout, search_path=self._search_path
        )
        try:
            await self._listener.open(partial(upgrade, schema=self._schema))
        except psycopg.Error as error:
            raise _failure(error) from error
        self._pool = self._given_pool or await self._own_pool()
        own_pool = None if self._given_pool else self._pool
        self._holding = Holding(
            "The PostgreSQL ledger",
            asyncio.get_running_loop(),
            partial(_release, self._listener, own_pool),
        )
        self._pool_permits = asyncio.Semaphore(self._pool.max_size)
        self._returned_at = time.monotonic()  # when a statement last returned its connection
        self._listening = asyncio.create_task(
            self._listen(notifier), name="sora_chars ledger listener", context=Context()
        )

    async def _own_pool(self) -> AsyncConnectionPool[Any]:
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            self._url,
            kwargs={"autocommit": True, **KEEPALIVES},
            min_size=0,
            max_size=_MAX_CONNECTIONS,
            open=False,
            configure=self._configure,
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=self._connect_timeout,
        )
        await pool.open()
        return pool

    @property
    def _search_path(self) -> str | None:
        """The search path of the statements: the extension of the search index may be in "public"."""
        return self._schema and f"{statements.quoted(self._schema)}, public"

    async def aclose(self) -> None:
        """Close all connections."""
        self._holding.closed()
        self._listening.cancel()
        await asyncio.wait((self._listening,))
        await self._listener.aclose()
        if self._given_pool is None:
            await self._pool.close()

    def abandon(self) -> None:
        """See `LedgerStore`."""
        self._holding.abandon()

    async def _listen(self, notifier: ChangeNotifier) -> None:
        """Notify the subscribers of changed entries, until the ledger is closed."""
        try:
            await self._listener.run(notifier)
        finally:
            self._holding.abandon_after_loop()  # does nothing if it is the closing that ends this

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        return entry if await self._execute(statements.INSERT, to_row(entry)) else await self._stored(entry) or entry

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`. The same statement notifies the other processes."""
        statement = statements.REPLACE
        values = (*statements.to_updated(after), after.key, before.version)
        if archive or after.request_json != before.request_json:
            statement = statements.REPLACE_AND_ARCHIVE if archive else statements.REPLACE_WITH_REQUEST
            values = (*statements.to_updated_with_request(after), after.key, before.version)
        if archive:
            values += to_attempt_row(archive)
        return after if await self._execute(statement, values) else await self._stored(after)

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        rows = await self._execute(statements.FIND[by], values)
        if not rows and by in statements.FIND_BY_ATTEMPT:
            rows = await self._execute(statements.FIND_BY_ATTEMPT[by], values)
        return from_row(rows[0]) if rows else None

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """See `LedgerStore`."""
        return [from_row(row) for row in await self._execute(statements.ALL_BY_TASK, (provider, task_id))]

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """See `LedgerStore`."""
        return [from_attempt_row(row) for row in await self._execute(statements.ATTEMPTS, ([*keys],))]

    async def page(
        self,
        states: Collection[EntryState],
        *,
        query: str | None = None,
        after: int | None,
        newest_first: bool,
        size: int,
    ) -> Sequence[tuple[int, Entry]]:
        """See `LedgerStore`."""
        wanted = [state.value for state in states]
        start = (_MAX_ROW_ID if newest_first else 0) if after is None else after
        if query:
            if after is None:
                await self._index_new_entries()
            values = (wanted, like(query), start, size)
            rows = await self._execute(statements.SEARCHES[newest_first], values)
        else:
            rows = await self._execute(statements.PAGES[newest_first], (wanted, start, size, size))
        return [(row[0], from_row(row[1:])) for row in rows]

    async def _index_new_entries(self) -> None:
        """Store the text by which entries are found that have ended since the last search."""
        ended = [state.value for state in ENDED]
        [(count,)] = await self._execute(statements.COUNT_UNINDEXED, (ended,))
        began = time.monotonic()
        if count >= _MANY_ENTRIES:
            log.warning("ledger.indexing", extra={"entries": count})
        last = 0
        while rows := await self._execute(statements.UNINDEXED, (ended, last, _INDEXED_GROUP)):
            entries = [from_row(row[1:]) for row in rows]
            values = ([row[0] for row in rows], [entry.version for entry in entries], [*map(searchable_text, entries)])
            await self._execute(statements.SET_SEARCH_TEXTS, values)
            last = rows[-1][0]
        if count >= _MANY_ENTRIES:
            await self._execute(statements.ANALYZE, ())
            log.warning("ledger.indexed", extra={"entries": count, "seconds": round(time.monotonic() - began, 1)})

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """See `LedgerStore`."""
        rows = await self._execute(statements.IDLE[after is not None], (before, *(after or ()), size))
        return [from_row(row) for row in rows]

    async def prune(self, before: float, *, size: int) -> int:
        """See `LedgerStore`."""
        ended = [state.value for state in ENDED]
        [(count,)] = await self._execute(statements.PRUNE, (ended, before, size))
        return int(count)

    async def count_old(self, before: float) -> int:
        """See `LedgerStore`."""
        [(count,)] = await self._execute(statements.COUNT_OLD, ([state.value for state in ENDED], before))
        return int(count)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`. The process holds an advisory lock while it is connected.

        A lock is free for a moment whenever its connection breaks, so this method waits
        until the lock has been free for the whole grace period and its owner has not
        connected again. An owner that closed its ledger has recorded that, and one that was
        found dead is recorded in the same way; both are dead at once.
        """
        if not owner.isprintable():  # no owner has such a name, and PostgreSQL may reject it
            return True
        deadline = time.monotonic() + self._owner_grace
        is_free, connections, has_left = await self._presence(owner)
        while is_free and not has_left:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return bool(await self._execute(statements.FOUND_DEAD, (owner, connections)))
            await asyncio.sleep(min(self._owner_grace / _CHECKS_PER_GRACE, remaining))
            before = connections
            is_free, connections, has_left = await self._presence(owner)
            if connections != before:
                return False
        return is_free

    async def _presence(self, owner: str) -> tuple[bool, int, bool]:
        """Return whether an owner's lock is free, how often it has connected, and whether it has left."""
        [(is_free, connections, has_left)] = await self._execute(statements.PRESENCE, (lock_id(owner), owner))
        return is_free, connections, has_left

    @property
    def quota_store(self) -> QuotaStore:
        """This store: the processes on one database share the limits of an account."""
        return self

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """See `QuotaStore`."""
        rows = await self._execute(postgres_quota.ACQUIRE, (self.owner, *attrs.astuple(request)))
        return Lease(*rows[0])

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """See `QuotaStore`."""
        await self._execute(postgres_quota.RELEASE, (has, grace, name, self.owner))

    async def _stored(self, entry: Entry) -> Entry | None:
        """Return the stored entry that kept `entry` from being written.

        It may equal `entry`: then the first run of the statement wrote it, and only the
        response was lost.
        """
        stored = await self.find("key", entry.key)
        return entry if stored == entry else stored

    async def _execute(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Run a statement, once more if its connection breaks, and return its rows."""
        since = time.monotonic()
        is_repeat = False
        # Waiting in the pool's own queue would time out while the database is merely busy.
        async with self._pool_permits:
            while True:
                try:
                    return await self._execute_once(statement, values, since=since)
                except PoolTimeout as error:
                    raise _failure(f"no connection within {self._connect_timeout:g} seconds") from error
                except psycopg.Error as error:
                    if is_repeat or not _is_broken(error):
                        raise _failure(error) from error
                since = time.monotonic()
                is_repeat = True

    async def _execute_once(self, statement: str, values: Sequence[object], *, since: float) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of the pool.

        The timeout restarts whenever a connection is returned, so an outage fails all
        queued statements together.
        """
        timeout = max(since, self._returned_at) + self._connect_timeout - time.monotonic()
        async with self._pool.connection(timeout) as connection:
            try:
                if self._given_pool and self._schema:
                    async with connection.transaction():
                        await connection.execute(_LOCAL_PATH, (self._search_path,))
                        return await _run(connection, statement, values)
                return await _run(connection, statement, values)
            finally:
                self._returned_at = time.monotonic()

    async def _configure(self, connection: Connection) -> None:
        lock_timeout = round(self._lock_timeout * 1000)
        values = (str(lock_timeout), self._search_path, str(lock_timeout + _STATEMENT_MILLISECONDS))
        await connection.execute(_SETTINGS.encode(), values)


async def _run(connection: Connection, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    """Run a statement on a connection, which may have a row factory of the caller's, and return its rows."""
    prepare = False if statement in _UNPREPARED else None
    cursor = connection.cursor(row_factory=tuple_row)
    await cursor.execute(statement.encode(), values, prepare=prepare)
    return await cursor.fetchall() if cursor.description else []


def _release(listener: Listener, pool: AsyncConnectionPool[Any] | None) -> None:
    """Close the connections, which ends their server processes."""
    for connection in (listener.connection, *(pool._pool if pool else ())):  # noqa: SLF001 # its own closing needs the event loop
        connection.pgconn.finish()


def _is_broken(error: psycopg.Error) -> bool:
    """True unless the statement itself is at fault, or it or its wait for a lock took too long."""
    return isinstance(error, psycopg.OperationalError) and not isinstance(error, LockNotAvailable | QueryCanceled)


def _invalid_url(error: Exception | None = None) -> ConfigurationError:
    """Return why a URL is not valid, and name the option of another library that it has."""
    for name, hint in _FOREIGN_OPTIONS.items():
        if f'parameter: "{name}"' in str(error):
            return ConfigurationError(f"ledger: a postgresql:// URL has no option {name!r}.", hint=hint)
    return ConfigurationError(
        "ledger: this postgresql:// URL is not valid.",
        hint="Check its options, and percent-encode the special characters of its password: %40 for @, %3F for ?.",
    )


def _failure(error: psycopg.Error | str) -> LedgerError:
    return LedgerError(f"The ledger's database could not be used: {printable(error)}.")
