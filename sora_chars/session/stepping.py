"""One step of a request at a time, for job engines: send once, poll once, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import MissingCharacterError, ProviderError, SessionClosedError, TaskNotFoundError
from sora_chars.ledger import EntryState
from sora_chars.ledger.queries import find
from sora_chars.ledger.serialize import to_request
from sora_chars.ledger.transitions import mark_orphaned
from sora_chars.models import TaskSnapshot

if TYPE_CHECKING:
    from sora_chars.ledger import Entry

    from .dispatcher import Dispatcher
    from .submission import Submission

_RETRY_DELAY = 5.0  # seconds, after a premature or failed step


@attrs.frozen
class Step:
    """What `CharacterSession.advance` found.

    Attributes:
        entry: The entry as it is now.
        retry_in: Seconds after which to call again; None when the key needs no further step.
    """

    entry: Entry
    retry_in: float | None

    @property
    def finished(self) -> bool:
        """Whether the key needs no further step."""
        return self.retry_in is None


async def advance(dispatcher: Dispatcher, entry: Entry) -> Step:
    """Take the next step of an entry; see `CharacterSession.advance`."""
    entry = await mark_orphaned(dispatcher.ledger, entry)
    match entry.state:
        case EntryState.PENDING | EntryState.UNKNOWN:  # for an unknown outcome it only raises
            return await _submit(dispatcher, entry)
        case EntryState.RUNNING:
            return await _poll(dispatcher, entry)
        case EntryState.SENDING:
            return Step(entry, _RETRY_DELAY)
        case _:
            return Step(entry, None)


async def _submit(dispatcher: Dispatcher, entry: Entry) -> Step:
    provider = dispatcher.provider(entry.provider)
    submission = dispatcher.submission(
        provider, to_request(entry), entry, on_recorded=_first_snapshot, claims_task=False
    )
    try:
        snapshot = await dispatcher.carry_through(submission)
    except ProviderError as error:
        if submission.entry.state is EntryState.REJECTED:
            return Step(submission.entry, None)
        if not error.transient:
            raise
        return Step(submission.entry, error.retry_after or _RETRY_DELAY)
    if snapshot:
        await dispatcher.saved_picture(snapshot)
    if submission.entry.state is not EntryState.RUNNING:
        return Step(submission.entry, None)
    return Step(submission.entry, dispatcher.watcher.polling.delay(snapshot, 0.0))


async def _first_snapshot(submission: Submission, snapshot: TaskSnapshot | None) -> TaskSnapshot | None:
    del submission
    return snapshot


async def _poll(dispatcher: Dispatcher, entry: Entry) -> Step:
    provider = dispatcher.provider(entry.provider)
    watcher = dispatcher.watcher
    try:
        seen: TaskSnapshot | MissingCharacterError = await provider.fetch(entry.task_id or "")
    except MissingCharacterError as error:
        seen = error
    except ProviderError as error:
        if not (error.transient or isinstance(error, TaskNotFoundError)):
            raise
        return Step(entry, error.retry_after or _RETRY_DELAY)
    if isinstance(seen, TaskSnapshot) and not seen.finished:
        age = max(0.0, watcher.clock() - (seen.created_at or entry.created_at))
        return Step(entry, seen.retry_after or watcher.polling.delay(seen, age))
    if dispatcher.closing:  # the ledger is no longer written
        raise SessionClosedError(f"The session was closed before the end of key {entry.key} was recorded.")
    await dispatcher.writer.record_result(seen)
    if isinstance(seen, TaskSnapshot):
        age = seen.duration or 0.0
        watcher.observe(seen, age, age)
        await dispatcher.saved_picture(seen)
    entry = await find(dispatcher.ledger, entry.key)
    return Step(entry, _RETRY_DELAY if entry.state is EntryState.RUNNING else None)
