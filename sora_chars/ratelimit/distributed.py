"""One limit for several processes: each has a part of it, for a few seconds at a time, and keeps to it by itself.

What the processes share is how the limit is divided, not each request. Whoever needs more asks for it, and gets nothing
that another one has or has just used, so the parts never make more than the limit, and a request costs no round trip.
A part is leased. A process that goes silent keeps its own from the others until all that it sent must have left the
provider's window: its grace. When the database is away, a process goes down to its fair part at once, and up to it when
the grace of all others must be over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import attrs

from sora_chars.errors import LedgerError, printable

from .window import ARRIVAL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from .window import Account, Window

log = logging.getLogger("sora_chars.sharing")

_LEASE = 5.0
_RENEWAL = 1.0
_SOONEST = 0.05
_PATIENCE = 2.0  # seconds for an answer of the database; together with a renewal less than a lease
_MARGIN = 1.0  # seconds by which the clocks of two machines may differ
_ROTATION = 4  # windows for which one has a place that others want as much
_HEAD_START = 0.5  # seconds for the probe of the process that was refused


@attrs.frozen(kw_only=True)
class CapacityRequest:
    """What a process says when it asks for its part; times in seconds.

    `name`: of the account and the kind of requests. `count`: the whole limit. `wanted`: how much of it this process
    could use. `held`: what it has or has just used, which is its own whatever the answer. `lease`, `grace`: for how
    long the answer holds, and for how long all of this counts if nothing more is heard. `turn`: for how long one has
    what cannot be divided. `paused`: for how long the account is silent.
    """

    name: str
    capacity: int
    wants: int
    has: int
    lease: float
    grace: float
    rotation: float
    cooldown: float


@attrs.frozen
class Lease:
    """The answer: so many places, for the process number `rank` of so many; the account is silent for `paused` s."""

    slots: int
    rank: int
    processes: int
    cooldown: float


class QuotaStore(Protocol):
    """Where the processes meet. Both methods may raise `LedgerError`, and may be called twice for one answer."""

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """Take a part of the limit."""
        ...

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """Take part no more; `held` places count for `grace` seconds yet."""
        ...


@attrs.define(eq=False, repr=False)
class QuotaClient:
    """This process, among those that divide the limit of one window: its `QuotaShare`, for as long as `joined`."""

    name: str
    window: Window
    whole: tuple[int, float]
    quota_store: QuotaStore
    clock: Callable[[], float] = time.time
    _last: Lease = Lease(0, 0, 1, 0.0)
    _until: float = 0.0  # when the lease ends
    _alone_since: float | None = None
    _cap: int = 0  # places, while alone
    _wanted: int = 0
    _paused_until: float = 0.0
    _notified: asyncio.Event = attrs.field(factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)

    @asynccontextmanager
    async def joined(self) -> AsyncGenerator[None, None]:
        """Take part meanwhile. Of several sessions that share one window, the first one does."""
        self.window.shares.append(self)
        try:
            if self._leads:
                await self._divide()
        except BaseException:
            self.window.shares.remove(self)
            raise
        runner = asyncio.create_task(self._run(), name="sora_chars limit")
        try:
            yield
        finally:
            led = self._leads
            runner.cancel()
            await asyncio.wait((runner,))
            if led and self._alone_since is None:
                await self._leave()

    @property
    def _leads(self) -> bool:
        return self.window.shares[0] is self

    def limit(self, now: float) -> tuple[int, float]:
        """See `QuotaShare`."""
        return self._places(now), self.whole[1]

    def _places(self, now: float) -> int:
        if self._alone_since is None:
            return self._last.slots if now < self._until else 0
        return min(self._fair_share(), self._cap)

    def _fair_share(self) -> int:
        """An equal part; where there is less than one for each, one place by turns, with a rest between two turns."""
        count, seconds = self.whole
        if self._last.processes <= count:
            return count // self._last.processes
        turn, phase = divmod(self.clock() / (_ROTATION * seconds), 1.0)
        mine = turn % math.ceil(self._last.processes / count) == self._last.rank // count
        return int(mine and phase < 1 / 2)

    def notify(self) -> None:
        """See `QuotaShare`."""
        if self._needed() > self._wanted or self.window.cooldown.until > self._paused_until:
            with suppress(RuntimeError):  # its loop was closed, and the session in it never was
                self._loop.call_soon_threadsafe(self._notified.set)

    def _needed(self) -> int:
        return min(self.whole[0], self.window.taken(self._loop.time()) + self.window.waiting)

    async def _run(self) -> None:
        """Ask again: at once when more is needed, soon while somebody waits, and in time before the lease ends."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rest()):
                        await self._notified.wait()
                self._notified.clear()
                if self._leads:
                    await self._ask()
        finally:
            self.window.shares.remove(self)

    def _rest(self) -> float:
        if self.window.waiting and self._alone_since is None:
            return min(_RENEWAL, max(_SOONEST, self.whole[1] / 4))
        return _RENEWAL if self._wanted or self._last.slots or not self._leads else _LEASE / 2

    async def _ask(self) -> None:
        began = self._loop.time()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._divide()
        except (LedgerError, TimeoutError) as error:
            self._go_alone(began, error)
        self.window.wake()

    async def _divide(self) -> None:
        """Ask for a part, and go by the answer."""
        began, cooldown = self._loop.time(), self.window.cooldown
        self._wanted, paused_until = self._needed(), cooldown.until
        request = CapacityRequest(
            name=self.name,
            capacity=self.whole[0],
            wants=self._wanted,
            has=max(self._places(began), self.window.taken(began)),
            lease=_LEASE,
            grace=self.grace,
            rotation=_ROTATION * self.whole[1],
            cooldown=paused_until - began if paused_until > max(began, self._paused_until) else 0.0,
        )
        self._last = await self.quota_store.acquire_lease(request)
        self._until, self._alone_since = began + _LEASE, None
        silent_until = began + self._last.cooldown
        if self._last.cooldown and silent_until > cooldown.until + _HEAD_START / 2:
            cooldown.on_shared_pause(silent_until + _HEAD_START)
            paused_until = cooldown.until
        self._paused_until = paused_until

    @property
    def grace(self) -> float:
        """Seconds from asking for a part until the last that was sent under it has left the provider's window."""
        return _LEASE + ARRIVAL + self.whole[1] + _MARGIN

    def _go_alone(self, began: float, error: Exception) -> None:
        now = self._loop.time()
        if self._alone_since is None:
            self._cap, self._alone_since = self._places(now), now
            log.warning("limits.alone", extra={"processes": self._last.processes, "error": printable(error)})
        elif began - self._alone_since >= self.grace:
            self._cap = self.whole[0]

    async def _leave(self) -> None:
        with suppress(LedgerError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                has = self.window.taken(self._loop.time())
                await self.quota_store.release_lease(self.name, has, ARRIVAL + self.whole[1] + _MARGIN)


@asynccontextmanager
async def shared(account: Account | None, quota_store: QuotaStore) -> AsyncGenerator[None, None]:
    """Divide the limits of an account with the other processes that meet at `quota_store`, meanwhile.

    Its pauses are told along with them, so an account without limits is each process's own.

    Raises:
        LedgerError: it cannot be reached at the beginning.
    """
    async with AsyncExitStack() as stack:
        if account:
            for kind, window in account.windows.items():
                if window.limit:
                    member = QuotaClient(f"{account.name} {kind}", window, window.limit, quota_store)
                    await stack.enter_async_context(member.joined())
        yield
