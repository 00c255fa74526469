from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import LedgerError, MissingCharacterError
from sora_chars.ledger import EntryState, Ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import Character, TaskSnapshot
from sora_chars.session.writer import LedgerWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.ledger import Entry

pytestmark = pytest.mark.looptime

A, S, U, R, OK, BAD, NO = (
    EntryState.PENDING,
    EntryState.SENDING,
    EntryState.UNKNOWN,
    EntryState.RUNNING,
    EntryState.SUCCEEDED,
    EntryState.FAILED,
    EntryState.REJECTED,
)
DONE = TaskSnapshot(task_id="t1", provider="kie", state="success", character=Character(id="ch_1", provider="kie"))


@attrs.define(eq=False)
class Faulty(MemoryStore):
    """A store whose next `faults` writes fail; each takes `takes` seconds."""

    faults: float = 0
    takes: float = 0.0

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """See `LedgerStore`."""
        await asyncio.sleep(self.takes)
        if self.faults:
            self.faults -= 1
            raise LedgerError("the disk is full")
        return await super().replace(before, after)


@pytest.fixture
def store() -> Faulty:
    """Give a store without faults yet."""
    return Faulty()


@pytest.fixture
async def ledger(store: Faulty) -> AsyncIterator[Ledger]:
    """Give an empty ledger."""
    async with Ledger(store) as opened:
        yield opened


async def put(ledger: Ledger, *ways: EntryState, task_id: str | None = None, digest: str | None = None) -> Entry:
    """Ask, and move the entry through states; the task id goes to those that may have one."""
    entry = await ledger.register(key="k-1", provider="kie", kind="character", request={"from_task": "t0"})
    for to in ways:
        entry = await ledger.transition(entry, to, task_id=task_id if to in {R, OK} else None, token_digest=digest)
    return entry


def names(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events that were logged."""
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("others", "to", "task_id", "end", "second"),
    [
        ([S], R, "t1", (R, "t1"), False),  # nobody was faster
        ([S, U], R, "t1", (R, "t1"), False),  # the sender was thought lost
        ([S, U, R], R, "t1", (R, "t1"), False),  # its callback was here already
        ([S, U, A], R, "t1", (R, "t1"), False),  # a person said that it was never sent
        ([S, NO], R, "t1", (R, "t1"), False),
        ([S, R], OK, "t1", (OK, "t1"), False),  # known as running, and has ended meanwhile
        ([S, R, OK], OK, "t1", (OK, "t1"), False),  # its end is on record already
        ([S, R, OK], R, "t1", (OK, "t1"), False),
        ([S, R], R, "t2", (R, "t1"), True),  # a person, or another process, has another task
        ([S, R], OK, "t2", (R, "t1"), True),
        ([S, U, BAD], R, "t1", (BAD, None), True),  # a person gave it up
        ([S, U], NO, None, (NO, None), False),  # the doubt was about this very request
        ([S, U], A, None, (A, None), False),
        ([S, U], U, None, (U, None), False),
        ([S, U, A], NO, None, (A, None), False),  # without a task the first move stands
        ([S, U, A, S, U], NO, None, (U, None), False),  # the doubt is about another request
    ],
)
async def test_whoever_was_faster(
    *,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    others: list[EntryState],
    to: EntryState,
    task_id: str | None,
    end: tuple[EntryState, str | None],
    second: bool,
) -> None:
    """A task that was paid for gets on record unless there is another, which is logged as an error."""
    sending = await put(ledger, S, digest="mine")
    now = sending
    for step in others[1:]:
        now = await ledger.transition(
            now, step, task_id="t1" if step in {R, OK} else None, token_digest="other" if step is S else None
        )
    moved = await LedgerWriter(ledger).record_answer(sending, to, task_id=task_id)
    assert moved == await ledger.get("k-1")
    assert ((moved.state, moved.task_id), names(caplog)) == (end, ["submission.second_task"] * second)


async def test_a_race_for_an_entry_that_was_taken_back(ledger: Ledger) -> None:
    """Who brings a task for an entry that somebody else begins to send meanwhile gets it on record all the same."""
    asked = await put(ledger)
    await ledger.transition(asked, S)
    assert (await LedgerWriter(ledger).record_answer(asked, R, task_id="t1")).task_id == "t1"


@pytest.mark.parametrize(("state", "end"), [(R, OK), (U, U), (BAD, BAD)])
async def test_records_the_end_of_a_running_entry_only(ledger: Ledger, state: EntryState, end: EntryState) -> None:
    """How a task ended is recorded once, and of no task that is not on record."""
    await put(ledger, S, *([R, state] if state is BAD else [state]), task_id="t1")
    await LedgerWriter(ledger).record_result(DONE)
    entry = await ledger.get("k-1")
    assert entry
    assert entry.state is end


@pytest.mark.parametrize(
    ("ways", "digest", "end"),
    [([S], "mine", A), ([S], "other", S), ([S, U], "mine", A), ([S, R], "mine", R), ([], "mine", A)],
)
async def test_only_its_own_sending_is_taken_back(
    ledger: Ledger, ways: list[EntryState], digest: str, end: EntryState
) -> None:
    """What was sent under another token, or is no longer being sent, stays."""
    before = await put(ledger, *ways, task_id="t1", digest=digest)
    await LedgerWriter(ledger)._revert("k-1", "mine")
    await LedgerWriter(ledger)._revert("none", "mine")
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, entry.version > before.version) == (end, bool(ways) and end is A)


async def test_what_fails_is_said_and_written_late(
    ledger: Ledger, store: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the ledger reaches the caller, and the write is tried until it works, ever more rarely."""
    caplog.set_level("INFO")
    writer, sending, loop = LedgerWriter(ledger), await put(ledger, S), asyncio.get_running_loop()
    store.faults = 9
    with pytest.raises(LedgerError, match="full"):
        await writer.record_answer(sending, R, task_id="t1")
    began = loop.time()
    assert (await ledger.changed(sending)).task_id == "t1"
    took = loop.time() - began
    await writer.aclose()
    assert names(caplog) == ["ledger.write_failed", "ledger.written_late"]
    assert 9 < took < 90  # nine tries of at most ten seconds each, in virtual time
    assert {(r.__dict__["key"], r.__dict__["state"], r.__dict__["task_id"]) for r in caplog.records} == {
        ("k-1", "running", "t1")
    }


@pytest.mark.parametrize(
    ("faults", "state", "last"), [(1, R, "ledger.written_late"), (math.inf, S, "ledger.write_lost")]
)
async def test_closing_tries_once_more(
    *, ledger: Ledger, store: Faulty, caplog: pytest.LogCaptureFixture, faults: float, state: EntryState, last: str
) -> None:
    """Closing writes what it can without waiting for the next turn, and logs what is lost."""
    caplog.set_level("INFO")
    writer, sending, loop = LedgerWriter(ledger), await put(ledger, S), asyncio.get_running_loop()
    store.faults = faults
    with pytest.raises(LedgerError):
        await writer.record_answer(sending, R, task_id="t1")
    began = loop.time()
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, names(caplog), loop.time()) == (state, ["ledger.write_failed", last], began)


async def test_closing_gives_a_write_under_way_one_more_try(ledger: Ledger, store: Faulty) -> None:
    """A write that is failing while the closing begins is tried again, not lost."""
    writer, sending = LedgerWriter(ledger), await put(ledger, S)
    store.faults, store.takes = 2, 5.0
    with pytest.raises(LedgerError):
        await writer.record_answer(sending, R, task_id="t1")
    await asyncio.sleep(3.0)  # the second try is under way
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert entry.state is R


@pytest.mark.parametrize("faults", [0, 1])
async def test_a_callers_end_stops_no_write(ledger: Ledger, store: Faulty, faults: int) -> None:
    """A cancelled caller's write goes on, and is tried again where it fails."""
    writer, sending = LedgerWriter(ledger), await put(ledger, S)
    store.takes, store.faults = 5.0, faults
    caller = asyncio.create_task(writer.record_answer(sending, R, task_id="t1"))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert entry.task_id == "t1"


OUTCOMES: list[Any] = [
    (DONE, OK),
    (MissingCharacterError("none", provider="kie", task_id="t1", payload={"a": 1}), BAD),
]


@pytest.mark.parametrize(("outcome", "end"), OUTCOMES)
@pytest.mark.parametrize("faults", [0, 1])
async def test_how_a_task_ended_is_recorded(
    ledger: Ledger, store: Faulty, outcome: TaskSnapshot | MissingCharacterError, end: EntryState, faults: int
) -> None:
    """A fault of the ledger does not reach whoever waits for the task, and the end is written late."""
    writer = LedgerWriter(ledger)
    await put(ledger, S, R, task_id="t1")
    store.faults = faults
    await writer.record_result(outcome)
    await writer.record_result(attrs.evolve(DONE, task_id="of nobody"))
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, entry.result["task_id"]) == (end, "t1")
    if end is BAD:
        assert (entry.result["result"], entry.error["message"]) == ({"a": 1}, "it holds no character")


async def test_a_sending_is_taken_back_as_soon_as_it_can_be(ledger: Ledger, store: Faulty) -> None:
    """Nobody waits for that."""
    writer, sending = LedgerWriter(ledger), await put(ledger, S, digest="mine")
    store.faults = 2
    writer.revert("k-1", "mine")
    assert (await ledger.changed(sending)).state is A
    await writer.aclose()


async def test_closing_outlives_a_write_that_was_cancelled(ledger: Ledger) -> None:
    """Whatever else cancels a write ends that one alone."""
    writer = LedgerWriter(ledger)
    writer.start(asyncio.sleep(5.0)).cancel()
    other = writer.start(asyncio.sleep(1.0, "written"))
    await writer.aclose()
    assert other.result() == "written"


@pytest.mark.parametrize(("known", "looked_up"), [(5000, False), (0, True)])
async def test_an_end_is_written_without_looking_its_entry_up(
    *, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, known: int, looked_up: bool
) -> None:
    """What this session recorded as running is known at its end, unless too much was recorded since."""
    monkeypatch.setattr("sora_chars.session.writer._MAX_CACHED", known)
    asked = list[str]()
    by_task = ledger.by_task

    async def noted(provider: str, task_id: str) -> Entry | None:
        asked.append(task_id)
        return await by_task(provider, task_id)

    monkeypatch.setattr(ledger, "by_task", noted)
    writer = LedgerWriter(ledger)
    await writer.record_answer(await put(ledger, S), R, task_id="t1")
    await writer.record_result(DONE)
    assert asked == ["t1"] * looked_up
    assert (await put(ledger)).state is OK


async def test_an_end_is_written_whoever_moved_the_entry_meanwhile(ledger: Ledger) -> None:
    """The entry that a session remembers may be older than the ledger's."""
    writer = LedgerWriter(ledger)
    running = await writer.record_answer(await put(ledger, S), R, task_id="t1")
    await ledger.transition(running, R)  # another one took it over
    await writer.record_result(DONE)
    assert (await put(ledger)).state is OK
