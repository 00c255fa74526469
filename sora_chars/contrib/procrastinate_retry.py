"""When the job of a request runs again, and in which queue."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from procrastinate import RetryDecision
from procrastinate.retry import BaseRetryStrategy

from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    SessionClosedError,
    SoraCharsError,
    UnreadableEntryError,
)
from sora_chars.ledger.states import EntryState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from procrastinate.jobs import Job

    from sora_chars.session.stepping import Step

FAULT_DELAY = 60.0
"""Seconds, after a step that a provider rejected, or a hook that raised."""
_LEDGER_DELAY = 5.0  # seconds, after a step for which the ledger could not be used
POLL_PRIORITY = 1
"""The priority of the jobs that poll; those that send have 0."""
_FINAL_ERRORS = (ConfigurationError, InvalidRequestError, UnreadableEntryError)  # no later step does better


class NotFinishedError(Exception):
    """The request has not ended: its job comes back."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"key {step.entry.key} is {step.state}; the next step is in {step.retry_in:.1f} s")
        self.step = step


class HookError(Exception):
    """The `ended` hook raised: the job comes back and calls it again."""


class MovesOn(BaseRetryStrategy):
    """Decides when the row of a job comes back, and in which queue."""

    def __init__(self, queues: Mapping[bool, str]) -> None:
        self._queues = queues  # by whether the next step polls

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """See `BaseRetryStrategy`."""
        del job
        match exception:
            case NotFinishedError(step=step):
                polls = step.state in {EntryState.RUNNING, EntryState.UNKNOWN}
                priority = POLL_PRIORITY if polls else 0
                return RetryDecision(retry_at=_in(step.retry_in or 0.0), queue=self._queues[polls], priority=priority)
            case asyncio.CancelledError() | SessionClosedError():  # the worker is stopping
                return RetryDecision(retry_at=_in(0.0))
            case LedgerError() if not isinstance(exception, _FINAL_ERRORS):
                return RetryDecision(retry_at=_in(_LEDGER_DELAY))
            case SoraCharsError() | HookError() if not isinstance(exception, _FINAL_ERRORS):
                return RetryDecision(retry_at=_in(FAULT_DELAY))
            case _:
                return None


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)
