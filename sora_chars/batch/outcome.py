"""How one of a batch ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import (
    LedgerError,
    MissingCharacterError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
)
from sora_chars.ledger import EntryState

if TYPE_CHECKING:
    from sora_chars.models import Character, TaskSnapshot


@attrs.frozen(kw_only=True)
class Outcome:
    """How one of a batch ended: a character or an error, and the request it belongs to.

    `index`: its place among the requests, from 0. `request`: what was given there. `key`: what it is recorded under,
    also when the request names none; None when it is no request at all. `snapshot`: the task as it was last seen.

    `state`: "succeeded"; "failed": the task ended without a result; "refused": nothing was sent for it now, or the
    provider did nothing, so that it can be asked for again; "unknown": nobody knows whether it was made, see
    `CharacterSession.resolve`; "running": the task goes on, and this batch no longer waits for it.
    """

    index: int
    request: Any
    state: EntryState
    key: str | None = None
    provider: str | None = None
    task_id: str | None = None
    character: Character | None = None
    error: Exception | None = None
    snapshot: TaskSnapshot | None = attrs.field(default=None, repr=False)

    @property
    def credits(self) -> float | None:
        """What the task cost, where the provider told."""
        return self.snapshot.credits if self.snapshot else None

    def unwrap(self) -> Character | Any:
        """The character, or for a `TaskRequest` its finished snapshot; raises the error if there is one."""
        if self.error:
            raise self.error
        return self.character or self.snapshot


def state_of(error: Exception | None, *, waiting: bool) -> EntryState:
    """The state that an error tells of; `waiting`: for a task that was made."""
    if error is None:
        return EntryState.SUCCEEDED
    if isinstance(error, TaskFailedError | MissingCharacterError):
        return EntryState.FAILED
    if waiting or (isinstance(error, LedgerError) and error.task_id):
        return EntryState.RUNNING
    in_doubt = isinstance(error, SubmissionUnknownError) or not isinstance(error, SoraCharsError)
    return EntryState.UNKNOWN if in_doubt else EntryState.REJECTED
