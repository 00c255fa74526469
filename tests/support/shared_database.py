"""Several processes in one event loop, with ledgers on one database that lasts as long as the test."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import LedgerError
from sora_chars.ledger import EntryState, Ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import Character, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.session.tracker import TaskTracker
from sora_chars.session.writer import LedgerWriter
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from sora_chars.ledger import Attempt, Entry
    from sora_chars.ledger.entry import Lookup
    from sora_chars.ledger.notifier import ChangeNotifier

DONE = TaskSnapshot(task_id="t1", provider="fake", state="success", character=Character(id="ch_1", provider="fake"))
INTERVAL = 5.0
FALLBACK_INTERVAL = 30.0


@attrs.define(eq=False)
class Database:
    """Entries that several processes share, the dead among these, and their notifiers."""

    entries: MemoryStore = attrs.field(factory=MemoryStore)
    dead: set[str] = attrs.field(factory=set)
    notifiers: dict[str, ChangeNotifier] = attrs.field(factory=dict)


@attrs.define(eq=False)
class ProcessStore:
    """Store of one process.

    Attributes:
        faults: Number of next owner checks that fail.
        unreadable: Whether entries cannot be read.
        takes: Seconds that each update takes.
        checks: Owner checks so far.
    """

    quota_store = None

    database: Database
    owner: str
    faults: int = 0
    unreadable: bool = False
    takes: float = 0.0
    checks: int = 0

    async def open(self, notifier: ChangeNotifier) -> None:
        """See `LedgerStore`."""
        self.database.notifiers[self.owner] = notifier

    async def aclose(self) -> None:
        """See `LedgerStore`."""
        self.database.dead.add(self.owner)

    def abandon(self) -> None:
        """See `LedgerStore`."""

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        return await self.database.entries.insert(entry)

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        await asyncio.sleep(self.takes)
        kept = await self.database.entries.replace(before, after, archive=archive)
        for name, notifier in self.database.notifiers.items():
            if name != self.owner:
                notifier.notify(after.key, after.version)
        return kept

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """See `LedgerStore`."""
        return await self.database.entries.all_by_task(provider, task_id)

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """See `LedgerStore`."""
        return await self.database.entries.attempts(keys)

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        if self.unreadable:
            raise LedgerError("the disk fails")
        return await self.database.entries.find(by, *values)

    async def page(
        self,
        states: Collection[EntryState],
        *,
        query: str | None = None,
        after: int | None,
        newest_first: bool,
        size: int,
    ) -> Sequence[tuple[int, Entry]]:
        """See `LedgerStore`."""
        return await self.database.entries.page(states, query=query, after=after, newest_first=newest_first, size=size)

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """See `LedgerStore`."""
        return await self.database.entries.idle_page(before, after=after, size=size)

    async def prune(self, before: float, *, size: int) -> int:
        """See `LedgerStore`."""
        return await self.database.entries.prune(before, size=size)

    async def count_old(self, before: float) -> int:
        """See `LedgerStore`."""
        return await self.database.entries.count_old(before)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`."""
        self.checks += 1
        if self.faults:
            self.faults -= 1
            raise LedgerError("the disk fails")
        return owner in self.database.dead


@attrs.define(eq=False)
class Process:
    """The parts of one process's session."""

    store: ProcessStore
    ledger: Ledger
    watcher: TaskWatcher
    tracker: TaskTracker
    provider: FakeProvider


@asynccontextmanager
async def start_process(
    database: Database, name: str, *, end: float = math.inf, **facts: Any
) -> AsyncGenerator[Process, None]:
    """Start a process; `end` is the number of the poll that finds its tasks finished."""
    store = ProcessStore(database, name)
    async with Ledger(store) as ledger:
        writer = LedgerWriter(ledger)
        watcher = TaskWatcher(polling=FixedInterval(INTERVAL))
        tracker = TaskTracker(ledger, watcher, (writer.record_result,))
        try:
            yield Process(store, ledger, watcher, tracker, FakeProvider(end=end, **facts))
        finally:
            await tracker.aclose()
            await watcher.aclose()
            await writer.aclose()


async def record_running(ledger: Ledger, number: int = 1, *, digest: str | None = None, claimed: bool = True) -> Entry:
    """Record a running task."""
    entry = await ledger.register(key=f"k-{number}", provider="fake", kind="character", request={"from_task": "t0"})
    entry = await ledger.transition(entry, EntryState.SENDING, token_digest=digest)
    return await ledger.transition(entry, EntryState.RUNNING, task_id=f"t{number}", claim=claimed)


async def owner_of(ledger: Ledger, number: int = 1) -> str | None:
    """Return the owner of a task."""
    entry = await ledger.get(f"k-{number}")
    assert entry
    return entry.owner
