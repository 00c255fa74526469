"""A store in one SQLite file, which the processes of one machine may share.

Two threads serve it. The writer commits in groups, because a commit costs the same for
one record as for a thousand. The reader has its own connection, so reads never wait for
another process's write lock.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from sora_chars.errors import LedgerError, printable
from sora_chars.ledger.search import TRIGRAM, fold
from sora_chars.ledger.states import ENDED, EntryState
from sora_chars.logs import event_logger

from . import sqlite_search, sqlite_upkeep
from . import sqlite_statements as statements
from .abandoned import Holding
from .process_lock import ProcessLock, is_dead
from .sqlite_changes import Changes, changes
from .sqlite_files import LedgerFiles
from .sqlite_search import Search
from .sqlite_thread import CommitThread

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from sora_chars.ledger.entry import Attempt, Entry, Lookup
    from sora_chars.ledger.notifier import ChangeNotifier

log = event_logger("sora_chars.ledger")

_MAX_ROW_ID = 2**63 - 1
_MANY_ENTRIES = 20_000  # are worth a message before they are indexed
_LOCK_RETRY_INTERVAL = 0.01  # seconds
_POLL_REST_FACTOR = 20  # pause after a poll, in multiples of its CPU time, to keep the reader free
_MAX_POLL_REST = 1.0  # seconds
_creating = threading.Lock()  # held until a new file is closed: no other thread may connect to it before


class SqliteStore:
    """The entries in one SQLite file. Its folder must exist; a new file gets mode 0600.

    Args:
        path: The file.
        lock_timeout: Seconds to wait while another process has locked the file.
        poll_interval: Seconds between two polls for the changes of other processes, while
            this process has a subscriber.
        spacing: Seconds between two commits that only record the ends of tasks. Those can
            wait, since a lost one can be read from the provider again.
    """

    quota_store = None

    def __init__(
        self, path: Path, *, lock_timeout: float = 15.0, poll_interval: float = 0.05, spacing: float = 0.05
    ) -> None:
        self._path = path.absolute()
        self._lock_timeout = lock_timeout
        self._poll_interval = poll_interval
        self._spacing = spacing
        self.owner = ""

    async def open(self, notifier: ChangeNotifier) -> None:
        """Start the threads, and create or upgrade the file."""
        try:
            # By any name the file has one set of lock files.
            self._path = self._path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of symbolic links; RuntimeError before Python 3.13
            raise _failure(error) from error
        self._files = LedgerFiles(self._path)
        writer = CommitThread(
            self._connect_writer,
            begin="BEGIN IMMEDIATE",
            jobs_per_statement=statements.ROWS_PER_STATEMENT,
            check=self._files.check,
            committed=self._files.committed,
            name="writer",
        )
        reader = CommitThread(self._connect, begin="BEGIN", jobs_per_statement=1, name="reader")
        writer.start()
        try:
            await writer.call(statements.upgrade, None)
            self._lock = ProcessLock(self._path)
        except (LedgerError, OSError, asyncio.CancelledError) as error:
            await writer.stop()
            if isinstance(error, OSError):
                raise _failure(error) from error
            raise
        reader.start()
        self.owner = self._lock.owner
        self._writer = writer
        self._reader = reader
        self._holding = Holding(
            f"The ledger {printable(str(self._path))}",
            asyncio.get_running_loop(),
            partial(_release, writer, reader, self._lock),
        )
        self._polling = asyncio.create_task(
            self._poll_changes(notifier), name="sora_chars ledger polls", context=Context()
        )

    async def aclose(self) -> None:
        """Commit the pending records and end the threads."""
        self._holding.closed()
        self._polling.cancel()
        try:
            await asyncio.wait((self._polling,))
            await self._reader.stop()
            await self._writer.stop()
        except BaseException:  # cancelled: the threads end without the event loop, and the lock is released after them
            held = (self._writer, self._reader, self._lock)
            threading.Thread(target=_release, args=held, name="sora_chars ledger end", daemon=True).start()
            raise
        self._lock.release()

    def abandon(self) -> None:
        """See `LedgerStore`."""
        self._holding.abandon()

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        return await self._writer.call(statements.insert, entry)

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        if archive or before.state in ENDED:
            return await self._writer.call(statements.replace_and_archive, (before, after, archive))
        spacing = self._spacing if before.state is EntryState.RUNNING and after.state is not EntryState.RUNNING else 0.0
        return await self._writer.call(statements.replace(before, after), (before, after), spacing=spacing)

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        return await self._reader.call(statements.find, (by, values))

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """See `LedgerStore`."""
        return await self._reader.call(statements.all_by_task, (provider, task_id))

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """See `LedgerStore`."""
        return await self._reader.call(statements.attempts, keys)

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
        start = (_MAX_ROW_ID if newest_first else -1) if after is None else after
        wanted = frozenset(state.value for state in states)
        if query and len(fold(query)) >= TRIGRAM and sqlite_search.has_trigrams():
            if after is None:
                await self._index_new_entries()
            return await self._reader.call(sqlite_search.search, Search(query, wanted, newest_first, start, size))
        return await self._reader.call(statements.page, (wanted, newest_first, start, size))

    async def _index_new_entries(self) -> None:
        """Index the entries that have ended since the last search, in short transactions."""
        count: int = await self._reader.call(sqlite_search.waiting, None)
        began = time.monotonic()
        if count >= _MANY_ENTRIES:
            log.warning("ledger.indexing", extra={"entries": count})
        while await self._writer.call(sqlite_search.index_group, None):
            pass
        if count >= _MANY_ENTRIES:
            log.warning("ledger.indexed", extra={"entries": count, "seconds": round(time.monotonic() - began, 1)})

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """See `LedgerStore`."""
        return await self._reader.call(sqlite_upkeep.idle_page, (before, after, size))

    async def prune(self, before: float, *, size: int) -> int:
        """See `LedgerStore`."""
        return await self._writer.call(sqlite_upkeep.prune, (before, size))

    async def count_old(self, before: float) -> int:
        """See `LedgerStore`."""
        count: int = await self._reader.call(sqlite_upkeep.count_old, before)
        return count

    async def is_dead(self, owner: str) -> bool:
        """Try to lock the process's lock file."""
        try:
            return is_dead(self._path, owner)
        except OSError as error:
            raise _failure(error) from error

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        self._files.record_beside()
        return connection

    def _connect(self) -> sqlite3.Connection:
        if self._files.opened is None:
            self._create()
        else:
            self._files.check_place()
        self._check_permissions()
        connection = sqlite3.connect(self._path, timeout=self._lock_timeout, isolation_level=None)
        try:
            self._use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: its fsync leaves the data in the drive's cache
            connection.execute("PRAGMA user_version")  # SQLite opens the files beside the ledger's when it reads
            connection.execute("PRAGMA secure_delete = FAST")  # overwrites what entries no longer hold
        except sqlite3.Error:
            connection.close()
            raise
        self._files.record()
        return connection

    def _create(self) -> None:
        """Create the file unless it exists. SQLite gives the files beside it the same mode.

        An existing file must not even be opened here: closing it would release the locks of
        every connection that this process has to it. Another process would then take itself
        for the last one and remove the write-ahead log.
        See https://sqlite.org/howtocorrupt.html, section 2.2.
        """
        with _creating, suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _check_permissions(self) -> None:
        """Check that the file is writable.

        SQLite would open a read-only file and create files beside it that stay read-only.
        """
        if not os.access(self._path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise LedgerError(f"The ledger could not be used: it is read-only ({printable(str(self._path))}).")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log.

        SQLite's own timeout does not cover this statement when several processes run it at once.
        """
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_RETRY_INTERVAL)
            else:
                return

    async def _poll_changes(self, notifier: ChangeNotifier) -> None:
        """Notify the subscribers of entries that another process has changed, until the ledger is closed."""
        try:
            await self._poll_until_cancelled(notifier)
        finally:
            self._holding.abandon_after_loop()  # does nothing if it is the closing that ends this

    async def _poll_until_cancelled(self, notifier: ChangeNotifier) -> None:
        versions: dict[str, int] = {}
        data_version = -1
        followed = Changes()
        delay = self._poll_interval
        while True:
            await notifier.has_subscribers.wait()
            await asyncio.sleep(delay)
            try:
                last = (list(notifier.keys), versions, data_version)
                now, data_version, seconds = await self._reader.call(statements.versions, last)
            except LedgerError as error:
                log.warning("ledger.poll_failed", extra={"error": printable(error)})
                continue
            for key, version in now.items():
                if versions.get(key) != version:
                    notifier.notify(key, version)
            versions = now
            if notifier.is_followed:
                followed = await self._notify_followers(notifier, followed)
            delay = max(self._poll_interval, min(_MAX_POLL_REST, _POLL_REST_FACTOR * seconds))

    async def _notify_followers(self, notifier: ChangeNotifier, last: Changes) -> Changes:
        try:
            now = await self._reader.call(changes, last)
        except LedgerError as error:
            log.warning("ledger.poll_failed", extra={"error": printable(error)})
            return last
        for key, version in now.changed.items():
            notifier.notify_followers(key, version)
        return now


def _release(writer: CommitThread, reader: CommitThread, lock: ProcessLock) -> None:
    for thread in (reader, writer):
        thread.end()
    for thread in (reader, writer):
        thread.join()
    lock.release()


def _failure(error: OSError | RuntimeError) -> LedgerError:
    return LedgerError(f"The ledger could not be used: {printable(error)}.")
