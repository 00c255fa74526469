"""One limit divided between processes, with and without their database."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.errors import LedgerError
from sora_chars.ratelimit.accounts import Account
from sora_chars.ratelimit.distributed import CapacityRequest, Lease, QuotaClient, shared
from sora_chars.ratelimit.window import Limits
from tests.support.log_events import event_of, events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ratelimit.window import Window

COUNT = 12
SECONDS = 10.0
LIMITS = Limits(creates=(COUNT, SECONDS))
GRACE = 21.0  # seconds: a lease of 5, transit of 5, the window of 10 and 1 for clock skew


@attrs.define
class StoredLease:
    """Lease of one process in the database."""

    slots: int
    wants: int
    expires_at: float
    has_left: bool = False


@attrs.define
class FakeDatabase:
    """Division of one limit, as the PostgreSQL function does it.

    `unavailable`: every call fails. `hangs`: no call returns.
    """

    leases: dict[str, StoredLease] = attrs.field(factory=dict)
    requests: list[tuple[str, CapacityRequest]] = attrs.field(factory=list)
    unavailable: bool = False
    hangs: bool = False
    cooldown_until: float = 0.0
    calm_until: float = -1.0
    last_seen_at: float = 0.0

    def acquire(self, owner: str, request: CapacityRequest) -> Lease:
        """Divide the limit anew and return the lease of one process."""
        now = asyncio.get_running_loop().time()
        self.requests.append((owner, request))
        if self.calm_until < now:
            expired = {name for name, lease in self.leases.items() if not lease.has_left and lease.expires_at < now}
            if self.last_seen_at < now - request.lease and expired - {owner}:
                self.calm_until = now + request.lease
            else:
                self.leases = {name: lease for name, lease in self.leases.items() if lease.expires_at >= now}
        self.last_seen_at = now
        self.cooldown_until = max(self.cooldown_until, now + request.cooldown)
        self.leases[owner] = StoredLease(request.has, request.wants, now + request.grace)
        names = sorted(name for name, lease in self.leases.items() if not lease.has_left)
        cooldown = max(0.0, self.cooldown_until - now)
        return Lease(self._grant(owner, request, now), names.index(owner), len(names), cooldown)

    def _grant(self, owner: str, request: CapacityRequest, now: float) -> int:
        if self.calm_until >= now:
            return request.has
        others = sum(lease.slots for name, lease in self.leases.items() if name != owner)
        wants = [lease.wants for lease in self.leases.values()]
        level = max(n for n in range(request.capacity + 1) if sum(min(n, want) for want in wants) <= request.capacity)
        granted = max(0, min(request.wants, level, request.capacity - others))
        self.leases[owner].slots = max(request.has, granted)
        return granted


@attrs.define(eq=False)
class FakeQuotaStore:
    """One process's connection to the database."""

    database: FakeDatabase
    owner: str
    latency: float = 0.01
    is_cut: bool = False

    async def _travel(self) -> None:
        await asyncio.sleep(math.inf if self.database.hangs else self.latency)
        if self.database.unavailable or self.is_cut:
            raise LedgerError("The database is unavailable.")

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """See `QuotaStore`."""
        await self._travel()
        lease = self.database.acquire(self.owner, request)
        await self._travel()
        return lease

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """See `QuotaStore`."""
        assert name == "account create"
        await self._travel()
        now = asyncio.get_running_loop().time()
        self.database.leases[self.owner] = StoredLease(has, 0, now + grace, has_left=True)


@attrs.define(eq=False)
class FakeProcess:
    """A process with its own account object and connection."""

    account: Account
    store: FakeQuotaStore
    arrivals: list[float]

    @property
    def window(self) -> Window:
        """The window of creates."""
        return self.account.windows["create"]

    async def send(self, count: int, *, duration: float = 0.1) -> None:
        """Send `count` requests at once, each answered after `duration` seconds."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._send(duration))

    async def _send(self, duration: float) -> None:
        loop = asyncio.get_running_loop()
        async with self.window.slot() as slot:
            slot.mark_sent(loop.time())
            await asyncio.sleep(duration / 2)
            self.arrivals.append(loop.time())
            await asyncio.sleep(duration / 2)


@attrs.define
class Cluster:
    """Processes, their database, and the requests that arrived at their provider."""

    stack: AsyncExitStack
    database: FakeDatabase = attrs.field(factory=FakeDatabase)
    arrivals: list[float] = attrs.field(factory=list)

    def process(self, name: str) -> FakeProcess:
        """Return a process that has not joined yet."""
        store = FakeQuotaStore(self.database, name)
        return FakeProcess(Account.with_limits(LIMITS, "account"), store, self.arrivals)

    async def join(self, name: str) -> FakeProcess:
        """Return a process that shares the limit until the cluster ends."""
        process = self.process(name)
        await self.stack.enter_async_context(shared(process.account, process.store))
        return process

    def peak(self) -> int:
        """Return the arrivals in the fullest window."""
        return max(sum(start <= other < start + SECONDS for other in self.arrivals) for start in self.arrivals)


@asynccontextmanager
async def new_cluster() -> AsyncGenerator[Cluster, None]:
    """Provide a cluster, and end all its processes."""
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(4))
async def test_processes_together_stay_under_limit(seed: int) -> None:
    """However processes join, send and leave, no window holds more than the limit, and every request is sent."""
    rng = random.Random(seed)
    async with new_cluster() as cluster:

        async def run(name: str) -> None:
            process = cluster.process(name)
            for _ in range(2):
                await asyncio.sleep(rng.uniform(0, 30))
                async with shared(process.account, process.store):
                    await process.send(rng.randint(1, 25), duration=rng.uniform(0, 4))

        await asyncio.gather(*(run(name) for name in "abcde"))
        assert cluster.peak() <= COUNT
        assert sum(request.has > COUNT for _, request in cluster.database.requests) == 0


@pytest.mark.looptime
async def test_idle_slots_go_to_busy_processes() -> None:
    """One process uses the whole limit while others are idle; a second busy one soon gets half."""
    async with new_cluster() as cluster:
        first, second, _ = [await cluster.join(name) for name in "abc"]
        loop = asyncio.get_running_loop()
        await first.send(2 * COUNT)
        assert 10 < loop.time() < 12
        async with asyncio.TaskGroup() as group:
            group.create_task(first.send(4 * COUNT))
            await asyncio.sleep(5)
            group.create_task(second.send(2))
            await asyncio.sleep(20)
            leased_before = {name: lease.slots for name, lease in cluster.database.leases.items()}
            group.create_task(second.send(4 * COUNT))
            await asyncio.sleep(15)
            leased_after = {name: lease.slots for name, lease in cluster.database.leases.items()}
        assert leased_before == {"a": COUNT, "b": 0, "c": 0}
        assert leased_after == {"a": COUNT // 2, "b": COUNT // 2, "c": 0}
        assert cluster.peak() <= COUNT


@pytest.mark.looptime
async def test_request_within_lease_needs_no_round_trip() -> None:
    """Only the first requests wait for the database; later requests and idle processes rarely call it."""
    async with new_cluster() as cluster:
        process = await cluster.join("a")
        await process.send(COUNT)
        calls = len(cluster.database.requests)
        assert calls <= 4
        await asyncio.sleep(100)
        assert len(cluster.database.requests) - calls < 60


@pytest.mark.looptime
@pytest.mark.parametrize("outage", [1, 4, 12, 20, 22, 24, 60])
async def test_outage_never_exceeds_limit(outage: float, caplog: pytest.LogCaptureFixture) -> None:
    """However long an outage lasts, no window holds more than the limit, and every request is sent."""
    rng = random.Random(outage)
    loop = asyncio.get_running_loop()
    async with new_cluster() as cluster:
        processes = [await cluster.join(name) for name in "abc"]
        async with asyncio.TaskGroup() as group:
            group.create_task(processes[0].send(20))
            await asyncio.sleep(rng.uniform(3, 10))  # until every process knows of the others
            cluster.database.unavailable = True
            for process in processes:
                group.create_task(process.send(30))
            await asyncio.sleep(outage)
            sent = len(cluster.arrivals)
            cluster.database.unavailable = False
        assert cluster.peak() <= COUNT
        assert len(cluster.arrivals) == 110
        if outage > 50:
            assert sent >= 12 + (outage - 25) * COUNT / SECONDS * 0.8
        assert loop.time() - outage < 110 / COUNT * SECONDS + 30
    assert outage < 6 or "limits.alone" in events(caplog.records)


@pytest.mark.looptime
async def test_process_without_database_uses_fair_share(caplog: pytest.LogCaptureFixture) -> None:
    """Without the database a process keeps its slots up to its fair share, and grows back to that share."""
    caplog.set_level(logging.WARNING)
    async with new_cluster() as cluster:
        busy, idle, _ = [await cluster.join(name) for name in "abc"]
        await busy.send(COUNT)
        await asyncio.sleep(2.5)  # until every process knows how many there are
        cluster.database.unavailable = True
        await asyncio.sleep(3)
        limits = [process.window.shares[0].limit(asyncio.get_running_loop().time()) for process in (busy, idle)]
        assert limits == [(COUNT // 3, SECONDS), (0, SECONDS)]
        await asyncio.sleep(GRACE + 4)
        limits = [process.window.shares[0].limit(asyncio.get_running_loop().time()) for process in (busy, idle)]
        assert limits == [(COUNT // 3, SECONDS)] * 2
    alone = [record for record in caplog.records if event_of(record) == "limits.alone"]
    assert [vars(record)["processes"] for record in alone] == [3, 3, 3]


@pytest.mark.looptime
async def test_more_processes_than_slots_rotate() -> None:
    """If the fair share is less than one slot, every process holds one in rotation."""
    async with new_cluster() as cluster:
        processes = [await cluster.join(f"{number:02}") for number in range(2 * COUNT + 1)]
        loop = asyncio.get_running_loop()
        for process in processes:
            client = process.window.shares[0]
            assert isinstance(client, QuotaClient)
            client.clock = loop.time
        await asyncio.sleep(3)
        cluster.database.unavailable = True
        senders = [asyncio.create_task(process.send(3)) for process in processes]
        done, pending = await asyncio.wait(senders, timeout=600)
        assert (len(done), pending) == (len(processes), set())
        assert cluster.peak() <= COUNT


@pytest.mark.looptime
async def test_hanging_database_counts_as_unavailable() -> None:
    """A process whose lease ends without a response sends nothing until the renewal times out."""
    async with new_cluster() as cluster:
        process = await cluster.join("a")
        loop = asyncio.get_running_loop()
        await process.send(1)
        assert (process.window.shares[0].processes, process.window.shares[0].may_grow) == (1, True)
        cluster.database.hangs = True
        await asyncio.sleep(4)
        assert process.window.shares[0].limit(loop.time()) == (1, SECONDS)
        assert not process.window.shares[0].may_grow
        await asyncio.sleep(GRACE + 10)
        assert process.window.shares[0].limit(loop.time()) == (COUNT, SECONDS)
        cluster.database.hangs = False
        await asyncio.sleep(5)
        assert len(cluster.database.leases) == 1


@pytest.mark.looptime
async def test_expired_lease_has_no_slots() -> None:
    """A process that was suspended past its lease has no slots until it renews."""
    async with new_cluster() as cluster:
        process = await cluster.join("a")
        await process.send(COUNT)
        now = asyncio.get_running_loop().time()
        share = process.window.shares[0]
        assert share.limit(now) == (COUNT, SECONDS)
        assert share.limit(now + 5.1) == (0, SECONDS)


@pytest.mark.looptime
async def test_slots_of_dead_process_are_reassigned() -> None:
    """The slots of a dead process are free once none of its requests can count any more."""
    async with new_cluster() as cluster:
        dead = cluster.process("dead")
        async with shared(dead.account, dead.store):
            await dead.send(COUNT)
            dead.store.is_cut = True
        living = await cluster.join("living")
        loop = asyncio.get_running_loop()
        died = loop.time()
        await living.send(COUNT)
        assert died + GRACE - 5 < loop.time() < died + GRACE + 2
        assert cluster.peak() <= COUNT


@pytest.mark.looptime
async def test_requests_of_leaving_process_still_count() -> None:
    """A process that leaves frees its unused slots at once, and the others when they no longer count."""
    async with new_cluster() as cluster:
        leaving = cluster.process("leaving")
        async with shared(leaving.account, leaving.store):
            await leaving.send(COUNT)
            await asyncio.sleep(8)
            await leaving.send(2)
            await asyncio.sleep(3)  # the first ones no longer count, which no renewal has reported yet
        assert leaving.window.shares == []
        assert cluster.database.leases["leaving"].has_left
        successor = await cluster.join("successor")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await successor.send(COUNT - 2)
        assert loop.time() - began < 1
        await successor.send(2)
        assert 7 < loop.time() - began < 18
        assert cluster.peak() <= COUNT


@pytest.mark.looptime
async def test_cooldown_applies_to_all_processes() -> None:
    """A 429 to one process pauses the others too, which retry shortly after it."""
    async with new_cluster() as cluster:
        limited, other = [await cluster.join(name) for name in "ab"]
        loop = asyncio.get_running_loop()
        await other.send(1)
        async with limited.window.slot() as slot:
            slot.mark_sent(loop.time())
            limited.account.cooldown.on_429(sent=slot.sent, now=loop.time(), retry_after=30.0)
        until = limited.account.cooldown.until
        await asyncio.sleep(1.5)
        assert until + 0.2 < other.account.cooldown.until < until + 1
        assert other.account.cooldown.consecutive_429s == 1
        await asyncio.sleep(10)
        assert limited.account.cooldown.until == until
        assert until + 0.2 < other.account.cooldown.until < until + 1
        await other.send(1)
        assert loop.time() > until + 0.2


@pytest.mark.looptime
async def test_one_session_per_process_renews() -> None:
    """Of two sessions with one account, the first renews the lease; the second takes over when it ends."""
    async with new_cluster() as cluster:
        process = cluster.process("first")
        second = FakeQuotaStore(cluster.database, "second")
        async with AsyncExitStack() as later:
            async with shared(process.account, process.store):
                await later.enter_async_context(shared(process.account, second))
                await process.send(COUNT)
                await asyncio.sleep(2)
                assert {owner for owner, _ in cluster.database.requests} == {"first"}
            await process.send(1)
            assert {owner for owner, _ in cluster.database.requests} == {"first", "second"}
        assert process.window.shares == []
        assert cluster.peak() <= COUNT


@pytest.mark.looptime
async def test_unavailable_database_fails_joining() -> None:
    """A database that is unavailable at the start raises an error and leaves the account unchanged."""
    async with new_cluster() as cluster:
        cluster.database.unavailable = True
        process = cluster.process("a")
        with pytest.raises(LedgerError, match="unavailable"):
            await cluster.stack.enter_async_context(shared(process.account, process.store))
        assert process.window.shares == []


@pytest.mark.looptime
async def test_account_without_limits_shares_nothing() -> None:
    """Without an account or a limit the database is not called."""
    async with new_cluster() as cluster:
        process = cluster.process("a")
        unlimited = Account.with_limits(Limits(), "account")
        async with shared(None, process.store), shared(unlimited, process.store):
            assert process.window.shares == []
        assert cluster.database.requests == []


def test_other_event_loops_wait_for_lease() -> None:
    """A request in another thread's event loop waits until the session's loop has acquired slots."""
    account = Account.with_limits(LIMITS, "account")
    sent = threading.Event()

    async def send_in_other_loop() -> None:
        async with account.windows["create"].slot():
            sent.set()

    async def main() -> None:
        async with shared(account, FakeQuotaStore(FakeDatabase(), "a", latency=0.0)):
            await asyncio.to_thread(asyncio.run, send_in_other_loop())

    asyncio.run(main())
    assert sent.is_set()


def test_unclosed_session_leaves_window_usable() -> None:
    """An event loop that ends with an open session leaves no share that is never renewed."""
    account = Account.with_limits(LIMITS, "account")

    async def open_session() -> None:
        await AsyncExitStack().enter_async_context(shared(account, FakeQuotaStore(FakeDatabase(), "a", latency=0.0)))

    asyncio.run(open_session())
    assert account.windows["create"].shares == []


def test_closed_event_loop_is_not_notified() -> None:
    """Notifying a client whose event loop was closed does nothing."""
    account = Account.with_limits(LIMITS, "account")

    async def new_client() -> QuotaClient:
        return QuotaClient(
            "account create", account.windows["create"], COUNT, SECONDS, FakeQuotaStore(FakeDatabase(), "a")
        )

    client = asyncio.run(new_client())
    client.window.waiting = 1
    client.notify()
