"""Faults: what ends a wait, what is retried, and what bugs cannot break."""

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
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from sora_chars.polling.watched_task import WatchedTask

pytestmark = pytest.mark.looptime

NEW = TaskSnapshot(task_id="t1", provider="fake", state="waiting")
DONE = TaskSnapshot(task_id="t1", provider="fake", state="success")


@attrs.define(eq=False)
class Breaking(PolledProvider):
    """A provider whose `poll_capacity` raises the error in `broken`."""

    broken: BaseException | None = None

    async def poll_capacity(self) -> int:
        """See `Provider`."""
        if self.broken:
            raise self.broken
        return 1


def watching() -> aclosing[TaskWatcher]:
    """Return a watcher that polls every second and is closed after the block."""
    return aclosing(TaskWatcher(polling=FixedInterval(1.0)))


async def failure(task: WatchedTask) -> SoraCharsError:
    """Return the error with which a wait ends."""
    with pytest.raises(SoraCharsError) as caught:
        await task.future
    return caught.value


TRANSIENT = [ServiceUnavailableError("down"), NoAnswerError("reset"), RateLimitedError("slow down")]


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: type(fault).__name__)
async def test_survives_four_minutes_of_faults(fault: SoraCharsError) -> None:
    """Transient faults within the budget cost time and nothing else."""
    async with watching() as watcher:
        task = watcher.watch(PolledProvider(lambda at: fault if at < 240 else DONE), "t1", snapshot=NEW)
        assert await task.future == DONE
        assert now() < 280


async def test_five_minutes_of_faults_end_the_wait() -> None:
    """When the budget is used up, the wait ends with the last error and a hint."""
    provider = PolledProvider(lambda at: ServiceUnavailableError(f"down at {at:.0f}"))
    async with watching() as watcher:
        error = await failure(watcher.watch(provider, "t1"))
    assert isinstance(error, ServiceUnavailableError)
    assert error.message == "down at 300"
    assert error.hint == "Polls failed for 300 s; the task may still run: resume it later."
    assert 299.99 < now() < 301
    assert len(provider.polls) < 30  # with growing delays


async def test_a_success_resets_the_budget() -> None:
    """Ten minutes of faults with one success in the middle do not end the wait."""
    provider = PolledProvider(lambda at: DONE if at > 570 else NEW if 240 < at < 300 else NoAnswerError("reset"))
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1").future == DONE


@pytest.mark.parametrize("fault", [AuthenticationError("bad key"), ConfigurationError("has no tasks")])
async def test_a_permanent_error_ends_the_wait(fault: SoraCharsError) -> None:
    """An error that no later poll can fix ends the wait after one poll."""
    provider = PolledProvider(lambda _: fault)
    async with watching() as watcher:
        assert await failure(watcher.watch(provider, "t1")) is fault
    assert len(provider.polls) == 1


async def test_an_error_without_waiters_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A wait without a waiter may end with an error; asyncio does not log the future as never retrieved."""
    async with watching() as watcher:
        watcher.watch(PolledProvider(lambda _: AuthenticationError("bad key")), "t1")
        await asyncio.sleep(1)
    await asyncio.sleep(1)  # the frames of the closed scheduler are gone, too
    gc.collect()
    assert not caplog.records


async def test_not_found_within_the_grace_is_retried() -> None:
    """For up to 90 s, "no such task" means that the task is not visible yet."""
    provider = PolledProvider(lambda at: TaskNotFoundError("recordInfo is null") if at < 85 else DONE)
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1", snapshot=NEW).future == DONE


async def test_not_found_after_the_grace_ends_the_wait() -> None:
    """After the grace, "no such task" ends the wait."""
    async with watching() as watcher:
        error = await failure(watcher.watch(PolledProvider(lambda _: TaskNotFoundError("recordInfo is null")), "t1"))
    assert isinstance(error, TaskNotFoundError)
    assert 89.99 < now() < 91


async def test_one_poll_at_the_end_of_the_grace() -> None:
    """A poll that comes a moment before the end of the grace, by rounding, is not followed by many others."""
    for _ in range(20):
        await asyncio.sleep(14.153767)
        provider = PolledProvider(script(*[TaskNotFoundError("recordInfo is null")] * 100, DONE))  # no endless loop
        async with watching() as watcher:
            assert isinstance(await failure(watcher.watch(provider, "t1")), TaskNotFoundError)


async def test_a_success_resets_the_grace() -> None:
    """Two absences of 80 s do not end the wait if the task was seen in between."""
    provider = PolledProvider(lambda at: DONE if at > 170 else NEW if 80 < at < 90 else TaskNotFoundError("null"))
    async with watching() as watcher:
        assert await watcher.watch(provider, "t1").future == DONE


async def test_obeys_retry_after_of_an_error() -> None:
    """No poll comes before the time that the provider asked for."""
    provider = PolledProvider(lambda at: DONE if at > 0 else ServiceUnavailableError("down", retry_after=45.0))
    async with watching() as watcher:
        await watcher.watch(provider, "t1").future
    assert provider.polls == [0, 45]


@pytest.mark.parametrize(("retry_after", "second"), [(None, 4.0), (20.0, 24.0)])
async def test_a_nudge_during_a_failed_poll_is_not_lost(retry_after: float | None, second: float) -> None:
    """It causes another poll at once, or as soon as the provider allows one."""
    fault = ServiceUnavailableError("down", retry_after=retry_after)
    provider = PolledProvider(lambda at: DONE if at > 0 else fault, takes=4.0)
    async with watching() as watcher:
        task = watcher.watch(provider, "t1")
        await asyncio.sleep(2)
        watcher.nudge("fake", "t1")
        await task.future
    assert provider.polls == [0, second]


async def test_faults_do_not_affect_other_providers() -> None:
    """Each provider has its own poller."""
    faulty = PolledProvider(lambda _: NoAnswerError("reset"))
    healthy = PolledProvider(lambda _: DONE, name="healthy")
    async with watching() as watcher:
        watcher.watch(faulty, "t1")
        assert (await watcher.watch(healthy, "t2").future).finished
        assert now() == 0.0


@pytest.mark.parametrize("bug", [KeyError("state"), asyncio.CancelledError()], ids=["KeyError", "CancelledError"])
async def test_a_bug_in_a_provider_ends_one_wait(bug: BaseException) -> None:
    """An unexpected exception from a poll ends that wait with the cause, and no other."""
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
    [(RuntimeError("no way out"), "failed with RuntimeError"), (asyncio.CancelledError(), "was cancelled")],
)
async def test_a_failed_poller_ends_every_wait(
    broken: BaseException, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the scheduler fails, it is logged, all waits end with the cause, and the next `watch` starts a new one."""
    provider = Breaking(lambda _: DONE)
    async with watching() as watcher:
        tasks = [watcher.watch(provider, name, snapshot=NEW) for name in ("t1", "t2")]
        provider.broken = broken
        for task in tasks:
            error = await failure(task)
            assert isinstance(error, WatcherStoppedError)
            assert error.message == f"Task {task.task_id} is no longer watched: the poller of fake {how}."
            assert error.__cause__ is (broken if isinstance(broken, RuntimeError) else None)
        provider.broken = None
        assert (await watcher.watch(provider, "t3").future).finished
    assert [(event_of(record), record.levelno) for record in caplog.records] == [("watcher.died", logging.ERROR)]


async def test_closing_cancels_polls_of_a_failed_poller() -> None:
    """A poll in flight when its scheduler fails is cancelled by closing, and does not disturb the next one."""
    provider = Breaking(lambda _: NEW, takes=30.0)
    async with watching() as watcher:
        watcher.watch(provider, "t1")
        await asyncio.sleep(1)
        provider.broken = RuntimeError("no way out")
        await failure(watcher.watch(provider, "t2", snapshot=NEW))
    assert asyncio.all_tasks() == {asyncio.current_task()}
