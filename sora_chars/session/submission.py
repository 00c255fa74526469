"""One wish on its way from the ledger's `asked` to a task on record, so that no key ever pays twice."""

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
    StaleEntryError,
    SubmissionUnknownError,
)
from sora_chars.ids import new_token, token_digest
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import ending, mark_orphaned, rejection, to_error, without_character

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.errors import SoraCharsError
    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request, TaskSnapshot
    from sora_chars.protocols import Provider

    from .writer import LedgerWriter

_GONE_CHECK = 1.0  # seconds between two looks whether the process that sends the same key is still alive


@attrs.define(eq=False, kw_only=True, repr=False)
class Submission:
    """It has an asyncio task of its own, so that no caller's end can lose the answer.

    `patience`: seconds to wait for another process that is sending the same key. `watched`: whether this process
    looks after the task then.
    """

    provider: Provider
    request: Request
    entry: Entry
    ledger: Ledger
    writer: LedgerWriter
    patience: float
    watched: bool = True
    sent: bool = False

    async def run(self) -> TaskSnapshot | None:
        """Send, unless the ledger knows better. Afterwards `entry` runs or has ended.

        Returns the first snapshot, or None when it was not this one who sent.

        Raises:
            SubmissionUnknownError: the outcome is unknown, now or since an earlier try; nothing is sent then.
            ProviderError: the provider refused, or was out of reach.
            LedgerError: it could not be written. With a `task_id` that is what was made; without, nothing was sent.
        """
        try:
            return await self._run()
        except LedgerError as error:
            if self.sent or error.key:
                raise
            raise not_sent(error, self.entry.key) from error  # it could not even be read

    async def _run(self) -> TaskSnapshot | None:
        waited = False
        while True:
            self.entry = await mark_orphaned(self.ledger, self.entry)
            if waited and self.entry.state is EntryState.REJECTED:
                raise rejection(self.entry)
            match self.entry.state:
                case EntryState.PENDING | EntryState.REJECTED:
                    if snapshot := await self._submit():
                        return snapshot
                case EntryState.SENDING:
                    await self._wait_for_sender()
                    waited = True
                case EntryState.UNKNOWN:
                    raise self._unknown(str((self.entry.error or {}).get("message", "")))
                case _:
                    return None

    def cut_off(self) -> SoraCharsError:
        """What a caller is told whose session was closed meanwhile."""
        if self.sent:
            return self._unknown("the session was closed before an answer came.")
        return SessionClosedError("The session was closed before this request was sent. Nothing was sent.")

    async def _submit(self) -> TaskSnapshot | None:
        """Send, and record what came. None when somebody else was faster, or a callback."""
        token = new_token()
        base = None if self.provider.synchronous else self.provider.callback_url
        sending = partial(self._sending, token_digest(token))
        try:
            snapshot = await self.provider.submit(
                self.request, callback_url=f"{base}/{token}" if base else None, on_send=sending
            )
        except StaleEntryError as error:
            self.entry = error.entry
            return None
        except ProviderError as error:
            await self._failed(error)
            return None
        except MissingCharacterError as error:
            to, facts = ending(without_character(self.provider.name, error), self.entry.kind)
            await self._note(to, **facts)
            raise
        except BaseException as error:
            if self.sent:
                await self._note(
                    EntryState.UNKNOWN, error={"message": f"{type(error).__name__} before an answer was read"}
                )
            raise
        return await self._answered(snapshot)

    @asynccontextmanager
    async def _sending(self, digest: str) -> AsyncGenerator[None, None]:
        await self._mark(digest)
        try:
            yield
        except ProviderError as error:
            if error.harmless:
                await self._take_back(error)
            raise

    async def _mark(self, digest: str) -> None:
        """From here on the request may arrive: nothing cancels it any more."""
        if self.entry.state not in {
            EntryState.PENDING,
            EntryState.REJECTED,
        }:  # others took this process for dead since its last try
            raise StaleEntryError(f"Entry {self.entry.key} is {self.entry.state} by now.", entry=self.entry)
        before, self.sent = self.entry, True
        try:
            self.entry = await self.ledger.transition(before, EntryState.SENDING, token_digest=digest)
        except BaseException as error:
            self.sent = False
            if isinstance(error, StaleEntryError):
                raise
            self.writer.revert(before.key, digest)  # a database may have kept what it failed to confirm
            if isinstance(error, LedgerError):
                raise not_sent(error, before.key) from error
            raise

    async def _take_back(self, reason: ProviderError) -> None:
        """The provider did nothing. What the ledger cannot be told stops the next try, which it would call the same."""
        self.sent = False
        try:
            self.entry = await self.writer.record(self.entry, EntryState.PENDING, error=to_error(reason))
        except LedgerError as error:
            raise not_sent(error, self.entry.key) from error

    async def _failed(self, error: ProviderError) -> None:
        """Record why there is no task, and say so; return if there is one after all."""
        if isinstance(error, NoAnswerError):
            if not self.sent:
                raise error
            await self._note(EntryState.UNKNOWN, error=to_error(error))
            if self.entry.state in {EntryState.SENDING, EntryState.UNKNOWN}:
                raise self._unknown(error.message) from error
            return  # its callback was here already
        if not (error.harmless and error.transient) and (self.sent or self.entry.state is EntryState.PENDING):
            await self._note(EntryState.REJECTED, error=to_error(error))
        raise error

    async def _note(self, to: EntryState, **facts: Any) -> None:
        """Record something that may as well be written later."""
        try:
            self.entry = await self.writer.record(self.entry, to, **facts)
        except LedgerError:
            return  # logged, and tried again

    async def _answered(self, snapshot: TaskSnapshot) -> TaskSnapshot | None:
        to, facts = EntryState.RUNNING, dict[str, Any](task_id=snapshot.task_id, claim=self.watched)
        if snapshot.finished:
            to, facts = ending(snapshot, self.entry.kind)
        try:
            self.entry = await self.writer.record(self.entry, to, **facts)
        except LedgerError as error:
            name, task_id, key = self.provider.name, snapshot.task_id, self.entry.key
            raise LedgerError(
                f"{name} made task {task_id} (key {key}), and the ledger could not be told: {error.message}",
                hint=f"Keep this id. The ledger is tried again until the session closes. {error.hint}".rstrip(),
                key=key,
                task_id=task_id,
                snapshot=snapshot,
            ) from error
        faster = self.entry.task_id == snapshot.task_id and self.entry.state is not to
        return None if faster else snapshot  # None: its callback has brought the end already

    async def _wait_for_sender(self) -> None:
        """Wait until the process that sends this key has moved its entry, or has ended."""
        before, loop = self.entry, asyncio.get_running_loop()
        give_up = loop.time() + self.patience
        while self.entry.version == before.version:
            if loop.time() >= give_up:
                raise self._unknown(f"another process has been sending it for {self.patience:g} s.")
            wait = min(_GONE_CHECK, give_up - loop.time())
            self.entry = await mark_orphaned(self.ledger, await self.ledger.changed(before, timeout=wait))

    def _unknown(self, why: str) -> SubmissionUnknownError:
        return SubmissionUnknownError(
            f"Nobody knows whether {self.provider.name} made this character (key {self.entry.key}): {why}",
            hint="It may exist and be charged, so this key is never sent again by itself: its callback settles it, or "
            "you do, with `session.resolve` or `sora-chars ledger resolve`, after a look at the provider's own site.",
            provider=self.provider.name,
            key=self.entry.key,
        )


def not_sent(error: LedgerError, key: str) -> LedgerError:
    """The error for a caller whose request stays here."""
    hint = f"Nothing was sent, since it could not be recorded first. {error.hint}".rstrip()
    return LedgerError(error.message, hint=hint, key=key)
