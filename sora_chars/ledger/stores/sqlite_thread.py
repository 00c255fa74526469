"""A thread that runs jobs on an SQLite connection of its own, those that wait together in one commit."""

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

_ENOUGH, _MANY_JOBS = 32, 1000  # to go at once, and to commit together
_IN_VAIN = 32  # jobs that go at once after one that waited in vain
_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_BUSY: "another process keeps it locked",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk fails",
}


class Worker(threading.Thread):
    """Runs jobs in groups; in each, those for the same work in one call.

    `begin`: the SQL that begins a transaction. `together`: for how many jobs a work needs one statement only, which is
    a transaction by itself. `check` is called before each group.

    A job that fails takes its group with it: nothing of it is kept, and all its callers hear why. The next group
    begins on a new connection, so that a fault is over when its cause is.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        begin: str,
        together: int,
        check: Callable[[], object] = lambda: None,
        name: str,
    ) -> None:
        super().__init__(name=f"sora_chars ledger {name}", daemon=True)
        self._connect = connect
        self._begin = begin
        self._together = together
        self._check = check
        self._connection: sqlite3.Connection | None = None
        self._asked: list[Job] = []
        self._due = math.inf  # when these are handed over; loop time, 0 for at once
        self._timer: asyncio.Handle | None = None
        self._handed_over = 0.0  # when others were
        self._at_once = 0  # jobs that need not wait for others
        self._groups: SimpleQueue[list[Job]] = SimpleQueue()
        self._loop = asyncio.get_running_loop()

    def call(
        self, work: Callable[[sqlite3.Cursor, list[A]], Iterable[T]], item: A, *, spacing: float = 0.0
    ) -> asyncio.Future[T]:
        """Run `work` on `item` in the thread, also when the future is given up.

        All that is asked in this turn of the loop goes together; `work` gets several items, and gives as many answers.
        `spacing`: seconds since the last group went, until which this may wait for others, since a thread is dear to
        wake; but not where nobody else comes, as when one caller awaits one job after the other.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.append((work, item, future))
        if spacing and self._at_once:
            spacing, self._at_once = 0.0, self._at_once - 1
        due = self._handed_over + spacing
        if due <= self._loop.time() or len(self._asked) >= _ENOUGH:
            due = 0.0
        if due < self._due:
            if self._timer:
                self._timer.cancel()
            self._due, self._timer = due, self._loop.call_at(due, self._hand_over)
        return future

    def _hand_over(self) -> None:
        jobs, self._asked = self._asked, []
        if self._due and len(jobs) == 1:
            self._at_once = _IN_VAIN
        self._due, self._timer, self._handed_over = math.inf, None, self._loop.time()
        if jobs:
            self._groups.put(jobs)

    async def end(self) -> None:
        """Finish the jobs that are there, and the thread."""
        if self._timer:
            self._timer.cancel()
        self._hand_over()
        self._groups.put([])
        await asyncio.to_thread(self.join)

    def run(self) -> None:
        """Work until told to end."""
        while jobs := self._take():
            answers = self._answers(jobs)
            with contextlib.suppress(RuntimeError):  # a loop closed without closing the ledger: nobody listens
                self._loop.call_soon_threadsafe(_settle, jobs, answers)
        self._disconnect()

    def _take(self) -> list[Job]:
        """The jobs that wait, at least one; none to end."""
        jobs: list[Job] = []
        while group := self._groups.get():
            jobs += group
            if self._groups.empty() or len(jobs) >= _MANY_JOBS:
                return jobs
        self._groups.put([])  # to be met again after these
        return jobs

    def _answers(self, jobs: list[Job]) -> list[Any]:
        try:
            connection = self._connection = self._connection or self._connect()
            with contextlib.closing(connection.cursor()) as cursor:  # an error that is kept would keep both open
                self._check()
                jobs.sort(key=lambda job: id(job[0]))  # keeps the order of those for the same work
                together = len(jobs) <= self._together and jobs[0][0] is jobs[-1][0]
                if not together:
                    cursor.execute(self._begin)
                answers: list[Any] = []
                for work, same in groupby(jobs, itemgetter(0)):
                    answers += work(cursor, [item for _, item, _ in same])
                if not together:
                    cursor.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 # a thread that died would leave every caller waiting
            self._disconnect()
            return [_failure(error) for _ in jobs]
        return answers

    def _disconnect(self) -> None:
        """Close the connection, which rolls back what was begun."""
        if self._connection:
            self._connection.close()
            self._connection = None


def _settle(jobs: Sequence[Job], answers: Sequence[Any]) -> None:
    for (*_, future), answer in zip(jobs, answers, strict=True):
        if future.done():  # its caller has gone
            continue
        if isinstance(answer, LedgerError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _failure(error: Exception) -> LedgerError:
    """The error for one caller, with the reason in words where SQLite's own are none."""
    if isinstance(error, LedgerError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where in SQLite
    reason = _REASONS.get(code, "it failed")
    failure = LedgerError(f"The ledger could not be used: {reason} ({printable(error)}).")
    failure.__cause__ = error
    return failure
