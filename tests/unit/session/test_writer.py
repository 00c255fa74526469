"""`LedgerWriter`: which of two moves is kept, and how failed writes are repeated."""

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
from tests.support.log_events import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.ledger import Attempt, Entry

pytestmark = pytest.mark.looptime

PENDING = EntryState.PENDING
SENDING = EntryState.SENDING
UNKNOWN = EntryState.UNKNOWN
RUNNING = EntryState.RUNNING
SUCCEEDED = EntryState.SUCCEEDED
FAILED = EntryState.FAILED
REJECTED = EntryState.REJECTED
DONE = TaskSnapshot(task_id="t1", provider="kie", state="success", character=Character(id="ch_1", provider="kie"))


@attrs.define(eq=False)
class FailingStore(MemoryStore):
    """Memory store whose next `faults` writes fail; each write takes `takes` seconds."""

    faults: float = 0
    takes: float = 0.0

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        await asyncio.sleep(self.takes)
        if self.faults:
            self.faults -= 1
            raise LedgerError("the disk is full")
        return await super().replace(before, after, archive=archive)


@pytest.fixture
def store() -> FailingStore:
    """Return a store without faults."""
    return FailingStore()


@pytest.fixture
async def ledger(store: FailingStore) -> AsyncIterator[Ledger]:
    """Return an empty ledger."""
    async with Ledger(store) as opened:
        yield opened


async def put(ledger: Ledger, *states: EntryState, task_id: str | None = None, digest: str | None = None) -> Entry:
    """Register a request and move its entry through states, with the task id where possible."""
    entry = await ledger.register(key="k-1", provider="kie", kind="character", request={"from_task": "t0"})
    for state in states:
        entry = await ledger.transition(
            entry, state, task_id=task_id if state in {RUNNING, SUCCEEDED} else None, token_digest=digest
        )
    return entry


def names(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of the logged events."""
    return events(caplog.records)


@pytest.mark.parametrize(
    ("moves", "state", "task_id", "end", "second"),
    [
        ([], RUNNING, "t1", (RUNNING, "t1"), False),  # no other process moved the entry
        ([UNKNOWN], RUNNING, "t1", (RUNNING, "t1"), False),  # the sender was presumed dead
        ([UNKNOWN, RUNNING], RUNNING, "t1", (RUNNING, "t1"), False),  # its callback had arrived
        ([UNKNOWN, PENDING], RUNNING, "t1", (RUNNING, "t1"), False),  # a person resolved it as never sent
        ([REJECTED], RUNNING, "t1", (RUNNING, "t1"), False),
        ([RUNNING], SUCCEEDED, "t1", (SUCCEEDED, "t1"), False),  # recorded as running, and has ended since
        ([RUNNING, SUCCEEDED], SUCCEEDED, "t1", (SUCCEEDED, "t1"), False),  # its end is recorded already
        ([RUNNING, SUCCEEDED], RUNNING, "t1", (SUCCEEDED, "t1"), False),
        ([RUNNING], RUNNING, "t2", (RUNNING, "t1"), True),  # another task was recorded
        ([RUNNING], SUCCEEDED, "t2", (RUNNING, "t1"), True),
        ([UNKNOWN, FAILED], RUNNING, "t1", (FAILED, None), True),  # given up by the user
        ([UNKNOWN], REJECTED, None, (REJECTED, None), False),  # this request is unknown
        ([UNKNOWN], PENDING, None, (PENDING, None), False),
        ([UNKNOWN], UNKNOWN, None, (UNKNOWN, None), False),
        ([UNKNOWN, PENDING], REJECTED, None, (PENDING, None), False),  # without a task the other move stands
        ([UNKNOWN, PENDING, SENDING, UNKNOWN], REJECTED, None, (UNKNOWN, None), False),  # another request is unknown
    ],
)
async def test_answer_after_another_process_moved_the_entry(
    *,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    moves: list[EntryState],
    state: EntryState,
    task_id: str | None,
    end: tuple[EntryState, str | None],
    second: bool,
) -> None:
    """A task is recorded unless the entry has another one, which is logged as an error."""
    sending = await put(ledger, SENDING, digest="mine")
    entry = sending
    for move in moves:
        entry = await ledger.transition(
            entry,
            move,
            task_id="t1" if move in {RUNNING, SUCCEEDED} else None,
            token_digest="other" if move is SENDING else None,
        )
    recorded = await LedgerWriter(ledger).record_answer(sending, state, task_id=task_id)
    assert recorded == await ledger.get("k-1")
    assert ((recorded.state, recorded.task_id), names(caplog)) == (end, ["submission.second_task"] * second)


async def test_records_a_task_for_an_entry_being_sent_again(ledger: Ledger) -> None:
    """The task of a reverted request is recorded although another process is sending the key."""
    pending = await put(ledger)
    await ledger.transition(pending, SENDING)
    assert (await LedgerWriter(ledger).record_answer(pending, RUNNING, task_id="t1")).task_id == "t1"


@pytest.mark.parametrize(("state", "end"), [(RUNNING, SUCCEEDED), (UNKNOWN, UNKNOWN), (FAILED, FAILED)])
async def test_records_the_end_of_a_running_entry_only(ledger: Ledger, state: EntryState, end: EntryState) -> None:
    """A result is recorded once, and only for a task that is on record."""
    await put(ledger, SENDING, *([RUNNING, state] if state is FAILED else [state]), task_id="t1")
    await LedgerWriter(ledger).record_result(DONE)
    entry = await ledger.get("k-1")
    assert entry
    assert entry.state is end


@pytest.mark.parametrize(
    ("states", "digest", "end"),
    [
        ([SENDING], "mine", PENDING),
        ([SENDING], "other", SENDING),
        ([SENDING, UNKNOWN], "mine", PENDING),
        ([SENDING, RUNNING], "mine", RUNNING),
        ([], "mine", PENDING),
    ],
)
async def test_reverts_only_its_own_request(
    ledger: Ledger, states: list[EntryState], digest: str, end: EntryState
) -> None:
    """An entry that was sent under another token, or is no longer being sent, is not reverted."""
    before = await put(ledger, *states, task_id="t1", digest=digest)
    await LedgerWriter(ledger)._revert("k-1", "mine")
    await LedgerWriter(ledger)._revert("none", "mine")
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, entry.version > before.version) == (end, bool(states) and end is PENDING)


async def test_failed_write_is_raised_and_repeated(
    ledger: Ledger, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed write is raised, and repeated with growing delays until the ledger accepts it."""
    caplog.set_level("INFO")
    writer, sending, loop = LedgerWriter(ledger), await put(ledger, SENDING), asyncio.get_running_loop()
    store.faults = 9
    with pytest.raises(LedgerError, match="full"):
        await writer.record_answer(sending, RUNNING, task_id="t1")
    began = loop.time()
    assert (await ledger.changed(sending)).task_id == "t1"
    took = loop.time() - began
    await writer.aclose()
    assert names(caplog) == ["ledger.write_failed", "ledger.written_late"]
    assert 9 < took < 90  # nine attempts, at most ten seconds apart, in virtual time
    assert {(r.__dict__["key"], r.__dict__["state"], r.__dict__["task_id"]) for r in caplog.records} == {
        ("k-1", "running", "t1")
    }


@pytest.mark.parametrize(
    ("faults", "state", "last"), [(1, RUNNING, "ledger.written_late"), (math.inf, SENDING, "ledger.write_lost")]
)
async def test_closing_repeats_a_failed_write_once(
    *,
    ledger: Ledger,
    store: FailingStore,
    caplog: pytest.LogCaptureFixture,
    faults: float,
    state: EntryState,
    last: str,
) -> None:
    """Closing repeats a failed write at once, and logs it if it is lost."""
    caplog.set_level("INFO")
    writer, sending, loop = LedgerWriter(ledger), await put(ledger, SENDING), asyncio.get_running_loop()
    store.faults = faults
    with pytest.raises(LedgerError):
        await writer.record_answer(sending, RUNNING, task_id="t1")
    began = loop.time()
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, names(caplog), loop.time()) == (state, ["ledger.write_failed", last], began)


async def test_closing_repeats_a_write_in_progress(ledger: Ledger, store: FailingStore) -> None:
    """A write that fails while the writer closes is repeated once."""
    writer, sending = LedgerWriter(ledger), await put(ledger, SENDING)
    store.faults, store.takes = 2, 5.0
    with pytest.raises(LedgerError):
        await writer.record_answer(sending, RUNNING, task_id="t1")
    await asyncio.sleep(3.0)  # the second attempt is in progress
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert entry.state is RUNNING


@pytest.mark.parametrize("faults", [0, 1])
async def test_cancelled_caller_does_not_stop_a_write(ledger: Ledger, store: FailingStore, faults: int) -> None:
    """The write of a cancelled caller continues, and is repeated if it fails."""
    writer, sending = LedgerWriter(ledger), await put(ledger, SENDING)
    store.takes, store.faults = 5.0, faults
    caller = asyncio.create_task(writer.record_answer(sending, RUNNING, task_id="t1"))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert entry.task_id == "t1"


OUTCOMES: list[Any] = [
    (DONE, SUCCEEDED),
    (MissingCharacterError("none", provider="kie", task_id="t1", payload={"a": 1}), FAILED),
]


@pytest.mark.parametrize(("outcome", "end"), OUTCOMES)
@pytest.mark.parametrize("faults", [0, 1])
async def test_records_how_a_task_ended(
    ledger: Ledger, store: FailingStore, outcome: TaskSnapshot | MissingCharacterError, end: EntryState, faults: int
) -> None:
    """A fault of the ledger does not reach the waiters; the result is written later."""
    writer = LedgerWriter(ledger)
    await put(ledger, SENDING, RUNNING, task_id="t1")
    store.faults = faults
    await writer.record_result(outcome)
    await writer.record_result(attrs.evolve(DONE, task_id="unrecorded"))
    await writer.aclose()
    entry = await ledger.get("k-1")
    assert entry
    assert (entry.state, entry.result["task_id"]) == (end, "t1")
    if end is FAILED:
        assert (entry.result["result"], entry.error["message"]) == ({"a": 1}, "it holds no character")


async def test_revert_is_repeated_until_it_succeeds(ledger: Ledger, store: FailingStore) -> None:
    """A revert runs in the background and is repeated until the ledger accepts it."""
    writer, sending = LedgerWriter(ledger), await put(ledger, SENDING, digest="mine")
    store.faults = 2
    writer.revert("k-1", "mine")
    assert (await ledger.changed(sending)).state is PENDING
    await writer.aclose()


async def test_closing_survives_a_cancelled_write(ledger: Ledger) -> None:
    """A cancelled write does not end the other writes."""
    writer = LedgerWriter(ledger)
    writer.start(asyncio.sleep(5.0)).cancel()
    other = writer.start(asyncio.sleep(1.0, "written"))
    await writer.aclose()
    assert other.result() == "written"


@pytest.mark.parametrize(("cached", "queried"), [(5000, False), (0, True)])
async def test_results_of_recorded_tasks_need_no_query(
    *, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, cached: int, queried: bool
) -> None:
    """The entry of a recorded task is cached, unless too many were recorded since."""
    monkeypatch.setattr("sora_chars.session.writer._MAX_CACHED", cached)
    queries: list[str] = []
    by_task = ledger.all_by_task

    async def recording(provider: str, task_id: str) -> list[Entry]:
        queries.append(task_id)
        return await by_task(provider, task_id)

    monkeypatch.setattr(ledger, "all_by_task", recording)
    writer = LedgerWriter(ledger)
    await writer.record_answer(await put(ledger, SENDING), RUNNING, task_id="t1")
    await writer.record_result(DONE)
    assert queries == ["t1"] * queried
    assert (await put(ledger)).state is SUCCEEDED


async def test_records_a_result_after_a_take_over(ledger: Ledger) -> None:
    """A result is recorded even if the cached entry is older than the entry in the ledger."""
    writer = LedgerWriter(ledger)
    running = await writer.record_answer(await put(ledger, SENDING), RUNNING, task_id="t1")
    await ledger.transition(running, RUNNING)  # another process claims it
    await writer.record_result(DONE)
    assert (await put(ledger)).state is SUCCEEDED
