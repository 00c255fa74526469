"""The states of an entry and the legal moves between them. Nothing else decides what may follow what."""

from __future__ import annotations

from enum import StrEnum

from sora_chars.errors import InvalidTransitionError


class EntryState(StrEnum):
    """What is known of a wish."""

    PENDING = "pending"  # nothing has left this machine
    SENDING = "sending"  # the request may be on its way; written just before it is
    RUNNING = "running"  # the provider has named its task
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the task ended without a result, or a person has given the entry up
    REJECTED = "rejected"  # the provider said no and did nothing
    UNKNOWN = "unknown"  # the request was sent and nobody said what became of it


_ANSWERS = frozenset(
    {EntryState.PENDING, EntryState.RUNNING, EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED}
)

TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    EntryState.PENDING: frozenset(
        {EntryState.SENDING, EntryState.REJECTED}
    ),  # refused: a step before the paid one, such as an upload
    EntryState.SENDING: _ANSWERS
    | {EntryState.UNKNOWN},  # back to asked: the provider did nothing, and it may be sent again
    EntryState.UNKNOWN: _ANSWERS,  # by a callback, its sender's own late answer, or a person
    EntryState.RUNNING: frozenset(
        {EntryState.RUNNING, EntryState.SUCCEEDED, EntryState.FAILED}
    ),  # running: another process looks after it
    EntryState.REJECTED: frozenset({EntryState.SENDING}),  # it cost nothing, and what was wrong may have been put right
    EntryState.SUCCEEDED: frozenset(),
    EntryState.FAILED: frozenset(),
}


def check_transition(key: str, state: EntryState, to: EntryState) -> None:
    """Raise `InvalidTransitionError` unless an entry may go from `state` to `to`."""
    if to not in TRANSITIONS[state]:
        allowed = ", ".join(sorted(TRANSITIONS[state])) or "nothing"
        raise InvalidTransitionError(
            f"Entry {key} cannot go from {state} to {to}: {state} goes to {allowed}.", key=key, state=state, to=to
        )
