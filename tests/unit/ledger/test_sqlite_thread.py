"""When an SQLite ledger's thread is given its jobs."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.ledger.stores.sqlite_thread import CommitThread

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.looptime


class Idle(CommitThread):
    """A thread that never starts, so that what it is given can be seen."""

    def __init__(self) -> None:
        super().__init__(lambda: sqlite3.connect(":memory:"), begin="BEGIN", jobs_per_statement=1, name="idle")

    def ask(self, *, spacing: float = 0.0) -> None:
        """Ask for something."""
        self.call(work, None, spacing=spacing)

    async def given(self) -> tuple[float, int]:
        """Wait for the next group: seconds until it came, to the hundredth, and its size."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._groups.empty():  # noqa: ASYNC110 # a queue of threads is no event of a loop
            await asyncio.sleep(0.004)
        return round(loop.time() - began, 2), len(self._groups.get())


def work(_cursor: sqlite3.Cursor, items: Sequence[Any]) -> Sequence[Any]:
    """What jobs are for."""
    return items


async def test_a_job_that_may_wait_goes_at_once_after_a_silence() -> None:
    """Only where groups follow each other closely does a job wait for others."""
    worker = Idle()
    await asyncio.sleep(5)
    worker.ask(spacing=1.0)
    assert await worker.given() == (0.0, 1)
    worker.ask(spacing=1.0)
    worker.ask(spacing=1.0)
    assert await worker.given() == (1.0, 2)


async def test_a_job_that_waits_goes_with_one_in_a_hurry() -> None:
    """What waits is taken along, and nothing is left for the time at which it would have gone."""
    worker = Idle()
    worker.ask(spacing=10.0)
    await asyncio.sleep(5)
    worker.ask()
    assert await worker.given() == (0.0, 2)
    await asyncio.sleep(10)
    assert worker._groups.empty()


async def test_jobs_that_are_enough_wait_no_longer() -> None:
    """Thirty-two go at once, and what comes after waits anew."""
    worker = Idle()
    for _ in range(32):
        worker.ask(spacing=10.0)
    assert await worker.given() == (0.0, 32)
    worker.ask(spacing=10.0)
    worker.ask(spacing=10.0)
    assert await worker.given() == (10.0, 2)


async def test_who_comes_alone_is_not_kept_waiting() -> None:
    """One caller that awaits one job after the other waits in vain once in 33 times."""
    worker = Idle()
    waits = []
    for _ in range(68):
        worker.ask(spacing=1.0)
        waits.append(await worker.given())
    assert waits == [(1.0, 1), *[(0.0, 1)] * 32, (1.0, 1), *[(0.0, 1)] * 32, (1.0, 1), (0.0, 1)]
