"""Divides one rate limit between several processes through leases in a shared database.

The processes share how the limit is divided, not each request. A process that needs
more slots requests them, and receives none that another process has or has just used.
The leases therefore never add up to more than the limit, and a request costs no round
trip.

A lease expires. The slots of a process that stops renewing stay reserved until all its
requests must have left the provider's window: its grace period. Without the database a
process drops to its fair share at once, and may grow back to it once every other lease
must have expired.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

import attrs

from sora_chars.errors import LedgerError, printable
from sora_chars.logs import event_logger

from .window import MAX_TRANSIT_TIME

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from .accounts import Account
    from .window import Window

log = event_logger("sora_chars.sharing")

_LEASE_DURATION = 5.0  # seconds
_RENEWAL_INTERVAL = 1.0  # seconds
_MIN_RENEWAL_INTERVAL = 0.05  # seconds, while requests wait for a slot
_STORE_TIMEOUT = 2.0  # seconds; with one renewal interval it must be shorter than a lease
_CLOCK_SKEW = 1.0  # seconds by which the clocks of two machines may differ
_ROTATION_WINDOWS = 4  # windows a contested slot is held before it rotates
_PROBE_HEAD_START = 0.5  # seconds for the probe of the process that received the 429


@attrs.frozen(kw_only=True)
class CapacityRequest:
    """What a process reports and requests when it renews its lease.

    Attributes:
        name: Name of the account and the kind of request.
        capacity: Slots of the whole limit.
        wants: Slots that this process could use.
        has: Slots that this process has or has just used. They stay its own whatever
            the response is.
        lease: Seconds for which the response is valid.
        grace: Seconds for which this request counts if the process never renews it.
        rotation: Seconds for which a process holds a slot that cannot be divided.
        cooldown: Remaining seconds of a cooldown that the store does not know yet.
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
    """Response to a `CapacityRequest`.

    Attributes:
        slots: Slots that this process may use.
        rank: Position of this process among all, from 0.
        processes: Number of processes that divide the limit.
        cooldown: Seconds for which the account must send nothing.
    """

    slots: int
    rank: int
    processes: int
    cooldown: float


class QuotaStore(Protocol):
    """Shared database that divides limits between processes.

    Both methods may raise `LedgerError`, and may be repeated if a response is lost.
    """

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """Acquire or renew this process's lease."""
        ...

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """Give up the lease; its `has` used slots count for another `grace` seconds."""
        ...


@attrs.define(eq=False, repr=False)
class QuotaClient:
    """This process's lease of one window's limit: its `QuotaShare` while `joined`.

    Attributes:
        name: Name of the account and the kind of request.
        window: Window whose limit is divided.
        capacity: Slots of the whole limit.
        seconds: Length of the window.
        quota_store: Database that divides the limit.
        clock: Wall clock, by which contested slots rotate while the store is away.
    """

    name: str
    window: Window
    capacity: int
    seconds: float
    quota_store: QuotaStore
    clock: Callable[[], float] = time.time
    _lease: Lease = Lease(0, 0, 1, 0.0)
    _expires_at: float = 0.0  # loop time at which the lease ends
    _alone_since: float | None = None  # loop time of the first failed renewal since the last success
    _cap: int = 0  # slots, while alone
    _requested: int = 0
    _answered: int = 0  # slots that were requested with the present lease
    _reported_cooldown: float = 0.0  # end of the latest cooldown that the store knows
    _notified: asyncio.Event = attrs.field(factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)

    @asynccontextmanager
    async def joined(self) -> AsyncGenerator[None, None]:
        """Renew the lease while the block runs.

        Of several sessions that share one window, only the first one does.
        """
        self.window.shares.append(self)
        try:
            if self._is_active:
                await self._renew()
        except BaseException:
            self.window.shares.remove(self)
            raise
        runner = asyncio.create_task(self._run(), name="sora_chars limit", context=Context())
        try:
            yield
        finally:
            was_active = self._is_active
            runner.cancel()
            await asyncio.wait((runner,))
            if was_active and self._alone_since is None:
                await self._release()

    @property
    def _is_active(self) -> bool:
        return self.window.shares[0] is self

    def limit(self, now: float) -> tuple[int, float]:
        """See `QuotaShare`."""
        return self._slots(now), self.seconds

    def _slots(self, now: float) -> int:
        if self._alone_since is None:
            return self._lease.slots if now < self._expires_at else 0
        return min(self._fair_share(), self._cap)

    def _fair_share(self) -> int:
        """Return an equal share of the limit.

        If there are more processes than slots, each holds one slot in rotation, for
        the first half of its period. The pause keeps two holders out of one window.
        """
        if self._lease.processes <= self.capacity:
            return self.capacity // self._lease.processes
        period, phase = divmod(self.clock() / (_ROTATION_WINDOWS * self.seconds), 1.0)
        groups = math.ceil(self._lease.processes / self.capacity)
        is_holder = period % groups == self._lease.rank // self.capacity
        return int(is_holder and phase < 1 / 2)

    def notify(self) -> None:
        """See `QuotaShare`."""
        if self._demand() > self._requested or self.window.cooldown.until > self._reported_cooldown:
            with suppress(RuntimeError):  # the session was never closed, but its event loop was
                self._loop.call_soon_threadsafe(self._notified.set)

    @property
    def processes(self) -> int:
        """See `QuotaShare`."""
        return self._lease.processes

    @property
    def may_grow(self) -> bool:
        """See `QuotaShare`. A lease smaller than was requested is all that the others left."""
        if self._alone_since is not None:
            return False
        is_contested = self._demand() <= self._answered and self._lease.slots < self._answered
        return self._lease.slots < self.capacity and not is_contested

    def _demand(self) -> int:
        return min(self.capacity, self.window.count_used(self._loop.time()) + self.window.wanted)

    async def _run(self) -> None:
        """Renew the lease when notified and at the renewal interval."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._renewal_interval()):
                        await self._notified.wait()
                self._notified.clear()
                if self._is_active:
                    await self._try_renew()
        finally:
            self.window.shares.remove(self)

    def _renewal_interval(self) -> float:
        """Return seconds until the next renewal: short while requests wait, long while idle."""
        if self.window.wanted and self._alone_since is None:
            return min(_RENEWAL_INTERVAL, max(_MIN_RENEWAL_INTERVAL, self.seconds / 4))
        is_idle = self._is_active and not (self._requested or self._lease.slots)
        return _LEASE_DURATION / 2 if is_idle else _RENEWAL_INTERVAL

    async def _try_renew(self) -> None:
        began = self._loop.time()
        try:
            async with asyncio.timeout(_STORE_TIMEOUT):
                await self._renew()
        except (LedgerError, TimeoutError) as error:
            self._continue_alone(began, error)
        self.window.wake()

    async def _renew(self) -> None:
        """Request slots from the store, and apply its response."""
        began = self._loop.time()
        cooldown = self.window.cooldown
        cooldown_until = cooldown.until
        self._requested = self._demand()
        self._lease = await self.quota_store.acquire_lease(self._request(began, cooldown_until))
        self._answered = self._requested
        self._expires_at = began + _LEASE_DURATION
        self._alone_since = None
        shared_until = began + self._lease.cooldown
        if self._lease.cooldown and shared_until > cooldown.until + _PROBE_HEAD_START / 2:
            cooldown.on_shared_pause(shared_until + _PROBE_HEAD_START)
            cooldown_until = cooldown.until
        self._reported_cooldown = cooldown_until

    def _request(self, now: float, cooldown_until: float) -> CapacityRequest:
        is_new = cooldown_until > max(now, self._reported_cooldown)
        return CapacityRequest(
            name=self.name,
            capacity=self.capacity,
            wants=self._requested,
            has=max(self._slots(now), self.window.count_used(now)),
            lease=_LEASE_DURATION,
            grace=self.grace,
            rotation=_ROTATION_WINDOWS * self.seconds,
            cooldown=cooldown_until - now if is_new else 0.0,
        )

    @property
    def grace(self) -> float:
        """Seconds from a renewal until its last request has left the provider's window."""
        return _LEASE_DURATION + MAX_TRANSIT_TIME + self.seconds + _CLOCK_SKEW

    def _continue_alone(self, began: float, error: Exception) -> None:
        """Keep what this process has up to its fair share, and all of that after a grace period."""
        now = self._loop.time()
        if self._alone_since is None:
            self._cap = self._slots(now)
            self._alone_since = now
            log.warning("limits.alone", extra={"processes": self._lease.processes, "error": printable(error)})
        elif began - self._alone_since >= self.grace:
            self._cap = self.capacity

    async def _release(self) -> None:
        with suppress(LedgerError, TimeoutError):
            async with asyncio.timeout(_STORE_TIMEOUT):
                has = self.window.count_used(self._loop.time())
                await self.quota_store.release_lease(self.name, has, MAX_TRANSIT_TIME + self.seconds + _CLOCK_SKEW)


@asynccontextmanager
async def shared(account: Account | None, quota_store: QuotaStore) -> AsyncGenerator[None, None]:
    """Divide the limits of an account with other processes while the block runs.

    Cooldowns are shared with a limit's leases, so the cooldown of an account without
    limits stays within this process.

    Args:
        account: Account of a provider; None, or one without limits, shares nothing.
        quota_store: Store that all these processes use.

    Raises:
        LedgerError: The store cannot be reached at the start.
    """
    async with AsyncExitStack() as stack:
        if account:
            for kind, window in account.windows.items():
                if window.limit:
                    client = QuotaClient(f"{account.name} {kind}", window, *window.limit, quota_store)
                    await stack.enter_async_context(client.joined())
        yield
