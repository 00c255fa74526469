"""The connection that stays open while a PostgreSQL ledger is open.

It receives the notifications of changed entries. It also holds the advisory lock that
shows other processes that this one is alive. If the connection breaks, the server
releases the lock, although the process is alive: other processes therefore wait for
`OWNER_GRACE` seconds, and the process connects again at once. Each new connection is
counted in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import psycopg

from sora_chars.errors import LedgerError, printable
from sora_chars.logs import event_logger

from . import postgres_statements as statements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sora_chars.ledger.notifier import ChangeNotifier

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

log = event_logger("sora_chars.ledger")

OWNER_GRACE = 15.0
"""Seconds for which a lock must be free before its owner counts as dead. A process whose
connection broke probes it within 10 seconds, and takes its lock again with the next one."""

KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""A machine that loses its power closes no connection. With these settings client and
server notice it within 25 seconds; with the usual defaults it takes two hours."""
_NO_IDLE_TIMEOUT = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"  # PostgreSQL 14
)

_MIN_CONNECT_SECONDS = 2  # libpq's own minimum
_POOLER_ROUNDS = 3  # other clients of a pooler may take the process that this check expects


class Listener:
    """The open connection of one process, which it replaces whenever it breaks.

    Args:
        url: The URL of the database.
        owner: The name of this process.
        connect_timeout: Seconds to wait for a connection.
        search_path: Where the tables are. None stands for the search path of the database.
    """

    def __init__(self, url: str, *, owner: str, connect_timeout: float, search_path: str | None = None) -> None:
        self._url = url
        self._search_path = search_path
        self._owner = owner
        self._connect_seconds = max(_MIN_CONNECT_SECONDS, round(connect_timeout))
        self._retry_interval = connect_timeout / 10
        self.connection: Connection

    async def open(self, upgrade: Callable[[Connection], Awaitable[object]]) -> None:
        """Connect, and run `upgrade` on the connection before the tables are used.

        Raises:
            LedgerError: A transaction pooler stands between this process and the database.
            psycopg.Error: The database could not be used.
        """
        self.connection = await self._connect()
        try:
            await self._check_direct()
            await upgrade(self.connection)
            await self._show_alive(self.connection)
        except BaseException:
            await self.connection.close()
            raise

    async def run(self, notifier: ChangeNotifier) -> None:
        """Notify the subscribers of changed entries.

        After a reconnect it notifies those of every entry, since changes may have been missed.
        """
        while True:
            try:
                async for notice in self.connection.notifies():  # pragma: no branch # it ends by an error only
                    version, _, key = notice.payload.partition(" ")
                    notifier.notify(key, int(version))
            except psycopg.Error as error:
                log.warning("ledger.listener_lost", extra={"error": printable(error)})
                await self.connection.close()
                self.connection = await self._reconnect()
                notifier.notify_all()

    async def aclose(self) -> None:
        """Record that this process has left, and close the connection."""
        with contextlib.suppress(psycopg.Error):  # then the others wait before they take it for dead
            await self.connection.execute(statements.LEAVE, (self._owner,))
        await self.connection.close()

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=self._connect_seconds, **KEEPALIVES
        )
        try:
            await connection.execute(_SERVER_KEEPALIVES)
            await connection.execute(_NO_IDLE_TIMEOUT)
            if self._search_path:
                await connection.execute("SELECT set_config('search_path', %s, false)", (self._search_path,))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _show_alive(self, connection: Connection) -> None:
        """Count the connection, listen, and take the lock.

        The lock comes last: after a reconnect the server may still hold it for the old
        connection, for as long as that one hangs. The count comes first, since it is what
        shows others that this process has connected again.
        """
        await connection.execute(statements.ARRIVE, (self._owner,))
        await connection.execute(f"LISTEN {statements.CHANNEL}".encode())
        await connection.execute("SELECT pg_advisory_lock(%s)", (lock_id(self._owner),))

    async def _reconnect(self) -> Connection:
        while True:
            with contextlib.suppress(psycopg.Error):
                connection = await self._connect()
                try:
                    await self._show_alive(connection)
                except BaseException:
                    await connection.close()
                    raise
                return connection
            await asyncio.sleep(self._retry_interval)

    async def _check_direct(self) -> None:
        """Raise unless each connection has a server process of its own, for as long as it is open.

        A transaction pooler gives a client the server process of an idle one: a second
        connection in a transaction takes that of the listener, or the listener gets another.
        """
        is_proxied = await _process_id(self.connection) != self.connection.info.backend_pid
        async with await psycopg.AsyncConnection.connect(self._url, connect_timeout=self._connect_seconds) as second:
            for _ in range(_POOLER_ROUNDS if is_proxied else 1):
                before = await _process_id(self.connection)
                taken = await _process_id(second)  # opens a transaction, which keeps the process
                after = await _process_id(self.connection)
                await second.rollback()
                if before != after or taken in {before, after}:  # pragma: no cover # where PgBouncer is not installed
                    raise LedgerError(
                        "The ledger's database is behind a connection pooler in transaction mode, where notifications "
                        "and advisory locks are lost. Nothing was changed.",
                        hint="Connect to the database itself, or to the pooler in session mode.",
                    )


def lock_id(name: str) -> int:
    """Return the number of the advisory lock with this name."""
    return int.from_bytes(hashlib.sha256(f"sora_chars {name}".encode()).digest()[:8], signed=True)


async def _process_id(connection: Connection) -> int:
    """Return the id of the server process that runs the statements of a connection."""
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None  # noqa: S101 # the statement returns one row
    process: int = row[0]
    return process
