"""When an SQLite ledger hands jobs over to its thread."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.ledger.stores.sqlite_thread import CommitThread, _set_done

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.looptime


class Idle(CommitThread):
    """A thread that never starts; its groups stay in the queue."""

    def __init__(self) -> None:
        super().__init__(lambda: sqlite3.connect(":memory:"), begin="BEGIN", jobs_per_statement=1, name="idle")

    def add_job(self, *, spacing: float = 0.0) -> None:
        """Add a job that may wait `spacing` seconds after the last group."""
        self.call(work, None, spacing=spacing)

    async def next_group(self) -> tuple[float, int]:
        """Wait for the next group; return the seconds until it came, to the hundredth, and its size."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._groups.empty():  # noqa: ASYNC110 # a queue of threads is no event of a loop
            await asyncio.sleep(0.004)
        return round(loop.time() - began, 2), len(self._groups.get())


def work(_cursor: sqlite3.Cursor, items: Sequence[Any]) -> Sequence[Any]:
    """Return the items."""
    return items


async def test_spacing_counts_from_the_last_group() -> None:
    """A job waits for others only if the last group was handed over less than `spacing` ago."""
    thread = Idle()
    await asyncio.sleep(5)
    thread.add_job(spacing=1.0)
    assert await thread.next_group() == (0.0, 1)
    thread.add_job(spacing=1.0)
    thread.add_job(spacing=1.0)
    assert await thread.next_group() == (1.0, 2)


async def test_waiting_job_joins_an_urgent_one() -> None:
    """A job without spacing takes a waiting job along, whose own timer then hands nothing over."""
    thread = Idle()
    thread.add_job(spacing=10.0)
    await asyncio.sleep(5)
    thread.add_job()
    assert await thread.next_group() == (0.0, 2)
    await asyncio.sleep(10)
    assert thread._groups.empty()


async def test_full_group_is_handed_over_at_once() -> None:
    """Thirty-two jobs do not wait for more; jobs after them wait again."""
    thread = Idle()
    for _ in range(32):
        thread.add_job(spacing=10.0)
    assert await thread.next_group() == (0.0, 32)
    thread.add_job(spacing=10.0)
    thread.add_job(spacing=10.0)
    assert await thread.next_group() == (10.0, 2)


async def test_sequential_jobs_skip_the_wait() -> None:
    """A caller that awaits one job after another is delayed for one job in 33."""
    thread = Idle()
    groups = []
    for _ in range(68):
        thread.add_job(spacing=1.0)
        groups.append(await thread.next_group())
    assert groups == [(1.0, 1), *[(0.0, 1)] * 32, (1.0, 1), *[(0.0, 1)] * 32, (1.0, 1), (0.0, 1)]


async def test_a_stop_whose_caller_was_cancelled() -> None:
    """The end of the thread is reported once; a caller that was cancelled is no error."""
    loop = asyncio.get_running_loop()
    awaited = loop.create_future()
    cancelled = loop.create_future()
    cancelled.cancel()
    for future in (awaited, cancelled):
        _set_done(future)
    assert (awaited.done(), awaited.cancelled(), cancelled.cancelled()) == (True, False, True)
