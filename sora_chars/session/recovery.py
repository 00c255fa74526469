"""Takes up the recorded tasks that are running, after a restart."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from sora_chars.callbacks.hooks import HOOK
from sora_chars.errors import UnreadableEntryError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import mark_orphaned
from sora_chars.logs import event_logger
from sora_chars.observers import Observation, observation
from sora_chars.polling.handle import TaskHandle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Entry

    from .dispatcher import Dispatcher

log = event_logger("sora_chars.session")


async def recover_all(dispatcher: Dispatcher) -> AsyncGenerator[TaskHandle[Any], None]:
    """Yield live handles of the tasks that are running. The ledger writes each page of entries together."""
    states = {EntryState.SENDING, EntryState.RUNNING}
    if any(provider.settles for provider in dispatcher.providers):
        states.add(EntryState.UNKNOWN)
    async with aclosing(dispatcher.ledger.pages(states=states)) as pages:
        async for page in pages:
            outcomes = await asyncio.gather(*map(partial(recover, dispatcher), page), return_exceptions=True)
            if failures := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
                raise failures[0]
            for outcome in outcomes:
                if isinstance(outcome, TaskHandle):
                    yield outcome


async def recover(dispatcher: Dispatcher, entry: Entry) -> TaskHandle[Any] | None:
    """Return a live handle if the entry's task is running at a provider of this session. Log what is not."""
    if dispatcher.observers.listening:
        # In the context of the asyncio task that `recover_all` starts.
        observation.set(Observation(dispatcher.observers, entry.key, entry.provider))
    entry = await mark_orphaned(dispatcher.ledger, entry)
    if entry.state is EntryState.UNKNOWN:
        for provider in dispatcher.providers:
            if provider.name == entry.provider and (settlement := dispatcher.settlement(provider)):
                entry = await settlement.ask(entry)
    facts = {"provider": entry.provider, "key": entry.key}
    if entry.state is EntryState.UNKNOWN:
        log.warning("recovery.unknown", extra=facts)
    elif entry.state is EntryState.RUNNING:
        if any(provider.name == entry.provider for provider in dispatcher.providers):
            try:
                return await dispatcher.handle(entry)
            except UnreadableEntryError as error:
                log.error("recovery.unreadable", extra=facts | {"error": printable(error)})  # noqa: TRY400 # one line
                return None
        if entry.kind != HOOK:  # its callback ends it
            log.warning("recovery.no_provider", extra=facts)
    return None
