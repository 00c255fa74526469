"""Rate limits: which task is polled first when more are due than may be polled."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.models import Eta, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.protocols import Provider
from tests.support.log_events import events

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request

pytestmark = pytest.mark.looptime


@attrs.define(eq=False)
class Narrow(Provider):
    """A provider that allows one poll in `every` seconds. Its tasks run until they are in `ended`."""

    every: float = 1.0
    name: str = "fake"
    polls: list[str] = attrs.field(factory=list[str])
    ended: set[str] = attrs.field(factory=set[str])
    free_at: float = 0.0

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        raise NotImplementedError

    async def poll_capacity(self) -> int:
        """See `Provider`."""
        await asyncio.sleep(self.free_at - now())
        return 1 if self.every else 1000

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        self.free_at = now() + self.every
        self.polls.append(task_id)
        return snapshot(task_id, "success" if task_id in self.ended else "generating")


class Favourites(FixedInterval):
    """Polls at a fixed interval; a task with a higher number has a higher priority."""

    def priority(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """See `PollingStrategy`."""
        assert snapshot
        assert age >= unseen > 0
        return float(snapshot.task_id)

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """See `PollingStrategy`."""
        assert snapshot
        return Eta(low=0.0, median=age, high=2 * age)

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """See `PollingStrategy`."""
        raise ValueError(snapshot.task_id)


def snapshot(task_id: str, state: str = "waiting") -> TaskSnapshot:
    """Return a snapshot of a task."""
    return TaskSnapshot(task_id=task_id, provider="fake", state=state)


def now() -> float:
    """Return the loop time."""
    return asyncio.get_running_loop().time()


def watch_all(watcher: TaskWatcher, provider: Provider, count: int) -> None:
    """Watch new tasks with the numbers from 0 on."""
    for number in range(count):
        watcher.watch(provider, str(number), snapshot=snapshot(str(number)))


async def test_capacity_for_all_keeps_the_due_order() -> None:
    """If all due tasks may be polled, priorities do not matter."""
    provider = Narrow(every=0.0)
    async with aclosing(TaskWatcher(polling=Favourites(1.0))) as watcher:
        watch_all(watcher, provider, 5)
        await asyncio.sleep(1.5)
    assert provider.polls == ["0", "1", "2", "3", "4"]


async def test_scarce_polls_go_to_the_highest_priority() -> None:
    """Each poll goes to the due task with the highest priority at that time."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=Favourites(1.5))) as watcher:
        watch_all(watcher, provider, 4)
        await asyncio.sleep(7.0)
    assert provider.polls == ["3", "2", "3", "2", "3", "2"]


async def test_default_priority_is_the_time_unseen() -> None:
    """With a strategy that defines no priority, no task starves."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0))) as watcher:
        watch_all(watcher, provider, 3)
        await asyncio.sleep(7.5)
    assert provider.polls == ["0", "1", "2", "0", "1", "2", "0"]


async def test_a_nudge_has_the_highest_priority() -> None:
    """A nudged task is polled next, once, however many others are due."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=Favourites(1.0))) as watcher:
        watch_all(watcher, provider, 4)
        await asyncio.sleep(2.5)
        provider.ended = {"0", "1"}
        for _ in range(100):
            assert watcher.nudge("fake", "1")
        poller = watcher._pollers["fake"]
        assert len(poller._queue) < 10
        await asyncio.sleep(1.0)
    assert provider.polls == ["3", "3", "1"]


async def test_a_nudged_task_is_found_among_a_thousand() -> None:
    """The nudged task is polled next also if more tasks are due than are compared."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0))) as watcher:
        watch_all(watcher, provider, 1000)
        await asyncio.sleep(3.5)
        provider.ended = {"777"}
        watcher.nudge("fake", "777")
        await asyncio.sleep(2.0)
    assert provider.polls[:3] == ["0", "1", "2"]
    assert provider.polls[3] == "777"


async def test_a_task_that_ended_while_due_is_skipped() -> None:
    """It takes no poll from the others."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=Favourites(10.0))) as watcher:
        watch_all(watcher, provider, 4)
        await asyncio.sleep(11.5)
        provider.ended = {"1"}
        await watcher.poll(provider, watcher.watch(provider, "1"))
        provider.free_at = 12.0
        await asyncio.sleep(2.0)
    assert provider.polls == ["3", "2", "1", "0"]


async def test_a_bug_in_a_strategy_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The result is returned all the same, since it was paid for."""
    provider = Narrow(ended={"7"})
    async with aclosing(TaskWatcher(polling=Favourites(1.0))) as watcher:
        assert (await watcher.watch(provider, "7", snapshot=snapshot("7")).future).finished
    assert events(caplog.records) == ["polling_strategy.failed"]
    assert "ValueError: 7" in caplog.text


async def test_estimates_the_time_left() -> None:
    """The estimate is for the age of the task; there is none without an age, and none after the end."""
    provider = Narrow(ended={"1"})
    async with aclosing(TaskWatcher(polling=Favourites(4.0))) as watcher:
        resumed = watcher.watch(provider, "0")
        assert watcher.estimate(resumed) is None
        task = watcher.watch(provider, "1", snapshot=snapshot("1"))
        await asyncio.sleep(3.0)
        assert watcher.estimate(task) == Eta(low=0.0, median=3.0, high=6.0)
        await task.future
        assert watcher.estimate(task) is None
