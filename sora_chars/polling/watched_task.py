"""A task that is waited for, and how it is waited for."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from sora_chars.models import TaskSnapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sora_chars.errors import MissingCharacterError, SoraCharsError

    OnFinished = Callable[[TaskSnapshot | MissingCharacterError], Awaitable[None]]

T = TypeVar("T")


@attrs.define(eq=False, repr=False)
class WatchedTask:
    """A task that is waited for, shared by all who wait. `future` is never cancelled by a waiter."""

    task_id: str
    future: asyncio.Future[TaskSnapshot]
    expects_callback: bool = False
    snapshot: TaskSnapshot | None = None
    polled_elsewhere: bool = False  # another process polls it
    on_finished: tuple[OnFinished, ...] = ()
    woken_by: Literal["poll", "callback"] = "poll"
    started: float | None = None  # loop time; None until the first snapshot of a resumed task tells
    last_polled: float = 0.0  # loop time of what was last seen
    due: float = math.inf
    unstretched_due: float = math.inf  # what `due` would be without callbacks
    heap_id: int = 0  # the one valid entry of the heap; others are stale
    polling: bool = False
    nudged: bool = False  # a callback came since the last look began
    stale_polls: int = 0  # looks after a callback that did not show the end yet
    faulty_since: float | None = None
    missing_since: float | None = None
    listeners: tuple[asyncio.Queue[TaskSnapshot | None], ...] = ()
    waiters: tuple[asyncio.Future[None], ...] = ()

    async def ended(self, seconds: float) -> None:
        """Wait for the end for up to so many seconds; those who wait disturb neither the task nor each other.

        So do `asyncio.wait` and a shield, with twice the objects for each who waits, and while the garbage collector
        goes through those of thousands the event loop stands still.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self.waiters += (waiter,)
        timer = None if seconds == math.inf else loop.call_later(seconds, wake, waiter, None)
        try:
            await waiter
        finally:
            self.waiters = tuple(other for other in self.waiters if other is not waiter)
            if timer:
                timer.cancel()

    async def finished_with(self, outcome: TaskSnapshot | MissingCharacterError) -> None:
        """Await what must happen before any waiter is woken."""
        for call in self.on_finished:
            await call(outcome)

    def show(self, snapshot: TaskSnapshot) -> None:
        """Take a snapshot and tell those who listen, if it says anything new."""
        before = self.snapshot
        if snapshot is before:
            return
        self.snapshot = snapshot if snapshot.finished else attrs.evolve(snapshot, raw=None)  # of many, it adds up
        if snapshot != before:
            for queue in self.listeners:
                queue.put_nowait(snapshot)

    def end(self, outcome: TaskSnapshot | SoraCharsError) -> None:
        """Settle the future once; everybody who waits or listens hears it."""
        if self.future.done():
            return
        if isinstance(outcome, TaskSnapshot):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)
            self.future.exception()  # nobody may be waiting, and that is no fault
        for queue in self.listeners:
            queue.put_nowait(None)
        waiters, self.waiters = self.waiters, ()
        for waiter in waiters:
            wake(waiter, None)


async def end_of(future: asyncio.Future[Any]) -> None:
    """Wait for `future`, whatever it brings; whoever stops waiting does not disturb it."""
    waiter = asyncio.get_running_loop().create_future()
    told = partial(wake, waiter)
    future.add_done_callback(told)
    try:
        await waiter
    finally:
        future.remove_done_callback(told)


def wake(waiter: asyncio.Future[T], value: T) -> None:
    """Give the waiter what it waits for, unless something else came just before."""
    if not waiter.done():
        waiter.set_result(value)
