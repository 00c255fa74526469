"""Polls every waiting task of a session with one scheduler for each provider.

A waiting task costs one small object and one future, and no asyncio task of its own.
All times are those of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Literal

import attrs

from sora_chars.observers import UNOBSERVED, observing

from .callback_health import CallbackHealth
from .poller import FALLBACK_INTERVAL, PollerOptions, ProviderPoller, observe, report_poll
from .watched_task import WatchedTask

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from sora_chars.models import Eta, TaskSnapshot
    from sora_chars.observers import Observers
    from sora_chars.protocols import PollingStrategy, Provider

    from .watched_task import OnFinished

_CLOSE_CHUNK = 1000  # waits that closing ends in one iteration of the event loop


@attrs.define(eq=False, kw_only=True)
class TaskWatcher:
    """Polls tasks until they end.

    A session makes its own watcher. Pass one to `CharacterSession(watcher=)` to change
    how it polls:

        TaskWatcher(polling=FixedInterval(5.0), poll_concurrency=4)

    Attributes:
        polling: Decides when a task is polled next.
        poll_concurrency: Most polls in flight at once, for each provider.
        fault_budget: Seconds of uninterrupted transient faults after which a wait ends.
        grace: Seconds for which "no such task" may mean that the task is not visible
            yet.
        clock: Returns the wall-clock time in epoch seconds. It gives the age of a
            resumed task.
        callback_health: Whether callbacks are arriving. While they are, tasks that
            expect a callback are polled less often.
    """

    polling: PollingStrategy
    poll_concurrency: int = 16
    fault_budget: float = 300.0
    grace: float = 90.0
    clock: Callable[[], float] = time.time
    callback_health: CallbackHealth = attrs.field(init=False, repr=False)
    _poll_tasks: set[asyncio.Task[None]] = attrs.field(factory=set, init=False, repr=False)
    _pollers: dict[str, ProviderPoller] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.callback_health = CallbackHealth(self._unstretch)

    def watch(
        self,
        provider: Provider,
        task_id: str,
        *,
        snapshot: TaskSnapshot | None = None,
        expects_callback: bool = False,
        polled_elsewhere: bool = False,
        on_finished: tuple[OnFinished, ...] = (),
        context: Context | None = None,
        key: str | None = None,
        observers: Observers = UNOBSERVED,
    ) -> WatchedTask:
        """Start to poll a task, or return the `WatchedTask` of one that is polled already.

        Args:
            provider: The provider that runs the task.
            task_id: The provider's id of the task.
            snapshot: The response to its submission, if it was submitted just now. A
                finished one ends the wait at once; `on_finished` is not called.
            expects_callback: Whether the provider was given a callback URL.
            polled_elsewhere: Whether another process polls the task. It is polled here
                every 30 s only.
            on_finished: Awaited with the end of the task before any waiter is woken.
                Callables that the task does not have yet are added to those it has.
            context: The context variables in which the task is polled. Defaults to a copy
                of the caller's.
            key: The idempotency key of the request, for events.
            observers: Those who observe the session.
        """
        poller = self._poller(provider)
        task = poller.tasks.get(task_id)
        if task is not None:
            task.add_on_finished(on_finished)
            return task
        loop = asyncio.get_running_loop()
        task = WatchedTask(
            task_id,
            loop.create_future(),
            expects_callback,
            snapshot,
            polled_elsewhere,
            on_finished=on_finished,
            context=(copy_context() if context is None else context) or None,
            key=key,
            observers=observers,
        )
        if snapshot and snapshot.finished:
            task.finish(snapshot)
            return task
        poller.tasks[task_id] = task
        task.last_polled = loop.time()
        task.started = task.last_polled if snapshot else None
        self._schedule_first_poll(poller, task)
        return task

    def nudge(self, provider: str, task_id: str, *, by: Literal["poll", "callback"] = "callback") -> bool:
        """Poll a task now, because a notification says that it has ended.

        Returns:
            Whether the task is watched.
        """
        poller = self._pollers.get(provider)
        task = poller.tasks.get(task_id) if poller else None
        if poller is None or task is None:
            return False
        # A poll in flight may have been too early: another one follows it.
        delay = poller.nudge_delay(task)
        if not (task.polling or task.nudged):
            now = asyncio.get_running_loop().time()
            poller.schedule(task, min(delay, max(0.0, task.due - now)))
        if not (delay or task.nudged):  # or a stream of callbacks would renew the short delays again and again
            task.stale_polls = 0
        task.nudged = True
        task.woken_by = by
        return True

    def take_over(self, provider: str, task: WatchedTask) -> None:
        """Poll a task from now on that another process has polled until now."""
        task.polled_elsewhere = False
        self.nudge(provider, task.task_id, by="poll")

    async def finish(self, provider: str, task: WatchedTask, snapshot: TaskSnapshot) -> None:
        """End the wait for a task with the end that another process has recorded; no poll is needed."""
        poller = self._pollers.get(provider)
        if poller is None or poller.tasks.get(task.task_id) is not task:
            return
        for on_finished in task.iter_on_finished():
            await on_finished(snapshot)
        if snapshot.duration is not None:
            self.observe(snapshot, snapshot.duration, snapshot.duration)
        task.update(snapshot)
        poller.end(task, snapshot)

    async def poll(self, provider: Provider, task: WatchedTask) -> TaskSnapshot:
        """Poll a task once, now, and show the snapshot to all waiters.

        Raises:
            SoraCharsError: The poll failed. The wait continues.
        """
        if task.snapshot and task.snapshot.finished:
            return task.snapshot
        task.polls += 1
        with observing(task.observers, task.key, provider.name) as observed:
            if observed:
                observed.polls = task.polls
                observed.woken_by = "poll"
            snapshot = await provider.fetch(task.task_id)
            report_poll(task, snapshot)
            if snapshot.finished:
                for on_finished in task.iter_on_finished():
                    await on_finished(snapshot)
        poller = self._pollers.get(provider.name)
        if poller and poller.tasks.get(task.task_id) is task and not task.polling:
            poller.handle_snapshot(task, snapshot)
        return snapshot

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """Pass a snapshot that was not polled by this watcher to the polling strategy."""
        observe(self.polling, snapshot, age, unseen)

    def estimate(self, task: WatchedTask) -> Eta | None:
        """Return how many seconds a task has left, if the polling strategy knows."""
        if task.started is None or task.future.done() or task.waited_for_person:
            return None
        return self.polling.estimate(task.snapshot, asyncio.get_running_loop().time() - task.started)

    async def aclose(self) -> None:
        """Stop polling. Every open wait ends with a `WatcherStoppedError`."""
        pollers = list(self._pollers.values())
        self._pollers = {}
        self.callback_health.record_miss()
        asyncio_tasks = [poller.stop() for poller in pollers]
        reason = "its session was closed"
        try:
            for poller in pollers:
                tasks = list(poller.tasks.values())
                for start in range(0, len(tasks), _CLOSE_CHUNK):
                    poller.abandon(tasks[start : start + _CLOSE_CHUNK], reason)
                    await asyncio.sleep(0)
        finally:
            for poller in pollers:
                poller.abandon(list(poller.tasks.values()), reason)
            asyncio_tasks += self._poll_tasks
            for poll_task in self._poll_tasks:
                poll_task.cancel()
            await asyncio.gather(*asyncio_tasks, return_exceptions=True)

    def _poller(self, provider: Provider) -> ProviderPoller:
        """Return the running poller of a provider. Starts one if there is none, or if a bug has stopped it."""
        poller = self._pollers.get(provider.name)
        if poller is None or not poller.is_running:
            poller = self._pollers[provider.name] = ProviderPoller(
                provider=provider,
                options=PollerOptions(
                    polling=self.polling,
                    poll_concurrency=self.poll_concurrency,
                    fault_budget=self.fault_budget,
                    grace=self.grace,
                    clock=self.clock,
                ),
                callback_health=self.callback_health,
                poll_tasks=self._poll_tasks,
            )
        return poller

    def _schedule_first_poll(self, poller: ProviderPoller, task: WatchedTask) -> None:
        delay = FALLBACK_INTERVAL if task.polled_elsewhere else 0.0
        try:
            if task.snapshot:
                delay = self.polling.delay(task.snapshot, 0.0)
        except Exception as error:  # noqa: BLE001 # a strategy's bug must not lose an id that was just paid for
            poller.fail(task, error)
        else:
            poller.schedule(task, delay, stretch=True)

    def _unstretch(self) -> None:
        for poller in self._pollers.values():
            poller.unstretch()
