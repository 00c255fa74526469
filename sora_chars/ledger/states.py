"""The states of an entry, and the only table of the transitions between them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sora_chars.errors import InvalidTransitionError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class EntryState(StrEnum):
    """What is known of a request."""

    PENDING = "pending"  # nothing has left this machine
    SENDING = "sending"  # the request may be on its way; written just before it is
    RUNNING = "running"  # the provider has named its task
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the task ended without a result, or a person has given the entry up
    REJECTED = "rejected"  # the provider rejected the request and did nothing
    UNKNOWN = "unknown"  # the request was sent, and the outcome is unknown
    DELETED = "deleted"  # it succeeded, and its character was deleted at the provider since


_ANSWERED = frozenset(
    {EntryState.PENDING, EntryState.RUNNING, EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED}
)

TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    # rejected: a step before the paid one, such as an upload
    EntryState.PENDING: frozenset({EntryState.SENDING, EntryState.REJECTED}),
    # back to pending: the provider did nothing, and it may be sent again
    EntryState.SENDING: _ANSWERED | {EntryState.UNKNOWN},
    # by a callback, its sender's own late answer, or a person
    EntryState.UNKNOWN: _ANSWERED,
    # running again: another process polls the task from now on
    EntryState.RUNNING: frozenset({EntryState.RUNNING, EntryState.SUCCEEDED, EntryState.FAILED}),
    # it cost nothing, and the cause may have been fixed
    EntryState.REJECTED: frozenset({EntryState.SENDING}),
    # its character was deleted
    EntryState.SUCCEEDED: frozenset({EntryState.DELETED}),
    EntryState.DELETED: frozenset(),
    EntryState.FAILED: frozenset(),
}

RESTARTS: dict[EntryState, frozenset[EntryState]] = {
    # pending: a new attempt, which a person has requested
    # unknown: the rejection proves nothing, and a person knows more
    EntryState.REJECTED: frozenset({EntryState.PENDING, EntryState.UNKNOWN}),
    # unknown: a person has given the entry up, and takes that back
    EntryState.FAILED: frozenset({EntryState.PENDING, EntryState.UNKNOWN}),
    # a person has named the task or resolved it as never sent, and takes that back
    EntryState.PENDING: frozenset({EntryState.UNKNOWN}),
    EntryState.RUNNING: frozenset({EntryState.UNKNOWN}),
}
"""What `Ledger.restart` allows. The attempt that ends is kept."""

ENDED = frozenset({EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED, EntryState.DELETED})
"""The states in which a request is not under way. Only a user has it sent again."""


UNFINISHED = frozenset({EntryState.PENDING, EntryState.SENDING, EntryState.RUNNING})
"""The states that a process carries on."""


def check_transition(
    key: str, state: EntryState, to: EntryState, table: Mapping[EntryState, Collection[EntryState]] = TRANSITIONS
) -> None:
    """Raise `InvalidTransitionError` unless an entry may go from `state` to `to`."""
    if to not in table.get(state, ()):
        allowed = ", ".join(sorted(table.get(state, ()))) or "no other state"
        raise InvalidTransitionError(
            f"Entry {key} cannot go from {state} to {to}; from {state} it may go to {allowed}.",
            key=key,
            state=state,
            to=to,
        )
