"""The ledger as sessions see it, whatever it is stored in."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sora_chars.errors import ConfigurationError, LedgerError, StaleEntryError, WrongLoopError

from .entry import By, Entry, check_storable, to_json
from .notifier import Waiters
from .states import EntryState
from .stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from sora_chars.ratelimit.distributed import QuotaStore

_PAGE = 200


class LedgerStore(Protocol):
    """Where entries are kept. Any method may raise `LedgerError`; what one has returned is durable."""

    @property
    def owner(self) -> str:
        """The name of this process, a new one at every opening."""
        ...

    @property
    def quota_store(self) -> QuotaStore | None:
        """Where the processes on it divide an account's limits between them; None where they cannot."""
        ...

    async def open(self, waiters: Waiters) -> None:
        """Open, and from now on wake `waiters` of entries that other processes move."""
        ...

    async def aclose(self) -> None:
        """Finish what was begun and close."""
        ...

    async def insert(self, entry: Entry) -> Entry:
        """Keep the entry unless its key is there, and return the one that is kept."""
        ...

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Keep `after` if `before` is there, by its version. Return `after` if so, else the one that is there."""
        ...

    async def find(self, by: By, *values: str) -> Entry | None:
        """The entry with this key, or one with this provider and task id, or with this token's digest."""
        ...

    async def page(
        self, states: Collection[EntryState], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """Up to `size` entries of `states` with their places, in the order they were asked in, `after` a place."""
        ...

    async def is_dead(self, owner: str) -> bool:
        """Whether the process of that name has ended."""
        ...


class Ledger:
    """The entries of a `LedgerStore`. Use it inside `async with`, in one event loop of one process.

    `clock` gives epoch seconds; times are for people, and nothing is decided by them.

    Raises:
        LedgerError: it could not be read or written; from any method.
        WrongLoopError: it was opened in another event loop, or before a fork; from any method.
    """

    def __init__(self, store: LedgerStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._waiters = Waiters()
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody has opened it."""
        return self._home is not None

    @property
    def owner(self) -> str:
        """This process, as the entries that it holds name it."""
        return self._store.owner

    @property
    def quota_store(self) -> QuotaStore | None:
        """Where the processes on this ledger divide an account's limits between them; None where they cannot."""
        return self._store.quota_store

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Open it, and create or upgrade what it is stored in; `aclose` closes it."""
        if self._home:
            raise LedgerError("This ledger is open already.")
        self._waiters = Waiters()
        await self._store.open(self._waiters)
        self._home = asyncio.get_running_loop(), os.getpid()
        return self

    async def aclose(self) -> None:
        """Close it; what was begun is finished first. Closing twice does no harm."""
        if self._home:
            self._check_home()
            self._home = None
            await self._store.aclose()

    async def register(self, *, key: str, provider: str, kind: str, request: Mapping[str, Any]) -> Entry:
        """The entry of `key`: a new one, `asked`, unless there is one. Two who ask at once get the same.

        Raises:
            KeyConflictError: the key was asked before, for something else.
        """
        self._check_home()
        check_storable(key=key, provider=provider, kind=kind)
        now = self._clock()
        asked = Entry(
            key=key,
            provider=provider,
            kind=kind,
            state=EntryState.PENDING,
            request_json=to_json(request),
            created_at=now,
            updated_at=now,
        )
        kept = await self._store.insert(asked)
        if kept is not asked:
            kept.check_same(asked)
        return kept

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
        """Move `entry`, as it was last seen, and return it as it is now. Of several who try at once, one succeeds.

        Facts left out stay, but for `result` and `error`, which belong to one state; both are JSON values. A process
        that moves an entry to `sending` or `running` holds it, unless not `claim`: then any other may take it over.

        Raises:
            StaleEntryError: somebody else moved it first; the error carries the entry as it is now.
            InvalidTransitionError: the move is none, which is a bug.
        """
        self._check_home()
        if task_id or token_digest:
            check_storable(task_id=task_id, token_digest=token_digest)
        moved = entry.transitioned(
            to,
            at=self._clock(),
            owner=self.owner if claim else None,
            task_id=task_id,
            token_digest=token_digest,
            result=result,
            error=error,
            credits=credits,
        )
        kept = await self._store.replace(entry, moved)
        if kept is None:
            raise LedgerError(f"The ledger has lost the entry of key {entry.key}.")
        if kept is not moved:
            raise StaleEntryError(
                f"Entry {entry.key} is {kept.state} by now and was not moved from {entry.state} to {to}.", entry=kept
            )
        self._waiters.moved(entry.key, moved.version)
        return moved

    async def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        return await self._find("key", key)

    async def by_task(self, provider: str, task_id: str) -> Entry | None:
        """An entry of a task."""
        return await self._find("task", provider, task_id)

    async def by_token(self, token_digest: str) -> Entry | None:
        """The entry whose callback bears the token of this digest."""
        return await self._find("token", token_digest)

    async def entries(
        self,
        *,
        states: Collection[EntryState] = tuple(EntryState),
        newest_first: bool = False,
        query: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Entry]:
        """Up to `limit` entries in the order in which they were asked, a page in memory at a time.

        `query`: only those that mention it, in any case. Entries that change meanwhile are given as they are or were.
        """
        left, place = limit, None
        while left is None or left > 0:
            self._check_home()
            page = await self._store.page(states, after=place, newest_first=newest_first, size=_PAGE)
            found = [entry for _, entry in page if query is None or entry.mentions(query)]
            for entry in found[:left]:
                yield entry
            if len(page) < _PAGE:
                return
            left, place = None if left is None else left - len(found), page[-1][0]

    async def changed(self, entry: Entry, *, timeout: float | None = None) -> Entry:
        """Wait until somebody, in any process, has moved `entry` on, and return it as it is then.

        After `timeout` seconds it is returned as it came.
        """
        with self._waiters.waiting(entry.key) as moved:
            try:
                async with asyncio.timeout(timeout):
                    while (now := await self.get(entry.key)) is None or now.version == entry.version:
                        await moved.wait()
                        moved.clear()
            except TimeoutError:
                return entry
        return now

    def listen(self, entry: Entry, call: Callable[[], object]) -> Callable[[], None]:
        """Call `call` whenever another process may have moved `entry` on; returns what ends that."""
        return self._waiters.listen(entry.key, entry.version, call)

    async def is_dead(self, owner: str) -> bool:
        """Whether a process that holds entries has ended. True stays true; no clock is asked."""
        self._check_home()
        return owner != self.owner and await self._store.is_dead(owner)

    async def _find(self, by: By, *values: str) -> Entry | None:
        self._check_home()
        if not all(value.isprintable() for value in values):
            return None  # nothing of the kind was ever recorded
        return await self._store.find(by, *values)

    def _check_home(self) -> None:
        if self._home is None:
            raise LedgerError("This ledger is not open.", hint='Use it inside "async with".')
        loop, process = self._home
        if process != os.getpid() or loop is not asyncio.get_running_loop():
            where = "in another event loop" if process == os.getpid() else "before this process was forked"
            raise WrongLoopError(
                f"This ledger was opened {where}.", hint="Open a ledger where it is used, and close it there."
            )


def open_ledger(url: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> Ledger:
    """The ledger at `url`; `async with` opens it.

    `memory:`, `sqlite:///relative/path`, `sqlite:////absolute/path`, `postgresql://...` (extra `postgres`), or the path
    of an SQLite file. Processes of one machine may share a file, those of many a PostgreSQL database, and only
    there they divide a provider's limits between them. In memory the last 10,000 finished entries are kept, and all
    that are not finished.

    Raises:
        ConfigurationError: the URL is of no such kind, or of one that this system cannot serve.
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
                f"ledger: no such kind of ledger: {scheme}:",  # the rest may hold a password
                hint="Use memory:, sqlite:///PATH, postgresql://... or the path of an SQLite file.",
            )


def _sqlite(path: str) -> LedgerStore:
    try:
        from .stores.sqlite import SqliteStore  # noqa: PLC0415 # sqlite3 and fcntl are not on every system
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: an SQLite file needs what this system does not have ({error}).",
            hint="Use memory: or postgresql://... instead.",
        ) from error
    return SqliteStore(Path(path))


def _postgres(url: str) -> LedgerStore:
    try:
        from .stores.postgres import PostgresStore  # noqa: PLC0415 # an extra
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: PostgreSQL needs what is not installed ({error}).",
            hint='Run: pip install "sora-chars[postgres]"',
        ) from error
    return PostgresStore(url)
