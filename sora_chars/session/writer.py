"""What a session writes into the ledger once a provider has answered: written again after a fault or a cancellation."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.errors import LedgerError, MissingCharacterError, StaleEntryError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import ending, without_character

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot

T = TypeVar("T")

log = logging.getLogger("sora_chars.session")

_DELAYS = (0.25, 10.0)
_MOST_KNOWN = 5000  # running entries; each takes half a kilobyte, and spares a look-up when its task ends
_OPEN = frozenset({EntryState.PENDING, EntryState.REJECTED, EntryState.SENDING, EntryState.UNKNOWN})


async def record(ledger: Ledger, entry: Entry, to: EntryState, **facts: Any) -> Entry:
    """Move an entry to where the provider's answer puts it, wherever others have moved it meanwhile.

    Without a task id among the facts the first move of somebody else stands, unless that was `unknown`, said of the
    very request that is answered now; its token tells. Returns the entry as it is then, which is another task's when
    somebody else had paid for one; that is logged as an error.
    """
    task_id, digest = facts.get("task_id"), entry.token_digest
    while True:
        try:
            if task_id and entry.state in {
                EntryState.PENDING,
                EntryState.REJECTED,
            }:  # a person, or a code 500, said "never made"
                entry = await ledger.transition(entry, EntryState.SENDING)
            return await ledger.transition(entry, to, **facts)
        except StaleEntryError as error:
            entry = error.entry
        if (
            entry.state is EntryState.UNKNOWN
            and to is not EntryState.UNKNOWN
            and digest
            and entry.token_digest == digest
        ):
            continue
        same = entry.task_id == task_id
        if task_id and (
            entry.state in _OPEN or (same and entry.state is EntryState.RUNNING and to is not EntryState.RUNNING)
        ):
            continue
        if task_id and not same:
            names = {"key": entry.key, "task_id": task_id, "recorded": entry.task_id}
            log.error("submission.second_task", extra=names)
        return entry


async def settle(ledger: Ledger, snapshot: TaskSnapshot, entry: Entry | None = None) -> None:
    """Record a finished task, if it has an entry that waits for that; `entry` as it was last seen spares a look-up."""
    entry = entry or await ledger.by_task(snapshot.provider, snapshot.task_id)
    if entry and entry.state is EntryState.RUNNING:
        to, facts = ending(snapshot, entry.kind)
        await record(ledger, entry, to, **facts)


async def revert(ledger: Ledger, key: str, digest: str) -> None:
    """Take back a `sending` that was written for a request that did not go; `digest` says for which."""
    entry = await ledger.get(key)
    if entry and entry.state in {EntryState.SENDING, EntryState.UNKNOWN} and entry.token_digest == digest:
        await record(ledger, entry, EntryState.PENDING)


@attrs.define(eq=False, repr=False)
class LedgerWriter:
    """LedgerWriter that neither a caller's end nor a fault of the ledger may lose, until `aclose`."""

    ledger: Ledger
    _running: dict[tuple[str, str], Entry] = attrs.field(factory=dict[tuple[str, str], "Entry"])  # by provider and task
    _under_way: set[asyncio.Task[Any]] = attrs.field(factory=set["asyncio.Task[Any]"])
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def record(self, entry: Entry, to: EntryState, **facts: Any) -> Entry:
        """`record`, also when the caller is cancelled meanwhile. What fails is tried again later.

        Raises:
            LedgerError: it failed this time.
        """
        names = {"key": entry.key, "state": str(to), "task_id": facts.get("task_id")}
        entry = await self._write(partial(record, self.ledger, entry, to, **facts), names)
        if entry.state is EntryState.RUNNING and entry.task_id:
            self._running[entry.provider, entry.task_id] = entry
            if len(self._running) > _MOST_KNOWN:
                del self._running[next(iter(self._running))]
        return entry

    async def settle(self, provider: str, outcome: TaskSnapshot | MissingCharacterError) -> None:
        """Record how a task ended, if it has an entry. A fault is logged, and it is tried again later."""
        if isinstance(outcome, MissingCharacterError):
            outcome = without_character(provider, outcome)
        names = {"state": outcome.state, "task_id": outcome.task_id}
        known = self._running.pop((provider, outcome.task_id), None)
        with suppress(LedgerError):
            await self._write(partial(settle, self.ledger, outcome, known), names)

    def revert(self, key: str, digest: str) -> None:
        """`revert`, as soon as the ledger can be written again."""
        self.start(
            self._repeat(partial(revert, self.ledger, key, digest), {"key": key, "state": EntryState.PENDING.value})
        )

    async def aclose(self) -> None:
        """Try what failed once more, and wait for all."""
        self._closing.set()
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _write(self, write: Callable[[], Coroutine[Any, Any, T]], names: dict[str, Any]) -> T:
        try:
            return await write()
        except asyncio.CancelledError:
            self.start(self._write(write, names))  # nobody knows how far it came, and twice does no harm
            raise
        except LedgerError as error:
            log.error("ledger.write_failed", extra=names | {"error": printable(error)})  # noqa: TRY400 # one line
            self.start(self._repeat(write, names))
            raise

    def start(self, write: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Give it an asyncio task of its own, which closing waits for."""
        under_way = asyncio.create_task(write, name="sora_chars ledger write")
        self._under_way.add(under_way)
        under_way.add_done_callback(self._ended)
        return under_way

    def _ended(self, under_way: asyncio.Task[Any]) -> None:
        self._under_way.discard(under_way)
        if not under_way.cancelled():
            under_way.exception()  # whoever shielded it may be gone

    async def _repeat(self, write: Callable[[], Coroutine[Any, Any, object]], names: dict[str, Any]) -> None:
        delay, longest = _DELAYS
        while True:
            closing = await self._closing_within(delay)
            try:
                await write()
            except LedgerError as error:
                if closing:
                    log.error("ledger.write_lost", extra=names | {"error": printable(error)})  # noqa: TRY400 # one line
                    return
            else:
                log.info("ledger.written_late", extra=names)
                return
            delay = min(2 * delay, longest)

    async def _closing_within(self, delay: float) -> bool:
        try:
            async with asyncio.timeout(delay):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True
