"""The one path from a provider's answer to the ledger: each write survives a fault, and the caller's cancellation."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.errors import LedgerError, MissingCharacterError, StaleEntryError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import SENDABLE, Answer, end_state, without_character
from sora_chars.logs import event_logger
from sora_chars.observers import observation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot

T = TypeVar("T")

log = event_logger("sora_chars.session")

_FIRST_RETRY, _LONGEST_RETRY = 0.25, 10.0  # seconds between two attempts at a write
_MAX_CACHED = 5000  # running entries; each takes half a kilobyte, and saves a query when its task ends


@attrs.define(eq=False, repr=False)
class LedgerWriter:
    """Writes the outcomes of requests, and retries each write until the ledger accepts it or the session closes.

    A write can be repeated without harm: every transition names the version of the entry that it replaces.
    """

    ledger: Ledger
    # By provider and task id. None: several entries have this task, so the ledger is queried when it ends.
    _running: dict[tuple[str, str], Entry | None] = attrs.field(factory=dict)
    _in_progress: set[asyncio.Task[Any]] = attrs.field(factory=set)
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def mark_sending(self, entry: Entry, token_digest: str) -> Entry:
        """Record that the request of an entry is about to be sent.

        Raises:
            StaleEntryError: Another process moved the entry first. Nothing may be sent.
            LedgerError: The write failed. Nothing may be sent; the write is reverted in case the database kept it.
        """
        if (
            entry.state not in SENDABLE or entry.may_have_been_paid
        ):  # another process declared this one dead after its last attempt
            raise StaleEntryError(f"Entry {entry.key} is {entry.state} by now.", entry=entry)
        try:
            return await self.ledger.transition(entry, EntryState.SENDING, token_digest=token_digest)
        except StaleEntryError:
            raise
        except BaseException:
            self.revert(entry.key, token_digest)
            raise

    async def record_answer(self, entry: Entry, to: EntryState, *, repeated: bool = False, **facts: Any) -> Entry:
        """Record what a provider's answer says about the request of an entry, and return the entry as it is then.

        If another process moved the entry first, `Answer.next_step` decides which of the two moves is kept.

        Args:
            entry: The entry as it was when the request was sent.
            to: The state that the answer leads to.
            repeated: Whether the caller repeats this write itself when it fails.
            **facts: What `Ledger.transition` records with the state.

        Raises:
            LedgerError: The write failed. It is repeated in the background.
        """
        answer = Answer(entry, to, facts)
        step: EntryState | None = answer.first_step(entry)
        try:
            while step is not None:
                try:
                    entry = await self.ledger.transition(entry, step, **(facts if step is to else {}))
                    step = None if step is to else to
                except StaleEntryError as error:
                    entry = error.entry
                    step = answer.next_step(entry)
        except (LedgerError, asyncio.CancelledError) as error:
            if not repeated:
                names = {"key": entry.key, "state": to.value, "task_id": answer.task_id}
                self._repeat_later(error, partial(self.record_answer, answer.sent, to, repeated=True, **facts), names)
            raise
        if answer.is_second_task(entry) and not await self._was_attempted(entry, answer.task_id):
            log_second_task(entry, answer.task_id)
        self.remember(entry)
        return entry

    async def record_result(self, outcome: TaskSnapshot | MissingCharacterError, *, repeated: bool = False) -> None:
        """Record how a task ended in each running entry that has it. A failed write is repeated later."""
        snapshot = without_character(outcome) if isinstance(outcome, MissingCharacterError) else outcome
        known = self._running.pop((snapshot.provider, snapshot.task_id), None)
        try:
            entries = [known] if known else await self.ledger.all_by_task(snapshot.provider, snapshot.task_id)
            for entry in entries:
                if entry.state is EntryState.RUNNING:
                    to, facts = end_state(snapshot, entry.kind)
                    await self.record_answer(entry, to, repeated=True, **facts)
        except (LedgerError, asyncio.CancelledError) as error:
            if repeated:
                raise
            names = {"state": snapshot.state, "task_id": snapshot.task_id}
            self._repeat_later(error, partial(self.record_result, snapshot, repeated=True), names)
            if isinstance(error, asyncio.CancelledError):
                raise

    def remember(self, entry: Entry) -> None:
        """Remember a running entry until its task ends, or that several entries have this task."""
        if entry.state is EntryState.RUNNING and entry.task_id:
            name = entry.provider, entry.task_id
            other = self._running.get(name, entry)
            self._running[name] = entry if other and other.key == entry.key else None
            if len(self._running) > _MAX_CACHED:
                del self._running[next(iter(self._running))]

    def revert(self, key: str, token_digest: str) -> None:
        """Schedule the return of an entry to `pending`, whose request was not sent; the digest names the request."""
        names = {"key": key, "state": EntryState.PENDING.value}
        self._start_repeating(partial(self._revert, key, token_digest), names, delay=_FIRST_RETRY)

    async def aclose(self) -> None:
        """Repeat each failed write once more, and wait until all writes have ended."""
        self._closing.set()
        while self._in_progress:
            await asyncio.wait(self._in_progress)

    def start(self, write: Coroutine[Any, Any, T], *, context: Context | None = None) -> asyncio.Task[T]:
        """Run a coroutine in an asyncio task of its own, which `aclose` waits for.

        Args:
            write: The coroutine.
            context: The context variables in which it runs. Defaults to a copy of the caller's.
        """
        asyncio_task = asyncio.create_task(write, name="sora_chars ledger write", context=context)
        self._in_progress.add(asyncio_task)
        asyncio_task.add_done_callback(self._ended)
        return asyncio_task

    async def _was_attempted(self, entry: Entry, task_id: str | None) -> bool:
        """Return whether an earlier attempt of the entry has this task. False if the ledger cannot be read."""
        try:
            return any(one.task_id == task_id for one in await self.ledger.attempts(entry.key))
        except LedgerError:
            return False

    def _ended(self, asyncio_task: asyncio.Task[Any]) -> None:
        self._in_progress.discard(asyncio_task)
        if not asyncio_task.cancelled():
            asyncio_task.exception()  # retrieved, because its caller may be gone

    async def _revert(self, key: str, token_digest: str) -> None:
        entry = await self.ledger.get(key)
        in_doubt = entry is not None and entry.state in {EntryState.SENDING, EntryState.UNKNOWN}
        if entry and in_doubt and entry.token_digest == token_digest:
            await self.record_answer(entry, EntryState.PENDING, repeated=True)

    def _repeat_later(
        self, error: BaseException, write: Callable[[], Coroutine[Any, Any, object]], names: dict[str, Any]
    ) -> None:
        """Repeat a write that failed, or at once a write whose caller was cancelled."""
        delay = 0.0
        if isinstance(error, LedgerError):
            _log_failure(error, names)
            delay = _FIRST_RETRY
        self._start_repeating(write, names, delay=delay)

    def _start_repeating(
        self, write: Callable[[], Coroutine[Any, Any, object]], names: dict[str, Any], *, delay: float
    ) -> None:
        context = Context()
        context.run(observation.set, observation.get())
        self.start(self._repeat(write, names, delay=delay), context=context)

    async def _repeat(
        self, write: Callable[[], Coroutine[Any, Any, object]], names: dict[str, Any], *, delay: float
    ) -> None:
        while True:
            closing = delay > 0 and await self._closes_within(delay)
            try:
                await write()
            except LedgerError as error:
                if closing:
                    log.error("ledger.write_lost", extra=names | {"error": printable(error)})  # noqa: TRY400 # one line
                    return
                if not delay:
                    _log_failure(error, names)
            else:
                if delay:
                    log.info("ledger.written_late", extra=names)
                return
            delay = min(2 * delay, _LONGEST_RETRY) or _FIRST_RETRY

    async def _closes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True


def _log_failure(error: LedgerError, names: dict[str, Any]) -> None:
    log.error("ledger.write_failed", extra=names | {"error": printable(error)})
    if observed := observation.get():
        observed.ledger_failed(printable(error))


def log_second_task(entry: Entry, task_id: str | None) -> None:
    """Log that a key has a second task, which the ledger does not keep."""
    names = {"key": entry.key, "task_id": task_id, "recorded": entry.task_id}
    log.error("submission.second_task", extra=names)
