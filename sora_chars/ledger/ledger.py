"""The ledger as sessions use it, independent of its store."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_chars.errors import ConfigurationError, LedgerError, StaleEntryError, WrongLoopError

from .entry import Entry, Lookup, check_storable, to_json
from .notifier import ChangeNotifier
from .states import EntryState
from .stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from types import TracebackType
    from typing import Self

    from sora_chars.ratelimit.distributed import QuotaStore

    from .stores.protocol import LedgerStore

_PAGE_SIZE = 200  # entries


class Ledger:
    """The durable record of requests, one entry per idempotency key.

    Use a ledger as an async context manager, inside a single event loop:

        async with open_ledger("characters.db") as ledger:
            async for entry in ledger.entries(states={EntryState.UNKNOWN}):
                print(entry.key, entry.error)

    Args:
        store: What the entries are kept in. `open_ledger` makes one from a URL.
        clock: Returns the present time in epoch seconds. Times are recorded for people;
            no decision depends on them.

    Raises:
        LedgerError: From every method, if the store cannot be read or written.
        WrongLoopError: From every method, if the ledger was opened in another event
            loop or before a fork.
    """

    def __init__(self, store: LedgerStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._notifier = ChangeNotifier()
        self._opened_in: tuple[asyncio.AbstractEventLoop, int] | None = None

    @property
    def is_open(self) -> bool:
        """True between `open` and `aclose`."""
        return self._opened_in is not None

    @property
    def owner(self) -> str:
        """The name of this process in the entries that it owns."""
        return self._store.owner

    @property
    def quota_store(self) -> QuotaStore | None:
        """Where the processes on this ledger share an account's limits; None if they cannot."""
        return self._store.quota_store

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Open the ledger; create its file or tables, or upgrade them, where necessary."""
        if self._opened_in:
            raise LedgerError("This ledger is already open.")
        self._notifier = ChangeNotifier()
        await self._store.open(self._notifier)
        self._opened_in = asyncio.get_running_loop(), os.getpid()
        return self

    async def aclose(self) -> None:
        """Finish the calls in progress and close the ledger. A second call does nothing."""
        if self._opened_in:
            self._check_open()
            self._opened_in = None
            await self._store.aclose()

    async def register(self, *, key: str, provider: str, kind: str, request: Mapping[str, Any]) -> Entry:
        """Return the entry of `key`; record it as `pending` if the key is new.

        Concurrent calls with the same key return the same entry, in any number of
        processes.

        Args:
            key: The idempotency key.
            provider: The name of the provider that the request is for.
            kind: The kind of request, such as "character".
            request: The request, a JSON object.

        Raises:
            KeyConflictError: The key is recorded with another request.
        """
        self._check_open()
        check_storable(key=key, provider=provider, kind=kind)
        now = self._clock()
        new = Entry(
            key=key,
            provider=provider,
            kind=kind,
            state=EntryState.PENDING,
            request_json=to_json(request),
            created_at=now,
            updated_at=now,
        )
        stored = await self._store.insert(new)
        if stored is not new:
            stored.check_same_request(new)
        return stored

    async def insert(self, entry: Entry) -> Entry:
        """Store an entry of another ledger as it is, unless its key is recorded; return the stored entry of the key.

        Args:
            entry: The entry, in any state.
        """
        self._check_open()
        texts = {"task_id": entry.task_id, "token_digest": entry.token_digest, "owner": entry.owner}
        check_storable(key=entry.key, provider=entry.provider, kind=entry.kind, **texts)
        return await self._store.insert(entry)

    async def transition(
        self,
        entry: Entry,
        to: EntryState,
        *,
        task_id: str | None = None,
        token_digest: str | None = None,
        result: Any = None,
        error: Any = None,
        credits: float | None = None,  # noqa: A002 # the provider's word
        claim: bool = True,
    ) -> Entry:
        """Change the state of an entry and return the new version.

        Of several concurrent transitions of the same version, in any process, one succeeds.

        Args:
            entry: The entry as the caller last read it.
            to: The new state.
            task_id: The provider's id of the task. None keeps the recorded one.
            token_digest: The digest of the callback's token. None keeps the recorded one.
            result: The result, a JSON value. A recorded result is not kept.
            error: The reason of a failure, a JSON value. A recorded error is not kept.
            credits: What the task cost. None keeps the recorded value.
            claim: Make this process the owner of an entry that is sending or running.
                Without an owner, any process may take the entry over.

        Raises:
            StaleEntryError: Another transition came first; `error.entry` is the present
                entry.
            InvalidTransitionError: The states do not allow it, which is a bug in the caller.
            LedgerError: The ledger has no such entry, or it could not be written.
        """
        self._check_open()
        if task_id or token_digest:
            check_storable(task_id=task_id, token_digest=token_digest)
        changed = entry.transitioned(
            to,
            at=self._clock(),
            owner=self.owner if claim else None,
            task_id=task_id,
            token_digest=token_digest,
            result=result,
            error=error,
            credits=credits,
        )
        stored = await self._store.replace(entry, changed)
        if stored is not changed:
            raise _not_replaced(entry, to, stored)
        self._notifier.changed_here(entry.key, changed.version)
        return changed

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None."""
        return await self._find("key", key)

    async def by_task(self, provider: str, task_id: str) -> Entry | None:
        """Return an entry of a task, or None."""
        return await self._find("task", provider, task_id)

    async def by_token(self, token_digest: str) -> Entry | None:
        """Return the entry whose callback token has this digest, or None."""
        return await self._find("token", token_digest)

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
                text, ignoring case.
            limit: Yield at most this many entries.
        """
        remaining = limit
        last_row_id: int | None = None
        while remaining is None or remaining > 0:
            self._check_open()
            page = await self._store.page(states, after=last_row_id, newest_first=newest_first, size=_PAGE_SIZE)
            found = [entry for _, entry in page if query is None or entry.mentions(query)]
            for entry in found[:remaining]:
                yield entry
            if len(page) < _PAGE_SIZE:
                return
            remaining = None if remaining is None else remaining - len(found)
            last_row_id = page[-1][0]

    async def changed(self, entry: Entry, *, timeout: float | None = None) -> Entry:
        """Wait until any process changes `entry`, and return it as it is then.

        Args:
            entry: The entry as the caller last read it.
            timeout: Seconds after which `entry` is returned unchanged; None for no limit.
        """
        with self._notifier.waiting(entry.key) as may_have_changed:
            try:
                async with asyncio.timeout(timeout):
                    while (now := await self.get(entry.key)) is None or now.version == entry.version:
                        await may_have_changed.wait()
                        may_have_changed.clear()
            except TimeoutError:
                return entry
        return now

    def subscribe(self, entry: Entry, callback: Callable[[], object]) -> Callable[[], None]:
        """Run `callback` whenever another process may have changed `entry`.

        Returns a function that ends the subscription.
        """
        return self._notifier.subscribe(entry.key, entry.version, callback)

    async def is_dead(self, owner: str) -> bool:
        """True if the process that owns entries under this name has ended.

        An ended process never comes back under the same name. No clock is involved.
        """
        self._check_open()
        return owner != self.owner and await self._store.is_dead(owner)

    async def _find(self, by: Lookup, *values: str) -> Entry | None:
        self._check_open()
        if not all(value.isprintable() for value in values):
            return None  # such text is never recorded, and a database might reject it
        return await self._store.find(by, *values)

    def _check_open(self) -> None:
        if self._opened_in is None:
            raise LedgerError("This ledger is not open.", hint='Use it inside "async with".')
        loop, process = self._opened_in
        if process != os.getpid() or loop is not asyncio.get_running_loop():
            where = "in another event loop" if process == os.getpid() else "before this process was forked"
            raise WrongLoopError(
                f"This ledger was opened {where}.",
                hint="Open, use and close a ledger in one event loop of one process.",
            )


def _not_replaced(entry: Entry, to: EntryState, stored: Entry | None) -> LedgerError | StaleEntryError:
    if stored is None:
        return LedgerError(f"The ledger no longer has the entry of key {entry.key}.")
    return StaleEntryError(
        f"Entry {entry.key} was changed first: it is {stored.state} now and did not go from {entry.state} to {to}.",
        entry=stored,
    )


def open_ledger(url: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> Ledger:
    """Make the ledger at `url`; `async with` opens it.

    Processes of one machine may share an SQLite file. Processes of several machines may
    share a PostgreSQL database; there they also share the rate limits of an account.

        async with open_ledger("characters.db") as ledger:
            entry = await ledger.get("dog-1")

    Args:
        url: One of these:

            - `memory:`. It keeps all unfinished entries and the last 10,000 finished ones.
            - `sqlite:///relative/path`, `sqlite:////absolute/path`, or the path of an
              SQLite file.
            - `postgresql://...`, with the extra `postgres`.
        clock: Returns the present time in epoch seconds.

    Raises:
        ConfigurationError: The URL is invalid, or its kind of ledger needs a package or
            module that is not installed.
    """
    return Ledger(_store(url) if isinstance(url, str) else _sqlite(os.fspath(url)), clock=clock)


def _store(url: str) -> LedgerStore:
    scheme, colon, rest = url.partition(":")
    if not colon or len(scheme) == 1:  # "C:\..." is a path
        return _sqlite(url)
    match scheme:
        case "memory" if not rest:
            return MemoryStore()
        case "sqlite" if rest.startswith("///") and rest != "///":
            return _sqlite(rest[3:])
        case "postgresql" | "postgres":
            return _postgres(url)
        case _:
            raise ConfigurationError(
                f"ledger: this {scheme}: URL is not supported.",  # the rest may contain a password
                hint="Use memory:, sqlite:///PATH, postgresql://... or the path of an SQLite file.",
            )


def _sqlite(path: str) -> LedgerStore:
    try:
        from .stores.sqlite import SqliteStore  # noqa: PLC0415 # sqlite3 and fcntl are not on every system
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: an SQLite file needs a module that this system does not have ({error}).",
            hint="Use memory: or postgresql://... instead.",
        ) from error
    return SqliteStore(Path(path))


def _postgres(url: str) -> LedgerStore:
    try:
        from .stores.postgres import PostgresStore  # noqa: PLC0415 # an extra
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: PostgreSQL needs a package that is not installed ({error}).",
            hint='Run: pip install "sora-chars[postgres]"',
        ) from error
    return PostgresStore(url)
