"""A ledger in one SQLite file, which the processes of one machine may share.

Two threads serve it. One writes, in groups, since a commit costs the same for one record and for a thousand; the other
reads, so that no look-up waits for another process's lock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress
from functools import cache, partial
from itertools import compress
from typing import TYPE_CHECKING, Any

from sora_chars.errors import LedgerError, printable

from .entry import COLUMNS, MOVING, NAMING, from_row, getter, to_row
from .holders import HolderLock, is_gone
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from .entry import By, Entry
    from .states import State
    from .waiters import Waiters

log = logging.getLogger("sora_chars.ledger")

UPGRADES = (
    """
    CREATE TABLE entries (
        place INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        provider TEXT NOT NULL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        request_json TEXT NOT NULL,
        token_digest TEXT,
        task_id TEXT,
        holder TEXT,
        result_json TEXT,
        error_json TEXT,
        credits REAL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        version INTEGER NOT NULL
    );
    CREATE INDEX entries_task ON entries (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX entries_token ON entries (token_digest) WHERE token_digest IS NOT NULL;
    """,
)
"""Each script takes the file from one version to the next; `user_version` counts those that were run."""

_INSERT = (
    f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 # our own names
    " ON CONFLICT (key) DO NOTHING"
)
_UPDATE = "UPDATE entries SET {} WHERE key = ? AND version = ?"
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE"  # noqa: S608 # our own names
_FIND: dict[By, str] = {
    "key": f"{_SELECT} key = ?",
    "task": f"{_SELECT} provider = ? AND task_id = ? LIMIT 1",
    "token": f"{_SELECT} token_digest = ? LIMIT 1",
}
_PAGE = (
    f"SELECT place, {', '.join(COLUMNS)} FROM entries"  # noqa: S608 # our own names
    " WHERE state IN (SELECT value FROM json_each(?)) AND place"
)
_PAGES = {False: f"{_PAGE} > ? ORDER BY place LIMIT ?", True: f"{_PAGE} < ? ORDER BY place DESC LIMIT ?"}
_VERSIONS = "SELECT key, version FROM entries WHERE key IN (SELECT value FROM json_each(?))"
_LAST = 2**63 - 1
_creating = threading.Lock()  # nobody of this process connects to a new file before it is closed again
_RARER = 20  # times as long as a look took until the next: many who wait must not keep the reader busy


class SqliteStore:
    """The file at `path`, of mode 0600 when it is made here. Its folder must exist.

    `patience`: seconds to wait while another process keeps the file locked. `interval`: seconds between two looks at
    what other processes wrote, while somebody waits for it.
    """

    division = None

    def __init__(self, path: Path, *, patience: float = 15.0, interval: float = 0.05) -> None:
        self._path = path.absolute()
        self._patience = patience
        self._interval = interval
        self.holder = ""

    async def open(self, waiters: Waiters) -> None:
        """Start the threads and bring the file up to date."""
        self._file: tuple[int, int] | None = None  # device and number, once it is there
        writer = Worker(self._connect, begin=self._begin_writing, name="writer")
        reader = Worker(self._connect, begin=lambda cursor: cursor.execute("BEGIN"), name="reader")
        writer.start()
        try:
            await writer.call(_upgrade)
            self._lock = HolderLock(self._path)
        except (LedgerError, OSError, asyncio.CancelledError) as error:
            await writer.end()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        reader.start()
        self.holder, self._writer, self._reader = self._lock.holder, writer, reader
        self._looks = asyncio.create_task(self._look(waiters), name="sora_chars ledger looks")

    async def aclose(self) -> None:
        """Commit what waits, and end the threads."""
        self._looks.cancel()
        await asyncio.wait((self._looks,))
        await self._reader.end()
        await self._writer.end()
        self._lock.release()

    async def insert(self, entry: Entry) -> Entry:
        """Keep the entry unless its key is there."""
        return await self._writer.call(partial(_insert, entry))

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Keep `after` if `before` is there."""
        return await self._writer.call(partial(_replace, before, after))

    async def find(self, by: By, *values: str) -> Entry | None:
        """Look it up."""
        return await self._reader.call(partial(_find, by, values))

    async def page(
        self, states: Collection[State], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Read a page; a place is a row number."""
        start = after if after is not None else _LAST if newest_first else -1
        return await self._reader.call(partial(_page, newest_first, (json.dumps([*states]), start, size)))

    async def is_gone(self, holder: str) -> bool:
        """Look at its lock."""
        try:
            return is_gone(self._path, holder)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> LedgerError:
        return LedgerError(f"The ledger could not be used: {printable(error)}.")

    def _begin_writing(self, cursor: sqlite3.Cursor) -> None:
        self._check_file()
        cursor.execute("BEGIN IMMEDIATE")

    def _check_file(self) -> None:
        """SQLite would go on writing to a file that was moved or deleted, and who comes next would never see it."""
        if self._file != self._found():
            raise LedgerError(
                f"The ledger could not be used: {printable(str(self._path))} is no longer the file that was opened.",
                hint="Put that one back, or open the ledger again.",
            )

    def _found(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = self._path.stat()
            return found.st_dev, found.st_ino
        return None

    def _connect(self) -> sqlite3.Connection:
        if self._file is None:
            self._create()
        else:
            self._check_file()
        self._check_mode()
        connection = sqlite3.connect(self._path, timeout=self._patience, isolation_level=None)
        try:
            self._use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        if self._file is None:
            self._file = self._found()  # not before: a container's layers copy a file when it is first written to
        return connection

    def _create(self) -> None:
        """Make the file, unless it is there. SQLite gives the files beside it the same mode.

        It must not even be opened when it is there: closing it would free the locks of every connection that this
        process has to it, and another process would take itself for the last and remove the write-ahead log.
        https://sqlite.org/howtocorrupt.html, 2.2.
        """
        with _creating, suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _check_mode(self) -> None:
        """SQLite would open it all the same, and leave files beside it that nobody can write later either."""
        if not os.access(self._path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise LedgerError(f"The ledger could not be used: it is read-only ({printable(str(self._path))}).")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log. Here alone SQLite does not wait when several processes come at once."""
        give_up = time.monotonic() + self._patience
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
            else:
                return

    async def _look(self, waiters: Waiters) -> None:
        """Wake those who wait for what another process moved."""
        seen: dict[str, int] = {}
        mark = -1
        pause = self._interval
        while True:
            await waiters.some.wait()
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                now, mark = await self._reader.call(partial(_versions, list(waiters.keys), seen, mark))
            except LedgerError as error:
                log.warning("ledger.look_failed", extra={"error": printable(error)})
                continue
            for key, version in now.items():
                if seen.get(key) != version:
                    waiters.wake(key, version)
            seen = now
            pause = max(self._interval, _RARER * (time.monotonic() - began))


def _upgrade(cursor: sqlite3.Cursor) -> None:
    version: int = cursor.execute("PRAGMA user_version").fetchone()[0]
    if version > len(UPGRADES):
        raise LedgerError(f"The ledger is of version {version}, newer than this package knows ({len(UPGRADES)}).")
    for script in UPGRADES[version:]:
        for statement in script.split(";"):  # executescript would commit
            cursor.execute(statement)
    cursor.execute(f"PRAGMA user_version = {len(UPGRADES)}")


def _insert(entry: Entry, cursor: sqlite3.Cursor) -> Entry:
    if cursor.execute(_INSERT, to_row(entry)).rowcount:
        return entry
    return from_row(cursor.execute(_FIND["key"], (entry.key,)).fetchone())


def _replace(before: Entry, after: Entry, cursor: sqlite3.Cursor) -> Entry | None:
    statement, values = _update(after.token_digest != before.token_digest, after.task_id != before.task_id)
    if cursor.execute(statement, (*values(after), after.key, before.version)).rowcount:
        return after
    return _find("key", (after.key,), cursor)


@cache
def _update(*named: bool) -> tuple[str, Callable[[Entry], tuple[Any, ...]]]:
    """The statement that writes a move, and what reads its values, by which of the columns of `NAMING` it writes."""
    columns = (*MOVING, *compress(NAMING, named))
    return _UPDATE.format(", ".join(f"{name} = ?" for name in columns)), getter(columns)


def _find(by: By, values: Sequence[str], cursor: sqlite3.Cursor) -> Entry | None:
    row = cursor.execute(_FIND[by], values).fetchone()
    return None if row is None else from_row(row)


def _page(newest_first: bool, values: Sequence[object], cursor: sqlite3.Cursor) -> list[tuple[int, Entry]]:  # noqa: FBT001 # a partial's
    return [(row[0], from_row(row[1:])) for row in cursor.execute(_PAGES[newest_first], values)]


def _versions(
    keys: Collection[str], seen: dict[str, int], mark: int, cursor: sqlite3.Cursor
) -> tuple[dict[str, int], int]:
    """The versions of the entries of `keys`, and SQLite's mark that changes with every commit of others."""
    now: int = cursor.execute("PRAGMA data_version").fetchone()[0]
    if now == mark and seen.keys() >= set(keys):
        return seen, mark
    return dict(cursor.execute(_VERSIONS, (json.dumps(list(keys)),))), now
