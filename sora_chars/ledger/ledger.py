"""The ledger as sessions use it, independent of its store."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

from sora_chars.errors import LedgerError, StaleEntryError, WrongLoopError
from sora_chars.logs import event_logger
from sora_chars.observers import observation

from .entry import Attempt, Entry, Lookup, check_storable, to_json
from .listing import LedgerListing
from .notifier import ChangeNotifier
from .reports import report_registered, report_transition
from .states import EntryState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from sora_chars.ratelimit.distributed import QuotaStore

    from .stores.protocol import LedgerStore

log = event_logger("sora_chars.ledger")

_MAX_KNOWN = 5000  # unfinished entries that are remembered; each takes half a kilobyte


class Ledger(LedgerListing):
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
        self.notifier = ChangeNotifier()
        self._known: dict[str, Entry] = {}  # unfinished entries as this process wrote them last, by key
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
        self.notifier = ChangeNotifier()
        await self._store.open(self.notifier)
        self._finalizer = weakref.finalize(self, self._store.abandon)
        self._finalizer.atexit = False
        self._opened_in = asyncio.get_running_loop(), os.getpid()
        return self

    async def aclose(self) -> None:
        """Finish the calls in progress and close the ledger. A second call does nothing."""
        if self._opened_in:
            self._check_open()
            self._opened_in = None
            self._finalizer.detach()
            await self._store.aclose()

    async def register(
        self, *, key: str, provider: str, kind: str, request: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> Entry:
        """Return the entry of `key`; record it as `pending` if the key is new.

        Concurrent calls with the same key return the same entry, in any number of
        processes.

        Args:
            key: The idempotency key.
            provider: The name of the provider that the request is for.
            kind: The kind of request, such as "character".
            request: The request, a JSON object.
            meta: The user's own facts, a JSON object. Of a recorded key they stay as they are.

        Raises:
            KeyConflictError: The key is recorded with another request.
        """
        return await self.record(self.new_entry(key=key, provider=provider, kind=kind, request=request, meta=meta))

    async def record(self, new: Entry) -> Entry:
        """Store what `new_entry` returned, unless its key is recorded; see `register`."""
        self._check_open()
        stored = await self._store.insert(new)
        if stored is not new:
            stored.check_same_request(new)
        if observed := observation.get():
            report_registered(observed, stored, is_new=stored is new)
        known = self._known.get(new.key)
        if known and stored.version < known.version:
            return await self._restore(known, stored)
        return stored

    def new_entry(
        self, *, key: str, provider: str, kind: str, request: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> Entry:
        """Return a `pending` entry as `register` records it; nothing is written."""
        check_storable(key=key, provider=provider, kind=kind)
        now = self._clock()
        return Entry(
            key=key,
            provider=provider,
            kind=kind,
            state=EntryState.PENDING,
            request_json=to_json(request),
            created_at=now,
            updated_at=now,
            meta_json=to_json(meta) if meta else None,
        )

    async def insert(self, entry: Entry, attempts: Sequence[Attempt] = ()) -> Entry:
        """Store an entry of another ledger as it is, unless its key is recorded; return the stored entry of the key.

        Args:
            entry: The entry, in any state.
            attempts: Its earlier attempts. The last ones are stored where the same entry is recorded with fewer.
        """
        self._check_open()
        texts = {"task_id": entry.task_id, "token_digest": entry.token_digest, "owner": entry.owner}
        check_storable(key=entry.key, provider=entry.provider, kind=entry.kind, **texts)
        stored = await self._store.insert(entry)
        known = len(await self._store.attempts([entry.key])) if attempts and stored == entry else len(attempts)
        for attempt in attempts[known:]:
            await self._store.replace(stored, stored, archive=attempt)
        return stored

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
        archive: Attempt | None = None,
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
            archive: The attempt that ends with this transition, stored together with it.
                A token digest that is replaced is always kept in such an attempt, so that
                it still finds the entry.

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
        if archive is None and entry.token_digest not in {None, changed.token_digest}:
            archive = Attempt.of(entry, at=changed.updated_at)
        began = self.notifier.writing(entry.key, changed.version)
        stored = await self._store.replace(entry, changed, archive=archive)
        if stored is not changed:
            lost = stored is None or stored.version < entry.version
            if not lost or to is EntryState.SENDING:  # another process may have sent it before it was lost
                raise _not_replaced(entry, to, stored)
            changed = await self._restore(changed, stored)
        self._remember(changed)
        self.notifier.changed_here(entry.key, changed.version)
        if observed := observation.get():
            report_transition(observed, entry, changed, began)
        return changed

    async def restart(self, entry: Entry, to: EntryState, *, request: Mapping[str, Any] | None = None) -> Entry:
        """Begin another attempt of an entry, without task, result, error and cost.

        The present attempt is kept, unless it was only recorded by mistake.

        Args:
            entry: The entry as last read.
            to: `pending` to send the request again, or `unknown` to take back what a
                person resolved by mistake; then the callback's token stays the same.
            request: The request of the new attempt. None keeps the present one.

        Raises:
            StaleEntryError: Another transition came first.
            InvalidTransitionError: The entry may not restart from its state.
        """
        self._check_open()
        now = self._clock()
        changed = entry.restarted(to, at=now, request=request)
        archive = None if to is EntryState.UNKNOWN else Attempt.of(entry, at=now)
        began = self.notifier.writing(entry.key, changed.version)
        stored = await self._store.replace(entry, changed, archive=archive)
        if stored is not changed:
            raise _not_replaced(entry, to, stored)
        self.notifier.changed_here(entry.key, changed.version)
        if observed := observation.get():
            report_transition(observed, entry, changed, began)
        return changed

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None."""
        return await self._find("key", key)

    async def by_task(self, provider: str, task_id: str) -> Entry | None:
        """Return an entry of a task, which may be that of an earlier attempt, or None."""
        return await self._find("task", provider, task_id)

    async def all_by_task(self, provider: str, task_id: str) -> list[Entry]:
        """Return every entry whose present task is this one. A provider may return one task for two creates."""
        self._check_open()
        if not (provider.isprintable() and task_id.isprintable()):
            return []
        return [*await self._store.all_by_task(provider, task_id)]

    async def by_token(self, token_digest: str) -> Entry | None:
        """Return the entry of which a request, perhaps an earlier one, has a token with this digest, or None."""
        return await self._find("token", token_digest)

    async def attempts(self, *keys: str) -> list[Attempt]:
        """Return the earlier attempts of up to 200 keys, the first one of each key first."""
        self._check_open()
        return [*await self._store.attempts([key for key in keys if key.isprintable()])]

    async def changed(self, entry: Entry, *, timeout: float | None = None) -> Entry:
        """Wait until any process changes `entry`, and return it as it is then.

        Args:
            entry: The entry as the caller last read it.
            timeout: Seconds after which `entry` is returned unchanged; None for no limit.
        """
        with self.notifier.waiting(entry.key) as may_have_changed:
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
        return self.notifier.subscribe(entry.key, entry.version, callback)

    async def is_dead(self, owner: str) -> bool:
        """True if the process that owns entries under this name has ended.

        An ended process never comes back under the same name. No wall clock is involved.
        With PostgreSQL the call takes 15 seconds if the process ended without closing its
        ledger, because a living one that lost its connection looks the same until then.
        """
        self._check_open()
        return owner != self.owner and await self._store.is_dead(owner)

    async def _restore(self, known: Entry, stored: Entry | None) -> Entry:
        """Put back an entry that the ledger has lost, or has in an earlier version."""
        kept = await (self._store.replace(stored, known) if stored else self._store.insert(known))
        if kept is not known:
            raise _not_replaced(known, known.state, kept)
        facts = {"key": known.key, "state": known.state.value, "task_id": known.task_id}
        log.error("ledger.entry_restored", extra=facts)
        return known

    def _remember(self, entry: Entry) -> None:
        """Remember an entry until it has ended, in case the ledger loses it."""
        if entry.owner or entry.state is EntryState.UNKNOWN or entry.state is EntryState.RUNNING:
            self._known[entry.key] = entry
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        else:
            self._known.pop(entry.key, None)

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
