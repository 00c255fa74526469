"""A thread with its own SQLite connection, which runs jobs in grouped transactions."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import threading
from itertools import groupby
from operator import itemgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from sora_chars.errors import LedgerError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Work = Callable[[sqlite3.Cursor, list[Any]], Iterable[Any]]
    Job = tuple[Work, Any, asyncio.Future[Any]]

A = TypeVar("A")
T = TypeVar("T")

_FULL_GROUP = 32  # jobs that are handed over without waiting for more
_MAX_TRANSACTION_JOBS = 1000
_IMMEDIATE_JOBS = 32  # jobs that skip their delay after one was delayed and no other came
_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_BUSY: "another process has locked it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk fails",
}


class CommitThread(threading.Thread):
    """Runs jobs in groups, each group in one transaction.

    A job is a function and one argument. Jobs with the same function run in one call,
    which gets all their arguments and returns as many results.

    If a job fails, its whole group is rolled back, and every caller of the group gets a
    `LedgerError`. The next group opens a new connection, so the thread works again as
    soon as the cause of the fault is gone.

    Args:
        connect: Opens a connection; runs in the thread.
        begin: The SQL statement that begins a transaction.
        jobs_per_statement: Up to this many jobs with the same function take a single
            statement. They need no `begin`, since SQLite commits a single statement by
            itself.
        check: Runs before every group, and raises to fail it.
        committed: Gets the results of every group that was committed.
        name: What the thread does, for its name.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        begin: str,
        jobs_per_statement: int,
        check: Callable[[], object] = lambda: None,
        committed: Callable[[list[Any]], object] = lambda _: None,
        name: str,
    ) -> None:
        super().__init__(name=f"sora_chars ledger {name}", daemon=True)
        self._connect = connect
        self._begin = begin
        self._jobs_per_statement = jobs_per_statement
        self._check = check
        self._committed = committed
        self._connection: sqlite3.Connection | None = None
        self._pending: list[Job] = []
        self._hand_over_at = math.inf  # loop time at which the pending jobs are handed over; 0 for at once
        self._timer: asyncio.Handle | None = None
        self._handed_over_at = 0.0  # loop time of the last group
        self._immediate_jobs = 0  # delayed jobs that skip their delay
        self._groups: SimpleQueue[list[Job]] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def call(
        self, work: Callable[[sqlite3.Cursor, list[A]], Iterable[T]], item: A, *, spacing: float = 0.0
    ) -> asyncio.Future[T]:
        """Run `work` on `item` in the thread, even if the future is cancelled.

        All jobs of one event-loop iteration go into one group.

        Args:
            work: Gets the items of one or more jobs, and returns as many results.
            item: What this job passes to `work`.
            spacing: Seconds since the last group for which this job may wait for others,
                because waking the thread is expensive. The wait is skipped when calls are
                sequential and nothing would be batched.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending.append((work, item, future))
        if spacing and self._immediate_jobs:
            spacing = 0.0
            self._immediate_jobs -= 1
        at = self._handed_over_at + spacing
        if at <= self._loop.time() or len(self._pending) >= _FULL_GROUP:
            at = 0.0
        if at < self._hand_over_at:
            if self._timer:
                self._timer.cancel()
            self._hand_over_at = at
            self._timer = self._loop.call_at(at, self._hand_over)
        return future

    def _hand_over(self) -> None:
        jobs = self._pending
        self._pending = []
        if self._hand_over_at and len(jobs) == 1:
            self._immediate_jobs = _IMMEDIATE_JOBS
        self._hand_over_at = math.inf
        self._timer = None
        self._handed_over_at = self._loop.time()
        if jobs:
            self._groups.put(jobs)

    async def stop(self) -> None:
        """Run the remaining jobs and end the thread."""
        if self._timer:
            self._timer.cancel()
        self.end()
        await self._ended  # no executor: those of a process that exits are shut down before its sessions are closed
        self.join()

    def end(self) -> None:
        """Have the thread run the remaining jobs and end."""
        self._hand_over()
        self._groups.put([])

    def run(self) -> None:
        """Run groups of jobs until `stop`."""
        while jobs := self._next_jobs():
            results = self._run_jobs(jobs)
            with contextlib.suppress(RuntimeError):  # the loop was closed before the ledger; no caller is left
                self._loop.call_soon_threadsafe(_resolve, jobs, results)
        self._disconnect()
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(_set_done, self._ended)

    def _next_jobs(self) -> list[Job]:
        """Wait for at least one job, and take those that wait with it; none at the end."""
        jobs: list[Job] = []
        while group := self._groups.get():
            jobs += group
            if self._groups.empty() or len(jobs) >= _MAX_TRANSACTION_JOBS:
                return jobs
        self._groups.put([])  # ends the thread after these jobs
        return jobs

    def _run_jobs(self, jobs: list[Job]) -> list[Any]:
        """Run the jobs on the connection; return their results, or an error for each."""
        try:
            connection = self._connection = self._connection or self._connect()
            with contextlib.closing(connection.cursor()) as cursor:  # an error's traceback would keep it open
                self._check()
                jobs.sort(key=lambda job: id(job[0]))  # stable: jobs with the same function stay in order
                single = len(jobs) <= self._jobs_per_statement and jobs[0][0] is jobs[-1][0]
                if not single:
                    cursor.execute(self._begin)
                results: list[Any] = []
                for work, same in groupby(jobs, itemgetter(0)):
                    results += work(cursor, [item for _, item, _ in same])
                if not single:
                    cursor.execute("COMMIT")
                self._committed(results)
        except Exception as error:  # noqa: BLE001 # without the thread every caller would wait for ever
            self._disconnect()
            return [_failure(error) for _ in jobs]
        return results

    def _disconnect(self) -> None:
        """Close the connection, which rolls back an open transaction."""
        if self._connection:
            self._connection.close()
            self._connection = None


def _resolve(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    """Give every job's future its result; runs in the event loop."""
    for (*_, future), result in zip(jobs, results, strict=True):
        if future.done():  # cancelled
            continue
        if isinstance(result, LedgerError):
            future.set_exception(result)
        else:
            future.set_result(result)


def _failure(error: Exception) -> LedgerError:
    """Make one caller's error, with a reason in plain words where SQLite's message has none."""
    if isinstance(error, LedgerError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits say where in SQLite it failed
    reason = _REASONS.get(code, "it failed")
    failure = LedgerError(f"The ledger could not be used: {reason} ({printable(error)}).")
    failure.__cause__ = error
    return failure


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled
        future.set_result(None)
