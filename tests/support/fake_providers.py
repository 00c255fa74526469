"""Providers, a pace and a ledger's store that do as a test bids them, for tests in virtual time."""

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

    from sora_chars.ledger import Entry, EntryState
    from sora_chars.ledger.entry import By
    from sora_chars.models import Request
    from sora_chars.ratelimit.window import Account, Window
    from sora_chars.session.session import CharacterSession


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


@attrs.define(eq=False)
class FakeProvider(Provider):
    """A provider that sends after `before` seconds and answers `after` more; its tasks end at the `end`-th look.

    `problems`: what it has against any request. `early`: what a request meets before it is sent. `fault`: what the
    answer is. `seen`: what looks meet, whatever `end` says. `posts`: the callback URLs of what was sent.
    `looks`: when they came.
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
    posts: list[str] = attrs.field(factory=list[str])
    polls: list[float] = attrs.field(factory=list[float])

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider`."""
        del request
        return self.problems

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        del request
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
        """A task, with its character where it has succeeded."""
        made = Character(id="ch_1", provider=self.name) if state == "success" else None
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state, character=made, **facts)


@attrs.define(eq=False)
class BatchProvider(Provider):
    """Answers a create after 1 s. The wish, as "fails 20", says how many seconds later the task ends, and how.

    `rejection`: what each create meets; `account`: whose limits it says that it keeps.
    """

    name: str = "fake"
    synchronous: bool = False
    callback_url: str | None = None
    account: Account | None = None
    window: Window | None = None
    rejection: Exception | None = None
    credits: float | None = 2.0
    posts: list[str] = attrs.field(factory=list[str])
    sending: int = 0
    running: int = 0
    peaks: Counter[str] = attrs.field(factory=Counter[str])
    _ends: dict[str, tuple[str, float]] = attrs.field(factory=dict[str, "tuple[str, float]"])

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        del callback_url
        if self.window:
            async with self.window.slot() as slot:
                slot.mark_sent(asyncio.get_running_loop().time())
                return await self._make(request, on_send)
        return await self._make(request, on_send)

    async def _make(self, request: Request, on_send: Callable[[], AbstractAsyncContextManager[None]]) -> TaskSnapshot:
        how, _, seconds = words(request)
        async with on_send():
            self.posts.append(str(request.key))
            self.sending += 1
            self.peaks["sending"] = max(self.sending, self.peaks["sending"])
            await asyncio.sleep(1)
            self.sending -= 1
            if self.rejection:
                raise self.rejection
            if how == "rejected":
                raise RequestRejectedError("no cats", provider=self.name)
            if how == "lost":
                raise NoAnswerError("reset by peer")
            if how == "bug":
                raise ZeroDivisionError(how)
        task_id = f"task of {request.key}"
        if self.synchronous:
            return self.snapshot(task_id, "success")
        loop = asyncio.get_running_loop()
        self._ends[task_id] = how, loop.time() + float(seconds or 0)
        self.running += 1
        self.peaks["running"] = max(self.running, self.peaks["running"])
        loop.call_at(self._ends[task_id][1], self._end)
        return self.snapshot(task_id, "waiting")

    def _end(self) -> None:
        self.running -= 1

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        how, end = self._ends[task_id]
        if asyncio.get_running_loop().time() < end:
            return self.snapshot(task_id, "generating")
        if how == "missing":
            raise MissingCharacterError("no id", provider=self.name, task_id=task_id)
        return self.snapshot(task_id, "fail" if how == "fails" else "success")

    def snapshot(self, task_id: str, state: str) -> TaskSnapshot:
        """A task as it is shown."""
        return TaskSnapshot(
            task_id=task_id,
            provider=self.name,
            state=state,
            character=Character(id=f"made by {task_id}", provider=self.name) if state == "success" else None,
            failure=TaskFailure("500", "too dark") if state == "fail" else None,
            credits=self.credits if state in {"success", "fail"} else None,
        )


def make_request(how: str = "ends 10", **fields: Any) -> CharacterRequest:
    """A request to a `BatchProvider` for a task that ends as told."""
    return CharacterRequest(from_task=how, **fields)


def words(request: Request) -> tuple[str, str, str]:
    """How a request's task ends, and when."""
    return (request.from_task or "").partition(" ") if isinstance(request, CharacterRequest) else ("ends", " ", "10")


@attrs.define(eq=False)
class PolledProvider(Provider):
    """A provider with nothing but looks: each takes `takes` seconds, and meets what `answer` says for the loop's time.

    `looks`: when they began.
    """

    answer: Callable[[float], TaskSnapshot | BaseException]
    takes: float = 0.0
    name: str = "fake"
    polls: list[float] = attrs.field(factory=list[float])

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        raise NotImplementedError

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        self.polls.append(round(now(), 3))
        met = self.answer(now())
        await asyncio.sleep(self.takes)
        if isinstance(met, BaseException):
            raise met
        return attrs.evolve(met, task_id=task_id)


def script(*steps: TaskSnapshot | BaseException) -> Callable[[float], TaskSnapshot | BaseException]:
    """An `answer` that is one step after another, the last one for ever."""
    left = iter(steps)
    return lambda _: next(left, steps[-1])


@attrs.define(eq=False)
class RecordingInterval(PollingStrategy):
    """A look every 10 s, at whatever age; it notes the ages."""

    ages: list[float] = attrs.field(factory=list[float])

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy`."""
        del snapshot
        self.ages.append(round(age, 3))
        return 10.0


@attrs.define(eq=False)
class FaultyStore(MemoryStore):
    """A store that cannot write the states in `full`, and writes those in `mute` without saying so.

    `slow`: seconds that a new key takes. `bug`: raised in place of `LedgerError`. `away`: whether it cannot be read.
    `others_live`: whether owners other than this process do; None if nobody can say.
    """

    full: set[EntryState] = attrs.field(factory=set["EntryState"])
    mute: set[EntryState] = attrs.field(factory=set["EntryState"])
    slow: float = 0.0
    bug: Exception | None = None
    away: bool = False
    others_live: bool | None = True

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        await asyncio.sleep(self.slow)
        self._meet(self.full, entry)
        return await super().insert(entry)

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """See `LedgerStore`."""
        self._meet(self.full, after)
        kept = await super().replace(before, after)
        self._meet(self.mute, after)
        return kept

    async def find(self, by: By, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        if self.away:
            raise LedgerError("The database is away.")
        return await super().find(by, *values)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`."""
        del owner
        if self.others_live is None:
            raise LedgerError("The disk fails.")
        return not self.others_live

    def _meet(self, states: set[EntryState], entry: Entry) -> None:
        if entry.state in states:
            raise self.bug or LedgerError("The disk is full.", hint="Empty it.")

    async def elsewhere(self, key: str, to: EntryState, **facts: Any) -> None:
        """Move an entry as another process would."""
        entry = await self.find("key", key)
        assert entry
        await super().replace(entry, entry.transitioned(to, at=0.0, owner="another process", **facts))


async def entry_of(session: CharacterSession, key: str = "mine") -> Entry:
    """What the ledger knows of a key."""
    entry = await session.entry(key)
    assert entry
    return entry


async def state_of(session: CharacterSession, key: str = "mine") -> EntryState:
    """What the ledger says of a key."""
    return (await entry_of(session, key)).state
