"""Sliding-window rate limits of an account, and its cooldown after a 429.

A provider counts a request when it arrives, which is somewhere between sending it and
receiving its response. A request therefore takes a slot of its window when it is
sent, and the slot counts until one window after the *response*. Whatever the network
delays, the provider never sees more than the limit in any window. (A limiter that
counts from sending admits two bursts in one window if only the first is delayed.) A
synchronous create is answered minutes after it arrived, so a slot counts until one
window after sending plus `MAX_TRANSIT_TIME` at the latest.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from sora_chars.errors import NoAnswerError

from .reservations import NoSlotError, Patience, Reservations, WindowState, estimate, kept_slots, patience
from .waiters import WaiterQueue

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

T = TypeVar("T")

flow: ContextVar[object] = ContextVar("sora_chars_flow", default=None)
"""Flow of the requests sent in this context, such as a batch.

Requests of one flow wait first in, first out. Flows share a window round-robin.
"""

MAX_TRANSIT_TIME = 5.0  # seconds within which a request reaches the provider
UNLIMITED = 2**31  # requests, where there is no limit
_CLOCK_TOLERANCE = 0.01  # seconds that the provider's clock may drift within one window
_MIN_DELAY = 0.001  # seconds; a coarse clock may never reach a time between two ticks
_RECHECK_INTERVAL = 0.25  # seconds; a response received in another event loop wakes no waiter in this one
_FIRST_COOLDOWN = 1.0  # seconds
_MAX_COOLDOWN = 60.0  # seconds, unless the provider asks for more


def _to_limit(value: tuple[int, float] | None) -> tuple[int, float] | None:
    """Return a limit that came as a list, such as from JSON, as a tuple."""
    given: Any = value
    return tuple(given) if isinstance(given, list) else given


def _check_limit(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    del instance
    match value:
        case None:
            return
        case (int(count), int() | float() as seconds) if count > 0 and 0 < seconds < math.inf:
            return
        case _:
            raise ValueError(f"limits.{attribute.name} must be (count, seconds) with both above 0, got {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """Request limits of an account, each as `(count, seconds)` or None for no limit.

    `Limits(creates=(20, 10))` allows at most 20 creates in any 10 seconds, and any
    number of polls.

    Args:
        creates: Limit of requests that start a task.
        polls: Limit of requests that poll a task.

    Raises:
        ValueError: A count or a number of seconds is not above 0.
    """

    creates: tuple[int, float] | None = attrs.field(default=None, converter=_to_limit, validator=_check_limit)
    polls: tuple[int, float] | None = attrs.field(default=None, converter=_to_limit, validator=_check_limit)


@attrs.define(eq=False, repr=False)
class Cooldown:
    """Cooldown of an account after a 429.

    Doubles with each consecutive 429; ends with the first success. All times are loop
    times.
    """

    until: float = 0.0
    consecutive_429s: int = 0

    def on_429(self, *, sent: float, now: float, retry_after: float | None) -> None:
        """Start or extend the cooldown after a 429 for a request sent at `sent`.

        Requests sent before the cooldown began count as one 429 together.
        """
        if sent >= self.until:
            self.consecutive_429s += 1
        backoff = min(_MAX_COOLDOWN, _FIRST_COOLDOWN * 2.0 ** min(self.consecutive_429s - 1, 10))
        jittered = backoff * random.uniform(1.0, 1.25)  # noqa: S311 # jitter needs no secure randomness
        self.until = max(self.until, now + max(jittered, retry_after or 0.0))

    def on_shared_pause(self, until: float) -> None:
        """Adopt the cooldown of another process, which received a 429."""
        self.until = max(self.until, until)
        self.consecutive_429s = max(self.consecutive_429s, 1)

    def on_success(self, *, sent: float) -> None:
        """Record a response other than 429 to a request sent at `sent`."""
        if sent >= self.until:
            self.consecutive_429s = 0


class QuotaShare(Protocol):
    """This process's share of a limit that several processes divide."""

    def limit(self, now: float) -> tuple[int, float]:
        """Return the share at loop time `now` as (count, seconds).

        The count is 0 until the share is known.
        """
        ...

    @property
    def processes(self) -> int:
        """The number of processes that divide the limit."""
        ...

    @property
    def may_grow(self) -> bool:
        """Whether the next renewal may grant more slots."""
        ...

    def notify(self) -> None:
        """Report that more slots are needed or that the account cools down.

        May be called from any thread.
        """
        ...


@attrs.define(eq=False, repr=False)
class Window:
    """Sliding window of one kind of request, shared by all event loops of this process.

    Attributes:
        limit: At most `count` requests in any `seconds`. With None, requests wait for
            the cooldown only.
        cooldown: Cooldown of the account.
        own_cooldown: Cooldown of this kind of request alone.
        shares: Shares of the sessions that divide the limit with other processes. The
            first one applies.
        waiting: Number of waiters in all event loops.
        reservations: The requests that come back later instead of waiting.
    """

    limit: tuple[int, float] | None
    cooldown: Cooldown
    own_cooldown: Cooldown = attrs.field(factory=Cooldown)
    shares: list[QuotaShare] = attrs.field(factory=list)
    waiting: int = 0
    reservations: Reservations = attrs.field(factory=Reservations)
    _in_flight: set[Slot] = attrs.field(factory=set)
    _released: list[float] = attrs.field(factory=list)  # heap: the times from which the other slots count
    _queues: dict[asyncio.AbstractEventLoop, WaiterQueue] = attrs.field(factory=dict)

    def slot(self, default_flow: object = None) -> Slot:
        """Return a slot for one request, which queues in `flow` or else in `default_flow`."""
        return Slot(self, default_flow)

    async def acquire(self, slot: Slot) -> None:
        """Wait until a slot is free, and take it."""
        loop = asyncio.get_running_loop()
        if request := patience.get():
            await self.reach(request)
            self.reservations.remove(request.key)
            self._take(loop, slot)
        elif self._must_wait(loop):
            await self._wait_in_queue(loop, flow.get() or slot.default_flow, partial(self._take, loop, slot))
        else:
            self._take(loop, slot)

    async def reach(self, request: Patience) -> None:
        """Wait until a slot is free for a request that may come back later; it is not taken.

        Raises:
            NoSlotError: None is free, and none is expected in time.
        """
        loop = asyncio.get_running_loop()
        while (delay := self._delay_of(request, loop.time())) > 0:
            self.reservations.set(request, loop.time() + delay)
            if self.shares:
                self.shares[0].notify()
            if loop.time() + delay > request.until:
                message = "No request may be sent now within the limits of the account."
                raise NoSlotError(message, retry_after=delay, transient=True, harmless=True)
            await asyncio.sleep(delay)

    @property
    def wanted(self) -> int:
        """How many requests would be sent if more slots were free."""
        return self.waiting + len(self.reservations.by_key)

    def release(self, slot: Slot, *, answered: bool) -> None:
        """Release the slot.

        It counts from now if answered, from `counts_from` if the outcome is unknown,
        and not at all if nothing was sent.
        """
        loop = asyncio.get_running_loop()
        self._in_flight.remove(slot)
        if slot.was_sent and self.limit:
            heappush(self._released, min(slot.counts_from, loop.time()) if answered else slot.counts_from)
        if queue := self._queues.get(loop):
            queue.changed.set()
        if self.shares and self.cooldown.until > loop.time():
            self.shares[0].notify()

    async def available(self) -> int:
        """Wait for a free slot and return how many are free."""
        loop = asyncio.get_running_loop()
        count = partial(self._count_available, loop)
        return await self._wait_in_queue(loop, None, count) if self._must_wait(loop) else count()

    def _count_available(self, loop: asyncio.AbstractEventLoop) -> int:
        """Return the number of free slots, given that at least one is free."""
        if self.cooldown.consecutive_429s:
            return 1  # the probe
        if self.limit is None:
            return UNLIMITED
        now = loop.time()
        count, seconds = self._share_of(self.limit, now)
        return max(1, self._free(count, now - seconds - _CLOCK_TOLERANCE) - self._kept(now))

    def _must_wait(self, loop: asyncio.AbstractEventLoop) -> bool:
        return bool(self._queues) or self._delay(loop.time()) > 0

    async def _wait_in_queue(self, loop: asyncio.AbstractEventLoop, flow_id: object, action: Callable[[], T]) -> T:
        """Queue until a slot is free, then run `action` at the head of the queue.

        Drops the queue when its last waiter leaves; its futures reference the event loop.
        """
        queue = self._queues.setdefault(loop, WaiterQueue())
        self.waiting += 1
        if self.shares:
            self.shares[0].notify()
        try:
            await queue.wait_for_head(flow_id)
            try:
                await self._wait_for_slot(loop, queue)
                return action()
            finally:
                queue.release_head()
        finally:
            self.waiting -= 1
            if not queue.has_head and self._queues.get(loop) is queue:
                del self._queues[loop]

    def _take(self, loop: asyncio.AbstractEventLoop, slot: Slot) -> None:
        slot.sent = loop.time()
        slot.counts_from = slot.sent + MAX_TRANSIT_TIME
        self._in_flight.add(slot)

    async def _wait_for_slot(self, loop: asyncio.AbstractEventLoop, queue: WaiterQueue) -> None:
        while (delay := self._delay(loop.time())) > 0:
            queue.changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await queue.changed.wait()

    def _delay(self, now: float) -> float:
        """Return the seconds until the next check; 0 if a slot is free."""
        if self._cooldown_end > now:
            return max(_MIN_DELAY, self._cooldown_end - now)
        if self._is_probing():
            return _RECHECK_INTERVAL  # its response wakes the queue
        if self.limit is None:
            return 0.0
        count, seconds = self._share_of(self.limit, now)
        start = now - seconds - _CLOCK_TOLERANCE
        if (free := self._free(count, start)) > 0:
            return 0.0 if free > self._kept(now) else _RECHECK_INTERVAL
        next_expiry = min(self._counted_since(start), default=math.inf) - start
        return min(max(_MIN_DELAY, next_expiry), _RECHECK_INTERVAL if self.shares else math.inf)

    def _is_probing(self) -> bool:
        """Return whether the first request after a cooldown has no response yet."""
        return any(
            one.consecutive_429s > 0 and any(slot.sent >= one.until for slot in tuple(self._in_flight))
            for one in (self.cooldown, self.own_cooldown)
        )

    @property
    def _cooldown_end(self) -> float:
        """The loop time until which neither the account nor this kind of request may send."""
        return max(self.cooldown.until, self.own_cooldown.until)

    def _kept(self, now: float) -> int:
        """Return how many free slots are kept for requests that come back."""
        return kept_slots(self.reservations.ahead(now)[0], self._processes) if self.reservations.by_key else 0

    def _delay_of(self, request: Patience, now: float) -> float:
        """Return the seconds after which a request should come back; 0 if a slot is free for it."""
        count, seconds = self._share_of(self.limit, now) if self.limit else (UNLIMITED, 0.0)
        start = now - seconds - _CLOCK_TOLERANCE
        due, later = self.reservations.ahead(now, before=request)
        kept = kept_slots(due, self._processes)
        cooldown = self._cooldown_end - now
        is_probing = self._is_probing()
        free = self._free(count, start) if self.limit else UNLIMITED
        if cooldown <= 0 and not is_probing and free > kept:
            return 0.0
        capacity = self.limit[0] if self.limit else UNLIMITED
        state = WindowState(
            now=now,
            count=count,
            share=max(count, capacity // self._processes),  # a new process has few slots, or none, at first
            capacity=capacity,
            seconds=seconds,
            freed=sorted(since - start + now for since in self._counted_since(start)) if self.limit else (),
            may_grow=bool(self.shares) and self.shares[0].may_grow,
            cooldown=max(0.0, cooldown),
            probing=is_probing,
        )
        return estimate(self.waiting + kept + later, state)

    @property
    def _processes(self) -> int:
        return self.shares[0].processes if self.shares else 1

    def _share_of(self, limit: tuple[int, float], now: float) -> tuple[int, float]:
        """Return what this process may use of the limit at loop time `now`."""
        return self.shares[0].limit(now) if self.shares else limit

    def count_used(self, now: float) -> int:
        """Return how many slots count against the limit at loop time `now`."""
        return len(self._counted_since(now - self.limit[1] - _CLOCK_TOLERANCE)) if self.limit else 0

    def _free(self, count: int, start: float) -> int:
        """Return a lower bound of the free slots in a window that began at `start`.

        It is 0 or less only if no slot is free.
        """
        while self._released and self._released[0] <= start:
            heappop(self._released)
        free = count - len(self._released) - len(self._in_flight)
        return free if free > 0 else count - len(self._counted_since(start))

    def _counted_since(self, start: float) -> list[float]:
        """Return the time from which each slot counts, of those after `start`."""
        in_flight = (slot.counts_from for slot in tuple(self._in_flight))  # other threads may add slots
        return [since for since in (*self._released, *in_flight) if since > start]

    def wake(self) -> None:
        """Make the running event loop's head check again.

        The heads of other event loops check every 0.25 s.
        """
        if queue := self._queues.get(asyncio.get_running_loop()):
            queue.changed.set()


@attrs.define(eq=False, repr=False)
class Slot:
    """Slot of one request in a window, held from sending to the response by `async with`.

    Attributes:
        sent: Loop time at which the request was sent, or the slot was acquired.
        counts_from: Loop time from which the slot counts for one window, unless a
            response arrives earlier.
        was_sent: Whether the request was sent. If not, the slot is free once released.
    """

    window: Window
    default_flow: object
    sent: float = 0.0
    counts_from: float = 0.0
    was_sent: bool = False

    async def __aenter__(self) -> Self:
        await self.window.acquire(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.window.release(self, answered=not isinstance(error, asyncio.CancelledError | NoAnswerError))

    def mark_sent(self, now: float) -> None:
        """Record that the request is sent at loop time `now`."""
        self.sent = now
        self.counts_from = now + MAX_TRANSIT_TIME
        self.was_sent = True
