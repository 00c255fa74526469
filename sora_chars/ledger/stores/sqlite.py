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
from typing import TYPE_CHECKING

from sora_chars.errors import LedgerError, printable
from sora_chars.ledger.states import EntryState

from . import sqlite_statements as statements
from .process_lock import ProcessLock, is_dead
from .sqlite_thread import Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from sora_chars.ledger.entry import By, Entry
    from sora_chars.ledger.notifier import Waiters

log = logging.getLogger("sora_chars.ledger")

_LAST = 2**63 - 1
_creating = threading.Lock()  # nobody of this process connects to a new file before it is closed again
_RARER = 20  # times as long as a look took until the next: many who wait must not keep the reader busy


class SqliteStore:
    """The file at `path`, of mode 0600 when it is made here. Its folder must exist.

    `patience`: seconds to wait while another process keeps the file locked. `interval`: seconds between two looks at
    what other processes wrote, while somebody waits for it. `spacing`: seconds between two commits of nothing but ends
    of tasks, which their providers would tell again.
    """

    quota_store = None

    def __init__(self, path: Path, *, patience: float = 15.0, interval: float = 0.05, spacing: float = 0.05) -> None:
        self._path = path.absolute()
        self._patience = patience
        self._interval = interval
        self._spacing = spacing
        self.owner = ""

    async def open(self, waiters: Waiters) -> None:
        """Start the threads and bring the file up to date."""
        self._file: tuple[int, int] | None = None  # device and number, once it is there
        writer = Worker(
            self._connect, begin="BEGIN IMMEDIATE", together=statements.ROWS, check=self._check_file, name="writer"
        )
        reader = Worker(self._connect, begin="BEGIN", together=1, name="reader")
        writer.start()
        try:
            await writer.call(statements.upgrade, None)
            self._lock = ProcessLock(self._path)
        except (LedgerError, OSError, asyncio.CancelledError) as error:
            await writer.end()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        reader.start()
        self.owner, self._writer, self._reader = self._lock.owner, writer, reader
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
        return await self._writer.call(statements.insert, entry)

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Keep `after` if `before` is there."""
        spacing = self._spacing if before.state is EntryState.RUNNING and after.state is not EntryState.RUNNING else 0.0
        return await self._writer.call(statements.replace(before, after), (before, after), spacing=spacing)

    async def find(self, by: By, *values: str) -> Entry | None:
        """Look it up."""
        return await self._reader.call(statements.find, (by, values))

    async def page(
        self, states: Collection[EntryState], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Read a page; a place is a row number."""
        start = after if after is not None else _LAST if newest_first else -1
        return await self._reader.call(statements.page, (newest_first, (json.dumps([*states]), start, size)))

    async def is_dead(self, owner: str) -> bool:
        """Look at its lock."""
        try:
            return is_dead(self._path, owner)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> LedgerError:
        return LedgerError(f"The ledger could not be used: {printable(error)}.")

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
                now, mark = await self._reader.call(statements.versions, (list(waiters.keys), seen, mark))
            except LedgerError as error:
                log.warning("ledger.look_failed", extra={"error": printable(error)})
                continue
            for key, version in now.items():
                if seen.get(key) != version:
                    waiters.wake(key, version)
            seen = now
            pause = max(self._interval, _RARER * (time.monotonic() - began))
