from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, script

pytestmark = pytest.mark.looptime

NEW, DONE = (TaskSnapshot(task_id="t1", provider="fake", state=state) for state in ("waiting", "success"))


def every(seconds: float) -> aclosing[TaskWatcher]:
    """A watcher that looks every so many seconds, closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(seconds)))


async def test_a_nudge_brings_a_look_at_once() -> None:
    """A callback does not wait for the next look's turn."""
    provider = PolledProvider(script(DONE))
    async with every(100.0) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        await asyncio.sleep(7)
        assert watcher.nudge("fake", "t1")
        await watch.future
        assert watch.woken_by == "callback"
    assert provider.polls == [7]


async def test_a_nudge_before_the_first_look_brings_one_look() -> None:
    """A callback that comes with the submission neither doubles the look nor loses it."""
    provider = PolledProvider(script(NEW))
    async with every(100.0) as watcher:
        watcher.watch(provider, "t1")
        watcher.nudge("fake", "t1")
        await asyncio.sleep(0.2)
    assert provider.polls == [0]


async def test_a_nudge_during_a_look_is_followed_by_another() -> None:
    """The look under way may have read the record too early, so a second one polled_elsewhere it straight away."""
    provider = PolledProvider(script(NEW, DONE), takes=4.0)
    async with every(100.0) as watcher:
        watch = watcher.watch(provider, "t1")
        await asyncio.sleep(2)
        watcher.nudge("fake", "t1")
        await watch.future
    assert provider.polls == [0, 4]


async def test_a_nudge_for_nobody_says_so() -> None:
    """A nudge for a task or a provider that is not watched is told from one that is."""
    async with every(100.0) as watcher:
        assert not watcher.nudge("fake", "t1")
        await watcher.watch(PolledProvider(script(DONE)), "t1").future
        assert not watcher.nudge("fake", "t1")


async def test_looks_after_an_early_callback_come_close_together() -> None:
    """A callback that came before its record showed the end is followed by looks at growing distances."""
    provider = PolledProvider(script(*[NEW] * 7, DONE))
    async with every(10.0) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        watcher.nudge("fake", "t1")
        await watch.future
    assert provider.polls == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 25.75]


async def test_a_forged_callback_costs_a_few_looks_and_no_wait() -> None:
    """The looks after a callback that was none go back to the pace, however long the task then runs."""
    provider = PolledProvider(script(NEW))
    async with every(0.5) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        watcher.nudge("fake", "t1")
        await asyncio.sleep(2000)
        assert not watch.future.done()


async def test_looks_are_stretched_while_callbacks_arrive() -> None:
    """A task that expects a callback is looked at five times more rarely; one that does not is not."""
    expecting, plain = PolledProvider(script(NEW)), PolledProvider(script(NEW), name="plain")
    async with every(10.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(expecting, "t1", snapshot=NEW, expects_callback=True)
        watcher.watch(plain, "t2", snapshot=NEW)
        await asyncio.sleep(45)
        watcher.callback_health.record_success()
        await asyncio.sleep(50)
    assert expecting.polls == [50]
    assert plain.polls == [10, 20, 30, 40, 50, 60, 70, 80, 90]


async def test_looks_snap_back_when_callbacks_stop() -> None:
    """A minute after the last callback the tasks are looked at as if there were none."""
    provider = PolledProvider(script(NEW))
    async with every(30.0) as watcher:
        watcher.callback_health.record_success()
        watch = watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(125)
        assert not watch.future.done()
        assert not watcher.callback_health.is_healthy
    assert provider.polls == [60, 90, 120]


async def test_looks_snap_back_at_once_after_a_lost_callback() -> None:
    """A task whose end a poll found first shows that callbacks get lost: all others are looked at at once."""
    lost, other = PolledProvider(script(DONE), name="lost"), PolledProvider(script(NEW))
    async with every(4.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(other, "t1", snapshot=NEW, expects_callback=True)
        ended = watcher.watch(lost, "t2", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(1)
        await watcher.poll(lost, ended)
        assert not watcher.callback_health.is_healthy
        await asyncio.sleep(8)
    assert other.polls == [4, 8]


async def test_a_look_under_way_is_not_moved_by_the_snap_back() -> None:
    """Taking back what was stretched starts no second look at a task that is being looked at."""
    provider = PolledProvider(script(NEW), takes=30.0)
    async with every(10.0) as watcher:
        watcher.callback_health.record_success()
        watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        watcher.callback_health.record_success()
        await asyncio.sleep(55)
        watcher.callback_health.record_miss()
        await asyncio.sleep(20)
    assert provider.polls == [50]


async def test_distrust_without_trust_does_nothing() -> None:
    """A lost callback where none ever arrived changes no look."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True).future
        assert not watcher.callback_health.is_healthy
    assert provider.polls == [10]


async def test_trust_ends_also_after_closing_and_opening_again() -> None:
    """A watcher that was closed while callbacks arrived snaps back as a new one does."""
    watcher, provider = TaskWatcher(polling=FixedInterval(30.0)), PolledProvider(script(NEW))
    watcher.callback_health.record_success()
    await watcher.aclose()
    assert not watcher.callback_health.is_healthy
    async with aclosing(watcher):
        watcher.callback_health.record_success()
        watcher.watch(provider, "t1", snapshot=NEW, expects_callback=True)
        await asyncio.sleep(65)
    assert provider.polls == [60]
