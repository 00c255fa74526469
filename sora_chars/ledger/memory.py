"""A ledger that lives as long as its process."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .entry import Entry
    from .ledger import By
    from .states import State
    from .waiters import Waiters


@attrs.define(eq=False)
class MemoryStore:
    """Entries in dictionaries. They outlive closing, as those of a file would, and end with this object."""

    holder: str = attrs.field(init=False, default="")
    _places: dict[str, int] = attrs.field(init=False, factory=dict[str, int])
    _entries: list[Entry] = attrs.field(init=False, factory=list["Entry"])
    _keys: dict[tuple[str | None, ...], str] = attrs.field(init=False, factory=dict[tuple[str | None, ...], str])

    async def open(self, waiters: Waiters) -> None:  # noqa: ARG002 # no other process moves these
        """Take a new name."""
        self.holder = uuid.uuid4().hex

    async def aclose(self) -> None:
        """Keep the entries for the next opening."""

    async def insert(self, entry: Entry) -> Entry:
        """Keep the entry unless its key is there."""
        if (place := self._places.get(entry.key)) is not None:
            return self._entries[place]
        self._places[entry.key] = len(self._entries)
        self._entries.append(entry)
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
        return self._entries[place]

    async def find(self, by: By, *values: str) -> Entry | None:
        """Look it up."""
        key = values[0] if by == "key" else self._keys.get((by, *values))
        place = None if key is None else self._places.get(key)
        return None if place is None else self._entries[place]

    async def page(
        self, states: Collection[State], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Walk the list; a place is an index."""
        step = -1 if newest_first else 1
        start = after + step if after is not None else len(self._entries) - 1 if newest_first else 0
        page: list[tuple[int, Entry]] = []
        for place in range(start, -1 if newest_first else len(self._entries), step):
            if self._entries[place].state in states:
                page.append((place, self._entries[place]))
                if len(page) == size:
                    break
        return page

    async def is_gone(self, holder: str) -> bool:  # noqa: ARG002 # who is not this one
        """Whoever is not the present holder was one before it."""
        return True
