"""Log records about submissions and tasks whose caller was cancelled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sora_chars.errors import SubmissionUnknownError, printable
from sora_chars.logs import event_logger

if TYPE_CHECKING:
    import asyncio

    from sora_chars.ledger import Entry
    from sora_chars.polling.handle import TaskHandle

    from .submission import Submission

log = event_logger("sora_chars.session")


def log_orphan(submission: Submission, asyncio_task: asyncio.Task[Any]) -> None:
    """Log how a submission ended whose caller was cancelled, so that an id which was paid for is never lost."""
    facts = {"provider": submission.provider.name, "key": submission.entry.key}
    if asyncio_task.cancelled():
        level = logging.ERROR if submission.sent else logging.INFO
        log.log(level, "submission.cancelled", extra=facts | {"sent": submission.sent})
    elif error := asyncio_task.exception():
        is_unknown = isinstance(error, SubmissionUnknownError)
        log.error("submission.failed", extra=facts | {"error": printable(error), "unknown": is_unknown})
    else:
        log_outlived(submission.entry)


def log_outlived(task: Entry | TaskHandle[Any]) -> None:
    """Log which task keeps running although its caller was cancelled."""
    facts = {"provider": task.provider, "key": task.key, "task_id": task.task_id}
    log.warning("submission.outlived_its_caller", extra=facts)
