"""What a person decides about a key: to send it again, or what became of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypedDict

import attrs

from sora_chars.callbacks.hooks import check_no_hook
from sora_chars.errors import (
    InvalidRequestError,
    MissingCharacterError,
    SubmissionUnknownError,
    TaskNotFoundError,
    printable,
)
from sora_chars.ledger import EntryState, transitions
from sora_chars.ledger.queries import find
from sora_chars.ledger.serialize import echoes_other_token, to_record, to_request
from sora_chars.models import as_request, with_changes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from sora_chars.ledger import Entry
    from sora_chars.models import Request, TaskSnapshot
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

    from .dispatcher import Dispatcher


async def retry(
    dispatcher: Dispatcher,
    key: str,
    request: Request | None,
    changes: Mapping[str, Any],
    *,
    deadline: float = math.inf,
) -> TaskHandle[Any]:
    """Send another attempt of a request that failed or was rejected, and return a live handle.

    Raises:
        WaitTimeoutError: `deadline`, a loop time, passed before the request was sent.
    """
    entry, request, chosen = await restart(dispatcher, key, request, changes)
    handle: TaskHandle[Any] = await dispatcher.carry_through(
        dispatcher.submission(chosen, request, entry, on_recorded=dispatcher.handle_of), deadline=deadline
    )
    return handle


async def restart(
    dispatcher: Dispatcher, key: str, request: Request | None, changes: Mapping[str, Any]
) -> tuple[Entry, Request, Provider]:
    """Record another attempt of a request that failed or was rejected; return its entry, request and provider."""
    entry = await transitions.mark_orphaned(dispatcher.ledger, await find(dispatcher.ledger, key))
    check_no_hook(entry)
    if request is None:
        request = with_changes(to_request(entry), changes)
    elif as_request(request, changes).key not in {None, entry.key}:
        raise InvalidRequestError(f"key: the request has the key {printable(request.key)}, not {entry.key}.")
    request = attrs.evolve(request, key=entry.key)
    chosen = dispatcher.choose(request, entry.provider)
    kind, record = to_record(request)
    if kind != entry.kind:
        raise InvalidRequestError(f"request: must be of kind {entry.kind} as the entry {key} is, got {kind}.")
    return await transitions.retry(dispatcher.ledger, entry, record), request, chosen


class Decision(TypedDict, total=False):
    """What a person decided about a key: the keyword arguments of `CharacterSession.resolve` apart from `ask`."""

    task_id: str | None
    never_sent: bool
    give_up: bool
    undo: bool
    unchecked: bool
    version: int | None


async def resolve(dispatcher: Dispatcher, key: str, *, ask: bool = False, **decision: Unpack[Decision]) -> Entry:
    """Ask the provider what became of a request, or record what a person found out; see `CharacterSession.resolve`."""
    if not ask:
        return await _decide(dispatcher, key, **decision)
    version = decision.pop("version", None)
    if any(value not in {None, False} for value in decision.values()):
        raise InvalidRequestError(f"resolve: ask cannot be combined with {' and '.join(decision)}.")
    return await _ask(dispatcher, key, version)


async def _ask(dispatcher: Dispatcher, key: str, version: int | None) -> Entry:
    """Ask the provider once for the task of a key, and record it.

    Raises:
        SubmissionUnknownError: The provider showed no task; the message states what was asked and answered.
    """
    entry = await transitions.mark_orphaned(dispatcher.ledger, await find(dispatcher.ledger, key))
    transitions.check_version(entry, version)
    if entry.state is not EntryState.UNKNOWN:
        raise InvalidRequestError(f"key: {entry.key} is {entry.state}, so there is nothing to ask.")
    settlement = dispatcher.settlement(dispatcher.provider(entry.provider), claims_task=False)
    if settlement is None:
        raise InvalidRequestError(
            f"ask: {entry.provider} cannot be asked for the task of a key.",
            hint="Check its website, and resolve the key by what you find there.",
            key=entry.key,
            provider=entry.provider,
        )
    entry = await settlement.ask(entry)
    if entry.state is EntryState.UNKNOWN:
        raise SubmissionUnknownError(
            f"The outcome of key {entry.key} is still unknown. {settlement.outcome}",
            hint="A task that is not shown proves nothing while its request may still be on its way.",
            key=entry.key,
            provider=entry.provider,
        )
    return entry


async def _decide(
    dispatcher: Dispatcher,
    key: str,
    *,
    task_id: str | None = None,
    never_sent: bool = False,
    give_up: bool = False,
    undo: bool = False,
    unchecked: bool = False,
    version: int | None = None,
) -> Entry:
    """Record what a person found out about a request."""
    snapshot: TaskSnapshot | None = None
    if task_id is not None:
        entry = await find(dispatcher.ledger, key)
        provider = dispatcher.provider(entry.provider)
        if provider.synchronous:
            raise InvalidRequestError(f"task_id: {entry.provider} has no tasks; use never_sent or give_up.")
        if not unchecked:
            earlier = await dispatcher.ledger.attempts(entry.key)
            digests = [entry.token_digest, *(attempt.token_digest for attempt in earlier)]
            snapshot = await _confirmed(provider, entry, task_id.strip(), digests)
    entry = await transitions.resolve(
        dispatcher.ledger, key, task_id=task_id, never_sent=never_sent, give_up=give_up, undo=undo, version=version
    )
    if snapshot and snapshot.finished:
        await dispatcher.writer.record_result(snapshot)
        entry = await find(dispatcher.ledger, key)
    return entry


async def _confirmed(
    provider: Provider, entry: Entry, task_id: str, digests: Sequence[str | None]
) -> TaskSnapshot | None:
    """Return the task that a person names, if the provider shows it and it does not belong to another request.

    Args:
        provider: Where the task runs.
        entry: The entry of the request.
        task_id: The task.
        digests: Those of the tokens of all attempts: an earlier one may have made the task.
    """
    try:
        snapshot = await provider.fetch(task_id)
    except TaskNotFoundError as error:
        raise InvalidRequestError(
            f"task_id: {provider.name} has no task {printable(task_id, limit=60)}.",
            hint="Check the id. To record it although the provider does not show it, pass unchecked=True.",
            key=entry.key,
            provider=provider.name,
        ) from error
    except MissingCharacterError:
        return None
    if all(echoes_other_token(snapshot, digest) for digest in digests):
        raise InvalidRequestError(
            f"task_id: task {printable(task_id, limit=60)} was made by another request than {entry.key}.",
            hint="Its record at the provider names another callback URL.",
            key=entry.key,
            provider=provider.name,
        )
    return snapshot
