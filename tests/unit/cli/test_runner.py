"""Exit statuses, and the log records of interrupted submissions."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from typing import Any

import pytest

from sora_chars.cli import runner
from sora_chars.cli.context import CommandContext
from sora_chars.cli.output import Output
from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    InvalidTransitionError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    StaleEntryError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
    WatcherStoppedError,
)

TASK: dict[str, Any] = {"provider": "kie", "task_id": "t"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError("x"), 2),
        (ConfigurationError("x"), 2),
        (KeyConflictError("x", key="k"), 2),
        (StaleEntryError("x"), 2),
        (LedgerError("x", key="k"), 2),
        (LedgerError("x", key="k", task_id="t"), 6),
        (ProviderError("x"), 3),
        (NoAnswerError("x"), 3),
        (TaskFailedError("x", **TASK), 4),
        (MissingCharacterError("x", **TASK), 4),
        (WaitTimeoutError("x"), 5),
        (SubmissionUnknownError("x", provider="kie", key="k"), 6),
        (InvalidTransitionError("x", key="k", state="pending", to="failed"), 70),
        (WatcherStoppedError("x", task_id="t"), 70),
        (SessionClosedError("x"), 70),
    ],
)
def test_exit_status(error: SoraCharsError, status: int) -> None:
    """Each error has a status: 6 if a task is not recorded, and 70 if no user can cause the error."""
    assert runner.exit_status(error) == status


def test_only_submissions_are_orphans() -> None:
    """Other records of a session do not describe an interrupted request."""
    orphan = runner.OrphanHandler()
    orphan.emit(logging.makeLogRecord({"event": "submission.failed", "error": "no"}))
    orphan.emit(logging.makeLogRecord({"event": "ledger.write_failed", "error": "disk full"}))

    assert orphan.facts["error"] == "no"


@pytest.mark.parametrize(("handler", "expected"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_ignored_hangup_stays_ignored(handler: signal.Handlers, expected: bool) -> None:  # noqa: FBT001 # pytest gives it
    """`nohup` starts a process that ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert (signal.SIGHUP in runner._signals()) is expected
    finally:
        signal.signal(signal.SIGHUP, before)


def test_system_without_hangup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no SIGHUP."""
    monkeypatch.setattr(runner, "_SIGHUP", None)
    assert runner._signals() == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"error": "unknown", "unknown": True}, "Interrupted. No response arrived, so the outcome"),
        ({"sent": True}, "Interrupted. No response arrived, so the outcome"),
        ({"error": "401", "unknown": False}, "Interrupted. The request failed: 401"),
        ({"sent": False}, "Interrupted. This command sent no paid request."),
    ],
)
def test_interrupt_states_what_is_known(facts: dict[str, object], message: str) -> None:
    """The message depends on how far the paid request came."""
    context = CommandContext(key="k")
    error = runner.CommandInterruptedError("Interrupted.")
    runner._describe_interrupt(error, context, facts)
    assert error.message.startswith(message)


def test_hangup_while_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang-up after the signal that ends the command neither hurries it nor is reported."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(
        asyncio.SelectorEventLoop,
        "add_signal_handler",
        lambda _, number, callback, *arguments: handlers.setdefault(number, partial(callback, *arguments)),
    )
    seen: list[int] = []

    async def work() -> None:
        handlers[signal.SIGTERM]()
        try:
            await asyncio.sleep(60)
        finally:
            handlers[signal.SIGHUP]()
            await asyncio.sleep(0)  # is not cancelled

    with pytest.raises(runner.CommandInterruptedError):
        runner.run(CommandContext(Output()), work(), on_signal=seen.append)
    assert seen == [signal.SIGTERM]


def test_the_event_loop_of_a_command() -> None:
    """On Windows a command with a PostgreSQL ledger runs in the loop that psycopg supports; others in the default."""
    assert runner._loop_factory("win32", "postgresql://...") is asyncio.SelectorEventLoop
    assert runner._loop_factory("win32", "C:/ledger.db") is None
    assert runner._loop_factory("linux", "postgresql://...") is None
