"""A task that is polled until it ends, and the waiters that it wakes."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from sora_chars.models import TaskSnapshot
from sora_chars.observers import UNOBSERVED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextvars import Context

    from sora_chars.errors import MissingCharacterError, SoraCharsError
    from sora_chars.observers import Observers

    OnFinished = Callable[[TaskSnapshot | MissingCharacterError], Awaitable[None]]

T = TypeVar("T")


@attrs.define(eq=False, repr=False, weakref_slot=False)
class WatchedTask:
    """A task that is polled until it ends, shared by all handles that wait for it.

    Thousands of these exist at once, so an instance is a single object with slots.
    All times are loop times.

    Attributes:
        task_id: The provider's id of the task.
        future: Gets the finished snapshot, or the error that ended the wait. A waiter
            that is cancelled does not cancel it.
        expects_callback: Whether the provider was given a callback URL for the task.
        snapshot: The task as the last poll showed it. None before the first poll of
            a resumed task.
        polled_elsewhere: Whether another process polls the task.
        on_finished: Awaited with the end of the task before any waiter is woken. The
            tasks of one session share one tuple.
        woken_by: What caused the last poll.
        waited_for_person: Whether the task has waited for a person. How long it took says
            nothing about its model then.
        started: When the task was created. None until the first poll of a resumed
            task shows its age.
        last_polled: When `snapshot` was current.
        due: When the task is polled next.
        unstretched_due: When the task would be polled next without callbacks.
        heap_id: The id of the task's valid heap entry. All others are stale.
        polling: Whether a poll is in flight.
        nudged: Whether a nudge has come since the last poll began.
        nudged_at: When the last poll began that a callback caused.
        stale_polls: Polls since a callback that did not show the end yet.
        faulty_since: When the uninterrupted run of transient faults began.
        missing_since: When the provider began to answer that it has no such task.
        listeners: Queues that get each changed snapshot, and None at the end.
        waiters: Futures that are woken at the end.
        key: The idempotency key of the request, if it is known.
        observers: Those who observe the session that watches the task.
        polls: Number of polls so far.
        context: The context variables of the request, in which it is polled. None for an
            empty context, to save memory.
    """

    task_id: str
    future: asyncio.Future[TaskSnapshot]
    expects_callback: bool = False
    snapshot: TaskSnapshot | None = None
    polled_elsewhere: bool = False
    on_finished: tuple[OnFinished, ...] = ()
    woken_by: Literal["poll", "callback"] = "poll"
    waited_for_person: bool = False
    started: float | None = None
    last_polled: float = 0.0
    due: float = math.inf
    unstretched_due: float = math.inf
    heap_id: int = 0
    polling: bool = False
    nudged: bool = False
    nudged_at: float = -math.inf
    stale_polls: int = 0
    faulty_since: float | None = None
    missing_since: float | None = None
    listeners: tuple[asyncio.Queue[TaskSnapshot | None], ...] = ()
    waiters: tuple[asyncio.Future[None], ...] = ()
    context: Context | None = None
    key: str | None = None
    observers: Observers = UNOBSERVED
    polls: int = 0

    async def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the end. Check `future` to see whether it came.

        `asyncio.wait(shield(...))` would do the same with twice the objects per
        waiter; with thousands of waiters the extra objects cause visible GC pauses.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self.waiters += (waiter,)
        timer = None if timeout == math.inf else loop.call_later(timeout, wake, waiter, None)
        try:
            await waiter
        finally:
            self.waiters = tuple(other for other in self.waiters if other is not waiter)
            if timer:
                timer.cancel()

    def update(self, snapshot: TaskSnapshot) -> None:
        """Keep the snapshot of a poll, and pass it to the listeners if anything has changed."""
        before = self.snapshot
        if snapshot is before:
            return
        # While a task runs, its raw response is dropped to save memory.
        self.snapshot = snapshot if snapshot.finished else attrs.evolve(snapshot, raw=None)
        if snapshot != before:
            for queue in self.listeners:
                queue.put_nowait(snapshot)

    def add_on_finished(self, callables: tuple[OnFinished, ...]) -> None:
        """Add the callables that `on_finished` does not hold yet."""
        self.on_finished += tuple(each for each in callables if each not in self.on_finished)

    def iter_on_finished(self) -> Iterator[OnFinished]:
        """Yield each callable of `on_finished`, including those added during the iteration."""
        count = 0
        while count < len(self.on_finished):
            yield self.on_finished[count]
            count += 1

    def finish(self, outcome: TaskSnapshot | SoraCharsError) -> None:
        """Set the result of `future`, and wake all waiters and listeners. Does nothing the second time."""
        if self.future.done():
            return
        if isinstance(outcome, TaskSnapshot):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)
            self.future.exception()  # marks it as retrieved: without waiters asyncio would log it
        for queue in self.listeners:
            queue.put_nowait(None)
        waiters = self.waiters
        self.waiters = ()
        for waiter in waiters:
            wake(waiter, None)


async def wait_until_done(future: asyncio.Future[Any]) -> None:
    """Wait until `future` is done, without raising its exception. Cancelling the wait does not cancel `future`."""
    waiter = asyncio.get_running_loop().create_future()
    callback = partial(wake, waiter)
    future.add_done_callback(callback)
    try:
        await waiter
    finally:
        future.remove_done_callback(callback)


def wake(waiter: asyncio.Future[T], value: T) -> None:
    """Set the result of a waiter, unless it has one or was cancelled."""
    if not waiter.done():
        waiter.set_result(value)
