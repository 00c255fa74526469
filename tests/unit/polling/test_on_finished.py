"""The callables of a watched task, which record its end before any waiter is woken."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from sora_chars.errors import MissingCharacterError, WatcherStoppedError
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, now, script

pytestmark = pytest.mark.looptime

NEW = TaskSnapshot(task_id="t1", provider="fake", state="waiting")
GENERATING = TaskSnapshot(task_id="t1", provider="fake", state="generating")
DONE = TaskSnapshot(task_id="t1", provider="fake", state="success")
MISSING = MissingCharacterError("none", provider="fake", task_id="t1")


def every(seconds: float) -> aclosing[TaskWatcher]:
    """Return a watcher that polls at a fixed interval and is closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(seconds)))


async def test_recording_an_end_holds_no_slot() -> None:
    """A slow ledger does not delay the polls of other tasks."""
    provider = PolledProvider(script(DONE))
    recorded = asyncio.Event()

    async def record(_: object) -> None:
        await recorded.wait()

    async with aclosing(TaskWatcher(polling=FixedInterval(1.0), poll_concurrency=1)) as watcher:
        tasks = [watcher.watch(provider, f"t{number}", on_finished=(record,)) for number in range(5)]
        await asyncio.sleep(1)
        assert provider.polls == [0] * 5
        assert not any(task.future.done() for task in tasks)
        recorded.set()
        await asyncio.wait([task.future for task in tasks])


@pytest.mark.parametrize("end", [DONE, MISSING], ids=["end", "error"])
async def test_awaits_every_on_finished_before_waking_waiters(end: TaskSnapshot | MissingCharacterError) -> None:
    """Each callable gets the end once, also one that is added while another is awaited; waiters are woken then."""
    calls: list[tuple[str, object, bool]] = []

    async def first(outcome: object) -> None:
        await asyncio.sleep(1)
        calls.append(("first", outcome, task.future.done()))
        watcher.watch(provider, "t1", on_finished=(first, second))

    async def second(outcome: object) -> None:
        await asyncio.sleep(1)
        calls.append(("second", outcome, task.future.done()))

    provider = PolledProvider(script(end))
    async with every(10.0) as watcher:
        task = watcher.watch(provider, "t1", on_finished=(first,))
        await asyncio.wait((task.future,))
        assert calls == [("first", end, False), ("second", end, False)]
        assert now() == 2.0


async def test_a_refresh_awaits_on_finished_before_waking_waiters() -> None:
    """An end that a refresh shows is recorded before the waiters are woken, as that of a poll."""
    calls: list[tuple[object, bool]] = []

    async def record(outcome: object) -> None:
        calls.append((outcome, task.future.done()))

    provider = PolledProvider(script(GENERATING, DONE))
    async with every(100.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW, on_finished=(record,))
        await watcher.poll(provider, task)
        assert calls == []
        await watcher.poll(provider, task)
    assert calls == [(DONE, False)]


@pytest.mark.parametrize("end", [DONE, MISSING], ids=["end", "error"])
async def test_a_bug_in_on_finished_ends_the_wait(end: TaskSnapshot | MissingCharacterError) -> None:
    """No wait is left open because recording its end raised an exception."""

    async def record(_: object) -> None:
        raise ZeroDivisionError

    async with every(10.0) as watcher:
        task = watcher.watch(PolledProvider(script(end)), "t1", on_finished=(record,))
        with pytest.raises(WatcherStoppedError, match="ZeroDivisionError"):
            await task.future


async def test_tasks_share_the_tuple_of_on_finished() -> None:
    """A waiting task refers to the tuple that it is watched with, so the callables cost no memory for each task."""

    async def record(_: object) -> None:
        pass

    shared = (record,)
    async with every(10.0) as watcher:
        tasks = [
            watcher.watch(PolledProvider(script(NEW)), name, snapshot=NEW, on_finished=shared) for name in ("t1", "t2")
        ]
        watcher.watch(PolledProvider(script(NEW)), "t1", on_finished=shared)
        assert all(task.on_finished is shared for task in tasks)
