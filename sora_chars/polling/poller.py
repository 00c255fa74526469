"""Polls the tasks of one provider: a queue of due times and a bounded number of polls in flight."""

from __future__ import annotations

import asyncio
import math
import random
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import (
    MissingCharacterError,
    ProviderError,
    SoraCharsError,
    TaskNotFoundError,
    WatcherStoppedError,
    printable,
)
from sora_chars.logs import event_logger
from sora_chars.observers import Observation, observation
from sora_chars.redaction import mask

from .due_queue import TICK, DueQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sora_chars.models import TaskSnapshot
    from sora_chars.protocols import PollingStrategy, Provider

    from .callback_health import CallbackHealth
    from .watched_task import WatchedTask

log = event_logger("sora_chars.watcher")

FALLBACK_INTERVAL = 30.0
"""Seconds between our own polls of a task that another process polls, in case that process hangs."""

_ROUNDED_FROM = 0.25  # seconds; longer delays are rounded up to share wake-ups
_WAKE_UPS_PER_SECOND = 64
_FAULT_DELAYS = (1.0, 30.0)  # seconds; shortest and longest
_NOT_FOUND_DELAYS = (1.0, 5.0)  # seconds; shortest and longest
_NUDGE_INTERVAL = 1.0  # seconds between the polls of one task that callbacks cause
_FIRST_STALE_DELAY = 0.25  # seconds; doubles while polls after a callback do not show the end yet


@attrs.frozen(eq=False, kw_only=True)
class PollerOptions:
    """How a `ProviderPoller` polls.

    Attributes:
        polling: Decides when a task is polled next.
        poll_concurrency: Most polls in flight at once.
        fault_budget: Seconds of uninterrupted transient faults after which a wait ends.
        grace: Seconds for which "no such task" may mean that the task is not visible yet.
        clock: Returns the wall-clock time in epoch seconds.
    """

    polling: PollingStrategy
    poll_concurrency: int
    fault_budget: float
    grace: float
    clock: Callable[[], float]


@attrs.define(eq=False, kw_only=True, repr=False)
class ProviderPoller:
    """Polls the tasks of one provider until they end.

    Attributes:
        provider: The provider that is polled.
        options: How it is polled.
        callback_health: Whether polls may be stretched. Shared with other pollers.
        poll_tasks: The asyncio tasks of all polls in flight. Shared with other
            pollers, and closed by their owner.
        tasks: The tasks that have not ended, by task id.
    """

    provider: Provider
    options: PollerOptions
    callback_health: CallbackHealth
    poll_tasks: set[asyncio.Task[None]]
    tasks: dict[str, WatchedTask] = attrs.field(factory=dict, init=False)
    _queue: DueQueue = attrs.field(factory=DueQueue, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _in_flight: int = attrs.field(default=0, init=False)
    _scheduler: asyncio.Task[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        name = f"sora_chars watcher of {self.provider.name}"
        self._scheduler = asyncio.create_task(self._run(), name=name, context=Context())
        self._scheduler.add_done_callback(self._died)

    @property
    def is_running(self) -> bool:
        """Whether the scheduler runs. False after a bug of the provider has stopped it."""
        return not self._scheduler.done()

    def schedule(self, task: WatchedTask, delay: float, *, stretch: bool = False) -> None:
        """Make a task due in `delay` seconds, or later with `stretch` and healthy callbacks."""
        if task.future.done():  # another process recorded the end during a poll
            return
        now = asyncio.get_running_loop().time()
        task.unstretched_due = now + delay
        stretched = self.callback_health.stretched(delay) if stretch and task.expects_callback else delay
        self._enqueue(task, _round_up(now + stretched) if delay >= _ROUNDED_FROM else now + stretched)

    def nudge_delay(self, task: WatchedTask) -> float:
        """Return the seconds until a callback may cause the next poll of a task: none unless another one just did."""
        return max(0.0, task.nudged_at + _NUDGE_INTERVAL - asyncio.get_running_loop().time())

    def unstretch(self) -> None:
        """Move every stretched poll back to the time at which it would be due without callbacks."""
        for task in self.tasks.values():
            if task.due > task.unstretched_due and not task.polling:
                self._enqueue(task, task.unstretched_due)

    def handle_snapshot(self, task: WatchedTask, snapshot: TaskSnapshot, *, nudged: bool = False) -> None:
        """Update a task from a poll, and end it or schedule its next poll."""
        now = asyncio.get_running_loop().time()
        task.faulty_since = None
        task.missing_since = None
        if task.started is None:
            task.started = now - self._age(snapshot)
            task.last_polled = task.started
        age = now - task.started
        unseen = now - task.last_polled
        task.last_polled = now
        if snapshot.finished and task.expects_callback and task.woken_by == "poll":
            self.callback_health.record_miss()
        if snapshot.waiting_for and snapshot.waiting_for != (task.snapshot and task.snapshot.waiting_for):
            facts = {"provider": self.provider.name, "task_id": task.task_id, "page": mask(snapshot.waiting_for)}
            log.warning("task.waits_for_person", extra=facts)
            task.waited_for_person = True
        task.update(snapshot)
        if not task.waited_for_person:
            observe(self.options.polling, snapshot, age, unseen)
        if snapshot.finished:
            self.end(task, snapshot)
            return
        delay = self._next_delay(task, snapshot, age, nudged=nudged)
        stretch = snapshot.retry_after is None and not (task.stale_polls or task.nudged)
        self.schedule(task, delay, stretch=stretch)

    def fail(self, task: WatchedTask, error: BaseException) -> None:
        """End a wait because of a bug in a provider or a polling strategy."""
        stopped = WatcherStoppedError(
            f"Polling task {task.task_id} raised {type(error).__name__}: {printable(error)}", task_id=task.task_id
        )
        stopped.__cause__ = error
        self.end(task, stopped)

    def abandon(self, tasks: Iterable[WatchedTask], reason: str, *, cause: BaseException | None = None) -> None:
        """End the waits for these tasks with a `WatcherStoppedError`."""
        for task in tasks:
            error = WatcherStoppedError(
                f"Task {task.task_id} is no longer watched: {reason}.",
                hint="The provider still runs it: resume it by its id.",
                task_id=task.task_id,
            )
            error.__cause__ = cause
            self.end(task, error)

    def stop(self) -> asyncio.Task[None]:
        """Cancel the scheduler, and return its asyncio task. Polls in flight continue."""
        self._scheduler.remove_done_callback(self._died)
        self._scheduler.cancel()
        return self._scheduler

    def _enqueue(self, task: WatchedTask, due: float) -> None:
        if self._queue.add(task, due):
            self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        limit = self.options.poll_concurrency
        while True:
            self._changed.clear()
            delay = self._queue.collect_due(loop.time())
            if self._in_flight == limit:
                delay = math.inf
            if delay > 0:
                timer = loop.call_later(delay, self._changed.set) if delay < math.inf else None
                await self._changed.wait()
                if timer:
                    timer.cancel()
                continue
            capacity = await self.provider.poll_capacity()
            while capacity > 0 and self._in_flight < limit and self._queue.collect_due(loop.time()) <= 0:
                self._start_poll(self._queue.pop(partial(self._priority, loop.time()), capacity))
                capacity -= 1
            await asyncio.sleep(0)  # these polls acquire their rate-limit slots before the next ones are picked

    def _start_poll(self, task: WatchedTask) -> None:
        task.heap_id = 0
        task.polling = True
        self._in_flight += 1
        context = Context() if task.context is None else task.context
        task.polls += 1
        if task.observers.listening:
            context.run(observation.set, _observation_of(task, self.provider.name))
        poll = asyncio.get_running_loop().create_task(self._poll(task), context=context)
        self.poll_tasks.add(poll)
        poll.add_done_callback(self.poll_tasks.discard)

    def _priority(self, now: float, task: WatchedTask) -> float:
        """Return the priority of polling a task now. Nudged tasks and tasks of unknown age come first."""
        if task.nudged or task.started is None:
            return math.inf
        return self.options.polling.priority(task.snapshot, now - task.started, now - task.last_polled)

    async def _poll(self, task: WatchedTask) -> None:
        """Poll a task once. Its end is recorded before any waiter is woken.

        Only the request holds an in-flight slot; recording the end does not.
        """
        outcome: TaskSnapshot | MissingCharacterError | None = None
        nudged = task.nudged
        task.nudged = False
        if nudged and task.woken_by == "callback":
            task.nudged_at = asyncio.get_running_loop().time()
        try:
            try:
                seen = task.snapshot
                outcome = await (self.provider.fetch_if_changed(seen) if seen else self.provider.fetch(task.task_id))
            except MissingCharacterError as error:
                outcome = error
            finally:
                self._release_slot()
            if task.observers.listening:
                report_poll(task, outcome)
            if isinstance(outcome, MissingCharacterError) or outcome.finished:
                for on_finished in task.iter_on_finished():
                    await on_finished(outcome)
            task.polling = False
            if isinstance(outcome, MissingCharacterError):
                self.end(task, outcome)
            else:
                self.handle_snapshot(task, outcome, nudged=nudged)
        except SoraCharsError as error:
            self._handle_error(task, error)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 # a bug ends one wait and no other
            self.fail(task, error)
        finally:
            task.polling = False
            outcome = None  # an error refers to this frame by its traceback: a reference cycle

    def _release_slot(self) -> None:
        if self._in_flight == self.options.poll_concurrency:
            self._changed.set()
        self._in_flight -= 1

    def _age(self, snapshot: TaskSnapshot) -> float:
        """Return the age of a resumed task by the provider's creation time, in seconds."""
        return 0.0 if snapshot.created_at is None else max(0.0, self.options.clock() - snapshot.created_at)

    def _next_delay(self, task: WatchedTask, snapshot: TaskSnapshot, age: float, *, nudged: bool) -> float:
        """Return the seconds until the next poll of a task that still runs."""
        delay = self.options.polling.delay(snapshot, age)
        if task.nudged:
            return min(delay, self.nudge_delay(task))
        if snapshot.retry_after is not None:
            return snapshot.retry_after
        if task.polled_elsewhere and not nudged:
            return max(delay, FALLBACK_INTERVAL)
        if nudged or task.stale_polls:
            stale_delay: float = _FIRST_STALE_DELAY * 2**task.stale_polls
            task.stale_polls = task.stale_polls + 1 if stale_delay < delay else 0
            return min(delay, stale_delay)
        return delay

    def _handle_error(self, task: WatchedTask, error: SoraCharsError) -> None:
        """Schedule another poll after a transient fault within the budget, else end the wait."""
        now = asyncio.get_running_loop().time()
        if task.observers.listening:
            report_poll(task, error)
        if isinstance(error, TaskNotFoundError):
            task.faulty_since = None
            since = task.missing_since = now if task.missing_since is None else task.missing_since
            budget = self.options.grace
            shortest, longest = _NOT_FOUND_DELAYS
        elif isinstance(error, ProviderError) and error.transient:
            since = task.faulty_since = now if task.faulty_since is None else task.faulty_since
            budget = self.options.fault_budget
            shortest, longest = _FAULT_DELAYS
        else:
            self.end(task, error)
            return
        elapsed = now - since
        if elapsed >= budget - TICK:
            error.hint = f"{error.hint} Polls failed for {budget:g} s; the task may still run: resume it later.".strip()
            self.end(task, error)
            return
        jitter = random.uniform(0.75, 1.25)  # noqa: S311 # no secret
        delay = min(min(max(elapsed, shortest), longest) * jitter, budget - elapsed)
        delay = max(delay, error.retry_after or 0.0)
        if task.nudged and not error.retry_after:
            delay = min(delay, self.nudge_delay(task))
        self.schedule(task, delay)

    def end(self, task: WatchedTask, outcome: TaskSnapshot | SoraCharsError) -> None:
        """End the wait for a task, which is not polled any more."""
        if self.tasks.get(task.task_id) is task:
            del self.tasks[task.task_id]
        task.heap_id = -1
        task.finish(outcome)

    def _died(self, scheduler: asyncio.Task[None]) -> None:
        error = None if scheduler.cancelled() else scheduler.exception()
        how = f"failed with {type(error).__name__}" if error else "was cancelled"
        log.error("watcher.died", exc_info=error, extra={"provider": self.provider.name})
        self.abandon(list(self.tasks.values()), f"the poller of {self.provider.name} {how}", cause=error)


def observe(polling: PollingStrategy, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
    """Pass the snapshot of a poll to a polling strategy. Its errors are logged, since the result was paid for."""
    try:
        polling.observe(snapshot, age, unseen)
    except Exception:
        log.exception("polling_strategy.failed")


def _observation_of(task: WatchedTask, provider: str) -> Observation:
    return Observation(task.observers, task.key, provider, polls=task.polls, woken_by=task.woken_by)


def report_poll(task: WatchedTask, outcome: TaskSnapshot | SoraCharsError) -> None:
    """Report what a poll showed to the observers of this context, if there are any."""
    observed = observation.get()
    if observed is None:
        return
    age = None if task.started is None else asyncio.get_running_loop().time() - task.started
    if isinstance(outcome, SoraCharsError):
        observed.polled(task.task_id, None, age, error=type(outcome).__name__)
    else:
        observed.polled(task.task_id, outcome.state, age, completed_at=outcome.completed_at)


def _round_up(due: float) -> float:
    """Round up to the next 1/64 s. One wake-up then serves every poll due by that time."""
    return math.ceil(due * _WAKE_UPS_PER_SECOND) / _WAKE_UPS_PER_SECOND
