"""The interface of a ledger's store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import Attempt, Entry, Lookup
    from sora_chars.ledger.notifier import ChangeNotifier
    from sora_chars.ledger.states import EntryState
    from sora_chars.ratelimit.distributed import QuotaStore


class LedgerStore(Protocol):
    """What a ledger keeps its entries in.

    A store may raise `LedgerError` from any method. Once a method has returned, what it
    wrote is durable.
    """

    @property
    def owner(self) -> str:
        """The name of this process as an owner of entries, new at every opening."""
        ...

    @property
    def quota_store(self) -> QuotaStore | None:
        """Where the processes on this store share an account's limits; None if they cannot."""
        ...

    async def open(self, notifier: ChangeNotifier) -> None:
        """Open the store, and notify `notifier` of entries that other processes change."""
        ...

    async def aclose(self) -> None:
        """Finish the calls in progress and close the store."""
        ...

    def abandon(self) -> None:
        """Release what an open store holds, without its event loop, and warn that it was not closed."""
        ...

    async def insert(self, entry: Entry) -> Entry:
        """Store the entry unless its key exists; return the stored entry of the key."""
        ...

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """Replace `before` by `after` if the stored version is that of `before`.

        `archive` is stored in the same transaction, under the next number of its key. An
        attempt whose token digest and task id the key already has is not stored again.

        Returns `after` if so, else the stored entry, or None if there is none.
        """
        ...

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """Find an entry by its key, by provider and task id, or by its token's digest.

        An entry whose present values match comes before one with an earlier attempt that
        matches.
        """
        ...

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """Return every entry with this task, not counting earlier attempts."""
        ...

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """Return the earlier attempts of up to 200 entries, those of each entry in their order."""
        ...

    async def page(
        self,
        states: Collection[EntryState],
        *,
        query: str | None = None,
        after: int | None,
        newest_first: bool,
        size: int,
    ) -> Sequence[tuple[int, Entry]]:
        """Return a page of up to `size` entries in `states`, with their row ids.

        The order is that of insertion, or its reverse. The page begins after the row id
        `after`, or with the first entry of the order. With a query it holds the entries
        that mention it, and perhaps others. A shorter page is the last one.
        """
        ...

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """Return up to `size` unfinished entries that changed last before a time, in epoch seconds.

        The order is that of time and key. The page begins after the time and key `after`.
        A shorter page is the last one.
        """
        ...

    async def prune(self, before: float, *, size: int) -> int:
        """Remove up to `size` entries with their attempts, and return how many were removed.

        They have ended, changed last before a time in epoch seconds, and are no rejections
        that may have been paid.
        """
        ...

    async def count_old(self, before: float) -> int:
        """Return how many entries `prune` would remove."""
        ...

    async def is_dead(self, owner: str) -> bool:
        """True if the process with this name has ended.

        A store that cannot tell at once waits until it can.
        """
        ...
