from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.errors import (
    AuthenticationError,
    ConfigurationError,
    NoAnswerError,
    RateLimitedError,
    ServiceUnavailableError,
    SoraCharsError,
    TaskNotFoundError,
    WatcherStoppedError,
)
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, now, script

if TYPE_CHECKING:
    from sora_chars.polling.watched_task import WatchedTask

pytestmark = pytest.mark.looptime

NEW, DONE = (TaskSnapshot(task_id="t1", provider="fake", state=state) for state in ("waiting", "success"))


@attrs.define(eq=False)
class Breaking(PolledProvider):
    """A provider whose `ready` raises what is `broken`."""

    broken: BaseException | None = None

    async def poll_capacity(self) -> int:
        """See `Provider`."""
        if self.broken:
            raise self.broken
        return 1


def watching() -> aclosing[TaskWatcher]:
    """A watcher that looks every second, closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(1.0)))


async def failure(watch: WatchedTask) -> SoraCharsError:
    """The error with which the wait ends."""
    with pytest.raises(SoraCharsError) as caught:
        await watch.future
    return caught.value


PASSING = [ServiceUnavailableError("down"), NoAnswerError("reset"), RateLimitedError("slow down")]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: type(fault).__name__)
async def test_four_minutes_of_faults_end_well(fault: SoraCharsError) -> None:
    """A fault that passes within the budget costs time and nothing else."""
    async with watching() as watcher:
        watch = watcher.watch(PolledProvider(lambda at: fault if at < 240 else DONE), "t1", snapshot=NEW)
        assert await watch.future == DONE
        assert now() < 280


async def test_five_minutes_of_nothing_but_faults_end_with_the_last_one() -> None:
    """A wait ends when the budget is spent, with the provider's error and with what to do."""
    provider = PolledProvider(lambda at: ServiceUnavailableError(f"down at {at:.0f}"))
    async with watching() as watcher:
        error = await failure(watcher.watch(provider, "t1"))
    assert isinstance(error, ServiceUnavailableError)
    assert error.message == "down at 300"
    assert error.hint == "It was so for 300 s; the task may still run: resume it later."
    assert 299.99 < now() < 301
    assert len(provider.polls) < 30  # it was not hammered meanwhile


async def test_one_good_answer_gives_the_whole_budget_back() -> None:
    """Ten minutes of faults with one good answer in the middle end well."""
    provider = PolledProvider(lambda at: DONE if at > 570 else NEW if 240 < at < 300 else NoAnswerError("reset"))
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1").future == DONE


@pytest.mark.parametrize("fault", [AuthenticationError("bad key"), ConfigurationError("has no tasks")])
async def test_a_fatal_error_ends_the_wait_at_once(fault: SoraCharsError) -> None:
    """What no later look can mend is told after one look."""
    provider = PolledProvider(lambda _: fault)
    async with watching() as watcher:
        assert await failure(watcher.watch(provider, "t1")) is fault
    assert len(provider.polls) == 1


async def test_an_error_that_nobody_waits_for_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """A wait may end badly without a waiter; asyncio complains of no future whose error was never looked at."""
    async with watching() as watcher:
        watcher.watch(PolledProvider(lambda _: AuthenticationError("bad key")), "t1")
        await asyncio.sleep(1)
    await asyncio.sleep(1)  # now the frames of the closed scheduler are gone too
    gc.collect()
    assert not caplog.records


async def test_a_task_may_take_its_time_to_appear() -> None:
    """An answer of "no such task" for less than the grace of 90 s means that it is not visible yet."""
    provider = PolledProvider(lambda at: TaskNotFoundError("recordInfo is null") if at < 85 else DONE)
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1", snapshot=NEW).future == DONE


async def test_a_task_that_never_appears_is_not_found() -> None:
    """After the grace "no such task" is the truth."""
    async with watching() as watcher:
        error = await failure(watcher.watch(PolledProvider(lambda _: TaskNotFoundError("recordInfo is null")), "t1"))
    assert isinstance(error, TaskNotFoundError)
    assert 89.99 < now() < 91


async def test_a_grace_ends_with_one_look() -> None:
    """A look that comes a moment before the grace is over, as rounding has it, is not followed by a swarm of others."""
    for _ in range(20):
        await asyncio.sleep(14.153767)
        provider = PolledProvider(script(*[TaskNotFoundError("recordInfo is null")] * 100, DONE))  # no endless loop
        async with watching() as watcher:
            assert isinstance(await failure(watcher.watch(provider, "t1")), TaskNotFoundError)


async def test_a_task_seen_again_gets_its_grace_back() -> None:
    """Two absences of 80 s with the task seen in between end well."""
    provider = PolledProvider(lambda at: DONE if at > 170 else NEW if 80 < at < 90 else TaskNotFoundError("null"))
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1").future == DONE


async def test_retry_after_is_respected() -> None:
    """A look that was told to wait is followed by none before that time."""
    provider = PolledProvider(lambda at: DONE if at > 0 else ServiceUnavailableError("down", retry_after=45.0))
    async with watching() as watcher:
        await watcher.watch(provider, "t1").future
    assert provider.polls == [0, 45]


@pytest.mark.parametrize(("retry_after", "second"), [(None, 4.0), (20.0, 24.0)])
async def test_a_nudge_during_a_faulty_look_is_not_lost(retry_after: float | None, second: float) -> None:
    """It brings another look at once, or as soon as the provider allows one."""
    fault = ServiceUnavailableError("down", retry_after=retry_after)
    provider = PolledProvider(lambda at: DONE if at > 0 else fault, takes=4.0)
    async with watching() as watcher:
        watch = watcher.watch(provider, "t1")
        await asyncio.sleep(2)
        watcher.nudge("fake", "t1")
        await watch.future
    assert provider.polls == [0, second]


async def test_faults_of_one_provider_leave_another_alone() -> None:
    """Each provider has a poller of its own."""
    ill, well = PolledProvider(lambda _: NoAnswerError("reset")), PolledProvider(lambda _: DONE, name="well")
    async with watching() as watcher:
        watcher.watch(ill, "t1")
        assert (await watcher.watch(well, "t2").future).finished
        assert now() == 0.0


@pytest.mark.parametrize("bug", [KeyError("state"), asyncio.CancelledError()], ids=["KeyError", "CancelledError"])
async def test_a_bug_of_a_provider_ends_one_wait(bug: BaseException) -> None:
    """A look that raises what no look may raise ends its own wait, with the cause, and no other."""
    provider = PolledProvider(lambda at: bug if at == 0 else DONE)
    async with watching() as watcher:
        other = watcher.watch(provider, "t2", snapshot=NEW)
        error = await failure(watcher.watch(provider, "t1"))
        assert isinstance(error, WatcherStoppedError)
        assert type(bug).__name__ in error.message
        assert error.__cause__ is bug
        assert (await other.future).finished


@pytest.mark.parametrize(
    ("broken", "how"),
    [(RuntimeError("no way out"), "died of RuntimeError"), (asyncio.CancelledError(), "was cancelled")],
)
async def test_a_dying_scheduler_tells_every_waiter(
    broken: BaseException, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When the scheduler itself dies all waits end with the cause, it is logged, and the next watch starts afresh."""
    provider = Breaking(lambda _: DONE)
    async with watching() as watcher:
        watches = [watcher.watch(provider, name, snapshot=NEW) for name in ("t1", "t2")]
        provider.broken = broken
        for watch in watches:
            error = await failure(watch)
            assert isinstance(error, WatcherStoppedError)
            assert error.message == f"Task {watch.task_id} is no longer watched: the watcher of fake {how}."
            assert error.__cause__ is (broken if isinstance(broken, RuntimeError) else None)
        provider.broken = None
        assert (await watcher.watch(provider, "t3").future).finished
    assert [(record.message, record.levelno) for record in caplog.records] == [("watcher.died", logging.ERROR)]


async def test_closing_also_ends_the_looks_of_a_dead_scheduler() -> None:
    """A look that was under way when its scheduler died is not left behind, nor does it disturb the next one."""
    provider = Breaking(lambda _: NEW, takes=30.0)
    async with watching() as watcher:
        watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.broken = RuntimeError("no way out")
        await failure(watcher.watch(provider, "t2", snapshot=NEW))
    assert asyncio.all_tasks() == {asyncio.current_task()}
