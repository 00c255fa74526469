"""Callbacks of hooks: any content, from any API, recorded under the key of the hook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidRequestError, StaleEntryError
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import to_snapshot
from sora_chars.models import SUCCESS

if TYPE_CHECKING:
    from sora_chars.ledger import Entry, Ledger

HOOK = "hook"
"""The kind and the provider of the entry of a hook."""


@attrs.frozen
class HookEvent:
    """The callback of a hook. Only the secret token of its URL was checked.

    Attributes:
        payload: The JSON value of the body, or its text if it is no JSON.
        received_at: When it arrived, in epoch seconds.
    """

    payload: Any = attrs.field(repr=False)
    received_at: float


def check_no_hook(entry: Entry) -> None:
    """Check that an entry is that of a request.

    Raises:
        InvalidRequestError: It is that of a hook.
    """
    if entry.kind == HOOK:
        raise InvalidRequestError(
            f"key: {entry.key} is the key of a hook, not of a request.", hint="Open the hook with session.hook(key)."
        )


async def record_event(ledger: Ledger, entry: Entry, body: bytes, *, now: float) -> None:
    """Record the first callback of a hook; later ones change nothing.

    Raises:
        LedgerError: The ledger could not be written.
    """
    if entry.state is not EntryState.RUNNING:
        return
    text = body.decode(errors="replace")
    try:
        payload = json.loads(text)
        json.dumps(payload, allow_nan=False)  # the numbers NaN and Infinity are no JSON, though Python reads them
    except (ValueError, RecursionError):
        payload = text
    result = {
        "task_id": entry.task_id,
        "provider": entry.provider,
        "state": SUCCESS,
        "result": payload,
        "completed_at": now,
    }
    try:
        await ledger.transition(entry, EntryState.SUCCEEDED, result=result)
    except StaleEntryError:
        return  # another one was first


def event_of(entry: Entry) -> HookEvent:
    """Return the recorded callback of a hook that has ended.

    Raises:
        TaskFailedError: It was given up.
    """
    snapshot = to_snapshot(entry)
    snapshot.outcome()
    return HookEvent(snapshot.result, snapshot.completed_at or entry.updated_at)
