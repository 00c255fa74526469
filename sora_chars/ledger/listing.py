"""What a ledger does with many entries: it lists them, finds idle ones, and removes old ones."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import aclosing
from typing import TYPE_CHECKING

from sora_chars.models import check_seconds
from sora_chars.redaction import mask

from .states import EntryState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection

    from .entry import Entry
    from .stores.protocol import LedgerStore

_PAGE_SIZE = 200  # entries
_PRUNED_GROUP = 1000  # entries that are removed in one transaction


class LedgerListing(ABC):
    """The part of `Ledger` that works on many entries."""

    _store: LedgerStore
    _clock: Callable[[], float]

    @abstractmethod
    def _check_open(self) -> None: ...

    @abstractmethod
    async def is_dead(self, owner: str) -> bool:
        """True if the process with this name has ended; see `Ledger`."""
        ...

    async def entries(
        self,
        *,
        states: Collection[EntryState] = tuple(EntryState),
        newest_first: bool = False,
        query: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Entry]:
        """Iterate over entries in the order in which they were registered.

        Entries are read in pages of 200. An entry that changes during the iteration may
        come in its old or its new version.

        Args:
            states: Yield only entries in these states.
            newest_first: Reverse the order.
            query: Yield only entries whose key, task id, request or result contains this
                text, ignoring case. The first search of many new entries indexes them,
                which takes a while. In an SQLite file, text shorter than three characters
                is searched for in every entry.
            limit: Yield at most this many entries.
        """
        count = 0
        async with aclosing(self.pages(states=states, newest_first=newest_first, query=query)) as pages:
            while limit is None or count < limit:
                page = await anext(pages, None)
                if page is None:
                    return
                for entry in page if limit is None else page[: limit - count]:
                    yield entry
                count += len(page)

    async def pages(
        self,
        *,
        states: Collection[EntryState] = tuple(EntryState),
        newest_first: bool = False,
        query: str | None = None,
    ) -> AsyncGenerator[list[Entry], None]:
        """Iterate over lists of up to 200 entries; see `entries`."""
        query = query and mask(query)  # as the text that is searched
        last_row_id: int | None = None
        while True:
            self._check_open()
            page = await self._store.page(
                states, query=query, after=last_row_id, newest_first=newest_first, size=_PAGE_SIZE
            )
            yield [entry for _, entry in page if query is None or entry.mentions(query)]
            if len(page) < _PAGE_SIZE:
                return
            last_row_id = page[-1][0]

    async def due(self, *, idle: float, limit: int, providers: Collection[str] | None = None) -> AsyncIterator[Entry]:
        """Yield the entries that no living process owns, are unfinished, and did not change for `idle` seconds.

        Those that changed longest ago come first. An entry is unfinished while it is
        pending, sending or running.

        Args:
            idle: Seconds, by the recorded times.
            limit: Yield at most this many entries.
            providers: Yield only the entries of these. None for those of all.
        """
        before = self._clock() - idle
        alive: dict[str, bool] = {}
        after: tuple[float, str] | None = None
        left = limit
        while left > 0:
            self._check_open()
            page = await self._store.idle_page(before, after=after, size=_PAGE_SIZE)
            new = {entry.owner for entry in page if entry.owner} - alive.keys()
            dead = await asyncio.gather(*map(self.is_dead, new))
            alive |= {owner: not is_dead for owner, is_dead in zip(new, dead, strict=True)}
            free = [entry for entry in page if not alive.get(entry.owner or "")]
            for entry in [entry for entry in free if providers is None or entry.provider in providers][:left]:
                yield entry
                left -= 1
            if len(page) < _PAGE_SIZE:
                return
            after = page[-1].updated_at, page[-1].key

    async def prune(self, *, older_than: float, dry_run: bool = False) -> int:
        """Remove the finished entries that did not change for `older_than` seconds; return how many there were.

        With `dry_run` nothing is removed.

        Entries that are unfinished or unknown stay, and so do rejected ones that may have
        been paid. A key that was removed is a new key: a request with it is sent and paid
        again. The entry that an SQLite file recorded last stays too.

        Raises:
            InvalidRequestError: `older_than` is no number of seconds, 0 or more.
        """
        check_seconds("older_than", older_than, finite=True)
        before = self._clock() - older_than
        if dry_run:
            self._check_open()
            return await self._store.count_old(before)
        count = 0
        while True:
            self._check_open()
            removed = await self._store.prune(before, size=_PRUNED_GROUP)
            count += removed
            if removed < _PRUNED_GROUP:
                return count
