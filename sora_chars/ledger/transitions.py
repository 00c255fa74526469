"""Everything that moves an entry from one state to another, apart from the first record.

The legal transitions are defined in `states`; this module decides which of them follows from what happened. Its pure
functions take an entry as it is now and return the next step; its coroutines write through `Ledger.transition`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidRequestError, MissingCharacterError, SoraCharsError, StaleEntryError, printable
from sora_chars.ids import is_id
from sora_chars.models import FAIL, SUCCESS, TaskFailure, TaskSnapshot
from sora_chars.redaction import mask

from .entry import Attempt, to_json
from .queries import find
from .serialize import to_result
from .states import EntryState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .entry import Entry
    from .ledger import Ledger

SENDABLE = frozenset({EntryState.PENDING, EntryState.REJECTED})
"""States from which a request may be sent: nothing was paid under the key."""

_GIVEN_UP = "given_up"  # the code of the failure
_RETRY_HINTS = {
    EntryState.UNKNOWN: "Find out what became of it, and resolve it first.",
    EntryState.RUNNING: "Wait for its task.",
    EntryState.SENDING: "Wait for the process that sends it.",
    EntryState.SUCCEEDED: "Use a new key for another character.",
    EntryState.DELETED: "Use a new key for another character.",
}
_WITHOUT_TASK = SENDABLE | {EntryState.SENDING, EntryState.UNKNOWN}


@attrs.frozen
class Answer:
    """What a provider's answer says about the request that was sent under an entry.

    Attributes:
        sent: The entry as it was when the request was sent; its token identifies the request.
        to: The state that the answer leads to.
        facts: What `Ledger.transition` records with it.
    """

    sent: Entry
    to: EntryState
    facts: dict[str, Any]

    @property
    def task_id(self) -> str | None:
        """The task that the answer names. A synchronous success without a character has an empty id."""
        return self.facts.get("task_id") or None

    def first_step(self, entry: Entry) -> EntryState:
        """Return the state to write first, for an entry that no other process has moved.

        An entry can return to `pending` or be `rejected` before its own answer arrives, when a person resolves it as
        never sent. An answer that names a task then goes through `sending`.
        """
        return EntryState.SENDING if self.task_id and entry.state in SENDABLE else self.to

    def next_step(self, entry: Entry) -> EntryState | None:
        """Return the state to write next after another process has moved the entry, or None if its move is kept.

        ==================================  ==========================  ==============================
        The entry is now                    the answer names no task    the answer names a task
        ==================================  ==========================  ==============================
        `unknown`, with this request's      write, unless the answer    write
        token                               is `unknown` too
        `pending` or `rejected`             is kept                     write, through `sending`
        `sending` or `unknown`              is kept                     write
        `running`, with the same task       is kept                     write, unless it is `running`
        ended, or with another task         is kept                     is kept
        ==================================  ==========================  ==============================
        """
        if entry.state is EntryState.UNKNOWN and self.to is not EntryState.UNKNOWN and self._is_same_request(entry):
            return self.to
        if self.task_id is None:
            return None
        if entry.state in _WITHOUT_TASK:
            return self.first_step(entry)
        if entry.task_id == self.task_id and entry.state is EntryState.RUNNING and self.to is not EntryState.RUNNING:
            return self.to
        return None

    def is_second_task(self, entry: Entry) -> bool:
        """Return whether the answer names a task although another task is on record under the same key."""
        return self.task_id is not None and entry.task_id != self.task_id

    def _is_same_request(self, entry: Entry) -> bool:
        return self.sent.token_digest is not None and entry.token_digest == self.sent.token_digest


def end_state(snapshot: TaskSnapshot, kind: str) -> tuple[EntryState, dict[str, Any]]:
    """Return the state that a finished snapshot leads to, and the facts to record with it."""
    facts: dict[str, Any] = {"task_id": snapshot.task_id, "result": to_result(snapshot), "credits": snapshot.credits}
    if snapshot.state != FAIL and (snapshot.character or snapshot.voice or kind == "task"):
        return EntryState.SUCCEEDED, facts
    failure = snapshot.failure or TaskFailure(None, "" if snapshot.state == FAIL else "it holds no character")
    return EntryState.FAILED, facts | {"error": {"code": failure.code, "message": mask(printable(failure.message))}}


def was_given_up(entry: Entry) -> bool:
    """Return whether a person has given the entry up; its task may still run."""
    return entry.state is EntryState.FAILED and (entry.error or {}).get("code") == _GIVEN_UP


def without_character(error: MissingCharacterError) -> TaskSnapshot:
    """Return the success that held no character as a snapshot."""
    return TaskSnapshot(task_id=error.task_id or "", provider=error.provider or "", state=SUCCESS, result=error.payload)


async def mark_orphaned(ledger: Ledger, entry: Entry, *, is_dead: bool | None = None) -> Entry:
    """Return the entry, moved to `unknown` if the process that was sending it has died.

    `is_dead` is whether it has; None checks it.
    """
    if entry.state is EntryState.SENDING and is_dead is None:
        is_dead = await ledger.is_dead(entry.owner or "")
    if entry.state is not EntryState.SENDING or not is_dead:
        return entry
    why = {"message": "the process that sent it ended before an answer was on record"}
    try:
        return await ledger.transition(entry, EntryState.UNKNOWN, error=why)
    except StaleEntryError as error:
        moved: Entry = error.entry
        return moved


async def claim(ledger: Ledger, entry: Entry) -> Entry:
    """Make this process the owner of a running entry, unless a living process owns it. Return the entry as it is."""
    owner = entry.owner
    while entry.state is EntryState.RUNNING and owner != ledger.owner:
        if owner and not await ledger.is_dead(owner):
            break
        try:
            entry = await ledger.transition(entry, EntryState.RUNNING)
        except StaleEntryError as error:
            entry = error.entry
        owner = entry.owner
    return entry


async def retry(ledger: Ledger, entry: Entry, request: Mapping[str, Any]) -> Entry:
    """Begin another attempt of a request that failed or was rejected, and return the entry as `pending`.

    If another process has begun one of the same request, that one counts.

    Args:
        ledger: The ledger that holds the entry.
        entry: The entry as last read.
        request: The request of the new attempt, as JSON.

    Raises:
        InvalidRequestError: The present attempt has neither failed nor been rejected.
        KeyConflictError: Another process has begun an attempt of another request.
    """
    if entry.state is EntryState.PENDING and to_json(request) == entry.request_json:
        return entry
    if entry.state not in {EntryState.FAILED, EntryState.REJECTED}:
        raise InvalidRequestError(
            f"key: {entry.key} is {entry.state}; only a failed or rejected request can be sent again.",
            hint=_RETRY_HINTS.get(entry.state, ""),
            key=entry.key,
            provider=entry.provider,
            task_id=entry.task_id,
            charged="maybe" if entry.may_have_been_paid else "no",
        )
    try:
        return await ledger.restart(entry, EntryState.PENDING, request=request)
    except StaleEntryError as error:
        moved: Entry = error.entry
        moved.check_same_request(attrs.evolve(entry, request_json=to_json(request)))
        return moved


async def resolve(
    ledger: Ledger,
    key: str,
    *,
    task_id: str | None = None,
    never_sent: bool = False,
    give_up: bool = False,
    undo: bool = False,
    version: int | None = None,
) -> Entry:
    """Record what a person found out about an entry whose outcome is unknown. Send nothing.

    Args:
        ledger: The ledger that holds the entry.
        key: The idempotency key of the entry.
        task_id: The task that the request created.
        never_sent: The request did not arrive, so it may be sent when it is requested again.
        give_up: The entry counts as failed. This is also possible for a running task.
        undo: The last resolution was wrong. Possible until the request is sent again or the task has ended.
        version: The version of the entry on which the decision was made, if it may have changed since.

    Raises:
        InvalidRequestError: Not exactly one of the four was given, the ledger has no such entry, or the entry leaves
            nothing to resolve.
        StaleEntryError: Another process moved the entry first.
    """
    if (task_id is not None) + never_sent + give_up + undo != 1:
        raise InvalidRequestError("resolve: give exactly one of task_id, never_sent, give_up and undo.")
    entry = await mark_orphaned(ledger, await find(ledger, key))
    try:
        check_version(entry, version)
        if undo:
            return await _undo(ledger, entry)
        _check_resolvable(entry, running=give_up)
        if task_id is not None:
            task_id = await _unrecorded(ledger, entry, task_id.strip())
    except SoraCharsError as error:
        error.add_facts(key=entry.key, provider=entry.provider)
        raise
    if entry.state is EntryState.REJECTED:
        entry = await ledger.restart(entry, EntryState.UNKNOWN)
    archive = Attempt.of(entry, at=entry.updated_at)
    if task_id is not None:
        return await ledger.transition(entry, EntryState.RUNNING, task_id=task_id, claim=False, archive=archive)
    if never_sent:
        return await ledger.transition(entry, EntryState.PENDING, archive=archive)
    failure = TaskFailure(_GIVEN_UP, "given up by the user")
    given_up = TaskSnapshot(task_id=entry.task_id or "", provider=entry.provider, state=FAIL, failure=failure)
    to, facts = end_state(given_up, entry.kind)
    facts["task_id"] = entry.task_id
    return await ledger.transition(entry, to, **facts, archive=archive)


def check_version(entry: Entry, version: int | None) -> None:
    """Raise `StaleEntryError` unless the entry has the version on which a person decided, if one is given."""
    if version is not None and entry.version != version:
        message = f"Entry {entry.key} was changed first: it is {entry.state} now."
        raise StaleEntryError(message, entry=entry, key=entry.key)


async def _undo(ledger: Ledger, entry: Entry) -> Entry:
    """Return an entry to the state that a person has resolved."""
    attempts = await ledger.attempts(entry.key)
    before = next((one for one in attempts if one.token_digest == entry.token_digest), None)
    ended = entry.state is EntryState.FAILED and entry.error.get("code") != _GIVEN_UP
    was_resolved = before is not None and before.state in {EntryState.UNKNOWN, EntryState.RUNNING}
    if not was_resolved or ended or entry.state not in {EntryState.PENDING, EntryState.RUNNING, EntryState.FAILED}:
        raise InvalidRequestError(f"key: {entry.key} is {entry.state}, and no resolution of it can be taken back.")
    entry = await ledger.restart(entry, EntryState.UNKNOWN)
    if before and before.task_id:
        return await ledger.transition(entry, EntryState.RUNNING, task_id=before.task_id, claim=False)
    return entry


def _check_resolvable(entry: Entry, *, running: bool) -> None:
    """Raise unless the outcome is unknown: also that of a rejection which proves nothing."""
    is_unproven = entry.state is EntryState.REJECTED and entry.may_have_been_paid
    if entry.state is EntryState.SENDING:
        raise InvalidRequestError(
            f"key: {entry.key} is being sent by a living process.", hint="Wait for it, or end that process first."
        )
    if not (entry.state is EntryState.UNKNOWN or is_unproven or (running and entry.state is EntryState.RUNNING)):
        raise InvalidRequestError(f"key: {entry.key} is {entry.state}, so there is nothing to resolve.")


async def _unrecorded(ledger: Ledger, entry: Entry, task_id: str) -> str:
    if not is_id(task_id):
        raise InvalidRequestError(f"task_id: must be the id of a task, got {printable(repr(task_id), limit=60)}.")
    other = await ledger.by_task(entry.provider, task_id)
    if other:
        raise InvalidRequestError(f"task_id: {task_id} is the task of key {other.key} already.")
    return task_id
