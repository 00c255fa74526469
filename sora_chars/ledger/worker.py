"""A thread that runs jobs on an SQLite connection of its own, those that wait together in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from sora_chars.errors import LedgerError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Job = tuple[Callable[[sqlite3.Cursor], Any], asyncio.Future[Any]]

T = TypeVar("T")

_MANY_JOBS = 1000
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
    """Runs jobs in the order in which they came. `begin` starts the transaction of each group.

    A job that fails takes its group with it: nothing of it is kept, and all its callers hear why. The next group
    begins on a new connection, so that a fault is over when its cause is.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], *, begin: Callable[[sqlite3.Cursor], object], name: str
    ) -> None:
        super().__init__(name=f"sora_chars ledger {name}", daemon=True)
        self._connect = connect
        self._begin = begin
        self._connection: sqlite3.Connection | None = None
        self._asked: list[Job] = []  # in this turn of the event loop
        self._groups: SimpleQueue[list[Job]] = SimpleQueue()
        self._loop = asyncio.get_running_loop()

    def call(self, job: Callable[[sqlite3.Cursor], T]) -> asyncio.Future[T]:
        """Run `job` in the thread, also when the future is given up."""
        future: asyncio.Future[T] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_over)  # with all that others ask before: waking a thread is dear
        self._asked.append((job, future))
        return future

    def _hand_over(self) -> None:
        jobs, self._asked = self._asked, []
        self._groups.put(jobs)

    async def end(self) -> None:
        """Finish the jobs that are there, and the thread."""
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

    def _answers(self, jobs: Sequence[Job]) -> list[Any]:
        try:
            connection = self._connection = self._connection or self._connect()
            with contextlib.closing(connection.cursor()) as cursor:  # an error that is kept would keep both open
                self._begin(cursor)
                answers = [job(cursor) for job, _ in jobs]
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
    for (_, future), answer in zip(jobs, answers, strict=True):
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
