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

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request

pytestmark = pytest.mark.looptime


@attrs.define(eq=False)
class Narrow(Provider):
    """A provider that may be asked once in `every` seconds; its tasks never end unless they are in `ended`."""

    every: float = 1.0
    name: str = "fake"
    polls: list[str] = attrs.field(factory=list[str])
    ended: set[str] = attrs.field(factory=set[str])
    free_at: float = 0.0

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
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
    """A look every second; of those that are due, the one with the highest number promises most."""

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
    """One of a task."""
    return TaskSnapshot(task_id=task_id, provider="fake", state=state)


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


def watch_all(watcher: TaskWatcher, provider: Provider, count: int) -> None:
    """WatchedTask so many new tasks."""
    for number in range(count):
        watcher.watch(provider, str(number), snapshot=snapshot(str(number)))


async def test_with_room_for_all_the_first_that_was_due_goes_first() -> None:
    """Where nothing holds the looks back, nothing is weighed."""
    provider = Narrow(every=0.0)
    async with aclosing(TaskWatcher(polling=Favourites(1.0))) as watcher:
        watch_all(watcher, provider, 5)
        await asyncio.sleep(1.5)
    assert provider.polls == ["0", "1", "2", "3", "4"]


async def test_when_more_is_due_than_may_be_looked_at_the_most_promising_goes_first() -> None:
    """Each look that becomes free goes to the largest gain among all that are due by then."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=Favourites(1.5))) as watcher:
        watch_all(watcher, provider, 4)
        await asyncio.sleep(7.0)
    assert provider.polls == ["3", "2", "3", "2", "3", "2"]


async def test_the_longest_unseen_goes_first_for_a_pace_that_knows_nothing() -> None:
    """Without a gain of its own no pace lets a task starve."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0))) as watcher:
        watch_all(watcher, provider, 3)
        await asyncio.sleep(7.5)
    assert provider.polls == ["0", "1", "2", "0", "1", "2", "0"]


async def test_a_callback_outbids_every_gain() -> None:
    """A task whose end was announced is looked at next, also in a crowd, and once."""
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


async def test_a_callback_is_heard_in_the_largest_crowd() -> None:
    """Of more tasks than are weighed, the one whose end was announced goes first."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0))) as watcher:
        watch_all(watcher, provider, 1000)
        await asyncio.sleep(3.5)
        provider.ended = {"777"}
        watcher.nudge("fake", "777")
        await asyncio.sleep(2.0)
    assert provider.polls[:3] == ["0", "1", "2"]
    assert provider.polls[3] == "777"


async def test_who_gives_up_in_the_crowd_is_passed_over() -> None:
    """A task that ends while it is in line takes no look from the others."""
    provider = Narrow(every=1.0)
    async with aclosing(TaskWatcher(polling=Favourites(10.0))) as watcher:
        watch_all(watcher, provider, 4)
        await asyncio.sleep(11.5)
        provider.ended = {"1"}
        await watcher.poll(provider, watcher.watch(provider, "1"))
        provider.free_at = 12.0
        await asyncio.sleep(2.0)
    assert provider.polls == ["3", "2", "1", "0"]


async def test_a_pace_that_cannot_learn_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What was paid for is handed out, and the pace's bug is logged."""
    provider = Narrow(ended={"7"})
    async with aclosing(TaskWatcher(polling=Favourites(1.0))) as watcher:
        assert (await watcher.watch(provider, "7", snapshot=snapshot("7")).future).finished
    assert [record.message for record in caplog.records] == ["pace.failed"]
    assert "ValueError: 7" in caplog.text


async def test_the_pace_says_how_long_a_task_will_take() -> None:
    """Reckoned from the task's age; nothing is said of one whose age is unknown, or which has ended."""
    provider = Narrow(ended={"1"})
    async with aclosing(TaskWatcher(polling=Favourites(4.0))) as watcher:
        resumed = watcher.watch(provider, "0")
        assert watcher.estimate(resumed) is None
        watch = watcher.watch(provider, "1", snapshot=snapshot("1"))
        await asyncio.sleep(3.0)
        assert watcher.estimate(watch) == Eta(low=0.0, median=3.0, high=6.0)
        await watch.future
        assert watcher.estimate(watch) is None
