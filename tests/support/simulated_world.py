"""What really happens in the random lives of sessions, and so what their ledger may hold and their callers may hear."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import (
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    SessionClosedError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
    WatcherStoppedError,
)
from sora_chars.ids import token_digest
from sora_chars.ledger import Entry, EntryState
from sora_chars.ledger.states import TRANSITIONS
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import FAIL, SUCCESS, Character
from sora_chars.polling.handle import TaskHandle
from sora_chars.session.stepping import Step

if TYPE_CHECKING:
    from collections.abc import Generator

    from sora_chars.ledger.notifier import Waiters

CLOSED = {EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED}
EMPTY = "empty"  # a success without a character
ENDS = [SUCCESS, FAIL, EMPTY]


@attrs.define(eq=False)
class SimulatedTask:
    """A task at the provider. `state` is the truth; it cannot be seen before the loop time `visible`."""

    task_id: str
    key: str
    url: str
    visible: float
    state: str = "generating"


@attrs.define(eq=False)
class SimulatedWorld:
    """What really happened: the tasks of the provider, the entries of the ledger, and who has died.

    `on_the_way`: requests that may still make a task, by key, from before they are recorded; `posted`: those of them
    that have left; `doubted`: keys whose answer may be lost. `synchronous`: whether tasks end with their requests.
    `healed`: whether all goes well from now on.
    """

    synchronous: bool = False
    healed: bool = False
    made: dict[str, SimulatedTask] = attrs.field(factory=dict[str, SimulatedTask])
    on_the_way: Counter[str] = attrs.field(factory=Counter[str])
    posted: Counter[str] = attrs.field(factory=Counter[str])
    doubted: set[str] = attrs.field(factory=set[str])
    answers: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]])
    faulty_polls: int = 0
    entries: MemoryStore = attrs.field(factory=MemoryStore)
    kept: dict[str, Entry] = attrs.field(factory=dict[str, Entry])
    moves: set[tuple[EntryState, EntryState]] = attrs.field(factory=set[tuple[EntryState, EntryState]])
    dead: set[str] = attrs.field(factory=set[str])
    waiters: dict[str, Waiters] = attrs.field(factory=dict[str, "Waiters"])
    wrong: list[str] = attrs.field(factory=list[str])

    def tasks(self, key: str) -> list[SimulatedTask]:
        """All that were made for a key: one at most, if all is right."""
        return [made for made in self.made.values() if made.key == key]

    def make(self, key: str, url: str) -> SimulatedTask:
        """Make a task, which has ended at once where that is so."""
        now = asyncio.get_running_loop().time()
        made = SimulatedTask(f"t-{len(self.made) + 1}-{key}", key, url, now + 3.0)
        self.made[made.task_id] = made
        if self.healed or self.synchronous:
            made.state = SUCCESS
        return made

    @contextmanager
    def counted(self, where: Counter[str], key: str) -> Generator[None]:
        """Count a request."""
        where[key] += 1
        try:
            yield
        finally:
            where[key] -= 1

    def moved(self, after: Entry) -> None:
        """Take note of a move, and check it without the package's own check."""
        before = self.kept[after.key]
        if after.state not in TRANSITIONS[before.state] or after.version != before.version + 1:
            self.wrong.append(f"{before} went to {after}")
        self.moves.add((before.state, after.state))
        self.kept[after.key] = after

    def check_entry(self, entry: Entry) -> None:
        """What the ledger holds is what happened."""
        tasks = self.tasks(entry.key)
        assert len(tasks) <= 1, "paid twice"
        assert self.posted[entry.key] <= 1, "sent twice"
        made = tasks[0] if tasks else None
        if made and not self.synchronous:
            assert entry.token_digest == token_digest(made.url.rpartition("/")[2])
        if entry.task_id:
            assert made
            assert made.task_id == entry.task_id
        match entry.state:
            case EntryState.PENDING | EntryState.REJECTED:
                assert not made
                assert not self.posted[entry.key]
            case EntryState.RUNNING:
                assert made
            case EntryState.SUCCEEDED:
                assert made
                assert (made.state, entry.result["character"]["id"]) == (SUCCESS, f"ch-{made.task_id}")
            case EntryState.FAILED:
                assert given_up(entry) or (made and made.state in {FAIL, EMPTY})
            case EntryState.UNKNOWN:
                assert entry.key in self.doubted
            case _:
                pass

    def check_answer(self, key: str, outcome: Any, *, faulted: bool, closed: bool) -> None:
        """What a caller heard of a key is true. `faulted`: of a process whose ledger had faults; `closed`: or ended."""
        made = next(iter(self.tasks(key)), None)
        gone = key in self.kept and given_up(self.kept[key])
        match outcome:
            case Character() as character:
                assert made
                assert (made.state, character.id) == (SUCCESS, f"ch-{made.task_id}")
            case TaskHandle() as handle:
                assert gone or (made and handle.task_id == made.task_id)
            case Step() as step:
                assert step.finished is (step.entry.state in CLOSED)
            case int() as status:
                assert status in {200, 401, 503}
            case Exception() as error:
                self._check_error(key, error, faulted=faulted, closed=closed)
            case _:
                assert outcome is None or outcome.key == key

    def _check_error(self, key: str, error: Exception, *, faulted: bool, closed: bool) -> None:
        made = next(iter(self.tasks(key)), None)
        met = {fate for asked, fate in self.answers if asked == key}
        match error:
            case TaskFailedError():
                assert (made and made.state == FAIL) or given_up(self.kept[key])
            case MissingCharacterError():
                assert made
                assert made.state == EMPTY
            case SubmissionUnknownError():
                assert key in self.doubted
            case RequestRejectedError():
                assert met & {"refused", "upload refused"}
            case NoAnswerError() | RateLimitedError():
                assert met & {"never left", "busy", "upload lost"}
            case LedgerError():
                assert faulted or closed
            case SessionClosedError() | WatcherStoppedError():
                assert closed
            case _:
                assert isinstance(error, WaitTimeoutError)


def given_up(entry: Entry) -> bool:
    """A person has ended it."""
    return entry.state is EntryState.FAILED and entry.error["code"] == "given_up"
