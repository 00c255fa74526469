"""Submits one request and waits for one task, as `create`, `run` and `wait` do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import LedgerError, SubmissionUnknownError, TaskNotFoundError, WaitTimeoutError
from sora_chars.ledger import EntryState
from sora_chars.media import Cutting
from sora_chars.session import resolving
from sora_chars.session.session import CharacterSession

from .callback_server import serve_callbacks
from .repeated_requests import repeated_requests_shown
from .waiting import updates_with_pages

if TYPE_CHECKING:
    from sora_chars.ledger import Entry
    from sora_chars.media import CutProgress
    from sora_chars.models import Request, UploadProgress
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

    from .context import CommandContext
    from .options import Settings
    from .output import StatusLine

_UNSENT = {EntryState.PENDING, EntryState.REJECTED}
_UNSETTLED = {EntryState.UNKNOWN, EntryState.SENDING}
_ENDED = {EntryState.SUCCEEDED, EntryState.FAILED}
_RETRIED = {EntryState.FAILED, EntryState.REJECTED}


async def submit_and_wait(
    context: CommandContext, settings: Settings, request: Request, *, is_retry: bool
) -> tuple[Any, str]:
    """Return the outcome of a new task, and the time it took as text.

    Args:
        context: The context of the command.
        settings: The shared options.
        request: The request, with a key.
        is_retry: Send the request again if it failed or was rejected.
    """
    timeout = settings.wait_timeout
    with context.output.status_line() as line, repeated_requests_shown(line):
        deadline = asyncio.get_running_loop().time() + timeout
        provider = settings.make_provider(lambda progress: line.update(_upload_status(progress)))
        context.has_tasks = not provider.synchronous
        listener = settings.open_listener()
        async with (
            CharacterSession(
                provider,
                ledger=settings.location.open(),
                cutting=Cutting(
                    fit=settings.fit,
                    allow_any_url=settings.allow_any_url,
                    on_progress=lambda progress: line.update(cut_status(progress)),
                ),
                polling=settings.polling,
                timeout=timeout,
                shutdown_timeout=settings.shutdown_seconds([provider.name]),
            ) as session,
            serve_callbacks(session, listener, settings.webhook_key),
        ):
            entry = await session.entry(str(request.key))
            line.update(_first_status(provider, entry))
            is_retry = is_retry and entry is not None and entry.state in _RETRIED
            submission = _Submission(context, settings, session, line, deadline, is_retry)
            handle = await submission.handle(request)
            if entry and entry.state in _ENDED and not is_retry:
                return await handle.result(), "none, read from the ledger"
            if provider.synchronous:
                return await handle.result(), line.elapsed
            return await wait_for(context, line, handle, submission.remaining)


@attrs.frozen
class _Submission:
    """The submission of the only request of a command.

    Attributes:
        context: The context of the command.
        settings: The shared options.
        session: The session.
        line: The status line.
        deadline: The loop time at which `--timeout` ends.
        is_retry: Whether an earlier attempt ended, and another one is sent.
    """

    context: CommandContext
    settings: Settings
    session: CharacterSession
    line: StatusLine
    deadline: float
    is_retry: bool

    @property
    def remaining(self) -> float:
        """The seconds that are left of `--timeout`."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    async def handle(self, request: Request) -> TaskHandle[Any]:
        """Return the handle of the request. If its outcome is unknown, wait for the callback that settles it.

        Raises:
            SubmissionUnknownError: The outcome is unknown, and no callback is received or came in time.
        """
        self.context.key = request.key
        is_retry = self.is_retry
        while True:
            try:
                handle = await self._submit(request, is_retry=is_retry)
            except SubmissionUnknownError:
                is_retry = False  # it was sent
                self.context.is_unknown = True
                if not (self.settings.listen and await self._is_settled(str(request.key))):
                    raise
            else:
                self.context.is_unknown = False
                self.context.task_id = handle.task_id
                return handle

    async def _submit(self, request: Request, *, is_retry: bool) -> TaskHandle[Any]:
        dispatcher = self.session.dispatcher()
        self.context.stop_waiting = dispatcher.stop_waiting
        try:
            handle: TaskHandle[Any] = await (
                resolving.retry(dispatcher, str(request.key), request, {}, deadline=self.deadline)
                if is_retry
                else dispatcher.submit(request, None, deadline=self.deadline)
            )
        except asyncio.CancelledError:
            if dispatcher.responses_awaited:
                seconds = self.settings.shutdown_seconds([self.session.providers[0].name])
                self.context.output.note(
                    f"Interrupted. The request was sent; waiting up to {seconds:g} s for its response. "
                    "Ctrl-C ends that wait, and the outcome is then unknown."
                )
            raise
        return handle

    async def _is_settled(self, key: str) -> bool:
        """Wait until the entry is no longer unknown, or the time is up. False if the ledger fails."""
        ledger = self.session.ledger
        try:
            entry = await ledger.get(key)
            if entry and entry.state is EntryState.UNKNOWN:
                self.line.update(f"outcome unknown: waiting for its callback, up to {self.remaining:.0f} s")
                entry = await ledger.changed(entry, timeout=self.remaining)
        except LedgerError:
            return False
        return entry is not None and entry.state not in _UNSETTLED


async def wait_for(
    context: CommandContext, line: StatusLine, handle: TaskHandle[Any], timeout: float
) -> tuple[Any, str]:
    """Wait for a task, and return its outcome and the time that the command waited as text.

    Raises:
        TaskNotFoundError: Neither the ledger nor the provider knows the task.
        WaitTimeoutError: The task had not ended after `timeout` seconds.
    """
    try:
        async for snapshot in updates_with_pages(context, handle, timeout):
            line.update(f"{handle.provider} task {handle.task_id}: {snapshot.state}, via {handle.woken_by}")
    except WaitTimeoutError as error:
        if context.key is None and handle.is_missing:
            raise _not_found(handle, timeout) from error
        error.hint = f"Continue with: {context.command('wait', handle.task_id)}"
        raise
    return await handle.result(0), f"{line.elapsed}, via {handle.woken_by}"


def _not_found(handle: TaskHandle[Any], timeout: float) -> TaskNotFoundError:
    return TaskNotFoundError(
        f"{handle.provider} showed no task {handle.task_id} within {timeout:g} s.",
        hint="Check the id. A task that was created just now may take 90 s to be shown.",
        provider=handle.provider,
    )


def _first_status(provider: Provider, entry: Entry | None) -> str:
    if entry is None or entry.state in _UNSENT:
        return f"{provider.name}: {'creating the character' if provider.synchronous else 'preparing the request'}"
    return f"{provider.name}: key {entry.key} is already recorded as {entry.state}"


def cut_status(progress: CutProgress) -> str:
    """Return the status of a cut in steps of 10 %."""
    return f"cutting {progress.path.name}: {progress.done * 10 // progress.total * 10} % of {progress.total} frames"


def _upload_status(progress: UploadProgress) -> str:
    """Return the status of an upload in steps of 10 %, so a file prints at most eleven lines."""
    tenths = progress.sent * 10 // progress.total
    return f"uploading {progress.path.name}: {tenths}0 % of {progress.total / 1e6:.1f} MB"
