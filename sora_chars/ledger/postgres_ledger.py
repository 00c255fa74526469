"""A ledger in a PostgreSQL database, with what only this kind of ledger can do."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from sora_chars.errors import ConfigurationError, InvalidRequestError, LedgerError, printable

from .entry import COLUMNS, from_row, to_row
from .ledger import Ledger
from .registration import Registration
from .stores import postgres_statements as statements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg
    from psycopg_pool import AsyncConnectionPool

    from .entry import Entry
    from .stores.postgres import PostgresStore

    Connection = psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any] | psycopg.Connection[Any] | psycopg.Cursor[Any]

_TABLE = re.compile(r"\bsora_chars_(?:entries|processes)\b")
_CONNECTION_OPTIONS = {"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"}  # not of libpq


class PostgresLedger(Ledger):
    """A ledger in a PostgreSQL database, which the processes of several machines may share.

        async with PostgresLedger("postgresql://db.example.com/shop", schema="characters") as ledger:
            ...

    Args:
        url: The URL of the database.
        pool: A pool of the application, in place of the URL. It must be open while the
            ledger is; the ledger does not close it. Its connections keep their settings,
            so `synchronous_commit` must be on. One more connection is opened.
        schema: The schema of the tables, created if necessary. Defaults to the first one
            of the search path.
        clock: Returns the present time in epoch seconds.

    Raises:
        ConfigurationError: Not exactly one of `url` and `pool` was given, or one of the
            arguments is invalid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: AsyncConnectionPool[Any] | None = None,
        schema: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (url is None) == (pool is None):
            raise ConfigurationError("ledger: give exactly one of url and pool.")
        if schema is not None and not (schema and schema.isprintable()):
            raise ConfigurationError(f"ledger: schema must be a name, got {printable(repr(schema), limit=60)}.")
        self._schema = f"{statements.quoted(schema)}." if schema else ""
        super().__init__(_store(url, pool, schema), clock=clock)

    def registration(self, entry: Entry) -> Registration:
        """Return the statement that records a new entry in a transaction of the caller's."""
        values = (self.owner, *to_row(entry))
        return Registration(entry.key, self._qualified(statements.REGISTER), values, ("process", *COLUMNS))

    async def insert_with(self, connection: Connection, entry: Entry) -> Entry:
        """Record a new entry on a connection of the caller's, and return the recorded entry of its key.

        The entry is recorded when the transaction of the connection is committed.

        Raises:
            InvalidRequestError: This is no connection or cursor of psycopg.
            KeyConflictError: The key is recorded with another request.
            LedgerError: The statement failed, or the connection leads to another ledger.
        """
        import psycopg  # noqa: PLC0415 # an extra

        stored: Entry | None = None
        try:
            while stored is None:  # it may be removed between the two statements
                stored = await self._insert_or_find(connection, entry)
        except psycopg.Error as error:
            if isinstance(error, psycopg.errors.NotNullViolation):
                raise _other_ledger(entry.key) from None  # its message has the request
            hint = "Repeat the transaction."
            if isinstance(error, psycopg.errors.UndefinedTable):
                hint = "Open the ledger once, and connect to its database."
            elif isinstance(error, psycopg.errors.InsufficientPrivilege):
                hint = "Grant its role INSERT and SELECT on sora_chars_entries, and SELECT on sora_chars_processes."
            elif isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or error.sqlstate is None:  # it was closed
                hint = "Use a connection that is open and may write, in a new transaction."
            raise LedgerError(
                f"The request could not be recorded on this connection: {printable(error)}.", hint=hint, key=entry.key
            ) from error
        if stored is not entry:
            stored.check_same_request(entry)
        return stored

    async def _insert_or_find(self, connection: Connection, entry: Entry) -> Entry | None:
        new = self.registration(entry)
        if await _run(connection, new.statement, new.values):
            return entry
        rows = await _run(connection, self._qualified(statements.FIND["key"]), (entry.key,))
        return from_row(rows[0]) if rows else None

    def _qualified(self, statement: str) -> str:
        return _TABLE.sub(lambda table: f"{self._schema}{table[0]}", statement, count=2)


def _other_ledger(key: str) -> LedgerError:
    return LedgerError(
        "This connection leads to another ledger than that of the session. The request was not recorded.",
        hint="Connect to the database and the schema of the session's ledger. If the connection does, its transaction "
        "began before the session was opened: begin it afterwards.",
        key=key,
    )


async def _run(connection: Connection, statement: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Run a statement on a connection, or on that of a cursor, and return its rows."""
    import psycopg  # noqa: PLC0415 # an extra
    from psycopg.rows import tuple_row  # noqa: PLC0415

    given: Any = connection  # callers without a type checker pass anything
    match given:
        case psycopg.AsyncCursor():
            return await _run(given.connection, statement, values)
        case psycopg.AsyncConnection():
            cursor = await given.cursor(row_factory=tuple_row).execute(statement.encode(), values)
            return await cursor.fetchall()
        case psycopg.Cursor():
            return await _run(given.connection, statement, values)
        case psycopg.Connection():
            return given.cursor(row_factory=tuple_row).execute(statement.encode(), values).fetchall()
        case _:
            raise InvalidRequestError(f"connection must be one of psycopg or its cursor, got {type(given).__name__}.")


def _store(url: str | None, pool: AsyncConnectionPool[Any] | None, schema: str | None) -> PostgresStore:
    try:
        from .stores.postgres import PostgresStore  # noqa: PLC0415 # an extra
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: PostgreSQL needs a package that is not installed ({error}).",
            hint='Run: pip install "sora-chars[postgres]"',
        ) from error
    return PostgresStore(url or _url_of(pool), pool=pool, schema=schema)


def _url_of(pool: AsyncConnectionPool[Any] | None) -> str:
    """Return where the connections of a pool go."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 # an extra

    conninfo: object = getattr(pool, "conninfo", None)
    kwargs: object = getattr(pool, "kwargs", None) or {}
    if not (isinstance(conninfo, str) and isinstance(kwargs, dict)):
        raise ConfigurationError("ledger: pool must be an AsyncConnectionPool whose conninfo and kwargs are values.")
    return make_conninfo(conninfo, **{name: kwargs[name] for name in kwargs.keys() - _CONNECTION_OPTIONS})
