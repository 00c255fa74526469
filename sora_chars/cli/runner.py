"""Runs one command: its event loop, its signals, its exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.errors import (
    CharacterDeletedError,
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
from sora_chars.logs import is_written

from .output import RecordHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from .context import CommandContext

T = TypeVar("T")

_SUBMISSION_EVENTS = "submission."
_REPORTED_EVENTS = (_SUBMISSION_EVENTS, "recovery.")  # the error or the summary of the command reports these

_SIGHUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none

OUTPUT = 1
USAGE = 2
STILL_RUNNING = 5
UNKNOWN = 6
BUG = 70  # EX_SOFTWARE of sysexits.h
_STATUSES: tuple[tuple[type[SoraCharsError], int], ...] = (
    (InvalidRequestError, USAGE),
    (ConfigurationError, USAGE),
    (KeyConflictError, USAGE),
    (CharacterDeletedError, USAGE),
    (StaleEntryError, USAGE),
    (ProviderError, 3),
    (TaskFailedError, 4),
    (MissingCharacterError, 4),
    (WaitTimeoutError, STILL_RUNNING),
    (SubmissionUnknownError, UNKNOWN),
)


def exit_status(error: SoraCharsError) -> int:
    """Return the exit status of an error; `app.main` lists them."""
    if isinstance(error, LedgerError):
        return UNKNOWN if error.task_id else USAGE
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), BUG)


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class CommandInterruptedError(SoraCharsError):
    """A signal ended the command; `number` is the number of the signal."""

    number: int = signal.SIGINT


class OrphanHandler(logging.Handler):
    """Keeps the session's log record of a submission that outlived its cancelled caller."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the attributes of the last record about a submission."""
        if getattr(record, "event", "").startswith(_SUBMISSION_EVENTS):
            self.facts = vars(record)


def run(
    context: CommandContext,
    work: Coroutine[Any, Any, T],
    *,
    on_signal: Callable[[int], object] = lambda _: None,
    waits_on_interrupt: bool = False,
) -> T:
    """Run a coroutine in a new event loop.

    SIGINT, SIGTERM and SIGHUP cancel the coroutine, which then closes its session.

    Args:
        context: The context of the command.
        work: The coroutine.
        on_signal: Called with the number of each signal, before the cancellation.
        waits_on_interrupt: Whether the coroutine goes on after the first SIGINT.

    Raises:
        CommandInterruptedError: A signal ended the coroutine; the message reports
            what is known of its task.
    """
    with _logging(context) as orphan:
        try:
            with asyncio.Runner(loop_factory=_loop_factory(sys.platform, context.ledger_name)) as runner:
                return runner.run(_interruptible(context, work, on_signal, waits_on_interrupt=waits_on_interrupt))
        except CommandInterruptedError as error:
            _describe_interrupt(error, context, orphan.facts)
            raise


def _loop_factory(platform: str, ledger: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop. On Windows psycopg does not work with the default one."""
    return asyncio.SelectorEventLoop if platform == "win32" and ledger.startswith("postgres") else None


@contextmanager
def _logging(context: CommandContext) -> Generator[OrphanHandler]:
    """Show the package's warnings on stderr, with `-v` all its records, and collect orphans.

    Records that SORA_CHARS_LOG has written already are not shown again.
    """
    package = logging.getLogger("sora_chars")
    session = logging.getLogger("sora_chars.session")
    handler = RecordHandler(context.output.err)
    orphan = OrphanHandler()
    handler.addFilter(lambda record: context.verbose or not _is_reported(context, getattr(record, "event", "")))
    handler.setLevel(logging.DEBUG if context.verbose else logging.WARNING)
    level = package.level
    if context.verbose or not is_written():
        package.setLevel(logging.DEBUG if context.verbose else logging.WARNING)
    if not is_written():
        package.addHandler(handler)
    session.addHandler(orphan)
    try:
        yield orphan
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        session.removeHandler(orphan)


def _is_reported(context: CommandContext, event: str) -> bool:
    """Return whether the command reports an event by itself."""
    return event.startswith(_REPORTED_EVENTS) or (event == "task.waits_for_person" and context.shows_pages)


async def _interruptible(
    context: CommandContext,
    work: Coroutine[Any, Any, T],
    on_signal: Callable[[int], object],
    *,
    waits_on_interrupt: bool,
) -> T:
    loop = asyncio.get_running_loop()
    asyncio_task = loop.create_task(work)
    signals: list[int] = []

    def cancel(number: int) -> None:
        is_closing = bool(signals) and not (waits_on_interrupt and signals == [signal.SIGINT])
        if number == _SIGHUP and is_closing:  # kernel, shell and service manager may each send one
            return
        signals.append(number)
        on_signal(number)
        if is_closing and context.stop_waiting:  # the cancellation alone may end an earlier step of the closing
            context.stop_waiting()
        asyncio_task.cancel()

    for number in _signals():
        with suppress(NotImplementedError):  # on Windows, asyncio.run() itself cancels on SIGINT
            loop.add_signal_handler(number, cancel, number)
    await asyncio.wait((asyncio_task,))
    if signals and asyncio_task.cancelled():
        raise CommandInterruptedError("Interrupted.", number=signals[0])
    return asyncio_task.result()


def _signals() -> list[int]:
    """Return the signals that end a command. SIGHUP does not if `nohup` started the process."""
    if _SIGHUP is None or signal.getsignal(_SIGHUP) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, _SIGHUP]


def _describe_interrupt(error: CommandInterruptedError, context: CommandContext, orphan: dict[str, Any]) -> None:
    """Complete the message with the state of the paid request.

    Args:
        error: The error, which is changed.
        context: The context of the command.
        orphan: The attributes of the log record of an interrupted submission, if any.
    """
    context.task_id = context.task_id or orphan.get("task_id")
    if context.task_id and not context.has_tasks:
        error.message = f"Interrupted. The character was created; its id is {context.task_id}."
    elif context.task_id:
        error.message = f"Interrupted before the end of task {context.task_id} was known."
        error.hint = f"Continue with: {context.command('wait', context.task_id)}"
    elif orphan.get("unknown") or orphan.get("sent") or context.is_unknown:
        error.message = "Interrupted. No response arrived, so the outcome of the request is unknown."
        error.hint = context.resolve_hint(context.key or "", tasks=context.has_tasks)
    elif "error" in orphan:
        error.message = f"Interrupted. The request failed: {orphan['error']}"
    elif context.resume_command:
        error.message = "Interrupted. The tasks that have not ended keep running."
        error.hint = f"Continue with: {context.resume_command}"
    elif context.key:
        error.message = "Interrupted. This command sent no paid request."
