"""Which process looks after a task on record: one polls it, the others hear of its end, and one takes over."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import LedgerError, SessionClosedError, StaleEntryError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import to_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot
    from sora_chars.polling.watched_task import WatchedTask
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider

log = logging.getLogger("sora_chars.session")


@attrs.define(eq=False, repr=False)
class TaskTracker:
    """Brings tasks on record under a watcher.

    `interval`: seconds between two looks whether the processes that poll the others are still alive.
    """

    ledger: Ledger
    watcher: TaskWatcher
    interval: float = 1.0
    _followed: dict[WatchedTask, tuple[Provider, Entry]] = attrs.field(
        factory=dict["WatchedTask", "tuple[Provider, Entry]"]
    )
    _rounds: asyncio.Task[None] | None = None
    _closed: bool = False

    async def join(self, provider: Provider, entry: Entry, snapshot: TaskSnapshot | None = None) -> WatchedTask:
        """Wait for the task of an entry, and poll it unless a living process does. `snapshot`: its first one.

        Raises:
            SessionClosedError: nobody polls here any more.
        """
        if snapshot is None:
            try:
                entry = await self._claim(entry)
            except LedgerError as error:  # it is held as soon as the ledger can be written again
                log.warning("tracker.failed", extra={"error": printable(error)})
            snapshot = None if entry.state is EntryState.RUNNING else to_snapshot(entry)
        if self._closed:  # perhaps while the ledger was asked; what began now would never be stopped
            raise SessionClosedError(f"The session was closed before anybody waited for the task of key {entry.key}.")
        task_id = snapshot.task_id if snapshot else entry.task_id or ""
        polled_elsewhere = snapshot is None and entry.owner != self.ledger.owner
        watch = self.watcher.watch(
            provider,
            task_id,
            snapshot=snapshot,
            expects_callback=bool(provider.callback_url and entry.token_digest),
            polled_elsewhere=polled_elsewhere,
        )
        if not watch.future.done() and (
            watch.polled_elsewhere or watch.expects_callback
        ):  # others may hear of its end first
            end = self.ledger.subscribe(entry, partial(self.watcher.nudge, provider.name, task_id, by="poll"))
            watch.future.add_done_callback(lambda _: end())
        if watch.polled_elsewhere and watch not in self._followed:
            self._follow(provider, entry, watch)
            await self._catch_up(entry, watch)
        return watch

    async def aclose(self) -> None:
        """Follow nobody any more."""
        self._closed = True
        if self._rounds:
            self._rounds.cancel()
            await asyncio.wait((self._rounds,))

    async def _claim(self, entry: Entry) -> Entry:
        """The entry, held by this process from now on unless another one that lives holds it."""
        owner = entry.owner
        while entry.state is EntryState.RUNNING and owner != self.ledger.owner:
            if owner and not await self.ledger.is_dead(owner):
                break
            try:
                entry = await self.ledger.transition(entry, EntryState.RUNNING)
            except StaleEntryError as error:
                entry = error.entry
            owner = entry.owner
        return entry

    def _follow(self, provider: Provider, entry: Entry, watch: WatchedTask) -> None:
        self._followed[watch] = provider, entry
        watch.future.add_done_callback(lambda _: self._followed.pop(watch, None))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._go_round(), name="sora_chars tracker")

    async def _catch_up(self, entry: Entry, watch: WatchedTask) -> None:
        """Look at once if the entry was moved between our reading of it and our listening: that was told to nobody."""
        try:
            now = await self.ledger.get(entry.key)
        except LedgerError as error:  # the task is looked at now and then all the same
            log.warning("tracker.failed", extra={"error": printable(error)})
            return
        if now and now.version != entry.version:
            self.watcher.nudge(entry.provider, watch.task_id, by="poll")

    async def _go_round(self) -> None:
        while self._followed:
            await asyncio.sleep(self.interval)
            try:
                for owner in {entry.owner for _, entry in self._followed.values()}:
                    if owner is None or await self.ledger.is_dead(owner):
                        await self._take_over(
                            [watch for watch, (_, one) in self._followed.items() if one.owner == owner]
                        )
            except LedgerError as error:
                log.warning("tracker.failed", extra={"error": printable(error)})

    async def _take_over(self, watches: Sequence[WatchedTask]) -> None:
        for watch in watches:
            provider, entry = self._followed.get(watch, (None, None))
            if provider is None or entry is None:  # it ended meanwhile
                continue
            entry = await self._claim(entry)
            if entry.state is not EntryState.RUNNING or entry.owner == self.ledger.owner:
                self._followed.pop(watch, None)
                self.watcher.take_over(provider.name, watch)
            elif watch in self._followed:  # it did not end meanwhile
                self._followed[watch] = provider, entry
