"""One step of a request at a time, for job engines: send once, poll once, or nothing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from sora_chars.callbacks.hooks import check_no_hook
from sora_chars.errors import (
    MissingCharacterError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskNotFoundError,
    printable,
)
from sora_chars.ledger import EntryState
from sora_chars.ledger.outcomes import FINISHED, outcome_of
from sora_chars.ledger.queries import find
from sora_chars.ledger.serialize import to_request
from sora_chars.logs import event_logger
from sora_chars.models import TaskSnapshot, check_seconds
from sora_chars.observers import observation
from sora_chars.ratelimit.reservations import Patience, patience
from sora_chars.redaction import mask, masked_repr

if TYPE_CHECKING:
    from collections.abc import Generator

    from sora_chars.ledger import Entry
    from sora_chars.models import Character, Voice

    from .dispatcher import Dispatcher
    from .submission import Submission

log = event_logger("sora_chars.session")

_RETRY_DELAY = 5.0  # seconds, after a premature or failed step
_CHECK_DELAY = 1.0  # seconds, while the process that sends the request may have died


@attrs.frozen
class Step:
    """What `CharacterSession.advance` found.

    Attributes:
        entry: The entry as it is now.
        retry_in: Seconds after which to call again; None when the key needs no further step.
        waiting_for: URL of the page on which a person must act, as in `TaskSnapshot`.
    """

    entry: Entry
    retry_in: float | None
    waiting_for: str | None = attrs.field(default=None, repr=masked_repr)

    @property
    def finished(self) -> bool:
        """Whether the key needs no further step."""
        return self.retry_in is None

    @property
    def state(self) -> EntryState:
        """What is known of the request now."""
        return self.entry.state

    @property
    def outcome(self) -> Character | Voice | TaskSnapshot | SoraCharsError | None:
        """The character, voice or, of a `TaskRequest`, finished snapshot, or why there is none; None before the end."""
        if not (self.finished and self.state in FINISHED):
            return None
        try:
            return outcome_of(self.entry)
        except SoraCharsError as error:
            return error


async def advance(dispatcher: Dispatcher, key: str, seconds: float) -> Step:
    """Take the next step of a key; see `CharacterSession.advance`."""
    check_seconds("patience", seconds, finite=True)
    entry = await find(dispatcher.ledger, key)
    check_no_hook(entry)
    if observed := observation.get():
        observed.key = entry.key
        observed.provider = entry.provider
    before = entry.state
    step = await _next_step(dispatcher, await dispatcher.owner_checks.mark_orphaned(entry), seconds)
    if step.state is not before:
        _log(step.entry)
    return step


async def _next_step(dispatcher: Dispatcher, entry: Entry, seconds: float) -> Step:
    with _patient(entry, seconds):
        match entry.state:
            case EntryState.PENDING | EntryState.UNKNOWN:
                return await _submit(dispatcher, entry)
            case EntryState.RUNNING:
                return await _poll(dispatcher, entry)
            case EntryState.SENDING:
                return Step(entry, _CHECK_DELAY if dispatcher.owner_checks.is_checking(entry) else _RETRY_DELAY)
            case _:
                return Step(entry, None)


def _log(entry: Entry) -> None:
    """Log that a step has ended a request, or lost its outcome: an engine sees no exception."""
    facts = {"key": entry.key, "provider": entry.provider, "task_id": entry.task_id}
    if entry.state is EntryState.UNKNOWN:
        log.warning("recovery.unknown", extra=facts)
    elif entry.state in FINISHED:
        why = None if entry.error is None else printable(mask(str(entry.error.get("message") or "")))
        level = logging.WARNING if entry.state is EntryState.REJECTED else logging.INFO
        log.log(level, "request.ended", extra={**facts, "state": entry.state.value, "error": why})


@contextmanager
def _patient(entry: Entry, seconds: float) -> Generator[None]:
    """Let the requests of the block wait up to `seconds` for a slot, in the order in which keys were registered."""
    token = patience.set(Patience(entry.key, entry.created_at, asyncio.get_running_loop().time() + seconds))
    try:
        yield
    finally:
        patience.reset(token)


async def _submit(dispatcher: Dispatcher, entry: Entry) -> Step:
    """Send a pending request, or ask the provider for the task of an unknown one."""
    provider = dispatcher.provider(entry.provider)
    submission = dispatcher.submission(
        provider, to_request(entry), entry, on_recorded=_first_snapshot, claims_task=False
    )
    try:
        if entry.state is EntryState.PENDING and provider.account and (request := patience.get()):
            await provider.account.windows["create"].reach(request)  # before files are uploaded for it
        snapshot = await dispatcher.carry_through(submission)
    except (SubmissionUnknownError, MissingCharacterError):
        return Step(submission.entry, _settle_in(dispatcher, submission))
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
    return Step(submission.entry, _next_poll(dispatcher, submission.entry, snapshot, 0.0))


def _settle_in(dispatcher: Dispatcher, submission: Submission) -> float | None:
    """Return the seconds until the provider is asked again for the task of a lost response, where it can be asked."""
    if submission.entry.state not in FINISHED:  # the ledger does not have it yet
        return _RETRY_DELAY
    if submission.settlement and submission.entry.state is EntryState.UNKNOWN:
        return submission.settlement.ask_again_in(submission.entry, dispatcher.watcher.clock())
    return None


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
        _report(entry, error)
        is_visible_soon = isinstance(error, TaskNotFoundError) and watcher.clock() - entry.updated_at < watcher.grace
        if not (error.transient or is_visible_soon):
            raise
        return Step(entry, error.retry_after or _RETRY_DELAY)
    _report(entry, seen)
    if isinstance(seen, TaskSnapshot) and not seen.finished:
        age = max(0.0, watcher.clock() - (seen.created_at or entry.created_at))
        return Step(entry, _next_poll(dispatcher, entry, seen, age), seen.waiting_for)
    if dispatcher.closing:  # the ledger is no longer written
        raise SessionClosedError(f"The session was closed before the end of key {entry.key} was recorded.")
    await dispatcher.writer.record_result(seen)
    if isinstance(seen, TaskSnapshot):
        recorded = watcher.clock() - entry.updated_at  # an upper bound
        age = max(0.0, recorded) if seen.duration is None else seen.duration
        watcher.observe(seen, age, age)
        await dispatcher.saved_picture(seen)
    entry = await find(dispatcher.ledger, entry.key)
    return Step(entry, _RETRY_DELAY if entry.state is EntryState.RUNNING else None)


def _report(entry: Entry, seen: TaskSnapshot | SoraCharsError) -> None:
    """Report a poll to the observers of the session, if there are any."""
    if observed := observation.get():
        observed.woken_by = "poll"
        if isinstance(seen, TaskSnapshot):
            observed.polled(entry.task_id or "", seen.state, None, completed_at=seen.completed_at)
        else:
            observed.polled(entry.task_id or "", None, None, error=type(seen).__name__)


def _next_poll(dispatcher: Dispatcher, entry: Entry, snapshot: TaskSnapshot | None, age: float) -> float:
    """Return the seconds until the next poll: longer while callbacks arrive, as those of the watcher are."""
    if snapshot and snapshot.retry_after:
        return snapshot.retry_after
    watcher = dispatcher.watcher
    delay = watcher.polling.delay(snapshot, age)
    expects_callback = bool(dispatcher.provider(entry.provider).callback_url and entry.token_digest)
    return watcher.callback_health.stretched(delay) if expects_callback else delay
