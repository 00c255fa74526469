"""The watcher: when tasks are polled, and how waits end."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import attrs
import pytest

from sora_chars.errors import ServiceUnavailableError, WatcherStoppedError
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval, SteppedInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, RecordingInterval, script

pytestmark = pytest.mark.looptime


def snap(state: str = "waiting", *, created_at: float | None = None) -> TaskSnapshot:
    """Return a snapshot of the one task of a test."""
    return TaskSnapshot(task_id="t1", provider="fake", state=state, created_at=created_at)


NEW = snap()
DONE = snap("success")


def every(seconds: float) -> aclosing[TaskWatcher]:
    """Return a watcher that polls at a fixed interval and is closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(seconds)))


async def test_polls_until_the_end() -> None:
    """Polls come at the strategy's interval, from the submission on, and stop with the one that shows the end."""
    provider = PolledProvider(script(NEW, snap("generating"), DONE))
    async with every(10.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        assert await task.future == DONE
        await asyncio.sleep(100)
    assert provider.polls == [10, 20, 30]


async def test_obeys_retry_after_of_a_snapshot() -> None:
    """`Retry-After` of a successful poll overrides the polling strategy, once."""
    provider = PolledProvider(script(attrs.evolve(NEW, retry_after=25.0), NEW, DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW).future
    assert provider.polls == [10, 35, 45]


async def test_polls_at_times_that_the_clock_skips() -> None:
    """A due time that the clock skips, or never quite reaches, still leads to a poll."""
    provider = PolledProvider(script(*[NEW] * 60, DONE))
    async with every(10.1) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW).future
    assert len(provider.polls) == 61


async def test_polls_a_resumed_task_at_once() -> None:
    """A task that comes without a snapshot is polled without a delay."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1").future
    assert provider.polls == [0]


async def test_does_not_poll_a_finished_task() -> None:
    """The task of a synchronous provider is done from the start."""
    provider = PolledProvider(script(NEW))
    async with every(10.0) as watcher:
        assert watcher.watch(provider, "t1", snapshot=DONE).future.result() == DONE
        await asyncio.sleep(100)
    assert provider.polls == []


async def test_an_unknown_state_is_still_running() -> None:
    """A word that the provider invents tomorrow ends no wait."""
    async with every(1.0) as watcher:
        task = watcher.watch(PolledProvider(script(snap("pondering"), DONE)), "t1", snapshot=NEW)
        assert (await task.future).state == "success"


async def test_a_failed_task_ends_the_wait() -> None:
    """The result of the wait is the snapshot of the failed task."""
    async with every(1.0) as watcher:
        assert await watcher.watch(PolledProvider(script(snap("fail"))), "t1").future == snap("fail")


async def test_ten_thousand_tasks_share_one_asyncio_task() -> None:
    """A waiting task costs no asyncio task: only the test's own and the scheduler's exist."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        tasks = [watcher.watch(provider, f"t{number}", snapshot=NEW) for number in range(10_000)]
        await asyncio.sleep(5)
        assert len(asyncio.all_tasks()) == 2
        await asyncio.wait([task.future for task in tasks])
    assert len(provider.polls) == 10_000


async def test_polls_in_flight_are_bounded() -> None:
    """No more than `poll_concurrency` polls are in flight at once, however many tasks are due."""
    provider = PolledProvider(script(DONE), takes=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0), poll_concurrency=3)) as watcher:
        await asyncio.wait([watcher.watch(provider, f"t{number}").future for number in range(20)])
    assert Counter(provider.polls) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 2}


async def test_a_task_that_ends_while_due_is_not_polled() -> None:
    """A refresh that shows the end cancels the poll that waits for a free slot."""
    provider = PolledProvider(script(NEW, DONE), takes=5.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(100.0), poll_concurrency=1)) as watcher:
        watcher.watch(provider, "t0")
        task = watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.takes = 0.0
        await watcher.poll(provider, task)
        assert task.future.done()
        await asyncio.sleep(50)
    assert provider.polls == [0, 1]


async def test_watching_twice_shares_one_future() -> None:
    """A second `watch` returns the same watched task, and costs no poll."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        first = watcher.watch(provider, "t1", snapshot=NEW)
        assert watcher.watch(provider, "t1") is first
        await first.future
    assert len(provider.polls) == 1


async def test_survives_a_cancelled_future() -> None:
    """A waiter that cancels the shared future itself affects neither the scheduler nor other tasks."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        new = [attrs.evolve(NEW, task_id=name) for name in ("t1", "t2", "t3")]
        first, second = (watcher.watch(provider, one.task_id, snapshot=one) for one in new[:2])
        still_watched = watcher.watch(PolledProvider(script(NEW), name="another"), "t4", snapshot=NEW)
        first.future.cancel()
        still_watched.future.cancel()
        assert (await second.future).task_id == "t2"
        assert (await watcher.watch(provider, "t3", snapshot=new[2]).future).task_id == "t3"


async def test_drops_the_raw_response_of_a_running_task() -> None:
    """Listeners get the raw response; while a task runs, memory holds only its facts."""
    running, done = (attrs.evolve(snap(state), raw={"state": state}) for state in ("generating", "success"))
    async with every(10.0) as watcher:
        task = watcher.watch(PolledProvider(script(running, done)), "t1", snapshot=NEW)
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        task.listeners += (queue,)
        shown = await queue.get()
        assert shown
        assert (shown.raw, task.snapshot, getattr(task.snapshot, "raw", 0)) == (running.raw, running, None)
        assert (await task.future).raw == done.raw


async def test_passes_the_last_snapshot_to_the_provider() -> None:
    """A provider may compare and return the snapshot that it gets; listeners get changes only."""

    @attrs.define(eq=False)
    class Comparing(PolledProvider):
        before: list[TaskSnapshot] = attrs.field(factory=list[TaskSnapshot])

        async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
            self.before.append(seen)
            return DONE if len(self.before) == 3 else seen

    provider = Comparing(script(snap("generating")))
    async with every(10.0) as watcher:
        task = watcher.watch(provider, "t1")
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        task.listeners += (queue,)
        assert await task.future == DONE
    assert [queue.get_nowait() for _ in range(3)] == [snap("generating"), DONE, None]
    assert provider.before == [snap("generating")] * 3


async def test_follows_the_documented_steps() -> None:
    """With `SteppedInterval`, polls come every 2-3 s for 30 s, every 5-10 s to 2 min, and every 15-30 s then."""
    provider = PolledProvider(script(NEW))
    async with aclosing(TaskWatcher(polling=SteppedInterval())) as watcher:
        watcher.watch(provider, "t1", snapshot=NEW)
        await asyncio.sleep(600)
    for before, after in zip([0.0, *provider.polls], provider.polls, strict=False):
        steps = [(2, 3) if age < 30 else (5, 10) if age < 120 else (15, 30) for age in (before - 0.01, before + 0.01)]
        assert steps[0][0] - 0.01 <= after - before <= steps[1][1] + 0.01  # a poll may fall on the edge of a step


async def test_age_of_a_resumed_task() -> None:
    """The age of a resumed task is the wall clock less its creation time, and never negative."""
    strategy = RecordingInterval()
    async with aclosing(TaskWatcher(polling=strategy, clock=lambda: 1_000_500.0)) as watcher:
        watcher.watch(PolledProvider(script(snap(created_at=1_000_000.0))), "t1")
        await asyncio.sleep(15)
        assert strategy.ages == [500, 510]
        watcher.watch(PolledProvider(script(snap(created_at=1_009_999.0)), name="from tomorrow"), "t2")
        await asyncio.sleep(1)
        watcher.watch(PolledProvider(script(NEW), name="without a time"), "t3")
        await asyncio.sleep(1)
    assert strategy.ages[2:] == [0, 0]


async def test_the_strategy_observes_every_poll() -> None:
    """It gets the age and the time since the previous poll, also of the last poll; its errors end no wait."""
    polls: list[tuple[str, float, float]] = []

    class Seeing(FixedInterval):
        def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
            polls.append((snapshot.state, round(age), round(unseen)))
            raise ZeroDivisionError

    strategy = Seeing(10.0)
    async with aclosing(TaskWatcher(polling=strategy, clock=lambda: 1_000_500.0)) as watcher:
        assert await watcher.watch(PolledProvider(script(NEW, DONE)), "t1", snapshot=NEW).future == DONE
        resumed = PolledProvider(script(*[snap(created_at=1_000_000.0)] * 2, DONE), name="resumed")
        assert await watcher.watch(resumed, "t1").future == DONE
    assert polls == [
        *[("waiting", 10, 10), ("success", 20, 10)],
        *[("waiting", 500, 500), ("waiting", 510, 10), ("success", 520, 10)],
    ]


async def test_age_of_a_submitted_task() -> None:
    """The age of a task that was submitted here does not depend on a wall clock."""
    strategy = RecordingInterval()
    async with aclosing(TaskWatcher(polling=strategy, clock=lambda: 5.0)) as watcher:
        watcher.watch(PolledProvider(script(snap(created_at=1_000_000.0))), "t1", snapshot=NEW)
        await asyncio.sleep(25)
    assert strategy.ages == [0, 10, 20]


async def test_a_refresh_is_shown_to_all_waiters() -> None:
    """A refresh updates the watched task; one that shows the end ends the wait, and no poll follows."""
    provider = PolledProvider(script(snap("generating"), DONE))
    async with every(100.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        assert await watcher.poll(provider, task) == task.snapshot == snap("generating")
        assert await watcher.poll(provider, task) == task.future.result() == DONE
        assert await watcher.poll(provider, task) == DONE
    assert len(provider.polls) == 2


async def test_a_refresh_does_not_disturb_a_poll_in_flight() -> None:
    """A refresh during a poll returns its own snapshot; the poll decides what comes next."""
    provider = PolledProvider(script(NEW, snap("generating"), NEW), takes=4.0)
    async with every(100.0) as watcher:
        task = watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.takes = 1.0
        assert await watcher.poll(provider, task) == snap("generating")
        shown = [task.snapshot]
        await asyncio.sleep(97)
        assert [*shown, task.snapshot] == [None, NEW]
    assert provider.polls == [0, 1]


async def test_a_failed_refresh_ends_no_wait() -> None:
    """The error of a refresh goes to its caller alone."""
    provider = PolledProvider(script(ServiceUnavailableError("down"), DONE))
    async with every(10.0) as watcher:
        task = watcher.watch(provider, "t1", snapshot=NEW)
        with pytest.raises(ServiceUnavailableError, match="down"):
            await watcher.poll(provider, task)
        assert await task.future == DONE


async def test_closing_ends_every_wait() -> None:
    """Every wait ends with the reason, polls in flight are cancelled, and no asyncio task remains."""
    provider = PolledProvider(script(NEW), takes=30.0)
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    tasks = [watcher.watch(provider, "t1"), watcher.watch(provider, "t2", snapshot=NEW)]
    await asyncio.sleep(5)
    assert len(asyncio.all_tasks()) == 3
    await watcher.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for task in tasks:
        with pytest.raises(WatcherStoppedError, match=rf"Task {task.task_id} is no longer watched.*closed"):
            task.future.result()


async def test_closing_does_not_block_the_event_loop() -> None:
    """At most a thousand waits end in one iteration of the event loop."""
    provider = PolledProvider(script(NEW))
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    tasks = [watcher.watch(provider, f"t{number}", snapshot=NEW) for number in range(2500)]
    done: list[int] = []

    async def count() -> None:
        while len(done) < 4:
            done.append(sum(task.future.done() for task in tasks))
            await asyncio.sleep(0)

    await asyncio.gather(watcher.aclose(), count())
    assert done == [1000, 2000, 2500, 2500]


async def test_cancelled_closing_ends_every_wait() -> None:
    """If closing is cancelled, the waits of all providers still end."""
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    providers = [PolledProvider(script(NEW)), PolledProvider(script(NEW), name="other")]
    tasks = [watcher.watch(provider, f"t{number}", snapshot=NEW) for provider in providers for number in range(1500)]
    closing = asyncio.create_task(watcher.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert all(isinstance(task.future.exception(), WatcherStoppedError) for task in tasks)
    assert asyncio.all_tasks() == {asyncio.current_task()}
