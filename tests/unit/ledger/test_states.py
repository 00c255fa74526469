"""The transitions between the states of an entry, and the entry after each."""

from __future__ import annotations

from itertools import product
from typing import Any

import attrs
import pytest

from sora_chars import Entry, EntryState, InvalidTransitionError
from sora_chars.ledger.entry import COLUMNS, OCCASIONAL_COLUMNS, TRANSITION_COLUMNS, from_row, to_json, to_row
from sora_chars.ledger.states import TRANSITIONS, check_transition

ENTRY = Entry(
    key="k-1",
    provider="kie",
    kind="character",
    state=EntryState.PENDING,
    request_json="{}",
    created_at=1.0,
    updated_at=1.0,
)
LEGAL = {
    ("pending", "sending"),
    ("pending", "rejected"),
    ("sending", "pending"),
    ("sending", "running"),
    ("sending", "succeeded"),
    ("sending", "failed"),
    ("sending", "rejected"),
    ("sending", "unknown"),
    ("unknown", "pending"),
    ("unknown", "running"),
    ("unknown", "succeeded"),
    ("unknown", "failed"),
    ("unknown", "rejected"),
    ("running", "running"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("rejected", "sending"),
    ("succeeded", "deleted"),
}


@pytest.mark.parametrize(("state", "to"), list(product(EntryState, EntryState)))
def test_transitions(state: EntryState, to: EntryState) -> None:
    """Only the listed transitions are allowed; any other raises an error that names the allowed ones."""
    if (state, to) in LEGAL:
        check_transition("k-1", state, to)
        return
    allowed = ", ".join(sorted(end for begin, end in LEGAL if begin == state)) or "no other state"
    message = f"k-1 cannot go from {state} to {to}; from {state} it may go to {allowed}."
    with pytest.raises(InvalidTransitionError, match=message) as caught:
        check_transition("k-1", state, to)
    assert (caught.value.key, caught.value.state, caught.value.to) == ("k-1", state, to)


def test_every_state_is_reachable() -> None:
    """Some sequence of transitions leads from pending to every state."""
    reached = {EntryState.PENDING}
    while more := {to for state in reached for to in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(EntryState)


def at(state: EntryState, **facts: Any) -> Entry:
    """Return an entry in a state."""
    return attrs.evolve(ENTRY, state=state, **facts)


def test_transition_keeps_ids_and_credits() -> None:
    """A transition keeps task id, token digest and credits, and drops the result or error of the last state."""
    unknown = at(EntryState.SENDING, token_digest="d").transitioned(
        EntryState.UNKNOWN, at=2.0, owner="h", error={"type": "NoAnswerError"}, credits=1.5
    )
    assert (unknown.error, unknown.owner, unknown.version) == ({"type": "NoAnswerError"}, None, 2)
    running = unknown.transitioned(EntryState.RUNNING, at=3.0, owner="h", task_id="t")
    assert (running.error, running.owner, running.token_digest, running.credits) == (None, "h", "d", 1.5)
    done = running.transitioned(EntryState.SUCCEEDED, at=4.0, owner="h", result=[])
    assert (done.task_id, done.result, done.owner, done.created_at, done.updated_at) == ("t", [], None, 1.0, 4.0)


def test_transition_changes_stored_columns_only() -> None:
    """A transition changes only the columns that stores write."""
    done = at(EntryState.SENDING).transitioned(
        EntryState.RUNNING, at=2.0, owner="h", task_id="t", token_digest="d", result=1, error=1, credits=1
    )
    changed = {name for name in COLUMNS if getattr(done, name) != getattr(at(EntryState.SENDING), name)}
    assert changed == {*TRANSITION_COLUMNS, *OCCASIONAL_COLUMNS} - {"request_json"}


def test_running_requires_a_task_id() -> None:
    """An entry without a task id cannot go to running."""
    with pytest.raises(InvalidTransitionError, match="has task None"):
        at(EntryState.SENDING).transitioned(EntryState.RUNNING, at=2.0, owner="h")


def test_rejects_a_second_task_id() -> None:
    """A recorded task id may be repeated and cannot be changed."""
    running = at(EntryState.RUNNING, task_id="t-1")
    assert running.transitioned(EntryState.RUNNING, at=2.0, owner="h", task_id="t-1").task_id == "t-1"
    with pytest.raises(InvalidTransitionError, match="has task t-1 and cannot go to running with task t-2"):
        running.transitioned(EntryState.RUNNING, at=2.0, owner="h", task_id="t-2")


def test_row_round_trip() -> None:
    """A row has only plain values and makes an equal entry."""
    row = to_row(at(EntryState.REJECTED, error_json="[1]"))
    assert {type(value) for value in row} == {str, float, int, type(None)}
    assert from_row(row) == at(EntryState.REJECTED, error_json="[1]")


def test_json_is_canonical() -> None:
    """The JSON of a value is ASCII and does not depend on the order of fields."""
    assert to_json({"b": "ü", "a": [1, None]}) == to_json({"a": [1, None], "b": "ü"}) == '{"a":[1,null],"b":"\\u00fc"}'


def test_repr_hides_payloads() -> None:
    """The repr of an entry contains neither request, result nor token digest."""
    shown = repr(at(EntryState.FAILED, request_json='"a"', result_json='"b"', token_digest="c", error_json='"why"'))
    assert "json='\"why\"'" in shown
    assert not any(text in shown for text in ('"a"', '"b"', "'c'"))
