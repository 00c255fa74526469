"""The states of an entry and the legal moves between them. Nothing else decides what may follow what."""

from __future__ import annotations

from enum import StrEnum

from sora_chars.errors import IllegalMoveError


class State(StrEnum):
    """What is known of a wish."""

    ASKED = "asked"  # nothing has left this machine
    SENDING = "sending"  # the request may be on its way; written just before it is
    RUNNING = "running"  # the provider has named its task
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the task ended without a result, or a person has given the entry up
    REFUSED = "refused"  # the provider said no and did nothing
    UNKNOWN = "unknown"  # the request was sent and nobody said what became of it


_ANSWERS = frozenset({State.ASKED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.REFUSED})

MOVES: dict[State, frozenset[State]] = {
    State.ASKED: frozenset({State.SENDING, State.REFUSED}),  # refused: a step before the paid one, such as an upload
    State.SENDING: _ANSWERS | {State.UNKNOWN},  # back to asked: the provider did nothing, and it may be sent again
    State.UNKNOWN: _ANSWERS,  # by a callback, its sender's own late answer, or a person
    State.RUNNING: frozenset({State.RUNNING, State.SUCCEEDED, State.FAILED}),  # running: another process looks after it
    State.REFUSED: frozenset({State.SENDING}),  # it cost nothing, and what was wrong may have been put right
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
}


def check_move(key: str, state: State, to: State) -> None:
    """Raise `IllegalMoveError` unless an entry may go from `state` to `to`."""
    if to not in MOVES[state]:
        allowed = ", ".join(sorted(MOVES[state])) or "nothing"
        raise IllegalMoveError(
            f"Entry {key} cannot go from {state} to {to}: {state} goes to {allowed}.", key=key, state=state, to=to
        )
