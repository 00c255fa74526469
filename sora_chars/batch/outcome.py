"""Outcome of one request of a batch."""

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
from sora_chars.redaction import masked_repr

if TYPE_CHECKING:
    from sora_chars.models import Character, TaskSnapshot


@attrs.frozen(kw_only=True)
class Outcome:
    """Outcome of one request of a batch: a character or an error.

    Attributes:
        index: Position of the request in the batch, from 0.
        request: The request as it was given.
        state: How the request ended.

            - "succeeded": the task has a result.
            - "failed": the task ended without a result.
            - "rejected": nothing was sent, or the provider did nothing. The request can
              be sent again, unless `error` is a `CharacterDeletedError`.
            - "unknown": the request was sent, and its outcome is unknown; see
              `CharacterSession.resolve`.
            - "running": the task still runs, but the batch stopped waiting for it.
        key: Idempotency key under which the ledger holds the request, generated if the
            request has none. None if the request is invalid or its price is unknown.
        provider: Name of the provider that the request was sent to.
        task_id: The provider's id of the task.
        character: The character, if the request creates one and succeeded.
        error: Why the request did not succeed.
        snapshot: Last known state of the task.
    """

    index: int
    request: Any = attrs.field(repr=masked_repr)
    state: EntryState
    key: str | None = None
    provider: str | None = None
    task_id: str | None = None
    character: Character | None = None
    error: Exception | None = None
    snapshot: TaskSnapshot | None = attrs.field(default=None, repr=False)

    @property
    def credits(self) -> float | None:
        """Credits that the task cost, if the provider reported them."""
        return self.snapshot.credits if self.snapshot else None

    def unwrap(self) -> Character | Any:
        """Return the character, or the finished snapshot of a `TaskRequest`.

        Raises:
            Exception: `error`, if the request did not succeed.
        """
        if self.error:
            raise self.error
        return self.character or self.snapshot


def state_of(error: Exception | None, *, waiting: bool) -> EntryState:
    """Return the state that an error implies.

    Args:
        error: What submitting the request or waiting for its task raised, if anything.
        waiting: Whether the task had been created.
    """
    if error is None:
        return EntryState.SUCCEEDED
    if isinstance(error, TaskFailedError | MissingCharacterError):
        return EntryState.FAILED
    if waiting or (isinstance(error, LedgerError) and error.task_id):
        return EntryState.RUNNING
    in_doubt = isinstance(error, SubmissionUnknownError) or not isinstance(error, SoraCharsError)
    return EntryState.UNKNOWN if in_doubt else EntryState.REJECTED
