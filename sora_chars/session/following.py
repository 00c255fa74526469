"""Follows a request by the ledger alone, and finds the requests that no process carries on."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import TYPE_CHECKING

from sora_chars.callbacks.hooks import check_no_hook
from sora_chars.errors import InvalidRequestError, SessionClosedError, WaitTimeoutError, printable
from sora_chars.ledger.queries import find
from sora_chars.ledger.states import UNFINISHED, EntryState
from sora_chars.models import check_seconds

from .settling import SETTLING_PERIOD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Entry

    from .dispatcher import Dispatcher


async def ended_entry(dispatcher: Dispatcher, key: str, seconds: float) -> Entry:
    """Wait until no process carries on the request of a key, and return its entry.

    While the provider can be asked what became of a lost response, an unknown outcome is not the end:
    the process that sent the request asks, or a job engine does.

    Raises:
        InvalidRequestError: The ledger has no such key.
        WaitTimeoutError: The request has not ended after `seconds`.
        SessionClosedError: The session was closed.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    entry = await find(dispatcher.ledger, key)
    check_no_hook(entry)
    while (lasts := _may_change_for(dispatcher, entry)) > 0:
        settled_by = loop.time() + lasts
        if loop.time() >= deadline:
            raise WaitTimeoutError(
                f"Key {entry.key} had not ended when the wait for it timed out: it is {entry.state}.",
                hint="Wait again: nothing is lost.",
                key=entry.key,
                provider=entry.provider,
                task_id=entry.task_id,
                charged="maybe" if entry.may_have_been_paid else "no",
            )
        before = entry
        entry = await _changed(dispatcher, before, min(deadline, settled_by) - loop.time())
        if entry.state is before.state and loop.time() >= settled_by:
            break
    return entry


def _may_change_for(dispatcher: Dispatcher, entry: Entry) -> float:
    """Return the seconds for which a process may still change an entry; 0 if none does."""
    if entry.state in UNFINISHED:
        return math.inf
    settles = any(provider.settles for provider in dispatcher.providers if provider.name == entry.provider)
    if entry.state is EntryState.UNKNOWN and settles:
        age = max(0.0, dispatcher.watcher.clock() - entry.updated_at)
        return max(0.0, SETTLING_PERIOD - age)
    return 0.0


async def _changed(dispatcher: Dispatcher, entry: Entry, seconds: float) -> Entry:
    timeout = None if seconds == math.inf else seconds
    changed = asyncio.ensure_future(dispatcher.ledger.changed(entry, timeout=timeout))
    try:
        await asyncio.wait((changed, dispatcher.closed), return_when=asyncio.FIRST_COMPLETED)
        if not changed.done():
            raise SessionClosedError(
                f"The session was closed before key {entry.key} ended.",
                hint="Wait again in another session: nothing is lost.",
                key=entry.key,
                provider=entry.provider,
            )
        return changed.result()
    finally:
        changed.cancel()


async def due(dispatcher: Dispatcher, *, idle: float, limit: int) -> AsyncGenerator[Entry, None]:
    """Yield the entries of this session's providers that no process carries on; see `CharacterSession.due`."""
    check_seconds("idle", idle, finite=True)
    given: object = limit
    if not (isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= sys.maxsize):
        raise InvalidRequestError(f"limit must be a whole number from 1, got {printable(repr(given), limit=60)}.")
    names = {provider.name for provider in dispatcher.providers}
    async for entry in dispatcher.ledger.due(idle=idle, limit=limit, providers=names):
        yield entry
