"""A store in memory, for ledgers that end with their process."""

from __future__ import annotations

import uuid
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

from sora_chars.ledger.entry import is_prunable
from sora_chars.ledger.states import ENDED, UNFINISHED, EntryState
from sora_chars.logs import event_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import Attempt, Entry, Lookup
    from sora_chars.ledger.notifier import ChangeNotifier

log = event_logger("sora_chars.ledger")

_MAX_FINISHED = 10_000  # entries
_MAX_SHOWN = 50  # entries in a log record


@attrs.define(eq=False, repr=False)
class MemoryStore:
    """Entries in dictionaries. They survive closing, and end with this object.

    The store keeps all unfinished entries and the 10,000 that finished last: those that
    succeeded, failed, were rejected or were deleted. Older ones are removed; a request under the key of
    a removed entry is sent again.
    """

    quota_store = None

    owner: str = attrs.field(init=False, default="")
    _last_row_id: int = attrs.field(init=False, default=0)  # only grows, so no row id is used twice
    _row_ids: dict[str, int] = attrs.field(init=False, factory=dict)  # by key
    _entries: dict[int, Entry] = attrs.field(init=False, factory=dict)  # by row id, in ascending order
    _keys: dict[tuple[str | None, ...], str] = attrs.field(init=False, factory=dict)  # by task and by token
    _attempts: dict[str, list[Attempt]] = attrs.field(init=False, factory=dict)  # by key
    _shared_tasks: dict[tuple[str | None, ...], dict[str, None]] = attrs.field(init=False, factory=dict)  # keys
    # An OrderedDict, since a dict finds its first item only after a scan over all removed ones.
    _finished: OrderedDict[int, None] = attrs.field(init=False, factory=OrderedDict)  # row ids, oldest first

    async def open(self, notifier: ChangeNotifier) -> None:  # noqa: ARG002 # no other process changes these entries
        """Take a new name."""
        self.owner = uuid.uuid4().hex

    async def aclose(self) -> None:
        """Keep the entries for the next opening, and log what would be lost with the process."""
        left = [
            entry
            for entry in self._entries.values()
            if entry.may_have_been_paid and entry.state not in {EntryState.SUCCEEDED, EntryState.DELETED}
        ]
        if left:
            shown = "; ".join(f"key {entry.key}: {entry.task_id or entry.state}" for entry in left[:_MAX_SHOWN])
            log.warning("ledger.left_unfinished", extra={"entries": len(left), "tasks": shown})

    def abandon(self) -> None:
        """Keep the entries for the next opening."""

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        if (row_id := self._row_ids.get(entry.key)) is not None:
            return self._entries[row_id]
        self._last_row_id += 1
        self._row_ids[entry.key] = self._last_row_id
        self._entries[self._last_row_id] = entry
        self._index(self._last_row_id, entry)
        return entry

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        row_id = self._row_ids.get(after.key)
        if row_id is None:
            return None
        if self._entries[row_id].version == before.version:
            self._entries[row_id] = after
            if archive:
                self._archive(archive)
            if archive is None and before.task_id and not after.task_id:  # the task was recorded by mistake
                self._keys.pop(("task", before.provider, before.task_id), None)
            self._index(row_id, after)
        return self._entries[row_id]

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        key = values[0] if by == "key" else self._keys.get((by, *values))
        row_id = None if key is None else self._row_ids.get(key)
        return None if row_id is None else self._entries[row_id]

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """See `LedgerStore`."""
        key = self._keys.get(("task", provider, task_id))
        keys = self._shared_tasks.get((provider, task_id), () if key is None else (key,))
        entries = [self._entries[self._row_ids[key]] for key in keys if key in self._row_ids]
        return [entry for entry in entries if (entry.provider, entry.task_id) == (provider, task_id)]

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """See `LedgerStore`."""
        return [attempt for key in keys for attempt in self._attempts.get(key, ())]

    async def page(
        self,
        states: Collection[EntryState],
        *,
        query: str | None = None,  # noqa: ARG002 # the caller filters
        after: int | None,
        newest_first: bool,
        size: int,
    ) -> Sequence[tuple[int, Entry]]:
        """See `LedgerStore`. The entry of the row id `after` may have been removed."""
        row_ids = list(self._entries)
        if newest_first:
            row_ids = row_ids[: None if after is None else bisect_left(row_ids, after)][::-1]
        elif after is not None:
            row_ids = row_ids[bisect_right(row_ids, after) :]
        page: list[tuple[int, Entry]] = []
        for row_id in row_ids:
            if self._entries[row_id].state in states:
                page.append((row_id, self._entries[row_id]))
                if len(page) == size:
                    break
        return page

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """See `LedgerStore`."""
        unfinished = [
            entry for entry in self._entries.values() if entry.state in UNFINISHED and entry.updated_at < before
        ]
        ordered = sorted(unfinished, key=lambda entry: (entry.updated_at, entry.key))
        return [entry for entry in ordered if after is None or (entry.updated_at, entry.key) > after][:size]

    async def prune(self, before: float, *, size: int) -> int:
        """See `LedgerStore`."""
        row_ids = [row_id for row_id in self._finished if is_prunable(self._entries[row_id], before)][:size]
        for row_id in row_ids:
            self._remove(row_id)
        return len(row_ids)

    async def count_old(self, before: float) -> int:
        """See `LedgerStore`."""
        return sum(is_prunable(self._entries[row_id], before) for row_id in self._finished)

    async def is_dead(self, owner: str) -> bool:  # noqa: ARG002 # `Ledger` answers for the present owner
        """Return True: every other owner is a former name of this process."""
        return True

    def _index(self, row_id: int, entry: Entry) -> None:
        """Make an entry findable by its task and its token, and count it if it has finished."""
        self._keys["token", entry.token_digest] = entry.key
        self._set_task(entry)
        self._finished.pop(row_id, None)
        if entry.state in ENDED:
            self._finished[row_id] = None
            self._remove_oldest()

    def _set_task(self, entry: Entry) -> None:
        """Find the entry by its task from now on. Few tasks have several entries."""
        name = ("task", entry.provider, entry.task_id)
        other = self._keys.get(name, entry.key)
        if entry.task_id and other != entry.key:
            self._shared_tasks.setdefault(name[1:], {other: None})[entry.key] = None
        self._keys[name] = entry.key

    def _archive(self, attempt: Attempt) -> None:
        stored = self._attempts.setdefault(attempt.key, [])
        same = [one for one in stored if (one.token_digest, one.task_id) == (attempt.token_digest, attempt.task_id)]
        if attempt.token_digest is None or not same:
            stored.append(attrs.evolve(attempt, number=len(stored) + 1))
        self._keys.setdefault(("token", attempt.token_digest), attempt.key)
        self._keys.setdefault(("task", attempt.provider, attempt.task_id), attempt.key)

    def _remove_oldest(self) -> None:
        """Remove the entry that finished first if there are too many."""
        if len(self._finished) > _MAX_FINISHED:
            self._remove(next(iter(self._finished)))

    def _remove(self, row_id: int) -> None:
        del self._finished[row_id]
        entry = self._entries.pop(row_id)
        del self._row_ids[entry.key]
        for one in (entry, *self._attempts.pop(entry.key, ())):
            for name in (("token", one.token_digest), ("task", one.provider, one.task_id)):
                if self._keys.get(name) == entry.key:
                    del self._keys[name]
