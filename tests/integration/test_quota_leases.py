"""How a PostgreSQL database divides a limit between processes, by its own clock."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest

from sora_chars import Kie, Ledger, Limits, open_ledger
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ratelimit.accounts import Account
from sora_chars.ratelimit.distributed import CapacityRequest, shared

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ratelimit.distributed import Lease
    from sora_chars.ratelimit.window import Window

REQUEST = CapacityRequest(name="n", capacity=20, wants=20, has=0, lease=10.0, grace=20.0, rotation=1e9, cooldown=0.0)


@asynccontextmanager
async def stores(url: str, count: int) -> AsyncGenerator[list[PostgresStore]]:
    """Provide the stores of `count` processes, ordered by owner."""
    async with AsyncExitStack() as stack:
        opened = [PostgresStore(url) for _ in range(count)]
        for store in opened:
            await stack.enter_async_context(Ledger(store))
        yield sorted(opened, key=lambda store: store.owner)


@attrs.define
class BusyProcess:
    """Process that keeps using all slots of its latest lease."""

    store: PostgresStore
    slots: int = 0

    async def renew(self, **changes: Any) -> Lease:
        """Renew the lease while using its slots."""
        lease = await self.store.acquire_lease(attrs.evolve(REQUEST, has=self.slots, **changes))
        self.slots = lease.slots
        return lease


async def renew_all(
    processes: list[BusyProcess], *, wants: list[int], capacity: int = 20, rounds: int = 3
) -> list[int]:
    """Renew the lease of each process in turn, and return the slots of each after the last round."""
    for _ in range(rounds):
        for process, want in zip(processes, wants, strict=True):
            await process.renew(wants=want, capacity=capacity)
    return [process.slots for process in processes]


@pytest.mark.parametrize(
    ("wants", "slots"),
    [
        ([20], [20]),
        ([20, 20], [10, 10]),
        ([20, 20, 20], [7, 7, 6]),
        ([20, 20, 2], [9, 9, 2]),
        ([3, 0, 20], [3, 0, 17]),
        ([0, 0, 0], [0, 0, 0]),
        ([1] * 3, [1] * 3),
    ],
)
async def test_divides_limit_fairly(wants: list[int], slots: list[int], postgres_url: str) -> None:
    """Small demands are met in full, and the rest is divided equally among larger ones."""
    async with stores(postgres_url, len(wants)) as opened:
        granted = await renew_all([BusyProcess(store) for store in opened], wants=wants)
        assert sorted(granted) == sorted(slots)
        assert sum(granted) == min(20, sum(wants))


async def test_grants_only_released_slots(postgres_url: str) -> None:
    """A new process gets slots only once the others report that they have fewer."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(REQUEST)).slots == 20
        assert (await second.acquire_lease(REQUEST)).slots == 0
        assert (await first.acquire_lease(attrs.evolve(REQUEST, has=20))).slots == 10
        assert (await second.acquire_lease(REQUEST)).slots == 0
        await first.acquire_lease(attrs.evolve(REQUEST, has=13))
        assert (await second.acquire_lease(REQUEST)).slots == 7


async def test_repeated_request_gets_same_lease(postgres_url: str) -> None:
    """If a response is lost, repeating the request returns the same lease and reserves the same slots."""
    async with stores(postgres_url, 2) as (first, second):
        await second.acquire_lease(attrs.evolve(REQUEST, wants=5))
        request = attrs.evolve(REQUEST, wants=1, has=15)
        assert await first.acquire_lease(request) == await first.acquire_lease(request)
        assert (await second.acquire_lease(REQUEST)).slots == 5


async def test_concurrent_requests_stay_under_limit(postgres_url: str) -> None:
    """Leases acquired at the same time add up to the limit."""
    async with stores(postgres_url, 8) as opened:
        leases = await asyncio.gather(*(store.acquire_lease(REQUEST) for store in opened))
        assert sum(lease.slots for lease in leases) == 20


async def test_contested_slots_rotate(postgres_url: str) -> None:
    """With more processes than slots, each process holds a slot after some rotations."""
    async with stores(postgres_url, 5) as opened:
        processes = [BusyProcess(store) for store in opened]
        served: set[int] = set()
        async with asyncio.timeout(20):
            while len(served) < 5:
                for number, process in enumerate(processes):
                    await process.renew(wants=2, capacity=2, rotation=0.1)
                    if process.slots:
                        served.add(number)
                assert sum(process.slots for process in processes) <= 2


async def test_slots_of_dead_and_left_processes_become_free(postgres_url: str) -> None:
    """The slots of a process that left, or that stopped renewing, are free after its grace period."""
    async with stores(postgres_url, 3) as (dead, left, other):
        await dead.acquire_lease(attrs.evolve(REQUEST, wants=8, grace=1.0))
        await left.acquire_lease(attrs.evolve(REQUEST, wants=8))
        for _ in range(2):  # as after a lost response
            await left.release_lease("n", 4, 1.0)
        lease = await other.acquire_lease(REQUEST)
        assert (lease.slots, lease.processes) == (8, 2)
        async with asyncio.timeout(10):
            while (lease := await other.acquire_lease(attrs.evolve(REQUEST, has=8))).slots < 20:
                pass
        assert lease.processes == 1


async def shift_clock(url: str, hours: float) -> None:
    """Simulate setting the database's clock forward: shift every stored time into the past."""
    async with await psycopg.AsyncConnection.connect(url) as owner:
        for table, columns in (
            ("limits", ("cooldown_until", "calm_until", "last_seen_at")),
            ("leases", ("expires_at",)),
        ):
            changes = ", ".join(f"{column} = {column} - make_interval(secs => {hours * 3600})" for column in columns)
            await owner.execute(f"UPDATE sora_chars_{table} SET {changes}".encode())


async def test_leases_do_not_grow_right_after_outage(postgres_url: str) -> None:
    """After all leases expired, each process keeps the slots it reports until the others must have renewed."""
    async with stores(postgres_url, 3) as (first, second, new):
        for store in (first, second):
            await store.acquire_lease(REQUEST)
        await shift_clock(postgres_url, hours=1)  # as if no process had renewed in that time
        request = attrs.evolve(REQUEST, lease=1.0)
        lease = await new.acquire_lease(request)
        assert (lease.slots, lease.processes) == (0, 3)
        for store in (first, second):
            assert (await store.acquire_lease(attrs.evolve(request, has=9))).slots == 9
        assert (await new.acquire_lease(request)).slots == 0
        await asyncio.sleep(1)  # the database's clock has no event to wait for
        assert (await new.acquire_lease(request)).slots == 2
        assert (await first.acquire_lease(attrs.evolve(request, has=9))).slots < 9


async def test_clock_set_forward_grants_no_extra_slots(postgres_url: str) -> None:
    """If only some leases seem expired, the living processes keep their slots."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(attrs.evolve(REQUEST, grace=2000.0, wants=12))).slots == 12
        assert (await second.acquire_lease(REQUEST)).slots == 8
        await shift_clock(postgres_url, hours=0.5)
        for _ in range(2):
            assert (await first.acquire_lease(attrs.evolve(REQUEST, has=12))).slots == 12
            assert (await second.acquire_lease(attrs.evolve(REQUEST, has=8))).slots == 8


async def test_clock_set_back_extends_nothing(postgres_url: str) -> None:
    """No cooldown or lease lasts longer because of it."""
    async with stores(postgres_url, 3) as (dead, left, living):
        await dead.acquire_lease(attrs.evolve(REQUEST, wants=8, grace=1.0, cooldown=30.0))
        await shift_clock(postgres_url, hours=1)
        request = attrs.evolve(REQUEST, lease=1.0, grace=1.0)
        await left.acquire_lease(attrs.evolve(request, wants=8, cooldown=30.0))  # which waits for the dead process
        await left.release_lease("n", 4, 1.0)
        await shift_clock(postgres_url, hours=-3)
        assert 25 < (await living.acquire_lease(request)).cooldown <= 30
        async with asyncio.timeout(10):
            while (lease := await living.acquire_lease(request)).slots < 20:
                pass
        assert lease.processes == 1


async def test_only_process_renews_at_once(postgres_url: str) -> None:
    """A process that was suspended past its lease, and is the only one, waits for no other."""
    async with stores(postgres_url, 1) as (only,):
        await only.acquire_lease(REQUEST)
        await shift_clock(postgres_url, hours=1)
        assert (await only.acquire_lease(REQUEST)).slots == 20


async def test_cooldown_reaches_all_processes(postgres_url: str) -> None:
    """The longest reported cooldown applies to every process, and counts down."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await second.acquire_lease(REQUEST)).cooldown == 0
        assert 29 < (await first.acquire_lease(attrs.evolve(REQUEST, cooldown=30.0))).cooldown <= 30
        assert 5 < (await second.acquire_lease(attrs.evolve(REQUEST, cooldown=5.0))).cooldown <= 30


async def test_server_restart(postgres_url: str, postgres: Any) -> None:
    """Without the server a process uses its fair share; afterwards it gets the whole limit again."""
    account = Account.with_limits(Limits(creates=(20, 0.5)), "account")
    window = account.windows["create"]
    async with stores(postgres_url, 2) as (first, second):
        await second.acquire_lease(attrs.evolve(REQUEST, name="account create", wants=0, grace=60.0))
        async with shared(account, first):
            await send(window, 20)
            try:
                await asyncio.to_thread(postgres.stop)
                await wait_for_slots(window, 10)
                await send(window, 20)
            finally:
                await asyncio.to_thread(postgres.start, "restart")
            async with asyncio.timeout(30):
                while slots_of(window) != 20:
                    await send(window, 20)


def slots_of(window: Window) -> int:
    """Return the slots that this process has now."""
    return window.shares[0].limit(asyncio.get_running_loop().time())[0]


async def wait_for_slots(window: Window, slots: int) -> None:
    """Wait until this process has that many slots."""
    async with asyncio.timeout(30):
        while slots_of(window) != slots:  # noqa: ASYNC110 # the lease changes without an event
            await asyncio.sleep(0.01)


async def send(window: Window, count: int) -> None:
    """Send `count` requests at once."""

    async def send_one() -> None:
        async with window.slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())

    await asyncio.gather(*(send_one() for _ in range(count)))


async def test_windows_are_independent(postgres_url: str) -> None:
    """A lease of one window takes no slots from another."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(REQUEST)).slots == 20
        assert (await second.acquire_lease(attrs.evolve(REQUEST, name="another"))).slots == 20


async def test_stores_no_api_key(postgres_url: str) -> None:
    """The database holds a digest, equal for all processes with the same key and address."""
    names: set[str] = set()
    async with stores(postgres_url, 1) as (store,):
        for _ in range(2):
            account = Kie("a-secret-key", limits=Limits(creates=(1, 1.0))).account
            async with shared(account, store):
                pass
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            rows = await (await other.execute("SELECT name FROM sora_chars_leases")).fetchall()
            names |= {row[0] for row in rows}
    assert len(names) == 1
    assert "secret" not in str(names)


async def test_other_ledgers_share_no_limits() -> None:
    """Only a PostgreSQL ledger shares limits."""
    assert open_ledger("memory:").quota_store is None
