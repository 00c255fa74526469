"""Ground truth of the stateful session test: what the ledger may hold and callers may receive."""

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

    from sora_chars.ledger.notifier import ChangeNotifier

CLOSED = {EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED}
EMPTY = "empty"  # a success without a character
ENDS = [SUCCESS, FAIL, EMPTY]


@attrs.define(eq=False)
class SimulatedTask:
    """Task at the provider.

    `state` is its real state. The provider does not find the task before the loop time
    `visible`.
    """

    task_id: str
    key: str
    url: str
    visible: float
    state: str = "generating"


@attrs.define(eq=False)
class SimulatedWorld:
    """Everything that really happened: the provider's tasks, the ledger's entries, dead processes.

    Attributes:
        synchronous: Whether tasks end with their requests.
        healed: Whether every later step succeeds.
        made: Tasks by id.
        on_the_way: Requests per key that may still create a task, counted from before
            they are recorded.
        posted: Those of them that were sent, per key.
        doubted: Keys of requests whose response may be lost.
        answers: Each key and fate that a request met.
        faulty_polls: Number of next polls that fail.
        entries: The shared entries.
        kept: Latest version of each entry, by key.
        moves: Transitions that entries made.
        dead: Owners that are presumed dead.
        waiters: Change notifiers of the living processes, by owner.
        wrong: Violations found so far.
    """

    synchronous: bool = False
    healed: bool = False
    made: dict[str, SimulatedTask] = attrs.field(factory=dict)
    on_the_way: Counter[str] = attrs.field(factory=Counter)
    posted: Counter[str] = attrs.field(factory=Counter)
    doubted: set[str] = attrs.field(factory=set)
    answers: set[tuple[str, str]] = attrs.field(factory=set)
    faulty_polls: int = 0
    entries: MemoryStore = attrs.field(factory=MemoryStore)
    kept: dict[str, Entry] = attrs.field(factory=dict)
    moves: set[tuple[EntryState, EntryState]] = attrs.field(factory=set)
    dead: set[str] = attrs.field(factory=set)
    notifiers: dict[str, ChangeNotifier] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)

    def tasks(self, key: str) -> list[SimulatedTask]:
        """Return the tasks of a key: at most one if the package works."""
        return [made for made in self.made.values() if made.key == key]

    def make(self, key: str, url: str) -> SimulatedTask:
        """Create a task; it succeeds at once if the provider is synchronous or healed."""
        now = asyncio.get_running_loop().time()
        made = SimulatedTask(f"t-{len(self.made) + 1}-{key}", key, url, now + 3.0)
        self.made[made.task_id] = made
        if self.healed or self.synchronous:
            made.state = SUCCESS
        return made

    @contextmanager
    def counted(self, where: Counter[str], key: str) -> Generator[None]:
        """Count a request while the block runs."""
        where[key] += 1
        try:
            yield
        finally:
            where[key] -= 1

    def moved(self, after: Entry) -> None:
        """Record a transition, and check it independently of the package."""
        before = self.kept[after.key]
        if after.state not in TRANSITIONS[before.state] or after.version != before.version + 1:
            self.wrong.append(f"{before} changed to {after}")
        self.moves.add((before.state, after.state))
        self.kept[after.key] = after

    def check_entry(self, entry: Entry) -> None:
        """Assert that an entry agrees with what happened."""
        made = self._check_task(entry)
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

    def _check_task(self, entry: Entry) -> SimulatedTask | None:
        """Assert that an entry has at most one task, and return it."""
        tasks = self.tasks(entry.key)
        assert len(tasks) <= 1, "paid twice"
        assert self.posted[entry.key] <= 1, "sent twice"
        made = tasks[0] if tasks else None
        if made and not self.synchronous:
            assert entry.token_digest == token_digest(made.url.rpartition("/")[2])
        if entry.task_id:
            assert made
            assert made.task_id == entry.task_id
        return made

    def check_answer(self, key: str, outcome: Any, *, faulted: bool, closed: bool) -> None:
        """Assert that what a caller received for a key is true.

        Args:
            key: Key of the request.
            outcome: What the call returned or raised.
            faulted: Whether reads or writes of the process's ledger failed.
            closed: Whether the process closed its session.
        """
        made = next(iter(self.tasks(key)), None)
        is_given_up = key in self.kept and given_up(self.kept[key])
        match outcome:
            case Character() as character:
                assert made
                assert (made.state, character.id) == (SUCCESS, f"ch-{made.task_id}")
            case TaskHandle() as handle:
                assert is_given_up or (made and handle.task_id == made.task_id)
            case Step() as step:
                assert step.finished is (step.state in CLOSED | {EntryState.UNKNOWN})
            case int() as status:
                assert status in {200, 401, 503}
            case Exception() as error:
                self._check_error(key, error, faulted=faulted, closed=closed)
            case _:
                assert outcome is None or outcome.key == key

    def _check_error(self, key: str, error: Exception, *, faulted: bool, closed: bool) -> None:
        made = next(iter(self.tasks(key)), None)
        fates = {fate for other, fate in self.answers if other == key}
        match error:
            case TaskFailedError():
                assert (made and made.state == FAIL) or given_up(self.kept[key])
            case MissingCharacterError():
                assert made
                assert made.state == EMPTY
            case SubmissionUnknownError():
                assert key in self.doubted
            case RequestRejectedError():
                assert fates & {"rejected", "upload rejected"}
            case NoAnswerError() | RateLimitedError():
                assert fates & {"never left", "busy", "upload lost"}
            case LedgerError():
                assert faulted or closed
            case SessionClosedError() | WatcherStoppedError():
                assert closed
            case _:
                assert isinstance(error, WaitTimeoutError)


def given_up(entry: Entry) -> bool:
    """Return whether an operator gave the entry up."""
    return entry.state is EntryState.FAILED and entry.error["code"] == "given_up"
