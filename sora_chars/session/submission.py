"""One request on its way from `pending` to a recorded task. No key ever pays twice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import (
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    StaleEntryError,
    SubmissionUnknownError,
    WaitTimeoutError,
)
from sora_chars.ids import new_token, token_digest
from sora_chars.ledger import EntryState
from sora_chars.ledger.outcomes import character_deleted
from sora_chars.ledger.serialize import RETRY_HINT, rejection, to_error
from sora_chars.ledger.transitions import end_state, mark_orphaned, without_character
from sora_chars.models import CharacterRequest, TaskSnapshot
from sora_chars.observers import observation

from .settling import keys_sent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextvars import Context

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request
    from sora_chars.protocols import Provider

    from .settling import Settlement
    from .videos import CutVideos
    from .writer import LedgerWriter

_OWNER_CHECK_INTERVAL = 1.0  # seconds between checks that the process which sends the same key is alive


@attrs.define(eq=False, kw_only=True, repr=False)
class Submission:
    """Sends the request of one entry, unless the ledger shows that it was sent.

    A submission runs in an asyncio task of its own, so a cancelled caller cannot lose the answer.

    Attributes:
        provider: Where the request goes.
        request: What to make.
        entry: The entry as it is now.
        ledger: Where the entry is recorded.
        writer: Records the answer.
        videos: Cuts the video of the request, if its provider takes it in another form.
        timeout: Seconds to wait for another process that is sending the same key.
        on_recorded: Awaited with the first snapshot once the task is on record; its result is the result of `run`.
        claims_task: Whether this process polls the task from then on.
        settlement: Asks the provider what became of the request, where it can be asked.
        sent: Whether the request may have left this process.
        expired: Whether the caller's deadline has passed. Nothing is sent from then on.
        context: The context variables of the caller, in which the task is polled. None before it runs.
    """

    provider: Provider
    request: Request
    entry: Entry
    ledger: Ledger
    writer: LedgerWriter
    videos: CutVideos
    timeout: float
    on_recorded: Callable[[Submission, TaskSnapshot | None], Awaitable[Any]]
    claims_task: bool = True
    settlement: Settlement | None = None
    sent: bool = False
    expired: bool = False
    context: Context | None = None
    _recording: bool = attrs.field(default=False, init=False)
    _queued_at: float = attrs.field(default=0.0, init=False)  # loop time; of an observed session
    _last_fault: ProviderError | None = attrs.field(default=None, init=False)

    async def run(self) -> Any:
        """Send the request unless the ledger shows that it was sent. Afterwards `entry` is running or has ended.

        `on_recorded` receives the first snapshot, or None if another process sent the request.

        Raises:
            SubmissionUnknownError: The outcome is unknown, now or since an earlier attempt.
            CharacterDeletedError: The character of this key was deleted.
            ProviderError: The provider rejected the request, or was unreachable.
            LedgerError: The ledger could not be written. With a `task_id` the task was made; without one, nothing was
                sent.
        """
        waited = False
        snapshot: TaskSnapshot | None = None
        try:
            while snapshot is None:
                self.entry = await mark_orphaned(self.ledger, self.entry)
                is_rejected = self.entry.state is EntryState.REJECTED
                if is_rejected and (waited or self.entry.may_have_been_paid):
                    raise rejection(self.entry)
                match self.entry.state:
                    case EntryState.PENDING | EntryState.REJECTED:
                        snapshot = await self._send()
                    case EntryState.SENDING:
                        await self._wait_for_sender()
                        waited = True
                    case EntryState.DELETED:
                        raise character_deleted(self.entry)
                    case EntryState.UNKNOWN:
                        await self._settle(str((self.entry.error or {}).get("message", "")))
                    case _:
                        break
        except LedgerError as error:
            if self.sent or error.key:
                raise
            raise not_sent(error, self.entry.key, self.provider.name) from error  # the entry could not be read
        except SoraCharsError as error:
            error.add_facts(key=self.entry.key, provider=self.provider.name)
            raise
        return await self.on_recorded(self, snapshot)

    def expire(self, asyncio_task: asyncio.Task[Any]) -> None:
        """Stop the submission, because its caller's deadline has passed. A request that was sent is carried through."""
        self.expired = True
        if self._recording or not self.sent:
            asyncio_task.cancel()

    def interrupted(self) -> SoraCharsError:
        """Return the error for a caller whose session was closed, or whose deadline passed, before the end."""
        if self.expired:
            return self._timed_out()
        if self.sent:
            return self._unknown("the session was closed before an answer arrived.")
        return SessionClosedError(
            "The session was closed before this request was sent. Nothing was sent.",
            key=self.entry.key,
            provider=self.provider.name,
        )

    async def _send(self) -> TaskSnapshot | None:
        """Send the request and record the answer. None if another process, or a callback, recorded more already."""
        token = new_token()
        base = None if self.provider.synchronous else self.provider.callback_url
        if observed := observation.get():
            self._queued_at = asyncio.get_running_loop().time()
            observed.queued()
        try:
            async with self._prepared() as request:
                snapshot = await self.provider.submit(
                    request,
                    key=(await keys_sent(self.ledger, self.entry))[0] if self.settlement else self.entry.key,
                    callback_url=f"{base}/{token}" if base else None,
                    on_send=partial(self._sending, token_digest(token)),
                )
        except StaleEntryError as error:
            self.entry = error.entry
            return None
        except ProviderError as error:
            await self._failed(error)
            return None
        except MissingCharacterError as error:
            to, facts = end_state(without_character(error), self.entry.kind)
            await self._note(to, **facts)
            raise
        except BaseException as error:
            if self.sent:
                why = f"{type(error).__name__} before an answer was read"
                await self._note(EntryState.UNKNOWN, error={"message": why})
            raise
        given: object = snapshot  # a provider of the user's own may return anything
        if not isinstance(given, TaskSnapshot):
            why = f"its `submit` returned a {type(given).__name__} in place of a TaskSnapshot."
            await self._note(EntryState.UNKNOWN, error={"message": why})
            raise self._unknown(why)
        to, facts = self._recorded_as(snapshot)
        if observed:
            observed.completed_at = snapshot.completed_at
        try:
            self.entry = await self.writer.record_answer(self.entry, to, **facts)
        except LedgerError as error:
            raise self._unrecorded(error, snapshot) from error
        overtaken = self.entry.task_id == snapshot.task_id and self.entry.state is not to
        return None if overtaken else snapshot  # overtaken: the task's callback has recorded its end

    @asynccontextmanager
    async def _sending(self, digest: str) -> AsyncGenerator[None, None]:
        """Surround the paid request: from here on it may arrive, and no caller's end cancels it."""
        self.sent = self._recording = True
        try:
            self.entry = await self.writer.mark_sending(self.entry, digest)
        except BaseException as error:
            self.sent = False
            if isinstance(error, LedgerError):
                raise not_sent(error, self.entry.key, self.provider.name) from error
            raise
        finally:
            self._recording = False
        if observed := observation.get():
            observed.sent(asyncio.get_running_loop().time() - self._queued_at)
        try:
            yield
        except ProviderError as error:
            if error.harmless:
                await self._revert(error)
                if self.expired:
                    raise self._timed_out() from error
            raise

    @asynccontextmanager
    async def _prepared(self) -> AsyncGenerator[Request]:
        """Give the request as it is sent. It ends without a wait: a task id that was received is recorded next."""
        if isinstance(self.request, CharacterRequest) and self.request.video is not None:
            async with self.videos.prepared(self.provider, self.request) as request:
                yield request
        else:
            yield self.request

    async def _revert(self, reason: ProviderError) -> None:
        """Record that the provider did nothing.

        If this write fails, stop: a retry would be indistinguishable from the first attempt.
        """
        self.sent = False
        self._last_fault = reason
        try:
            self.entry = await self.writer.record_answer(self.entry, EntryState.PENDING, error=to_error(reason))
        except LedgerError as error:
            raise not_sent(error, self.entry.key, self.provider.name) from error

    async def _failed(self, error: ProviderError) -> None:
        """Record why there is no task, and raise. Return if another process has recorded a task."""
        if isinstance(error, NoAnswerError):
            if not self.sent:
                raise error
            await self._note(EntryState.UNKNOWN, error=to_error(error))
            if self.entry.state in {EntryState.SENDING, EntryState.UNKNOWN}:
                await self._settle(error.message, cause=error)
            return  # the provider has named the task, or its callback arrived first
        is_retryable = error.harmless and error.transient
        if not is_retryable and (self.sent or self.entry.state is EntryState.PENDING):
            await self._note(EntryState.REJECTED, error=to_error(error))
            if error.may_have_been_paid:
                error.hint = f"{error.hint} {RETRY_HINT}".strip()
        raise error

    async def _settle(self, why: str, *, cause: ProviderError | None = None) -> None:
        """Ask the provider what became of the request, where it can be asked.

        Raises:
            SubmissionUnknownError: The outcome is still unknown.
        """
        if self.settlement and self.entry.state is EntryState.UNKNOWN:
            self.entry = await self.settlement.settle(self.entry)
            if self.entry.state is not EntryState.UNKNOWN:
                return
            why = f"{why.rstrip('.')}. {self.settlement.outcome}"
        raise self._unknown(why) from cause

    async def _note(self, to: EntryState, **facts: Any) -> None:
        """Record an answer that may also be recorded later."""
        try:
            self.entry = await self.writer.record_answer(self.entry, to, **facts)
        except LedgerError:
            return  # logged and repeated by the writer

    def _recorded_as(self, snapshot: TaskSnapshot) -> tuple[EntryState, dict[str, Any]]:
        if snapshot.finished:
            return end_state(snapshot, self.entry.kind)
        return EntryState.RUNNING, {"task_id": snapshot.task_id, "claim": self.claims_task}

    def _unrecorded(self, error: LedgerError, snapshot: TaskSnapshot) -> LedgerError:
        task_id, key = snapshot.task_id, self.entry.key
        return LedgerError(
            f"{self.provider.name} made task {task_id} (key {key}), but the ledger could not be written: "
            f"{error.message}",
            hint=f"Keep this id. The write is repeated until the session closes. {error.hint}".rstrip(),
            key=key,
            provider=self.provider.name,
            task_id=task_id,
            snapshot=snapshot,
            charged="yes",
        )

    async def _wait_for_sender(self) -> None:
        """Wait until the process that sends this key has moved its entry, or has died."""
        before = self.entry
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        while self.entry.version == before.version:
            if loop.time() >= deadline:
                raise self._unknown(f"another process has been sending it for {self.timeout:g} s.")
            wait = min(_OWNER_CHECK_INTERVAL, deadline - loop.time())
            self.entry = await mark_orphaned(self.ledger, await self.ledger.changed(before, timeout=wait))

    def _timed_out(self) -> WaitTimeoutError:
        fault = f": {self._last_fault.message}" if self._last_fault else ""
        message = f"Key {self.entry.key} was not sent to {self.provider.name} within the time-out{fault}"
        done = "sent"
        if self._last_fault and not isinstance(self._last_fault, NoAnswerError):  # such as a rate limit
            message = f"{self.provider.name} accepted no request of key {self.entry.key} within the time-out{fault}"
            done = "paid"
        hint = f"Nothing was {done}. Call again with the same key and a longer time-out."
        if self.entry.state is EntryState.SENDING and not self.sent:
            message = f"Another process was still sending key {self.entry.key} at the time-out."
            hint = "Call again with the same key: it returns the task of that process."
        return WaitTimeoutError(
            message,
            hint=hint,
            key=self.entry.key,
            provider=self.provider.name,
            retry_after=self._last_fault.retry_after if self._last_fault else None,
            charged="maybe" if self.entry.may_have_been_paid else "no",
        )

    def _unknown(self, why: str) -> SubmissionUnknownError:
        reason = f": {why}" if why.strip(".") else "."  # none is recorded where a resolution was taken back
        has_callback = self.provider.callback_url and not self.provider.synchronous
        return SubmissionUnknownError(
            f"It is unknown whether {self.provider.name} made this character (key {self.entry.key}){reason}",
            hint="It may exist and be charged, so this key is never sent again automatically. "
            f"{'Its callback settles it; otherwise check' if has_callback else 'Check'} the provider's site, then "
            "call `session.resolve` or run `sora-chars ledger resolve`.",
            provider=self.provider.name,
            key=self.entry.key,
        )


def not_sent(error: LedgerError, key: str, provider: str) -> LedgerError:
    """Return the error for a caller whose request was not sent, because it could not be recorded first."""
    hint = f"Nothing was sent, because the request could not be recorded first. {error.hint}".rstrip()
    return LedgerError(error.message, hint=hint, key=key, provider=provider)
