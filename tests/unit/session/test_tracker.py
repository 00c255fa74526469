from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import LedgerError, MissingCharacterError, SessionClosedError
from sora_chars.ledger import EntryState, Ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.ledger.transitions import end_state
from sora_chars.models import Character, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.session.tracker import TaskTracker
from sora_chars.session.writer import LedgerWriter
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from sora_chars.ledger import Entry
    from sora_chars.ledger.entry import By
    from sora_chars.ledger.notifier import Waiters

pytestmark = pytest.mark.looptime

DONE = TaskSnapshot(task_id="t1", provider="fake", state="success", character=Character(id="ch_1", provider="fake"))
PACE = 5.0
RARE = 30.0


@attrs.define(eq=False)
class House:
    """Entries that several processes share, which of them have died, and whether they hear of each other."""

    entries: MemoryStore = attrs.field(factory=MemoryStore)
    dead: set[str] = attrs.field(factory=set[str])
    waiters: dict[str, Waiters] = attrs.field(factory=dict[str, "Waiters"])


@attrs.define(eq=False)
class Shared:
    """The store of one process. Its next `faults` checks on another process fail; each takes `takes` seconds.

    While it is `blind`, it cannot be read.
    """

    quota_store = None

    house: House
    owner: str
    faults: int = 0
    blind: bool = False
    takes: float = 0.0
    checks: int = 0

    async def open(self, waiters: Waiters) -> None:
        """See `LedgerStore`."""
        self.house.waiters[self.owner] = waiters

    async def aclose(self) -> None:
        """See `LedgerStore`."""
        self.house.dead.add(self.owner)

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        return await self.house.entries.insert(entry)

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """See `LedgerStore`."""
        await asyncio.sleep(self.takes)
        kept = await self.house.entries.replace(before, after)
        for name, waiters in self.house.waiters.items():
            if name != self.owner:
                waiters.wake(after.key, after.version)
        return kept

    async def find(self, by: By, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        if self.blind:
            raise LedgerError("the disk fails")
        return await self.house.entries.find(by, *values)

    async def page(
        self, states: Collection[EntryState], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """See `LedgerStore`."""
        return await self.house.entries.page(states, after=after, newest_first=newest_first, size=size)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`."""
        self.checks += 1
        if self.faults:
            self.faults -= 1
            raise LedgerError("the disk fails")
        return owner in self.house.dead


@attrs.define(eq=False)
class Process:
    """What one process has of a session."""

    store: Shared
    ledger: Ledger
    watcher: TaskWatcher
    tracker: TaskTracker
    provider: FakeProvider


@asynccontextmanager
async def process(house: House, name: str, *, end: float = math.inf, **facts: Any) -> AsyncGenerator[Process, None]:
    """Open one. `end`: the look that shows the end of its tasks."""
    store = Shared(house, name)
    async with Ledger(store) as ledger:
        writer = LedgerWriter(ledger)
        watcher = TaskWatcher(polling=FixedInterval(PACE))
        tracker = TaskTracker(ledger, watcher, (writer.record_result,))
        try:
            yield Process(store, ledger, watcher, tracker, FakeProvider(end=end, **facts))
        finally:
            await tracker.aclose()
            await watcher.aclose()
            await writer.aclose()


@pytest.fixture
def house() -> House:
    """Give entries for processes to share."""
    return House()


async def run(ledger: Ledger, number: int = 1, *, digest: str | None = None, held: bool = True) -> Entry:
    """Put a running task on record."""
    entry = await ledger.register(key=f"k-{number}", provider="fake", kind="character", request={"from_task": "t0"})
    entry = await ledger.transition(entry, EntryState.SENDING, token_digest=digest)
    return await ledger.transition(entry, EntryState.RUNNING, task_id=f"t{number}", claim=held)


async def owner(ledger: Ledger, number: int = 1) -> str | None:
    """Who holds a task."""
    entry = await ledger.get(f"k-{number}")
    assert entry
    return entry.owner


@pytest.mark.parametrize("held", [True, False])
async def test_what_nobody_else_holds_is_polled(house: House, held: bool) -> None:  # noqa: FBT001 # a parameter
    """One's own task, or one that nobody holds, is held and looked at by the pace."""
    async with process(house, "a") as one:
        entry = await run(one.ledger, held=held)
        watch = await one.tracker.join(one.provider, entry)
        await asyncio.sleep(4.5 * PACE)
        assert (watch.polled_elsewhere, len(one.provider.polls), await owner(one.ledger)) == (False, 5, "a")
        one.provider.end = 0
        assert await watch.future == DONE
        assert (await one.ledger.get("k-1")).state is EntryState.SUCCEEDED  # type: ignore[union-attr] # it is there


async def test_an_end_without_a_character_is_recorded(house: House) -> None:
    """Whoever waits hears that the result holds none, and the entry has failed with that result kept."""
    nothing = MissingCharacterError("none", provider="fake", task_id="t1", payload={"a": 1})
    async with process(house, "a", seen=nothing) as one:
        watch = await one.tracker.join(one.provider, await run(one.ledger))
        with pytest.raises(MissingCharacterError):
            await watch.future
        entry = await one.ledger.get("k-1")
        assert entry
        assert (entry.state, entry.result["result"]) == (EntryState.FAILED, {"a": 1})


async def test_a_first_snapshot_spares_the_ledger(house: House) -> None:
    """What has just been submitted is watched without another write; what has ended already is at hand."""
    async with process(house, "a") as one:
        entry = await run(one.ledger)
        new = TaskSnapshot(task_id="t1", provider="fake", state="waiting")
        watch = await one.tracker.join(one.provider, entry, new)
        assert (watch.snapshot, watch.polled_elsewhere) == (new, False)
        assert await one.tracker.join(one.provider, entry) is watch
        assert await one.ledger.get("k-1") == entry


async def test_what_has_ended_is_at_hand(house: House) -> None:
    """An entry that has ended is not looked at again."""
    async with process(house, "a", callback_url="https://me.invalid") as one:
        to, facts = end_state(DONE, "character")
        entry = await one.ledger.transition(await run(one.ledger, digest="d"), to, **facts)
        watch = await one.tracker.join(one.provider, entry)
        assert (watch.future.result(), one.provider.polls) == (DONE, [])


async def test_what_a_living_process_polls_is_looked_at_rarely(house: House) -> None:
    """One's own looks are a backstop for a poller that has come to a stop."""
    async with process(house, "a") as other, process(house, "b") as one:
        watch = await one.tracker.join(one.provider, await run(other.ledger))
        await asyncio.sleep(3.5 * RARE)
        assert (watch.polled_elsewhere, len(one.provider.polls), await owner(one.ledger)) == (True, 3, "a")
        one.provider.end = 0
        assert await watch.future == DONE


async def test_the_ledger_tells_of_the_end(house: House) -> None:
    """As soon as the process that polls a task has recorded its end, those that follow it look."""
    async with process(house, "a", end=0) as other, process(house, "b", end=0) as one:
        entry = await run(other.ledger)
        watch = await one.tracker.join(one.provider, entry)
        assert await one.tracker.join(one.provider, entry) is watch
        assert one.provider.polls == []
        await (await other.tracker.join(other.provider, entry)).future
        assert (await watch.future, one.provider.polls) == (DONE, other.provider.polls)
        assert not one.ledger._waiters.keys


async def test_an_end_just_before_it_is_followed_is_found(house: House) -> None:
    """What the other process recorded after the entry was read here, and before this one listened, is asked for."""
    async with process(house, "a", end=0) as other, process(house, "b", end=0) as one:
        entry = await run(other.ledger)
        await (await other.tracker.join(other.provider, entry)).future
        watch = await one.tracker.join(one.provider, entry)
        assert (await watch.future, one.provider.polls) == (DONE, [0.0])


async def test_a_ledger_that_fails_meanwhile_ends_no_wait(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """When the ledger cannot be asked whether something was missed, the looks now and then still find the end."""
    async with process(house, "a") as other, process(house, "b", end=0) as one:
        entry = await run(other.ledger)
        one.store.blind = True
        watch = await one.tracker.join(one.provider, entry)
        assert "tracker.failed" in caplog.messages
        one.store.blind = False
        assert (await watch.future, one.provider.polls) == (DONE, [RARE])


async def test_a_callback_to_another_process_is_heard_of(house: House) -> None:
    """Who polls a task that expects a callback looks at once when another process has recorded its end."""
    async with process(house, "a") as other, process(house, "b", callback_url="https://me.invalid") as one:
        entry = await run(one.ledger, digest="d")
        watch = await one.tracker.join(one.provider, entry)
        await asyncio.sleep(0.5 * PACE)
        one.provider.end = 0
        to, facts = end_state(DONE, "character")
        await other.ledger.transition(entry, to, **facts)
        before = asyncio.get_running_loop().time()
        assert (await watch.future, asyncio.get_running_loop().time()) == (DONE, before)


async def test_what_a_dead_process_polled_is_taken_over(house: House) -> None:
    """When the owner dies, one of those who follow polls, and the others follow that one."""
    async with process(house, "b") as one, process(house, "c") as two:
        async with process(house, "a") as other:
            entry = await run(other.ledger)
            watches = [await each.tracker.join(each.provider, entry) for each in (one, two)]
            await asyncio.sleep(0.5 * RARE)
            assert one.provider.polls == two.provider.polls == []
        await asyncio.sleep(0.5 * RARE)
        winner, loser = (one, two) if await owner(one.ledger) == "b" else (two, one)
        assert sorted(watch.polled_elsewhere for watch in watches) == [False, True]
        assert len(winner.provider.polls) > len(loser.provider.polls)
        one.provider.end = two.provider.end = 0
        assert [await watch.future for watch in watches] == [DONE, DONE]
        await asyncio.sleep(RARE)
        checks = [each.store.checks for each in (one, two)]
        await asyncio.sleep(RARE)
        assert [each.store.checks for each in (one, two)] == checks  # nobody is followed any more


async def test_the_loser_takes_over_from_the_winner(house: House) -> None:
    """A process that took a task over and died as well is followed in its turn."""
    async with process(house, "c") as two:
        async with process(house, "b") as one:
            async with process(house, "a") as other:
                entry = await run(other.ledger)
                watch = await two.tracker.join(two.provider, entry)
            await one.ledger.transition(entry, EntryState.RUNNING)
            await asyncio.sleep(5.0)
            assert (watch.polled_elsewhere, await owner(two.ledger)) == (True, "b")
        await asyncio.sleep(5.0)
        assert (watch.polled_elsewhere, await owner(two.ledger)) == (False, "c")


async def test_a_task_that_dies_with_nobody_there_is_taken_over_on_joining(house: House) -> None:
    """Whoever joins a task whose owner has died holds it, or polled_elsewhere whoever was faster."""
    async with process(house, "b") as one, process(house, "c") as two:
        async with process(house, "a") as other:
            entry = await run(other.ledger)
        one.store.takes = two.store.takes = 1.0
        watches = await asyncio.gather(*(each.tracker.join(each.provider, entry) for each in (one, two)))
        assert [watch.polled_elsewhere for watch in watches] == [False, True]
        assert await owner(one.ledger) == "b"


async def test_what_a_person_gave_up_is_polled_by_the_pace(house: House) -> None:
    """An entry that ended otherwise than the provider says is held by nobody, and its waiters look themselves."""
    async with process(house, "b") as one:
        async with process(house, "a") as other:
            entry = await run(other.ledger)
            watch = await one.tracker.join(one.provider, entry)
            failed = TaskSnapshot(task_id="t1", provider="fake", state="fail")
            to, facts = end_state(failed, "character")
            await other.ledger.transition(entry, to, **facts)
        await asyncio.sleep(20 * PACE)
        assert (watch.polled_elsewhere, watch.future.done()) == (False, False)
        assert 20 <= len(one.provider.polls) < 40  # by the pace, with some more at first
        one.provider.end = 0
        assert await watch.future == DONE


async def test_what_ends_while_it_is_taken_over(house: House) -> None:
    """Of many tasks that are taken over one after another, those that end meanwhile are left alone."""
    async with process(house, "b") as one:
        async with process(house, "a") as other:
            entries = [await run(other.ledger, number) for number in (1, 2)]
            watches = [await one.tracker.join(one.provider, entry) for entry in entries]
            one.store.takes = 5.0
        await asyncio.sleep(3.0)  # the first is being taken over
        watches[1].end(DONE)
        one.provider.end = 0
        assert await watches[0].future == DONE
        assert await owner(one.ledger, 2) == "a"


async def test_what_ends_while_somebody_else_takes_it_over(house: House) -> None:
    """A task that ends just while another process takes it over is followed no more."""
    async with process(house, "b") as one, process(house, "c") as two:
        async with process(house, "a") as other:
            entry = await run(other.ledger)
            watch = await one.tracker.join(one.provider, entry)
            one.store.takes = 5.0
        await asyncio.sleep(2.0)  # it is being taken over
        await two.ledger.transition(entry, EntryState.RUNNING)
        watch.end(DONE)
        await asyncio.sleep(10.0)
        assert await owner(one.ledger) == "c"
        assert one.tracker._owner_checks
        assert one.tracker._owner_checks.done()


async def test_a_round_outlives_a_fault(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the ledger is logged, and the next round takes over all the same."""
    async with process(house, "b") as one:
        async with process(house, "a") as other:
            watch = await one.tracker.join(one.provider, await run(other.ledger))
            one.store.faults = 2
        await asyncio.sleep(5.0)
        assert [record.message for record in caplog.records] == ["tracker.failed"] * 2
        assert (watch.polled_elsewhere, await owner(one.ledger)) == (False, "b")


async def test_joining_outlives_a_fault(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A task on record is waited for also when nobody can say who holds it, and is held by the next round."""
    async with process(house, "b") as one:
        async with process(house, "a") as other:
            entry = await run(other.ledger)
        one.store.faults = 1
        watch = await one.tracker.join(one.provider, entry)
        assert watch.polled_elsewhere
        await asyncio.sleep(2.0)
        assert [record.message for record in caplog.records] == ["tracker.failed"]
        assert (watch.polled_elsewhere, await owner(one.ledger)) == (False, "b")


async def test_nobody_joins_what_was_closed_meanwhile(house: House) -> None:
    """A wait that is asked for while the session closes is refused: nothing would ever end it."""
    async with process(house, "a") as other, process(house, "b") as one:
        entry = await run(other.ledger)
        joining = asyncio.create_task(one.tracker.join(one.provider, entry))
        await one.tracker.aclose()
        with pytest.raises(SessionClosedError, match="before the task of key k-1 could be watched"):
            await joining
        assert one.watcher._pollers == {}


async def test_following_begins_again(house: House) -> None:
    """After everybody followed has ended, the next one is followed as well."""
    async with process(house, "b") as one:
        async with process(house, "a") as other:
            first = await one.tracker.join(one.provider, await run(other.ledger))
            one.provider.end = 0
            await first.future
            await asyncio.sleep(5.0)
            second = await one.tracker.join(one.provider, await run(other.ledger, 2))
        await second.future
        assert len(one.provider.polls) == 2
