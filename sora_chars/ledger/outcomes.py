"""What the request of an entry came to: its result, or the error that says why there is none."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import (
    CharacterDeletedError,
    MissingCharacterError,
    SoraCharsError,
    SubmissionUnknownError,
    UnreadableEntryError,
    WaitTimeoutError,
    printable,
)

from .serialize import rejection, to_request, to_snapshot
from .states import ENDED, EntryState

if TYPE_CHECKING:
    from sora_chars.models import Character, TaskSnapshot, Voice

    from .entry import Entry

FINISHED = ENDED | {EntryState.UNKNOWN}
"""The states in which nothing is under way that a process would carry on."""


def outcome_of(entry: Entry) -> Character | Voice | TaskSnapshot:
    """Return the character or the voice of an entry; for the request of a task, its finished snapshot.

    Raises:
        TaskFailedError: The task failed.
        MissingCharacterError: The task succeeded without a character.
        ProviderError: The provider rejected the request.
        CharacterDeletedError: The character was deleted.
        SubmissionUnknownError: The outcome of the request is unknown.
        WaitTimeoutError: The request has not ended.
        UnreadableEntryError: The entry holds fields that this version does not have.
    """
    try:
        return _outcome_of(entry)
    except SoraCharsError as error:
        error.add_facts(key=entry.key, provider=entry.provider, task_id=entry.task_id)
        raise


def character_of(entry: Entry) -> Character | None:
    """Return the recorded character of an entry, or None."""
    if entry.state is not EntryState.SUCCEEDED:
        return None
    character = to_snapshot(entry).character
    return character and attrs.evolve(character, name=character.name or _name_of(entry))


def _outcome_of(entry: Entry) -> Character | Voice | TaskSnapshot:
    match entry.state:
        case EntryState.SUCCEEDED | EntryState.FAILED:
            return _result_of(entry)
        case EntryState.DELETED:
            raise character_deleted(entry)
        case EntryState.REJECTED:
            raise rejection(entry)
        case EntryState.UNKNOWN:
            why = printable(str((entry.error or {}).get("message", "no reason is recorded")))
            raise SubmissionUnknownError(
                f"It is unknown whether {entry.provider} made this character (key {entry.key}): {why}",
                hint="It may exist and be charged, so this key is never sent again automatically. "
                "Check the provider's site, then call `session.resolve` or run `sora-chars ledger resolve`.",
            )
        case _:
            raise WaitTimeoutError(
                f"Key {entry.key} has not ended: it is {entry.state}.",
                charged="maybe" if entry.may_have_been_paid else "no",
            )


def character_deleted(entry: Entry) -> CharacterDeletedError:
    """Return the error for a request under the key of a character that was deleted."""
    return CharacterDeletedError(
        f"The character of key {entry.key} was deleted at {entry.provider}. Nothing was sent.",
        hint="Use a new key for another character.",
        key=entry.key,
        provider=entry.provider,
        task_id=entry.task_id,
    )


def _result_of(entry: Entry) -> Character | Voice | TaskSnapshot:
    snapshot = to_snapshot(entry)
    snapshot.outcome()  # raises if the task failed
    if entry.kind == "task":
        return snapshot
    if snapshot.voice:
        return snapshot.voice
    if character := character_of(entry):
        return character
    raise MissingCharacterError(
        f"Task {entry.task_id} succeeded, but its result at {entry.provider} holds no character.",
        payload=snapshot.result,
    )


def _name_of(entry: Entry) -> str | None:
    with suppress(UnreadableEntryError):
        return getattr(to_request(entry), "name", None)
    return None
