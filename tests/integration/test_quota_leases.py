"""How a PostgreSQL database divides a limit: by its own clock, and never more than there is."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest

from sora_chars import Kie, Ledger, Limits, open_ledger
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ratelimit.distributed import CapacityRequest, shared
from sora_chars.ratelimit.window import Account

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ratelimit.distributed import Lease
    from sora_chars.ratelimit.window import Window

REQUEST = CapacityRequest(name="n", capacity=20, wants=20, has=0, lease=10.0, grace=20.0, rotation=1e9, cooldown=0.0)


@asynccontextmanager
async def stores(url: str, count: int) -> AsyncGenerator[list[PostgresStore]]:
    """Give the stores of some processes, in the order of their owners' names."""
    async with AsyncExitStack() as stack:
        opened = [PostgresStore(url) for _ in range(count)]
        for store in opened:
            await stack.enter_async_context(Ledger(store))
        yield sorted(opened, key=lambda store: store.owner)


@attrs.define
class Busy:
    """A process that keeps what it got, as far as it does not count less at its next asking."""

    store: PostgresStore
    part: int = 0

    async def ask(self, **changes: Any) -> Lease:
        """Ask again, holding what there is."""
        part = await self.store.acquire_lease(attrs.evolve(REQUEST, has=self.part, **changes))
        self.part = part.slots
        return part


async def rounds(processes: list[Busy], *, wanted: list[int], capacity: int = 20, times: int = 3) -> list[int]:
    """Let all ask by turns, and return what each has then."""
    for _ in range(times):
        for process, want in zip(processes, wanted, strict=True):
            await process.ask(wants=want, capacity=capacity)
    return [process.part for process in processes]


@pytest.mark.parametrize(
    ("wants", "parts"),
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
async def test_each_gets_what_it_needs_or_as_much_as_the_others(
    wants: list[int], parts: list[int], postgres_url: str
) -> None:
    """Small wishes are granted, and the rest is divided equally between those who want more."""
    async with stores(postgres_url, len(wants)) as opened:
        got = await rounds([Busy(store) for store in opened], wanted=wants)
        assert sorted(got) == sorted(parts)
        assert sum(got) == min(20, sum(wants))


async def test_nobody_gets_what_another_one_holds(postgres_url: str) -> None:
    """Who wants a part waits until those who have too much say that they hold less."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(REQUEST)).slots == 20
        assert (await second.acquire_lease(REQUEST)).slots == 0
        assert (await first.acquire_lease(attrs.evolve(REQUEST, has=20))).slots == 10
        assert (await second.acquire_lease(REQUEST)).slots == 0
        await first.acquire_lease(attrs.evolve(REQUEST, has=13))
        assert (await second.acquire_lease(REQUEST)).slots == 7


async def test_an_answer_that_was_lost_takes_nothing_away(postgres_url: str) -> None:
    """The same question twice gets the same answer, and what was said to be held is held all the same."""
    async with stores(postgres_url, 2) as (first, second):
        await second.acquire_lease(attrs.evolve(REQUEST, wants=5))
        request = attrs.evolve(REQUEST, wants=1, has=15)
        assert await first.acquire_lease(request) == await first.acquire_lease(request)
        assert (await second.acquire_lease(REQUEST)).slots == 5


async def test_all_ask_at_once(postgres_url: str) -> None:
    """Many processes that ask at the same moment get no more than there is, together."""
    async with stores(postgres_url, 8) as opened:
        parts = await asyncio.gather(*(store.acquire_lease(REQUEST) for store in opened))
        assert sum(part.slots for part in parts) == 20


async def test_more_processes_than_places_take_turns(postgres_url: str) -> None:
    """What cannot be divided goes round, so that each has had a place after some turns."""
    async with stores(postgres_url, 5) as opened:
        processes, had = [Busy(store) for store in opened], set[int]()
        async with asyncio.timeout(20):
            while len(had) < 5:
                for number, process in enumerate(processes):
                    await process.ask(wants=2, capacity=2, rotation=0.1)
                    if process.part:
                        had.add(number)
                assert sum(process.part for process in processes) <= 2


async def test_the_dead_and_the_gone_give_back(postgres_url: str) -> None:
    """The places of a process that left, and of one that went silent, are free when its own time is over."""
    async with stores(postgres_url, 3) as (dead, gone, other):
        await dead.acquire_lease(attrs.evolve(REQUEST, wants=8, grace=1.0))
        await gone.acquire_lease(attrs.evolve(REQUEST, wants=8))
        for _ in range(2):  # as when the first answer was lost
            await gone.release_lease("n", 4, 1.0)
        part = await other.acquire_lease(REQUEST)
        assert (part.slots, part.processes) == (8, 2)
        async with asyncio.timeout(10):
            while (part := await other.acquire_lease(attrs.evolve(REQUEST, has=8))).slots < 20:
                pass
        assert part.processes == 1


async def clock_set(url: str, hours: float) -> None:
    """Set the database's clock forward, as far as what it keeps can tell: all of that is so much earlier."""
    async with await psycopg.AsyncConnection.connect(url) as owner:
        for table, columns in (
            ("limits", ("cooldown_until", "calm_until", "last_seen_at")),
            ("leases", ("expires_at",)),
        ):
            changes = ", ".join(f"{column} = {column} - make_interval(secs => {hours * 3600})" for column in columns)
            await owner.execute(f"UPDATE sora_chars_{table} SET {changes}".encode())


async def test_after_an_outage_nobody_grows_at_first(postgres_url: str) -> None:
    """When all leases and graces ran out, all keep what they say they use until the last one must be back."""
    async with stores(postgres_url, 3) as (first, second, new):
        for store in (first, second):
            await store.acquire_lease(REQUEST)
        await clock_set(postgres_url, hours=1)  # as if nobody had been heard for so long
        request = attrs.evolve(REQUEST, lease=1.0)
        part = await new.acquire_lease(request)
        assert (part.slots, part.processes) == (0, 3)
        for store in (first, second):
            assert (await store.acquire_lease(attrs.evolve(request, has=9))).slots == 9
        assert (await new.acquire_lease(request)).slots == 0
        await asyncio.sleep(1)  # the database's clock has no event to wait for
        assert (await new.acquire_lease(request)).slots == 2
        assert (await first.acquire_lease(attrs.evolve(request, has=9))).slots < 9


async def test_a_clock_set_forward_makes_nobody_grow_who_was_not_heard(postgres_url: str) -> None:
    """Where the lives of some seem over and those of others do not, those who live keep their parts all the same."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(attrs.evolve(REQUEST, grace=2000.0, wants=12))).slots == 12
        assert (await second.acquire_lease(REQUEST)).slots == 8
        await clock_set(postgres_url, hours=0.5)
        for _ in range(2):
            assert (await first.acquire_lease(attrs.evolve(REQUEST, has=12))).slots == 12
            assert (await second.acquire_lease(attrs.evolve(REQUEST, has=8))).slots == 8


async def test_a_clock_set_back_takes_along_what_is_stored(postgres_url: str) -> None:
    """No pause, calm or part lasts longer for it."""
    async with stores(postgres_url, 3) as (dead, gone, living):
        await dead.acquire_lease(attrs.evolve(REQUEST, wants=8, grace=1.0, cooldown=30.0))
        await clock_set(postgres_url, hours=1)
        request = attrs.evolve(REQUEST, lease=1.0, grace=1.0)
        await gone.acquire_lease(attrs.evolve(request, wants=8, cooldown=30.0))  # which waits for the dead one
        await gone.release_lease("n", 4, 1.0)
        await clock_set(postgres_url, hours=-3)
        assert 25 < (await living.acquire_lease(request)).cooldown <= 30
        async with asyncio.timeout(10):
            while (part := await living.acquire_lease(request)).slots < 20:
                pass
        assert part.processes == 1


async def test_one_process_alone_goes_on_at_once(postgres_url: str) -> None:
    """A process that was frozen past its own time, and is the only one, waits for nobody."""
    async with stores(postgres_url, 1) as (only,):
        await only.acquire_lease(REQUEST)
        await clock_set(postgres_url, hours=1)
        assert (await only.acquire_lease(REQUEST)).slots == 20


async def test_a_pause_is_told_to_all(postgres_url: str) -> None:
    """The longest pause that any process told of is everybody's, and counts down."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await second.acquire_lease(REQUEST)).cooldown == 0
        assert 29 < (await first.acquire_lease(attrs.evolve(REQUEST, cooldown=30.0))).cooldown <= 30
        assert 5 < (await second.acquire_lease(attrs.evolve(REQUEST, cooldown=5.0))).cooldown <= 30


async def test_a_server_that_stops_and_comes_back(postgres_url: str, postgres: Any) -> None:
    """With the server down a process is content with its fair part, and divides the limit again when it is up."""
    account = Account.with_limits(Limits(creates=(20, 0.5)), "account")
    window = account.windows["create"]
    async with stores(postgres_url, 2) as (first, second):
        await second.acquire_lease(attrs.evolve(REQUEST, name="account create", wants=0, grace=60.0))
        async with shared(account, first):
            await use(window, 20)
            try:
                await asyncio.to_thread(postgres.stop)
                await part_is(window, 10)
                await use(window, 20)
            finally:
                await asyncio.to_thread(postgres.start, "restart")
            async with asyncio.timeout(30):
                while part(window) != 20:
                    await use(window, 20)


def part(window: Window) -> int:
    """How much of the limit this process has now."""
    return window.shares[0].limit(asyncio.get_running_loop().time())[0]


async def part_is(window: Window, places: int) -> None:
    """Wait until it has so much."""
    async with asyncio.timeout(30):
        while part(window) != places:  # noqa: ASYNC110 # it asks by itself
            await asyncio.sleep(0.01)


async def use(window: Window, count: int) -> None:
    """Send so many at once."""

    async def send() -> None:
        async with window.slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())

    await asyncio.gather(*(send() for _ in range(count)))


async def test_accounts_and_kinds_are_apart(postgres_url: str) -> None:
    """What one window has is not taken from another one."""
    async with stores(postgres_url, 2) as (first, second):
        assert (await first.acquire_lease(REQUEST)).slots == 20
        assert (await second.acquire_lease(attrs.evolve(REQUEST, name="another"))).slots == 20


async def test_no_key_is_stored(postgres_url: str) -> None:
    """The database sees a digest of the account, and it is the same for all who have the same key and address."""
    names = set[str]()
    async with stores(postgres_url, 1) as (store,):
        for _ in range(2):
            account = Kie("a-secret-key-of-somebody", limits=Limits(creates=(1, 1.0))).account
            async with shared(account, store):
                pass
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            rows = await (await other.execute("SELECT name FROM sora_chars_leases")).fetchall()
            names |= {row[0] for row in rows}
    assert len(names) == 1
    assert "secret" not in str(names)


async def test_other_ledgers_divide_nothing() -> None:
    """Only a PostgreSQL ledger shares limits."""
    assert open_ledger("memory:").quota_store is None
