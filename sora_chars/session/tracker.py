"""Which process looks after a task on record: one polls it, the others hear of its end, and one takes over."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import EntryMovedError, LedgerError, SessionClosedError, printable
from sora_chars.ledger import State
from sora_chars.ledger.serialize import to_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot
    from sora_chars.polling.watched_task import Watch
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider

log = logging.getLogger("sora_chars.session")


@attrs.define(eq=False, repr=False)
class Follower:
    """Brings tasks on record under a watcher.

    `interval`: seconds between two looks whether the processes that poll the others are still alive.
    """

    ledger: Ledger
    watcher: TaskWatcher
    interval: float = 1.0
    _followed: dict[Watch, tuple[Provider, Entry]] = attrs.field(factory=dict["Watch", "tuple[Provider, Entry]"])
    _rounds: asyncio.Task[None] | None = None
    _closed: bool = False

    async def join(self, provider: Provider, entry: Entry, snapshot: TaskSnapshot | None = None) -> Watch:
        """Wait for the task of an entry, and poll it unless a living process does. `snapshot`: its first one.

        Raises:
            SessionClosedError: nobody polls here any more.
        """
        if snapshot is None:
            try:
                entry = await self._hold(entry)
            except LedgerError as error:  # it is held as soon as the ledger can be written again
                log.warning("follower.failed", extra={"error": printable(error)})
            snapshot = None if entry.state is State.RUNNING else to_snapshot(entry)
        if self._closed:  # perhaps while the ledger was asked; what began now would never be stopped
            raise SessionClosedError(f"The session was closed before anybody waited for the task of key {entry.key}.")
        task_id = snapshot.task_id if snapshot else entry.task_id or ""
        follows = snapshot is None and entry.holder != self.ledger.holder
        watch = self.watcher.watch(
            provider,
            task_id,
            snapshot=snapshot,
            expects_callback=bool(provider.callback_url and entry.token_digest),
            follows=follows,
        )
        if not watch.future.done() and (watch.follows or watch.expects_callback):  # others may hear of its end first
            end = self.ledger.listen(entry, partial(self.watcher.nudge, provider.name, task_id, by="poll"))
            watch.future.add_done_callback(lambda _: end())
        if watch.follows and watch not in self._followed:
            self._follow(provider, entry, watch)
            await self._catch_up(entry, watch)
        return watch

    async def aclose(self) -> None:
        """Follow nobody any more."""
        self._closed = True
        if self._rounds:
            self._rounds.cancel()
            await asyncio.wait((self._rounds,))

    async def _hold(self, entry: Entry) -> Entry:
        """The entry, held by this process from now on unless another one that lives holds it."""
        holder = entry.holder
        while entry.state is State.RUNNING and holder != self.ledger.holder:
            if holder and not await self.ledger.is_gone(holder):
                break
            try:
                entry = await self.ledger.move(entry, State.RUNNING)
            except EntryMovedError as error:
                entry = error.entry
            holder = entry.holder
        return entry

    def _follow(self, provider: Provider, entry: Entry, watch: Watch) -> None:
        self._followed[watch] = provider, entry
        watch.future.add_done_callback(lambda _: self._followed.pop(watch, None))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._go_round(), name="sora_chars follower")

    async def _catch_up(self, entry: Entry, watch: Watch) -> None:
        """Look at once if the entry was moved between our reading of it and our listening: that was told to nobody."""
        try:
            now = await self.ledger.get(entry.key)
        except LedgerError as error:  # the task is looked at now and then all the same
            log.warning("follower.failed", extra={"error": printable(error)})
            return
        if now and now.version != entry.version:
            self.watcher.nudge(entry.provider, watch.task_id, by="poll")

    async def _go_round(self) -> None:
        while self._followed:
            await asyncio.sleep(self.interval)
            try:
                for holder in {entry.holder for _, entry in self._followed.values()}:
                    if holder is None or await self.ledger.is_gone(holder):
                        await self._take_over(
                            [watch for watch, (_, one) in self._followed.items() if one.holder == holder]
                        )
            except LedgerError as error:
                log.warning("follower.failed", extra={"error": printable(error)})

    async def _take_over(self, watches: Sequence[Watch]) -> None:
        for watch in watches:
            provider, entry = self._followed.get(watch, (None, None))
            if provider is None or entry is None:  # it ended meanwhile
                continue
            entry = await self._hold(entry)
            if entry.state is not State.RUNNING or entry.holder == self.ledger.holder:
                self._followed.pop(watch, None)
                self.watcher.take_over(provider.name, watch)
            elif watch in self._followed:  # it did not end meanwhile
                self._followed[watch] = provider, entry
