"""Callbacks: nudges, and polls that are stretched while callbacks arrive."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from sora_chars.errors import NoAnswerError
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, script

pytestmark = pytest.mark.looptime

NEW = TaskSnapshot(task_id="t1", provider="fake", state="waiting")
DONE = TaskSnapshot(task_id="t1", provider="fake", state="success")


def every(seconds: float) -> aclosing[TaskWatcher]:
    """Return a watcher that polls at a fixed interval and is closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(seconds)))


async def test_a_nudge_polls_at_once() -> None:
    """A callback does not wait for the next due time."""
    provider = PolledProvider(script(DONE))
    async with every(100.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        await asyncio.sleep(7)
        assert watcher.nudge("fake", "t1")
        await task.future
        assert task.woken_by == "callback"
    assert provider.polls == [7]


async def test_a_nudge_before_the_first_poll_adds_none() -> None:
    """A callback that comes with the submission neither doubles the poll nor loses it."""
    provider = PolledProvider(script(NEW))
    async with every(100.0) as watcher:
        watcher.watch(provider, "t1")
        watcher.nudge("fake", "t1")
        await asyncio.sleep(0.2)
    assert provider.polls == [0]


async def test_a_nudge_during_a_poll_adds_another() -> None:
    """The poll in flight may have been too early: a second one follows at once."""
    provider = PolledProvider(script(NEW, DONE), takes=4.0)
    async with every(100.0) as watcher:
        task = watcher.watch(provider, "t1")
        await asyncio.sleep(2)
        watcher.nudge("fake", "t1")
        await task.future
    assert provider.polls == [0, 4]


async def test_nudges_cause_one_poll_a_second() -> None:
    """The first callback polls at once; those that follow wait for the rest of a second, and add one poll together."""
    provider = PolledProvider(script(NEW))
    async with every(100.0) as watcher:
        watcher.watch(provider, "t1", snapshot=NEW)
        for _ in range(100):
            watcher.nudge("fake", "t1")
            await asyncio.sleep(0.05)
    assert len(provider.polls) <= 8
    assert provider.polls[:3] == [0, 0.25, 0.75]


async def test_nudges_during_faults_cause_one_poll_a_second() -> None:
    """Polls that callbacks cause do not come faster while they fail."""
    provider = PolledProvider(script(NoAnswerError("down")))
    async with every(100.0) as watcher:
        watcher.watch(provider, "t1", snapshot=NEW)
        for _ in range(100):
            watcher.nudge("fake", "t1")
            await asyncio.sleep(0.05)
    assert len(provider.polls) <= 6


async def test_a_nudge_of_an_unwatched_task_returns_false() -> None:
    """`nudge` returns whether the task is watched."""
    async with every(100.0) as watcher:
        assert not watcher.nudge("fake", "t1")
        await watcher.watch(PolledProvider(script(DONE)), "t1").future
        assert not watcher.nudge("fake", "t1")


async def test_polls_soon_again_after_an_early_callback() -> None:
    """If the poll after a callback does not show the end yet, the next ones come at doubling delays."""
    provider = PolledProvider(script(*[NEW] * 7, DONE))
    async with every(10.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        watcher.nudge("fake", "t1")
        await task.future
    assert provider.polls == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 25.75]


async def test_a_forged_callback_costs_a_few_polls() -> None:
    """After a callback without an end the delays return to the strategy's, however long the task runs."""
    provider = PolledProvider(script(NEW))
    async with every(0.5) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        watcher.nudge("fake", "t1")
        await asyncio.sleep(2000)
        assert not task.future.done()


async def test_healthy_callbacks_stretch_polls() -> None:
    """While callbacks arrive, a task that expects one is polled a fifth as often; others are not affected."""
    expecting = PolledProvider(script(NEW))
    plain = PolledProvider(script(NEW), name="plain")
    async with every(10.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(expecting, "t1", snapshot=NEW, expects_callback=True)
        watcher.watch(plain, "t2", snapshot=NEW)
        await asyncio.sleep(45)
        watcher.callback_health.record_success()
        await asyncio.sleep(50)
    assert expecting.polls == [50]
    assert plain.polls == [10, 20, 30, 40, 50, 60, 70, 80, 90]


async def test_silence_ends_stretching() -> None:
    """A minute after the last callback, tasks are polled as without callbacks."""
    provider = PolledProvider(script(NEW))
    async with every(30.0) as watcher:
        watcher.callback_health.record_success()
        task = watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(125)
        assert not task.future.done()
        assert not watcher.callback_health.is_healthy
    assert provider.polls == [60, 90, 120]


async def test_a_missed_callback_ends_stretching() -> None:
    """If a poll shows an end before its callback, the stretched polls of all tasks become due again at once."""
    lost = PolledProvider(script(DONE), name="lost")
    other = PolledProvider(script(NEW))
    async with every(4.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(other, "t1", snapshot=NEW, expects_callback=True)
        ended = watcher.watch(lost, "t2", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(1)
        await watcher.poll(lost, ended)
        assert not watcher.callback_health.is_healthy
        await asyncio.sleep(8)
    assert other.polls == [4, 8]


async def test_unstretching_adds_no_second_poll() -> None:
    """The end of stretching starts no second poll of a task whose poll is in flight."""
    provider = PolledProvider(script(NEW), takes=30.0)
    async with every(10.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        watcher.callback_health.record_success()
        await asyncio.sleep(55)
        watcher.callback_health.record_miss()
        await asyncio.sleep(20)
    assert provider.polls == [50]


async def test_a_miss_without_a_success_changes_nothing() -> None:
    """A missed callback where none ever arrived changes no poll."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True).future
        assert not watcher.callback_health.is_healthy
    assert provider.polls == [10]


async def test_health_works_after_reopening() -> None:
    """A watcher that was closed while callbacks were healthy can be used again, and unstretches as a new one."""
    watcher = TaskWatcher(polling=FixedInterval(30.0))
    provider = PolledProvider(script(NEW))
    watcher.callback_health.record_success()
    await watcher.aclose()
    assert not watcher.callback_health.is_healthy
    async with aclosing(watcher):
        watcher.callback_health.record_success()
        watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(65)
    assert provider.polls == [60]
