"""A ledger that lives as long as its process."""

from __future__ import annotations

import uuid
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

from sora_chars.ledger.states import EntryState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import By, Entry
    from sora_chars.ledger.notifier import Waiters

_FINISHED = frozenset({EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED})
_MOST_FINISHED = 10_000


@attrs.define(eq=False, repr=False)
class MemoryStore:
    """Entries in dictionaries. They outlive closing, as those of a file would, and end with this object.

    Of those that have succeeded, failed or been refused the last 10,000 to do so are kept; an older one is forgotten,
    and its key asked again is sent again. All others are kept.
    """

    quota_store = None

    owner: str = attrs.field(init=False, default="")
    _asked: int = attrs.field(init=False, default=0)  # ever, so that no place is used twice
    _places: dict[str, int] = attrs.field(init=False, factory=dict[str, int])
    _entries: dict[int, Entry] = attrs.field(init=False, factory=dict[int, "Entry"])  # by place, which only rises
    _keys: dict[tuple[str | None, ...], str] = attrs.field(init=False, factory=dict[tuple[str | None, ...], str])
    # A plain dict searches for its first item past all those that were taken from its front.
    _finished: OrderedDict[int, None] = attrs.field(init=False, factory=OrderedDict[int, None])

    async def open(self, waiters: Waiters) -> None:  # noqa: ARG002 # no other process moves these
        """Take a new name."""
        self.owner = uuid.uuid4().hex

    async def aclose(self) -> None:
        """Keep the entries for the next opening."""

    async def insert(self, entry: Entry) -> Entry:
        """Keep the entry unless its key is there."""
        if (place := self._places.get(entry.key)) is not None:
            return self._entries[place]
        self._asked += 1
        self._places[entry.key] = self._asked
        self._entries[self._asked] = entry
        return entry

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Keep `after` if `before` is there."""
        place = self._places.get(after.key)
        if place is None:
            return None
        if self._entries[place].version == before.version:
            self._entries[place] = after
            self._keys.pop(("token", before.token_digest), None)
            self._keys["token", after.token_digest] = after.key
            self._keys["task", after.provider, after.task_id] = after.key
            self._finished.pop(place, None)
            if after.state in _FINISHED:
                self._finished[place] = None
                self._forget()
        return self._entries[place]

    async def find(self, by: By, *values: str) -> Entry | None:
        """Look it up."""
        key = values[0] if by == "key" else self._keys.get((by, *values))
        place = None if key is None else self._places.get(key)
        return None if place is None else self._entries[place]

    async def page(
        self, states: Collection[EntryState], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Walk the places past `after`, which may be gone itself."""
        places = list(self._entries)
        if newest_first:
            places = places[: None if after is None else bisect_left(places, after)][::-1]
        elif after is not None:
            places = places[bisect_right(places, after) :]
        page: list[tuple[int, Entry]] = []
        for place in places:
            if self._entries[place].state in states:
                page.append((place, self._entries[place]))
                if len(page) == size:
                    break
        return page

    async def is_dead(self, owner: str) -> bool:  # noqa: ARG002 # who is not this one
        """Whoever is not the present owner was one before it."""
        return True

    def _forget(self) -> None:
        """Drop what has been finished longest, if there is too much."""
        if len(self._finished) > _MOST_FINISHED:
            entry = self._entries.pop(self._finished.popitem(last=False)[0])
            del self._places[entry.key]
            for name in (("token", entry.token_digest), ("task", entry.provider, entry.task_id)):
                if self._keys.get(name) == entry.key:
                    del self._keys[name]
