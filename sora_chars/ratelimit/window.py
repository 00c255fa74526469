"""Staying under a provider's limits: a sliding window for each kind of request, one pause for the whole account.

A provider counts a request when it arrives, somewhere between our sending and its answer. So a place in the window
is taken when a request is sent and counts from its *answer*: whatever the network delays, the provider never sees
more than the limit in any window. (A limiter that counts from sending lets two bursts through, the first one
delayed on its way and the second one not.) A synchronous create answers minutes after it arrived, so a place
counts from `ARRIVAL` seconds after sending at the latest.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import attrs

from sora_chars.errors import NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

T = TypeVar("T")

Kind = Literal["create", "poll", "other"]  # of a request; only a create costs money

flow: ContextVar[object] = ContextVar("sora_chars_flow", default=None)
"""For whom requests are sent, as a batch. Those of one flow stand in line together, and flows take turns."""

ARRIVAL = 5.0  # seconds by which a request has arrived
_SLACK = 0.01  # seconds by which the provider's clock may run otherwise than ours within one window
_TICK = 0.001  # seconds; a clock ticks in steps, and may never reach a time in between
_LOOK_AGAIN = 0.25  # seconds; an answer that another thread's loop received wakes nobody here
UNLIMITED = 2**31  # requests, where there is no limit
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MOST_ACCOUNTS = 1000  # a web app may hold a key for each of its users


def _check_window(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    del instance
    match value:
        case None:
            return
        case (int(count), int() | float() as seconds) if count > 0 and 0 < seconds < math.inf:
            return
        case _:
            raise ValueError(f"limits.{attribute.name}: must be (count, seconds), both above 0, got {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """What an account may send, as (count, seconds) for creates and for polls; None for no limit.

    Raises:
        ValueError: a count or a number of seconds that is not above 0.
    """

    creates: tuple[int, float] | None = attrs.field(default=None, validator=_check_window)
    polls: tuple[int, float] | None = attrs.field(default=None, validator=_check_window)


@attrs.define(eq=False, repr=False)
class Cooldown:
    """The silence of a whole account after a 429: longer after each one in a row, over after a good answer."""

    until: float = 0.0
    consecutive_429s: int = 0

    def on_429(self, *, sent: float, now: float, retry_after: float | None) -> None:
        """Note a 429 for a request sent at `sent`; those of one volley count once. Times are loop times."""
        if sent >= self.until:
            self.consecutive_429s += 1
        grown = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.consecutive_429s - 1, 10))
        jittered = grown * random.uniform(1.0, 1.25)  # noqa: S311 # jitter, no secret
        self.until = max(self.until, now + max(jittered, retry_after or 0.0))

    def on_shared_pause(self, until: float) -> None:
        """Note that another process was refused, and is silent until then."""
        self.until = max(self.until, until)
        self.consecutive_429s = max(self.consecutive_429s, 1)

    def on_success(self, *, sent: float) -> None:
        """Note an answer that was no 429 to a request sent at `sent`."""
        if sent >= self.until:
            self.consecutive_429s = 0


@attrs.define(eq=False, repr=False)
class _Line:
    """Who waits in one event loop. Flows take turns to have their oldest request at the head."""

    flows: dict[object, deque[asyncio.Future[None]]] = attrs.field(
        factory=dict[object, "deque[asyncio.Future[None]]"]  # the next one's turn first
    )
    headed: bool = False
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def reach_head(self, whose: object) -> None:
        """Wait until it is one's turn to be at the head; `pass_on` ends it."""
        if self.headed:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.flows.setdefault(whose, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it had come just then
                    self.pass_on()
                raise
        self.headed = True

    def pass_on(self) -> None:
        """Let the next flow have its turn."""
        self.headed = False
        while self.flows and not self.headed:
            whose = next(iter(self.flows))
            waiting = self.flows.pop(whose)
            while waiting and not self.headed:
                turn = waiting.popleft()
                if not turn.cancelled():
                    turn.set_result(None)
                    self.headed = True
            if waiting:
                self.flows[whose] = waiting


class QuotaShare(Protocol):
    """The part of a limit that falls to this process, where several divide it between them."""

    def limit(self, now: float) -> tuple[int, float]:
        """The part at loop time `now`, as (count, seconds); a count of 0 until it is known."""
        ...

    def notify(self) -> None:
        """More is needed, or the account was paused. Called from any thread."""
        ...


@attrs.define(eq=False, repr=False)
class Window:
    """At most `count` requests in `seconds`, flows in turn; `limit` None only heeds the pause.

    `shares`: of the sessions that divide the limit with other processes. The first one's holds for all.
    """

    limit: tuple[int, float] | None
    cooldown: Cooldown
    shares: list[QuotaShare] = attrs.field(factory=list[QuotaShare])
    waiting: int = 0
    """How many stand in line, in all event loops."""
    _under_way: set[Slot] = attrs.field(factory=set["Slot"])
    _answered: list[float] = attrs.field(factory=list[float])  # a heap: since when each of the other places counts
    _lines: dict[asyncio.AbstractEventLoop, _Line] = attrs.field(factory=dict["asyncio.AbstractEventLoop", _Line])

    def slot(self, whose: object = None) -> Slot:
        """A place for one request, in the flow `whose` unless one is set."""
        return Slot(self, whose)

    async def acquire(self, slot: Slot) -> None:
        """Wait until the place is free, and take it."""
        loop = asyncio.get_running_loop()
        if self._crowded(loop):
            await self._in_turn(loop, flow.get() or slot.whose, partial(self._take, loop, slot))
        else:
            self._take(loop, slot)

    def release(self, slot: Slot, *, answered: bool) -> None:
        """Let it count from now on, from its arrival if it may still be on its way, and not at all if it never left."""
        loop = asyncio.get_running_loop()
        self._under_way.remove(slot)
        if slot.used and self.limit:
            heappush(self._answered, min(slot.counts_from, loop.time()) if answered else slot.counts_from)
        if line := self._lines.get(loop):
            line.changed.set()
        if self.shares and self.cooldown.until > loop.time():
            self.shares[0].notify()

    async def available(self) -> int:
        """How many requests would go out at once, as soon as one would."""
        loop = asyncio.get_running_loop()
        room = partial(self._room, loop)
        return await self._in_turn(loop, None, room) if self._crowded(loop) else room()

    def _room(self, loop: asyncio.AbstractEventLoop) -> int:
        """How many places are free when one is."""
        if self.cooldown.consecutive_429s:
            return 1  # the probe
        if self.limit is None:
            return UNLIMITED
        now = loop.time()
        count, seconds = self._part(self.limit, now)
        return self._free(count, now - seconds - _SLACK)

    def _crowded(self, loop: asyncio.AbstractEventLoop) -> bool:
        return bool(self._lines) or self._wait(loop.time()) > 0

    async def _in_turn(self, loop: asyncio.AbstractEventLoop, whose: object, then: Callable[[], T]) -> T:
        """Stand in line until a place is free. The line goes with the last one: its futures keep its loop alive."""
        line = self._lines.setdefault(loop, _Line())
        self.waiting += 1
        if self.shares:
            self.shares[0].notify()
        try:
            await line.reach_head(whose)
            try:
                await self._until_free(loop, line)
                return then()
            finally:
                line.pass_on()
        finally:
            self.waiting -= 1
            if not line.headed and self._lines.get(loop) is line:
                del self._lines[loop]

    def _take(self, loop: asyncio.AbstractEventLoop, slot: Slot) -> None:
        now = loop.time()
        slot.sent, slot.counts_from = now, now + ARRIVAL
        self._under_way.add(slot)

    async def _until_free(self, loop: asyncio.AbstractEventLoop, line: _Line) -> None:
        while (wait := self._wait(loop.time())) > 0:
            line.changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await line.changed.wait()

    def _wait(self, now: float) -> float:
        """Seconds after which to look again; 0 when a place is free."""
        if self.cooldown.until > now:
            return max(_TICK, self.cooldown.until - now)
        if self.cooldown.consecutive_429s and any(slot.sent >= self.cooldown.until for slot in tuple(self._under_way)):
            return _LOOK_AGAIN  # one probe goes first, and its answer wakes the rest
        if self.limit is None:
            return 0.0
        count, seconds = self._part(self.limit, now)
        begin = now - seconds - _SLACK
        if self._free(count, begin) > 0:
            return 0.0
        free_in = min(self._counting(begin), default=math.inf) - begin
        return min(max(_TICK, free_in), _LOOK_AGAIN if self.shares else math.inf)

    def _part(self, limit: tuple[int, float], now: float) -> tuple[int, float]:
        """What of the limit this process may use at loop time `now`."""
        return self.shares[0].limit(now) if self.shares else limit

    def taken(self, now: float) -> int:
        """How many places of the limit still count at loop time `now`."""
        return len(self._counting(now - self.limit[1] - _SLACK)) if self.limit else 0

    def _free(self, count: int, begin: float) -> int:
        """How many places are free at least, in a window that began at `begin`; none only if there is none."""
        while self._answered and self._answered[0] <= begin:
            heappop(self._answered)
        free = count - len(self._answered) - len(self._under_way)
        return free if free > 0 else count - len(self._counting(begin))

    def _counting(self, begin: float) -> list[float]:
        """Since when each place counts, in a window that began at `begin`."""
        under_way = (slot.counts_from for slot in tuple(self._under_way))  # other threads may send, too
        return [since for since in (*self._answered, *under_way) if since > begin]

    def wake(self) -> None:
        """Wake who stands in line in the running event loop; those in others look by themselves."""
        if line := self._lines.get(asyncio.get_running_loop()):
            line.changed.set()


@attrs.define(eq=False, repr=False)
class Slot:
    """The place of one request in a window, held from sending to answer by `async with`."""

    window: Window
    whose: object
    sent: float = 0.0  # loop time
    counts_from: float = 0.0
    used: bool = False

    async def __aenter__(self) -> Self:
        await self.window.acquire(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.window.release(self, answered=not isinstance(error, asyncio.CancelledError | NoAnswerError))

    def mark_sent(self, now: float) -> None:
        """The request leaves now, at loop time `now`."""
        self.sent, self.counts_from, self.used = now, now + ARRIVAL, True


@attrs.define(eq=False, repr=False)
class Account:
    """What one key of one provider may send, for all sessions of this process together: a window for each kind."""

    cooldown: Cooldown
    windows: Mapping[Kind, Window]
    name: str = ""
    """The same in all processes; a digest, which holds no key."""

    @classmethod
    def with_limits(cls, limits: Limits, name: str = "") -> Account:
        """A fresh account."""
        cooldown = Cooldown()
        kinds: dict[Kind, tuple[int, float] | None] = {
            "create": limits.creates,
            "poll": limits.polls,
            "other": None,
        }
        return cls(cooldown, {kind: Window(limit, cooldown) for kind, limit in kinds.items()}, name)


_ACCOUNTS: dict[tuple[str, Limits], Account] = {}


def account(base_url: str, api_key: str, limits: Limits) -> Account:
    """The one account of this process for this address, key and these limits.

    It outlives sessions and event loops, since the provider goes on counting when they end.
    """
    name = hashlib.sha256(f"{base_url} {api_key}".encode()).hexdigest()
    while len(_ACCOUNTS) >= _MOST_ACCOUNTS and (name, limits) not in _ACCOUNTS:
        del _ACCOUNTS[next(iter(_ACCOUNTS))]  # the oldest; whoever uses it keeps it
    return _ACCOUNTS.setdefault((name, limits), Account.with_limits(limits, name))
