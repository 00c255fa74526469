"""Decides which process polls a recorded task.

One process owns the task and polls it. The others read its end from the ledger when they are notified, and take over if
the owner ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import LedgerError, SessionClosedError, UnreadableEntryError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import to_snapshot
from sora_chars.ledger.transitions import claim, was_given_up
from sora_chars.logs import event_logger
from sora_chars.observers import UNOBSERVED, observing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot
    from sora_chars.observers import Observers
    from sora_chars.polling.watched_task import OnFinished, WatchedTask
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider

log = event_logger("sora_chars.session")


@attrs.define(eq=False, repr=False)
class TaskTracker:
    """Brings recorded tasks under a watcher.

    Attributes:
        ledger: Where the tasks are recorded.
        watcher: Polls the tasks.
        on_finished: Awaited by the watcher when a task has ended, before any waiter is woken.
        observers: Those who observe the session.
        interval: Seconds between checks that the processes which poll the other tasks are alive.
    """

    ledger: Ledger
    watcher: TaskWatcher
    on_finished: tuple[OnFinished, ...] = ()
    observers: Observers = UNOBSERVED
    interval: float = 1.0
    _tracked: dict[WatchedTask, tuple[Provider, Entry]] = attrs.field(factory=dict)
    _owner_checks: asyncio.Task[None] | None = None
    _reads: set[asyncio.Task[None]] = attrs.field(factory=set)
    _closed: bool = False

    async def join(
        self,
        provider: Provider,
        entry: Entry,
        snapshot: TaskSnapshot | None = None,
        *,
        context: Context | None = None,
        claims: bool = True,
    ) -> WatchedTask:
        """Watch the task of an entry, and poll it unless a living process does.

        Args:
            provider: Where the task runs.
            entry: The entry of the task, running or ended.
            snapshot: The first snapshot of a task that was submitted just now.
            context: The context variables of the request. Defaults to a copy of the caller's.
            claims: Find out first whether the owner of the entry is alive, which takes 15 seconds with PostgreSQL if
                it was killed. Otherwise the owner checks find out.

        Raises:
            SessionClosedError: The session was closed.
        """
        if snapshot is None:
            if claims:
                try:
                    entry = await claim(self.ledger, entry)
                except LedgerError as error:  # the owner checks claim it once the ledger can be written
                    self._log_failure(error)
            snapshot = None if entry.state is EntryState.RUNNING else to_snapshot(entry)
        if self._closed:  # a task that is watched from now on would never be stopped
            raise SessionClosedError(f"The session was closed before the task of key {entry.key} could be watched.")
        task_id = snapshot.task_id if snapshot else entry.task_id or ""
        task = self.watcher.watch(
            provider,
            task_id,
            snapshot=snapshot,
            expects_callback=bool(provider.callback_url and entry.token_digest),
            polled_elsewhere=snapshot is None and entry.owner != self.ledger.owner,
            on_finished=self.on_finished,
            context=context,
            key=entry.key,
            observers=self.observers,
        )
        if not task.future.done() and (task.polled_elsewhere or task.expects_callback):
            # Another process may record the end first.
            unsubscribe = self.ledger.subscribe(entry, partial(self._on_change, entry, task))
            task.future.add_done_callback(lambda _: unsubscribe())
        if task.polled_elsewhere and task not in self._tracked:
            self._track(provider, entry, task)
            await self._catch_up(entry, task)
        return task

    async def aclose(self) -> None:
        """Stop checking the owners of tasks, and reading entries that have changed."""
        self._closed = True
        running = [*self._reads, *((self._owner_checks,) if self._owner_checks else ())]
        for asyncio_task in running:
            asyncio_task.cancel()
        if running:
            await asyncio.wait(running)

    def _track(self, provider: Provider, entry: Entry, task: WatchedTask) -> None:
        self._tracked[task] = provider, entry
        task.future.add_done_callback(lambda _: self._tracked.pop(task, None))
        if self._owner_checks is None or self._owner_checks.done():
            self._owner_checks = asyncio.create_task(self._check_owners(), name="sora_chars tracker", context=Context())

    async def _catch_up(self, entry: Entry, task: WatchedTask) -> None:
        """Read the entry once more: a change between reading and subscribing has notified no subscriber."""
        try:
            now = await self.ledger.get(entry.key)
        except LedgerError as error:  # the task is polled now and then all the same
            self._log_failure(error)
            return
        if now and now.version != entry.version:
            await self._follow(now, task)

    def _on_change(self, entry: Entry, task: WatchedTask) -> None:
        """Read an entry that another process has changed."""
        read = asyncio.create_task(self._read(entry, task), name="sora_chars tracker read", context=Context())
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)

    async def _read(self, entry: Entry, task: WatchedTask) -> None:
        try:
            now = await self.ledger.get(entry.key)
        except LedgerError as error:
            self._log_failure(error)
            now = None
        await self._follow(now or attrs.evolve(entry, state=EntryState.UNKNOWN), task)

    async def _follow(self, entry: Entry, task: WatchedTask) -> None:
        """End the wait with what the entry says of the task; poll the task if the entry does not say enough."""
        if entry.task_id == task.task_id:
            if entry.state is EntryState.RUNNING:  # another process polls it from now on
                return
            if entry.state in {EntryState.SUCCEEDED, EntryState.FAILED} and not was_given_up(entry):
                with suppress(UnreadableEntryError):
                    await self.watcher.finish(entry.provider, task, to_snapshot(entry))
                    return
        self.watcher.nudge(entry.provider, task.task_id, by="poll")

    async def _check_owners(self) -> None:
        while self._tracked:
            await asyncio.sleep(self.interval)
            try:
                for owner in {entry.owner for _, entry in self._tracked.values()}:
                    if owner is None or await self.ledger.is_dead(owner):
                        tasks = [task for task, (_, entry) in self._tracked.items() if entry.owner == owner]
                        await self._take_over(tasks)
            except LedgerError as error:
                self._log_failure(error)

    async def _take_over(self, tasks: Sequence[WatchedTask]) -> None:
        for task in tasks:
            provider, entry = self._tracked.get(task, (None, None))
            if provider is None or entry is None:  # it ended while another one was claimed
                continue
            with observing(self.observers, entry.key, entry.provider):
                entry = await claim(self.ledger, entry)
            if entry.state is not EntryState.RUNNING or entry.owner == self.ledger.owner:
                self._tracked.pop(task, None)
                self.watcher.take_over(provider.name, task)
            elif task in self._tracked:  # it did not end while it was claimed
                self._tracked[task] = provider, entry

    def _log_failure(self, error: LedgerError) -> None:
        log.warning("tracker.failed", extra={"error": printable(error)})
        with observing(self.observers) as observed:
            if observed:
                observed.ledger_failed(printable(error))
