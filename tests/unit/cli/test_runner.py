"""Exit statuses, and the log records of interrupted submissions."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sora_chars.cli import runner
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
