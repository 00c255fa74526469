"""Runs one command: asyncio, signals, the exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    ProviderError,
    SoraCharsError,
    StaleEntryError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
)

from .output import RecordHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from .context import Job

T = TypeVar("T")

_SUBMISSION = "submission."  # how the events of submissions begin
_TOLD = (_SUBMISSION, "recovery.")  # the error, or the command, says these in words

USAGE = 2
STILL_RUNNING = 5
UNKNOWN = 6
BUG = 70  # EX_SOFTWARE of sysexits.h
_STATUSES: tuple[tuple[type[SoraCharsError], int], ...] = (
    (InvalidRequestError, USAGE),
    (ConfigurationError, USAGE),
    (KeyConflictError, USAGE),
    (StaleEntryError, USAGE),
    (ProviderError, 3),
    (TaskFailedError, 4),
    (MissingCharacterError, 4),
    (WaitTimeoutError, STILL_RUNNING),
    (SubmissionUnknownError, UNKNOWN),
)


def exit_status(error: SoraCharsError) -> int:
    """The status that a script can tell this error by."""
    if isinstance(error, LedgerError):
        return UNKNOWN if error.task_id else USAGE
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), BUG)


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class CommandInterruptedError(SoraCharsError):
    """A signal ended the command; `number` is the signal's."""

    number: int = signal.SIGINT


class OrphanHandler(logging.Handler):
    """Hears from the session how a submission ended whose caller was interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the facts of the last record of a submission."""
        if record.msg.startswith(_SUBMISSION):
            self.facts = vars(record)


def run(job: Job, work: Coroutine[Any, Any, T], *, on_signal: Callable[[int], object] = lambda _: None) -> T:
    """Run `work` in an event loop of its own. SIGINT and SIGTERM cancel it, so that its session closes well.

    `on_signal` hears of each before.

    Raises:
        CommandInterruptedError: a signal ended it; the error says what is known of its task.
    """
    with _listening(job) as orphan:
        try:
            return asyncio.run(_interruptible(work, on_signal))
        except CommandInterruptedError as error:
            _explain(error, job, orphan.facts)
            raise


@contextmanager
def _listening(job: Job) -> Generator[OrphanHandler]:
    """Show what the package logs, all of it with `-v`, and hear of orphans."""
    package, session = logging.getLogger("sora_chars"), logging.getLogger("sora_chars.session")
    shown, orphan = RecordHandler(job.screen.err), OrphanHandler()
    shown.addFilter(lambda record: job.verbose or not record.msg.startswith(_TOLD))
    level = package.level
    package.setLevel(logging.DEBUG if job.verbose else logging.WARNING)
    package.addHandler(shown)
    session.addHandler(orphan)
    try:
        yield orphan
    finally:
        package.setLevel(level)
        package.removeHandler(shown)
        session.removeHandler(orphan)


async def _interruptible(work: Coroutine[Any, Any, T], on_signal: Callable[[int], object]) -> T:
    loop = asyncio.get_running_loop()
    asyncio_task = loop.create_task(work)
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        on_signal(number)
        asyncio_task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows: there asyncio.run() itself turns SIGINT into cancellation
            loop.add_signal_handler(number, stop, number)
    await asyncio.wait((asyncio_task,))
    if came and asyncio_task.cancelled():
        raise CommandInterruptedError("Interrupted.", number=came[0])
    return asyncio_task.result()


def _explain(error: CommandInterruptedError, job: Job, orphan: dict[str, Any]) -> None:
    """Say what became of the paid request: `orphan` holds the facts of one that was interrupted on its way."""
    job.task_id = job.task_id or orphan.get("task_id")
    if job.task_id and not job.has_tasks:
        error.message = f"Interrupted. The character was made, its id is {job.task_id}."
    elif job.task_id:
        error.message = f"Interrupted. Task {job.task_id} is not disturbed by that."
        error.hint = f"Go on with: {job.command('wait', job.task_id)}"
    elif "error" in orphan:
        error.message = f"Interrupted. The request had no success: {orphan['error']}"
    elif orphan.get("sent"):
        error.message = "Interrupted while the request was being sent: nobody knows whether it was received."
        error.hint = job.settling(job.key or "", tasks=job.has_tasks)
    elif job.again:
        error.message = "Interrupted. No task is disturbed by that."
        error.hint = f"Go on with: {job.again}"
    elif job.key:
        error.message = "Interrupted. Nothing was sent that costs money."
