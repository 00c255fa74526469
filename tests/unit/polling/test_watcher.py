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


def seen(state: str = "waiting", *, created_at: float | None = None) -> TaskSnapshot:
    """A snapshot of the one task of a test."""
    return TaskSnapshot(task_id="t1", provider="fake", state=state, created_at=created_at)


NEW, DONE = seen(), seen("success")


def every(seconds: float) -> aclosing[TaskWatcher]:
    """A watcher that looks every so many seconds, closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(seconds)))


async def test_a_task_is_looked_at_until_it_ends() -> None:
    """Looks come at the pace, from the submission on, and stop with the first one that shows the end."""
    provider = PolledProvider(script(NEW, seen("generating"), DONE))
    async with every(10.0) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        assert await watch.future == DONE
        await asyncio.sleep(100)
    assert provider.polls == [10, 20, 30]


async def test_a_provider_that_names_the_next_look_is_heeded() -> None:
    """`Retry-After` of a good answer wins over the pace, once."""
    provider = PolledProvider(script(attrs.evolve(NEW, retry_after=25.0), NEW, DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW).future
    assert provider.polls == [10, 35, 45]


async def test_a_time_between_two_ticks_of_the_clock_is_reached() -> None:
    """A due time that the clock steps over, or never quite reaches, still leads to a look."""
    provider = PolledProvider(script(*[NEW] * 60, DONE))
    async with every(10.1) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW).future
    assert len(provider.polls) == 61


async def test_a_resumed_task_is_looked_at_at_once() -> None:
    """Nothing is known of a task that comes without a snapshot, so the first look does not wait."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        await watcher.watch(provider, "t1").future
    assert provider.polls == [0]


async def test_a_finished_snapshot_needs_no_look() -> None:
    """The task of a synchronous provider is done as it comes."""
    provider = PolledProvider(script(NEW))
    async with every(10.0) as watcher:
        assert watcher.watch(provider, "t1", snapshot=DONE).future.result() == DONE
        await asyncio.sleep(100)
    assert provider.polls == []


async def test_an_unknown_state_is_still_running() -> None:
    """A word that the provider invents tomorrow ends no wait."""
    async with every(1.0) as watcher:
        watch = watcher.watch(PolledProvider(script(seen("pondering"), DONE)), "t1", snapshot=NEW)
        assert (await watch.future).state == "success"


async def test_a_failed_task_is_an_end() -> None:
    """A failed task settles the wait with its snapshot."""
    async with every(1.0) as watcher:
        assert await watcher.watch(PolledProvider(script(seen("fail"))), "t1").future == seen("fail")


async def test_ten_thousand_tasks_share_one_asyncio_task() -> None:
    """A waiting task costs no asyncio task: there are this one and the scheduler's."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        watches = [watcher.watch(provider, f"t{number}", snapshot=NEW) for number in range(10_000)]
        await asyncio.sleep(5)
        assert len(asyncio.all_tasks()) == 2
        await asyncio.wait([watch.future for watch in watches])
    assert len(provider.polls) == 10_000


async def test_looks_under_way_are_bounded() -> None:
    """However many tasks are due, no more than `poll_concurrency` looks run at once."""
    provider = PolledProvider(script(DONE), takes=1.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(1.0), poll_concurrency=3)) as watcher:
        await asyncio.wait([watcher.watch(provider, f"t{number}").future for number in range(20)])
    assert Counter(provider.polls) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 2}


async def test_others_are_looked_at_while_an_end_goes_on_record() -> None:
    """A ledger that takes its time keeps no place of those for looks."""
    provider = PolledProvider(script(DONE))
    slow = asyncio.Event()

    async def settle(*_: object) -> None:
        await slow.wait()

    async with aclosing(TaskWatcher(polling=FixedInterval(1.0), poll_concurrency=1)) as watcher:
        watches = [watcher.watch(provider, f"t{number}", on_finished=(settle,)) for number in range(5)]
        await asyncio.sleep(1)
        assert provider.polls == [0] * 5
        assert not any(watch.future.done() for watch in watches)
        slow.set()
        await asyncio.wait([watch.future for watch in watches])


async def test_a_task_that_ends_while_its_turn_comes_is_not_looked_at() -> None:
    """A look out of turn that shows the end takes away the turn that waited for a free place."""
    provider = PolledProvider(script(NEW, DONE), takes=5.0)
    async with aclosing(TaskWatcher(polling=FixedInterval(100.0), poll_concurrency=1)) as watcher:
        watcher.watch(provider, "t0")
        watch = watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.takes = 0.0
        await watcher.poll(provider, watch)
        assert watch.future.done()
        await asyncio.sleep(50)
    assert provider.polls == [0, 1]


async def test_all_who_watch_a_task_share_one_future() -> None:
    """A second watch of the same task joins the first, and costs no look."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        first = watcher.watch(provider, "t1", snapshot=NEW)
        assert watcher.watch(provider, "t1") is first
        await first.future
    assert len(provider.polls) == 1


async def test_a_cancelled_future_breaks_nothing() -> None:
    """Even a waiter that cancels the shared future itself leaves the scheduler and all other tasks alone."""
    provider = PolledProvider(script(DONE))
    async with every(10.0) as watcher:
        new = [attrs.evolve(NEW, task_id=name) for name in ("t1", "t2", "t3")]
        first, second = (watcher.watch(provider, one.task_id, snapshot=one) for one in new[:2])
        still_watched = watcher.watch(PolledProvider(script(NEW), name="another"), "t4", snapshot=NEW)
        first.future.cancel()
        still_watched.future.cancel()
        assert (await second.future).task_id == "t2"
        assert (await watcher.watch(provider, "t3", snapshot=new[2]).future).task_id == "t3"


async def test_the_raw_answer_of_a_running_task_is_not_kept() -> None:
    """Those who listen get the provider's answer; of the many tasks that run, only their facts stay in memory."""
    running, done = (attrs.evolve(seen(state), raw={"state": state}) for state in ("generating", "success"))
    async with every(10.0) as watcher:
        watch = watcher.watch(PolledProvider(script(running, done)), "t1", snapshot=NEW)
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        watch.listeners += (queue,)
        shown = await queue.get()
        assert shown
        assert (shown.raw, watch.snapshot, getattr(watch.snapshot, "raw", 0)) == (running.raw, running, None)
        assert (await watch.future).raw == done.raw


async def test_a_second_look_is_told_what_the_first_has_seen() -> None:
    """A provider may compare, and give back what it gave before; those who listen hear of changes only."""

    @attrs.define(eq=False)
    class Comparing(PolledProvider):
        before: list[TaskSnapshot] = attrs.field(factory=list[TaskSnapshot])

        async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
            self.before.append(seen)
            return DONE if len(self.before) == 3 else seen

    provider = Comparing(script(seen("generating")))
    async with every(10.0) as watcher:
        watch = watcher.watch(provider, "t1")
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        watch.listeners += (queue,)
        assert await watch.future == DONE
    assert [queue.get_nowait() for _ in range(3)] == [seen("generating"), DONE, None]
    assert provider.before == [seen("generating")] * 3


async def test_the_ladder_is_climbed() -> None:
    """By default looks come every 2-3 s for 30 s, every 5-10 s for 2 min, and every 15-30 s then."""
    provider = PolledProvider(script(NEW))
    async with aclosing(TaskWatcher(polling=SteppedInterval())) as watcher:
        watcher.watch(provider, "t1", snapshot=NEW)
        await asyncio.sleep(600)
    for before, after in zip([0.0, *provider.polls], provider.polls, strict=False):
        rungs = [(2, 3) if age < 30 else (5, 10) if age < 120 else (15, 30) for age in (before - 0.01, before + 0.01)]
        assert rungs[0][0] - 0.01 <= after - before <= rungs[1][1] + 0.01  # a look may fall on the edge of a rung


async def test_a_resumed_task_is_as_old_as_its_record_says() -> None:
    """The age of a task picked up again comes from its creation and the wall clock, never below zero."""
    pace = RecordingInterval()
    async with aclosing(TaskWatcher(polling=pace, clock=lambda: 1_000_500.0)) as watcher:
        watcher.watch(PolledProvider(script(seen(created_at=1_000_000.0))), "t1")
        await asyncio.sleep(15)
        assert pace.ages == [500, 510]
        watcher.watch(PolledProvider(script(seen(created_at=1_009_999.0)), name="from tomorrow"), "t2")
        await asyncio.sleep(1)
        watcher.watch(PolledProvider(script(NEW), name="without a time"), "t3")
        await asyncio.sleep(1)
    assert pace.ages[2:] == [0, 0]


async def test_a_pace_hears_what_every_look_has_shown() -> None:
    """With the age and how long the task was not seen, the last look too; a bug of the pace there costs no wait."""
    polls: list[tuple[str, float, float]] = []

    class Seeing(FixedInterval):
        def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
            polls.append((snapshot.state, round(age), round(unseen)))
            raise ZeroDivisionError

    pace = Seeing(10.0)
    async with aclosing(TaskWatcher(polling=pace, clock=lambda: 1_000_500.0)) as watcher:
        assert await watcher.watch(PolledProvider(script(NEW, DONE)), "t1", snapshot=NEW).future == DONE
        resumed = PolledProvider(script(*[seen(created_at=1_000_000.0)] * 2, DONE), name="resumed")
        assert await watcher.watch(resumed, "t1").future == DONE
    assert polls == [
        *[("waiting", 10, 10), ("success", 20, 10)],
        *[("waiting", 500, 500), ("waiting", 510, 10), ("success", 520, 10)],
    ]


async def test_a_submitted_task_is_as_old_as_the_loop_says() -> None:
    """The age of a task submitted here does not depend on anybody's wall clock."""
    pace = RecordingInterval()
    async with aclosing(TaskWatcher(polling=pace, clock=lambda: 5.0)) as watcher:
        watcher.watch(PolledProvider(script(seen(created_at=1_000_000.0))), "t1", snapshot=NEW)
        await asyncio.sleep(25)
    assert pace.ages == [0, 10, 20]


async def test_a_look_out_of_turn_is_shown_to_all() -> None:
    """What a refresh sees everybody sees; the end ends the wait, and needs no further look."""
    provider = PolledProvider(script(seen("generating"), DONE))
    async with every(100.0) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        assert await watcher.poll(provider, watch) == watch.snapshot == seen("generating")
        assert await watcher.poll(provider, watch) == watch.future.result() == DONE
        assert await watcher.poll(provider, watch) == DONE
    assert len(provider.polls) == 2


async def test_a_look_out_of_turn_leaves_one_under_way_alone() -> None:
    """A refresh during a poll gives its own answer; the poll decides what comes next."""
    provider = PolledProvider(script(NEW, seen("generating"), NEW), takes=4.0)
    async with every(100.0) as watcher:
        watch = watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.takes = 1.0
        assert await watcher.poll(provider, watch) == seen("generating")
        shown = [watch.snapshot]
        await asyncio.sleep(97)
        assert [*shown, watch.snapshot] == [None, NEW]
    assert provider.polls == [0, 1]


async def test_a_failing_look_out_of_turn_ends_no_wait() -> None:
    """The error of a refresh is its caller's alone."""
    provider = PolledProvider(script(ServiceUnavailableError("down"), DONE))
    async with every(10.0) as watcher:
        watch = watcher.watch(provider, "t1", snapshot=NEW)
        with pytest.raises(ServiceUnavailableError, match="down"):
            await watcher.poll(provider, watch)
        assert await watch.future == DONE


async def test_closing_tells_every_waiter_and_leaves_nothing() -> None:
    """Every wait ends with why, looks under way are cancelled, and no asyncio task remains."""
    provider = PolledProvider(script(NEW), takes=30.0)
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    watches = [watcher.watch(provider, "t1"), watcher.watch(provider, "t2", snapshot=NEW)]
    await asyncio.sleep(5)
    assert len(asyncio.all_tasks()) == 3
    await watcher.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for watch in watches:
        with pytest.raises(WatcherStoppedError, match=rf"Task {watch.task_id} is no longer watched.*closed"):
            watch.future.result()


async def test_closing_with_thousands_who_wait_lets_others_run_meanwhile() -> None:
    """At most a thousand waits end in one turn of the event loop."""
    provider = PolledProvider(script(NEW))
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    watches = [watcher.watch(provider, f"t{number}", snapshot=NEW) for number in range(2500)]
    turns: list[int] = []

    async def count() -> None:
        while len(turns) < 4:
            turns.append(sum(watch.future.done() for watch in watches))
            await asyncio.sleep(0)

    await asyncio.gather(watcher.aclose(), count())
    assert turns == [1000, 2000, 2500, 2500]


async def test_closing_that_is_cancelled_tells_every_waiter_all_the_same() -> None:
    """Whatever cuts the closing short, no wait is left without an end, at none of the providers."""
    watcher = TaskWatcher(polling=FixedInterval(10.0))
    providers = PolledProvider(script(NEW)), PolledProvider(script(NEW), name="other")
    watches = [watcher.watch(provider, f"t{number}", snapshot=NEW) for provider in providers for number in range(1500)]
    closing = asyncio.create_task(watcher.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert all(isinstance(watch.future.exception(), WatcherStoppedError) for watch in watches)
    assert asyncio.all_tasks() == {asyncio.current_task()}
