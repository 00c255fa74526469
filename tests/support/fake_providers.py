"""Scripted providers, a polling strategy and a faulty ledger store, for tests in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import LedgerError, MissingCharacterError, NoAnswerError, RequestRejectedError
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import Character, CharacterRequest, TaskFailure, TaskSnapshot
from sora_chars.protocols import PollingStrategy, Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.ledger import Attempt, Entry, EntryState
    from sora_chars.ledger.entry import Lookup
    from sora_chars.models import Request
    from sora_chars.ratelimit.accounts import Account
    from sora_chars.ratelimit.window import Window
    from sora_chars.session.session import CharacterSession


def now() -> float:
    """Return the time of the running event loop."""
    return asyncio.get_running_loop().time()


@attrs.define(eq=False)
class FakeProvider(Provider):
    """Provider of one kind of response, with configurable delays and faults.

    Attributes:
        problems: What `check` reports for any request.
        synchronous: Whether tasks end with their response.
        callback_url: See `Provider`.
        before: Seconds before a request is sent.
        after: Seconds from sending a request to its response.
        early: Raised before the request is sent.
        fault: Raised in place of the response.
        end: Number of the poll that finds the task finished.
        seen: Returned or raised by each poll, regardless of `end`.
        posts: Callback URLs of the requests sent.
        polls: Loop times of the polls.
    """

    name: str = "fake"
    problems: Sequence[str] = ()
    synchronous: bool = False
    callback_url: str | None = None
    before: float = 10.0
    after: float = 10.0
    early: Exception | None = None
    fault: Exception | None = None
    end: float = 1
    seen: TaskSnapshot | Exception | None = None
    posts: list[str] = attrs.field(factory=list)
    polls: list[float] = attrs.field(factory=list)

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider`."""
        del request
        return self.problems

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        del request, key
        await asyncio.sleep(self.before)
        if self.early:
            raise self.early
        async with on_send():
            self.posts.append(callback_url or "")
            task_id = f"t{len(self.posts)}"
            await asyncio.sleep(self.after)
            if self.fault:
                raise self.fault
        return self.snapshot(task_id, "success" if self.synchronous else "waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        self.polls.append(now())
        await asyncio.sleep(0)
        if isinstance(self.seen, Exception):
            raise self.seen
        return self.seen or self.snapshot(task_id, "success" if len(self.polls) >= self.end else "generating")

    def snapshot(self, task_id: str = "t1", state: str = "success", **facts: Any) -> TaskSnapshot:
        """Return a snapshot, with a character if the task succeeded."""
        made = Character(id="ch_1", provider=self.name) if state == "success" else None
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state, character=made, **facts)


@attrs.define(eq=False)
class BatchProvider(Provider):
    """Provider whose requests state how their tasks end.

    It responds to a create after 1 s. `from_task` of a request, such as "fails 20", states
    how the task ends and how many seconds after the response.

    Attributes:
        account: The account whose limits the provider reports.
        window: Window that each create acquires a slot of.
        rejection: Raised for each create.
        credits: Cost of each task that ends.
        posts: Keys of the requests sent.
        sending: Number of creates without a response.
        running: Number of tasks that have not ended.
        peaks: Highest values of `sending` and `running`.
    """

    name: str = "fake"
    synchronous: bool = False
    callback_url: str | None = None
    account: Account | None = None
    window: Window | None = None
    rejection: Exception | None = None
    credits: float | None = 2.0
    posts: list[str] = attrs.field(factory=list)
    sending: int = 0
    running: int = 0
    peaks: Counter[str] = attrs.field(factory=Counter)
    _ends: dict[str, tuple[str, float]] = attrs.field(factory=dict)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        del key, callback_url
        if self.window:
            async with self.window.slot() as slot:
                slot.mark_sent(asyncio.get_running_loop().time())
                return await self._create(request, on_send)
        return await self._create(request, on_send)

    async def _create(self, request: Request, on_send: Callable[[], AbstractAsyncContextManager[None]]) -> TaskSnapshot:
        ending, _, seconds = parse_script(request)
        async with on_send():
            self.posts.append(str(request.key))
            self.sending += 1
            self.peaks["sending"] = max(self.sending, self.peaks["sending"])
            await asyncio.sleep(1)
            self.sending -= 1
            if self.rejection:
                raise self.rejection
            if ending == "rejected":
                raise RequestRejectedError("no cats", provider=self.name)
            if ending == "lost":
                raise NoAnswerError("reset by peer")
            if ending == "bug":
                raise ZeroDivisionError(ending)
        task_id = f"task of {request.key}"
        if self.synchronous:
            return self.snapshot(task_id, "success")
        loop = asyncio.get_running_loop()
        self._ends[task_id] = ending, loop.time() + float(seconds or 0)
        self.running += 1
        self.peaks["running"] = max(self.running, self.peaks["running"])
        loop.call_at(self._ends[task_id][1], self._count_ended)
        return self.snapshot(task_id, "waiting")

    def _count_ended(self) -> None:
        self.running -= 1

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        ending, end = self._ends[task_id]
        if asyncio.get_running_loop().time() < end:
            return self.snapshot(task_id, "generating")
        if ending == "missing":
            raise MissingCharacterError("no id", provider=self.name, task_id=task_id)
        return self.snapshot(task_id, "fail" if ending == "fails" else "success")

    def snapshot(self, task_id: str, state: str) -> TaskSnapshot:
        """Return a snapshot of a task in that state."""
        return TaskSnapshot(
            task_id=task_id,
            provider=self.name,
            state=state,
            character=Character(id=f"made by {task_id}", provider=self.name) if state == "success" else None,
            failure=TaskFailure("500", "too dark") if state == "fail" else None,
            credits=self.credits if state in {"success", "fail"} else None,
        )


def make_request(script: str = "ends 10", **fields: Any) -> CharacterRequest:
    """Return a request to a `BatchProvider`, whose task ends as the script states."""
    return CharacterRequest(from_task=script.replace(" ", "-"), **fields)


def parse_script(request: Request) -> tuple[str, str, str]:
    """Return how the task of a request ends, a dash, and after how many seconds."""
    return (request.from_task or "").partition("-") if isinstance(request, CharacterRequest) else ("ends", "-", "10")


@attrs.define(eq=False)
class PolledProvider(Provider):
    """Provider that is only polled.

    Attributes:
        answer: Maps the loop time of a poll to what it returns or raises.
        takes: Seconds that each poll takes.
        polls: Loop times at which the polls began.
    """

    answer: Callable[[float], TaskSnapshot | BaseException]
    takes: float = 0.0
    name: str = "fake"
    polls: list[float] = attrs.field(factory=list)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        raise NotImplementedError

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        self.polls.append(round(now(), 3))
        result = self.answer(now())
        await asyncio.sleep(self.takes)
        if isinstance(result, BaseException):
            raise result
        return attrs.evolve(result, task_id=task_id)


def script(*steps: TaskSnapshot | BaseException) -> Callable[[float], TaskSnapshot | BaseException]:
    """Return an `answer` that takes one step per poll and repeats the last."""
    remaining = iter(steps)
    return lambda _: next(remaining, steps[-1])


@attrs.define(eq=False)
class RecordingInterval(PollingStrategy):
    """Polls every 10 s and records the age of the task at each poll."""

    ages: list[float] = attrs.field(factory=list)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy`."""
        del snapshot
        self.ages.append(round(age, 3))
        return 10.0


@attrs.define(eq=False)
class FaultyStore(MemoryStore):
    """Memory store with configurable faults.

    Attributes:
        full: States whose entries cannot be written.
        mute: States whose entries are written, but whose write raises.
        slow: Seconds that inserting an entry takes.
        bug: Raised in place of `LedgerError`.
        away: Whether entries cannot be read.
        others_live: Whether owners other than this process are alive; with None the
            check fails.
    """

    full: set[EntryState] = attrs.field(factory=set)
    mute: set[EntryState] = attrs.field(factory=set)
    slow: float = 0.0
    bug: Exception | None = None
    away: bool = False
    others_live: bool | None = True

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        await asyncio.sleep(self.slow)
        self._check(self.full, entry)
        return await super().insert(entry)

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        self._check(self.full, after)
        kept = await super().replace(before, after, archive=archive)
        self._check(self.mute, after)
        return kept

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        if self.away:
            raise LedgerError("The database is unavailable.")
        return await super().find(by, *values)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`."""
        del owner
        if self.others_live is None:
            raise LedgerError("The disk fails.")
        return not self.others_live

    def _check(self, states: set[EntryState], entry: Entry) -> None:
        if entry.state in states:
            raise self.bug or LedgerError("The disk is full.", hint="Empty it.")

    async def elsewhere(self, key: str, to: EntryState, **facts: Any) -> None:
        """Change the state of an entry as another process would."""
        entry = await self.find("key", key)
        assert entry
        await super().replace(entry, entry.transitioned(to, at=0.0, owner="another process", **facts))


async def entry_of(session: CharacterSession, key: str = "mine") -> Entry:
    """Return the entry of a key."""
    entry = await session.entry(key)
    assert entry
    return entry


async def state_of(session: CharacterSession, key: str = "mine") -> EntryState:
    """Return the state of a key's entry."""
    return (await entry_of(session, key)).state
