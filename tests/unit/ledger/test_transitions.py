"""Which transition follows from an answer, a dead process or a person's decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import InvalidRequestError, MissingCharacterError
from sora_chars.ledger import Entry, EntryState, Ledger, open_ledger
from sora_chars.ledger.queries import find
from sora_chars.ledger.serialize import to_snapshot
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.ledger.transitions import Answer, end_state, mark_orphaned, resolve, without_character
from sora_chars.models import TaskFailure, TaskSnapshot
from tests.support.recorded_requests import record_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PENDING = EntryState.PENDING
SENDING = EntryState.SENDING
RUNNING = EntryState.RUNNING
SUCCEEDED = EntryState.SUCCEEDED
FAILED = EntryState.FAILED
REJECTED = EntryState.REJECTED
UNKNOWN = EntryState.UNKNOWN


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Return an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


def make_entry(state: EntryState, task_id: str | None = None, *, token: str | None = "mine") -> Entry:
    """Return an entry in a state; `token` identifies the request that was sent last."""
    return Entry(
        key="k-1",
        provider="kie",
        kind="character",
        state=state,
        request_json="{}",
        token_digest=token,
        task_id=task_id,
        created_at=1.0,
        updated_at=1.0,
    )


def make_answer(to: EntryState, task_id: str | None = None, *, token: str | None = "mine") -> Answer:
    """Return an answer to the request with this token."""
    return Answer(make_entry(SENDING, token=token), to, {"task_id": task_id} if task_id else {})


WITHOUT_TASK = (PENDING, REJECTED, FAILED, UNKNOWN)
WITH_TASK = (RUNNING, SUCCEEDED, FAILED)


@pytest.mark.parametrize("state", EntryState)
@pytest.mark.parametrize("to", WITHOUT_TASK)
def test_first_step_without_a_task(state: EntryState, to: EntryState) -> None:
    """An answer that names no task is written in one step."""
    assert make_answer(to).first_step(make_entry(state)) is to


@pytest.mark.parametrize("to", WITH_TASK)
@pytest.mark.parametrize(
    ("state", "is_direct"),
    [
        (PENDING, False),
        (REJECTED, False),
        (SENDING, True),
        (UNKNOWN, True),
        (RUNNING, True),
        (SUCCEEDED, True),
        (FAILED, True),
    ],
)
def test_first_step_with_a_task(state: EntryState, to: EntryState, *, is_direct: bool) -> None:
    """An answer that names a task goes through `sending` if the entry is pending or rejected."""
    assert make_answer(to, "t1").first_step(make_entry(state)) is (to if is_direct else SENDING)


STANDS: dict[EntryState, EntryState] = {}
"""The other process's move stands, whatever the answer."""
NEXT_STEPS: dict[str, tuple[Entry, dict[EntryState, EntryState], dict[EntryState, EntryState]]] = {
    "unknown, by this request": (
        make_entry(UNKNOWN),
        {PENDING: PENDING, REJECTED: REJECTED, FAILED: FAILED},
        {RUNNING: RUNNING, SUCCEEDED: SUCCEEDED, FAILED: FAILED},
    ),
    "unknown, by another request": (
        make_entry(UNKNOWN, token="other"),
        STANDS,
        {RUNNING: RUNNING, SUCCEEDED: SUCCEEDED, FAILED: FAILED},
    ),
    "pending": (make_entry(PENDING), STANDS, {RUNNING: SENDING, SUCCEEDED: SENDING, FAILED: SENDING}),
    "rejected": (make_entry(REJECTED), STANDS, {RUNNING: SENDING, SUCCEEDED: SENDING, FAILED: SENDING}),
    "sending this request": (
        make_entry(SENDING),
        STANDS,
        {RUNNING: RUNNING, SUCCEEDED: SUCCEEDED, FAILED: FAILED},
    ),
    "sending another request": (
        make_entry(SENDING, token="other"),
        STANDS,
        {RUNNING: RUNNING, SUCCEEDED: SUCCEEDED, FAILED: FAILED},
    ),
    "running, with the same task": (make_entry(RUNNING, "t1"), STANDS, {SUCCEEDED: SUCCEEDED, FAILED: FAILED}),
    "running, with another task": (make_entry(RUNNING, "t2"), STANDS, STANDS),
    "succeeded, with the same task": (make_entry(SUCCEEDED, "t1"), STANDS, STANDS),
    "succeeded, with another task": (make_entry(SUCCEEDED, "t2"), STANDS, STANDS),
    "failed, with the same task": (make_entry(FAILED, "t1"), STANDS, STANDS),
    "failed, with another task": (make_entry(FAILED, "t2"), STANDS, STANDS),
    "failed, without a task": (make_entry(FAILED), STANDS, STANDS),
}
"""The table of `Answer.next_step`: per row an entry, and its next step by answer, without and with a task."""


@pytest.mark.parametrize("to", WITHOUT_TASK)
@pytest.mark.parametrize("row", NEXT_STEPS)
def test_next_step_without_a_task(row: str, to: EntryState) -> None:
    """An answer without a task is written only if this request is unknown and the answer is not."""
    entry, steps, _ = NEXT_STEPS[row]
    assert make_answer(to).next_step(entry) is steps.get(to)


@pytest.mark.parametrize("to", WITH_TASK)
@pytest.mark.parametrize("row", NEXT_STEPS)
def test_next_step_with_a_task(row: str, to: EntryState) -> None:
    """An answer with a task is written unless the entry has ended, has another task, or says so."""
    entry, _, steps = NEXT_STEPS[row]
    assert make_answer(to, "t1").next_step(entry) is steps.get(to)


@pytest.mark.parametrize("token", [None, "mine"])
def test_next_step_without_a_recorded_token(token: str | None) -> None:
    """Without a recorded token an unknown entry counts as another request's, so its move stands."""
    unknown = make_entry(UNKNOWN, token=None)
    assert make_answer(REJECTED, token=token).next_step(unknown) is None
    assert make_answer(RUNNING, "t1", token=token).next_step(unknown) is RUNNING


@pytest.mark.parametrize(
    ("named", "recorded", "is_second"),
    [
        (None, None, False),
        (None, "t1", False),
        ("t1", "t1", False),
        ("t1", "t2", True),
        ("t1", None, True),  # a person gave the entry up
    ],
)
def test_is_second_task(*, named: str | None, recorded: str | None, is_second: bool) -> None:
    """An answer that names a task is a second one unless the entry has recorded that task."""
    entry = make_entry(RUNNING if recorded else FAILED, recorded)
    assert make_answer(RUNNING if named else REJECTED, named).is_second_task(entry) is is_second


@pytest.mark.parametrize("entry", [make_entry(PENDING), make_entry(SENDING, token="other"), make_entry(FAILED)])
def test_empty_task_id_names_no_task(entry: Entry) -> None:
    """A success without a task id does not move another request, and is no second task."""
    empty = MissingCharacterError("none", provider="kie", task_id=None)
    to, facts = end_state(without_character(empty), "character")
    answer = Answer(make_entry(SENDING), to, facts)
    assert answer.next_step(entry) is None
    assert not answer.is_second_task(entry)


@pytest.mark.parametrize(
    ("kind", "facts", "state", "error"),
    [
        ("task", {"state": "success"}, SUCCEEDED, None),
        ("omni", {"state": "success"}, FAILED, {"code": None, "message": "it holds no character"}),
        ("task", {"state": "fail"}, FAILED, {"code": None, "message": ""}),
        (
            "task",
            {"state": "fail", "failure": TaskFailure("1", "no\nface")},
            FAILED,
            {"code": "1", "message": "no face"},
        ),
    ],
)
def test_end_state(kind: str, facts: dict[str, Any], state: EntryState, error: object) -> None:
    """A success needs a character, except for a task of another model."""
    to, ended = end_state(TaskSnapshot(task_id="t1", provider="kie", **facts), kind)
    assert (to, ended.get("error"), ended["task_id"]) == (state, error, "t1")


async def test_resolve_with_a_task_id(ledger: Ledger) -> None:
    """The task that an unknown request became is running, and has no owner yet."""
    await record_request(ledger, "k-1", SENDING, UNKNOWN)
    entry = await resolve(ledger, "k-1", task_id="t1")
    assert (entry.state, entry.task_id, entry.owner) == (RUNNING, "t1", None)


async def test_resolve_as_never_sent(ledger: Ledger) -> None:
    """An unknown request that was never sent is pending again."""
    await record_request(ledger, "k-1", SENDING, UNKNOWN)
    assert (await resolve(ledger, "k-1", never_sent=True)).state is PENDING


@pytest.mark.parametrize(("state", "task_id"), [(UNKNOWN, None), (RUNNING, "t1")])
async def test_resolve_by_giving_up(ledger: Ledger, state: EntryState, task_id: str | None) -> None:
    """An entry that was given up is failed, and its snapshot contains the reason."""
    await record_request(ledger, "k-1", SENDING, state, task_id=task_id)
    entry = await resolve(ledger, "k-1", give_up=True)
    assert (entry.state, entry.task_id, entry.error["code"]) == (FAILED, task_id, "given_up")
    assert to_snapshot(entry).failure == TaskFailure("given_up", "given up by the user")


async def test_resolve_an_orphaned_request() -> None:
    """A request that a dead process was sending is unknown, and can be resolved."""
    store = MemoryStore()
    async with Ledger(store) as dead:
        await record_request(dead, "k-1", SENDING)
    async with Ledger(store) as ledger:
        assert (await resolve(ledger, "k-1", never_sent=True)).state is PENDING


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one"),
        ({"task_id": "t1", "never_sent": True}, "exactly one"),
        ({"never_sent": True, "give_up": True}, "exactly one"),
        ({"task_id": ""}, "must be the id"),
        ({"task_id": "t\n1"}, "must be the id"),
        ({"task_id": "taken"}, "is the task of key running already"),
        ({"never_sent": True, "key": "none"}, "no entry 'none'"),
        ({"give_up": True, "key": "sending"}, "living process"),
        ({"never_sent": True, "key": "running"}, "nothing to resolve"),
        ({"task_id": "t1", "key": "pending"}, "nothing to resolve"),
        ({"give_up": True, "key": "pending"}, "nothing to resolve"),
    ],
)
async def test_rejects_invalid_resolutions(ledger: Ledger, options: dict[str, Any], match: str) -> None:
    """Each misuse is named in the error, and changes nothing."""
    await record_request(ledger, "unknown", SENDING, UNKNOWN)
    await record_request(ledger, "pending")
    await record_request(ledger, "sending", SENDING)
    await record_request(ledger, "running", SENDING, RUNNING, task_id="taken")
    before = [entry async for entry in ledger.entries()]
    options = {"key": "unknown"} | options
    with pytest.raises(InvalidRequestError, match=match):
        await resolve(ledger, **options)
    assert [entry async for entry in ledger.entries()] == before


async def test_only_orphaned_requests_become_unknown(ledger: Ledger) -> None:
    """A pending entry, and one that a living process is sending, do not change."""
    for entry in (await record_request(ledger, "k-1"), await record_request(ledger, "k-2", SENDING)):
        assert await mark_orphaned(ledger, entry) == entry


async def test_orphan_check_keeps_a_recorded_answer() -> None:
    """An answer that the sender recorded just before it died is kept."""
    store = MemoryStore()
    async with Ledger(store) as dead:
        sending = await record_request(dead, "k-1", SENDING)
        running = await dead.transition(sending, RUNNING, task_id="t1")
    async with Ledger(store) as ledger:
        assert await mark_orphaned(ledger, sending) == running
        assert await find(ledger, "k-1") == running
