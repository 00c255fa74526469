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
from sora_chars.ratelimit.distributed import CapacityRequest, Lease, QuotaClient, shared
from sora_chars.ratelimit.window import Account, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ratelimit.window import Window

COUNT, SECONDS = 12, 10.0
LIMITS = Limits(creates=(COUNT, SECONDS))
GRACE = 21.0  # of a lease of 5 s, an arrival of 5 s, the window and a margin


@attrs.define
class Row:
    """What the database knows of a process."""

    places: int
    wants: int
    until: float
    gone: bool = False


@attrs.define
class Database:
    """The rules of the database, in plain words; `away` is raised by each call, `hangs` answers none."""

    rows: dict[str, Row] = attrs.field(factory=dict[str, Row])
    claims: list[tuple[str, CapacityRequest]] = attrs.field(factory=list[tuple[str, CapacityRequest]])
    away: bool = False
    hangs: bool = False
    paused_until: float = 0.0
    calm_until: float = -1.0
    heard_at: float = 0.0

    def answer(self, owner: str, request: CapacityRequest) -> Lease:
        """Give a part to a process."""
        now = asyncio.get_running_loop().time()
        self.claims.append((owner, request))
        if self.calm_until < now:
            silent = {name for name, row in self.rows.items() if not row.gone and row.until < now}
            if self.heard_at < now - request.lease and silent - {owner}:
                self.calm_until = now + request.lease
            else:
                self.rows = {name: row for name, row in self.rows.items() if row.until >= now}
        self.heard_at = now
        self.paused_until = max(self.paused_until, now + request.cooldown)
        self.rows[owner] = mine = Row(request.has, request.wants, now + request.grace)
        others = sum(row.places for name, row in self.rows.items() if name != owner)
        granted = request.has
        if self.calm_until < now:
            wishes = [row.wants for row in self.rows.values()]
            level = max(
                n for n in range(request.capacity + 1) if sum(min(n, wish) for wish in wishes) <= request.capacity
            )
            granted = max(0, min(request.wants, level, request.capacity - others))
            mine.places = max(request.has, granted)
        names = sorted(name for name, row in self.rows.items() if not row.gone)
        return Lease(granted, names.index(owner), len(names), max(0.0, self.paused_until - now))


@attrs.define(eq=False)
class Door:
    """The database, as one process sees it."""

    database: Database
    owner: str
    way: float = 0.01
    lost: bool = False

    async def _pass(self) -> None:
        await asyncio.sleep(math.inf if self.database.hangs else self.way)
        if self.database.away or self.lost:
            raise LedgerError("The database is away.")

    async def acquire_lease(self, request: CapacityRequest) -> Lease:
        """See `QuotaStore`."""
        await self._pass()
        part = self.database.answer(self.owner, request)
        await self._pass()
        return part

    async def release_lease(self, name: str, has: int, grace: float) -> None:
        """See `QuotaStore`."""
        assert name == "account create"
        await self._pass()
        self.database.rows[self.owner] = Row(has, 0, asyncio.get_running_loop().time() + grace, gone=True)


@attrs.define(eq=False)
class Process:
    """A process of its own, as far as its limits go."""

    account: Account
    door: Door
    arrivals: list[float]

    @property
    def window(self) -> Window:
        """Of its creates."""
        return self.account.windows["create"]

    async def send(self, count: int, *, way: float = 0.1) -> None:
        """Send so many requests at once, each `way` seconds long."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._send(way))

    async def _send(self, way: float) -> None:
        loop = asyncio.get_running_loop()
        async with self.window.slot() as slot:
            slot.mark_sent(loop.time())
            await asyncio.sleep(way / 2)
            self.arrivals.append(loop.time())
            await asyncio.sleep(way / 2)


@attrs.define
class World:
    """Processes, their database and what their provider saw."""

    stack: AsyncExitStack
    database: Database = attrs.field(factory=Database)
    arrivals: list[float] = attrs.field(factory=list[float])

    def process(self, name: str) -> Process:
        """Start a process that does not take part yet."""
        return Process(Account.with_limits(LIMITS, "account"), Door(self.database, name), self.arrivals)

    async def join(self, name: str) -> Process:
        """Start a process that takes part until the world ends."""
        process = self.process(name)
        await self.stack.enter_async_context(shared(process.account, process.door))
        return process

    def most(self) -> int:
        """How many arrivals the fullest window held."""
        return max(sum(start <= other < start + SECONDS for other in self.arrivals) for start in self.arrivals)


@asynccontextmanager
async def world() -> AsyncGenerator[World, None]:
    """Give a world, and end all its processes."""
    async with AsyncExitStack() as stack:
        yield World(stack)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(4))
async def test_processes_together_keep_the_limit(seed: int) -> None:
    """Whoever comes, sends, goes and comes again when, no window holds more than the limit, and all is sent."""
    chance = random.Random(seed)
    async with world() as here:

        async def life(name: str) -> None:
            process = here.process(name)
            for _ in range(2):
                await asyncio.sleep(chance.uniform(0, 30))
                async with shared(process.account, process.door):
                    await process.send(chance.randint(1, 25), way=chance.uniform(0, 4))

        await asyncio.gather(*(life(name) for name in "abcde"))
        assert here.most() <= COUNT
        assert sum(part.has > COUNT for _, part in here.database.claims) == 0


@pytest.mark.looptime
async def test_what_is_idle_falls_to_who_needs_it() -> None:
    """One process uses the whole limit while others are idle; a second busy one gets half soon after it asks."""
    async with world() as here:
        first, second, _ = [await here.join(name) for name in "abc"]
        loop = asyncio.get_running_loop()
        await first.send(2 * COUNT)
        assert 10 < loop.time() < 12
        async with asyncio.TaskGroup() as group:
            group.create_task(first.send(4 * COUNT))
            await asyncio.sleep(5)
            group.create_task(second.send(2))
            await asyncio.sleep(20)
            parts = {name: row.places for name, row in here.database.rows.items()}
            group.create_task(second.send(4 * COUNT))
            await asyncio.sleep(15)
            shared_out = {name: row.places for name, row in here.database.rows.items()}
        assert parts == {"a": COUNT, "b": 0, "c": 0}
        assert shared_out == {"a": COUNT // 2, "b": COUNT // 2, "c": 0}
        assert here.most() <= COUNT


@pytest.mark.looptime
async def test_a_request_within_the_part_asks_nobody() -> None:
    """Only the first requests wait for the database; those after them, and idle processes, hardly trouble it."""
    async with world() as here:
        process = await here.join("a")
        await process.send(COUNT)
        asked = len(here.database.claims)
        assert asked <= 4
        await asyncio.sleep(100)
        assert len(here.database.claims) - asked < 60


@pytest.mark.looptime
@pytest.mark.parametrize("long", [1, 4, 12, 20, 22, 24, 60])
async def test_an_outage_never_makes_more_than_the_limit(long: float, caplog: pytest.LogCaptureFixture) -> None:
    """Before, in, and after an outage of any length no window holds more than the limit, and nobody stands still."""
    chance, loop = random.Random(long), asyncio.get_running_loop()
    async with world() as here:
        processes = [await here.join(name) for name in "abc"]
        async with asyncio.TaskGroup() as group:
            group.create_task(processes[0].send(20))
            await asyncio.sleep(chance.uniform(3, 10))  # else some are not known to all of the others
            here.database.away = True
            for process in processes:
                group.create_task(process.send(30))
            await asyncio.sleep(long)
            sent = len(here.arrivals)
            here.database.away = False
        assert here.most() <= COUNT
        assert len(here.arrivals) == 110
        if long > 50:
            assert sent >= 12 + (long - 25) * COUNT / SECONDS * 0.8
        assert loop.time() - long < 110 / COUNT * SECONDS + 30
    assert long < 6 or "limits.alone" in caplog.messages


@pytest.mark.looptime
async def test_alone_a_process_keeps_to_its_fair_part(caplog: pytest.LogCaptureFixture) -> None:
    """With the database away a process keeps what it has up to its fair part, and gets all of that in the end."""
    caplog.set_level(logging.WARNING)
    async with world() as here:
        busy, idle, _ = [await here.join(name) for name in "abc"]
        await busy.send(COUNT)
        await asyncio.sleep(2.5)  # until all have heard how many they are
        here.database.away = True
        await asyncio.sleep(3)
        limits = [process.window.shares[0].limit(asyncio.get_running_loop().time()) for process in (busy, idle)]
        assert limits == [(COUNT // 3, SECONDS), (0, SECONDS)]
        await asyncio.sleep(GRACE + 4)
        limits = [process.window.shares[0].limit(asyncio.get_running_loop().time()) for process in (busy, idle)]
        assert limits == [(COUNT // 3, SECONDS)] * 2
    alone = [record for record in caplog.records if record.getMessage() == "limits.alone"]
    assert [vars(record)["processes"] for record in alone] == [3, 3, 3]


@pytest.mark.looptime
async def test_more_processes_than_places_take_turns_alone() -> None:
    """Where the fair part is less than one place each has one by turns, so that nobody is left out for good."""
    async with world() as here:
        processes = [await here.join(f"{number:02}") for number in range(2 * COUNT + 1)]
        loop = asyncio.get_running_loop()
        for process in processes:
            member = process.window.shares[0]
            assert isinstance(member, QuotaClient)
            member.clock = loop.time
        await asyncio.sleep(3)
        here.database.away = True
        sendings = [asyncio.create_task(process.send(3)) for process in processes]
        done, left = await asyncio.wait(sendings, timeout=600)
        assert (len(done), left) == (len(processes), set())
        assert here.most() <= COUNT


@pytest.mark.looptime
async def test_a_database_that_hangs_is_away() -> None:
    """A process whose lease ends without any answer sends nothing until it has given the database up."""
    async with world() as here:
        process, loop = await here.join("a"), asyncio.get_running_loop()
        await process.send(1)
        here.database.hangs = True
        await asyncio.sleep(4)
        assert process.window.shares[0].limit(loop.time()) == (1, SECONDS)
        await asyncio.sleep(GRACE + 10)
        assert process.window.shares[0].limit(loop.time()) == (COUNT, SECONDS)
        here.database.hangs = False
        await asyncio.sleep(5)
        assert len(here.database.rows) == 1


@pytest.mark.looptime
async def test_an_old_part_is_none() -> None:
    """A process that was frozen past its lease takes nothing for its own before it has asked again."""
    async with world() as here:
        process = await here.join("a")
        await process.send(COUNT)
        now = asyncio.get_running_loop().time()
        share = process.window.shares[0]
        assert share.limit(now) == (COUNT, SECONDS)
        assert share.limit(now + 5.1) == (0, SECONDS)


@pytest.mark.looptime
async def test_the_places_of_the_dead_come_back() -> None:
    """What a process had that died is free once nothing that it sent can count any more."""
    async with world() as here:
        dead = here.process("dead")
        async with shared(dead.account, dead.door):
            await dead.send(COUNT)
            dead.door.lost = True
        living, loop = await here.join("living"), asyncio.get_running_loop()
        died = loop.time()
        await living.send(COUNT)
        assert died + GRACE - 5 < loop.time() < died + GRACE + 2
        assert here.most() <= COUNT


@pytest.mark.looptime
async def test_what_a_leaver_sent_goes_on_counting() -> None:
    """A process that ends in order gives back at once what it has not used, and the rest when it has cooled."""
    async with world() as here:
        leaver = here.process("leaver")
        async with shared(leaver.account, leaver.door):
            await leaver.send(COUNT)
            await asyncio.sleep(8)
            await leaver.send(2)
            await asyncio.sleep(3)  # the first ones have cooled, and nobody has been told yet
        assert leaver.window.shares == []
        assert here.database.rows["leaver"].gone
        heir, loop = await here.join("heir"), asyncio.get_running_loop()
        left = loop.time()
        await heir.send(COUNT - 2)
        assert loop.time() - left < 1
        await heir.send(2)
        assert 7 < loop.time() - left < 18
        assert here.most() <= COUNT


@pytest.mark.looptime
async def test_a_pause_is_heard_by_all() -> None:
    """A 429 to one process silences the others too, which try again just after it has."""
    async with world() as here:
        refused, other = [await here.join(name) for name in "ab"]
        loop = asyncio.get_running_loop()
        await other.send(1)
        async with refused.window.slot() as slot:
            slot.mark_sent(loop.time())
            refused.account.cooldown.on_429(sent=slot.sent, now=loop.time(), retry_after=30.0)
        until = refused.account.cooldown.until
        await asyncio.sleep(1.5)
        assert until + 0.2 < other.account.cooldown.until < until + 1
        assert other.account.cooldown.consecutive_429s == 1
        await asyncio.sleep(10)
        assert refused.account.cooldown.until == until
        assert until + 0.2 < other.account.cooldown.until < until + 1
        await other.send(1)
        assert loop.time() > until + 0.2


@pytest.mark.looptime
async def test_a_window_is_divided_once() -> None:
    """Of two sessions with one account in one process, one takes part; the second takes over when that one ends."""
    async with world() as here:
        process = here.process("first")
        second = Door(here.database, "second")
        async with AsyncExitStack() as later:
            async with shared(process.account, process.door):
                await later.enter_async_context(shared(process.account, second))
                await process.send(COUNT)
                await asyncio.sleep(2)
                assert {owner for owner, _ in here.database.claims} == {"first"}
            await process.send(1)
            assert {owner for owner, _ in here.database.claims} == {"first", "second"}
        assert process.window.shares == []
        assert here.most() <= COUNT


@pytest.mark.looptime
async def test_who_cannot_ask_at_first_does_not_take_part() -> None:
    """A database that is away at the beginning is an error, and leaves the account as it was."""
    async with world() as here:
        here.database.away = True
        process = here.process("a")
        with pytest.raises(LedgerError, match="away"):
            await here.stack.enter_async_context(shared(process.account, process.door))
        assert process.window.shares == []


@pytest.mark.looptime
async def test_nothing_is_asked_where_nothing_is_shared() -> None:
    """Without an account or a limit there is nothing to divide."""
    async with world() as here:
        process = here.process("a")
        unlimited = Account.with_limits(Limits(), "account")
        async with shared(None, process.door), shared(unlimited, process.door):
            assert process.window.shares == []
        assert here.database.claims == []


def test_other_event_loops_have_their_part() -> None:
    """A request in another thread's loop waits for the part as well, and whoever opened the session asks for it."""
    account, sent = Account.with_limits(LIMITS, "account"), threading.Event()

    async def elsewhere() -> None:
        async with account.windows["create"].slot():
            sent.set()

    async def main() -> None:
        async with shared(account, Door(Database(), "a", way=0.0)):
            await asyncio.to_thread(asyncio.run, elsewhere())

    asyncio.run(main())
    assert sent.is_set()


def test_a_session_that_was_never_closed_does_no_harm() -> None:
    """A loop that ended with a session open in it leaves nobody waiting for a part that no one asks for."""
    account = Account.with_limits(LIMITS, "account")

    async def forget() -> None:
        await AsyncExitStack().enter_async_context(shared(account, Door(Database(), "a", way=0.0)))

    asyncio.run(forget())
    assert account.windows["create"].shares == []


def test_a_loop_that_is_gone_is_not_called() -> None:
    """A need that arises after the session's loop was closed is nobody's."""
    account = Account.with_limits(LIMITS, "account")

    async def member() -> QuotaClient:
        return QuotaClient("account create", account.windows["create"], (COUNT, SECONDS), Door(Database(), "a"))

    left = asyncio.run(member())
    left.window.waiting = 1
    left.notify()
