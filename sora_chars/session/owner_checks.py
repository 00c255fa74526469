"""Checks of whether other processes have ended, which steps do not wait for."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

import attrs

from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import mark_orphaned

if TYPE_CHECKING:
    from sora_chars.ledger import Entry, Ledger

_PATIENCE = 0.1  # seconds for a check; on PostgreSQL one takes 15 seconds, elsewhere none


@attrs.define(eq=False, repr=False)
class OwnerChecks:
    """The checks that run, one for each owner.

    Attributes:
        ledger: The ledger whose entries have the owners.
    """

    ledger: Ledger
    _running: dict[str, asyncio.Task[bool]] = attrs.field(factory=dict)

    async def mark_orphaned(self, entry: Entry) -> Entry:
        """Return the entry, moved to `unknown` if the process that was sending it is known to have died."""
        if entry.state is not EntryState.SENDING or not await self._is_known_dead(entry.owner or ""):
            return entry
        return await mark_orphaned(self.ledger, entry, is_dead=True)

    def is_checking(self, entry: Entry) -> bool:
        """Return whether the owner of an entry may have died."""
        return entry.owner in self._running

    async def aclose(self) -> None:
        """Stop the checks."""
        running = [*self._running.values()]
        for check in running:
            check.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _is_known_dead(self, owner: str) -> bool:
        check = self._running.get(owner)
        if check is None:
            check = asyncio.create_task(self.ledger.is_dead(owner), name="sora_chars owner check", context=Context())
            self._running[owner] = check
        await asyncio.wait((check,), timeout=_PATIENCE)
        if not check.done():
            return False
        self._running.pop(owner, None)
        return check.result()
