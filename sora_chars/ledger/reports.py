"""The events of what the ledger records, for observed sessions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .states import ENDED, EntryState

if TYPE_CHECKING:
    from sora_chars.events import Event
    from sora_chars.observers import Observation

    from .entry import Entry


def report_registered(observed: Observation, entry: Entry, *, is_new: bool) -> None:
    """Report that a request was recorded, or found on record."""
    from sora_chars.events import Registered  # noqa: PLC0415 # few sessions are observed

    state = entry.state.value
    observed.emit(Registered(key=entry.key, provider=entry.provider, kind=entry.kind, state=state, is_new=is_new))


def report_transition(observed: Observation, before: Entry, after: Entry, began: float) -> None:
    """Report a transition. Writing it began at `began` of `time.perf_counter`."""
    for event in events_of(after, before=before, observed=observed, seconds=time.perf_counter() - began):
        observed.emit(event)


def events_of(
    after: Entry, *, before: Entry | None = None, observed: Observation | None = None, seconds: float | None = None
) -> list[Event]:
    """Return the events of a changed entry. Without the entry before, another process changed it."""
    from sora_chars import events  # noqa: PLC0415 # few sessions are observed

    made: list[Event] = [
        events.Recorded(
            key=after.key,
            provider=after.provider,
            before=before.state.value if before else None,
            state=after.state.value,
            task_id=after.task_id,
            version=after.version,
            seconds=seconds,
            elsewhere=before is None,
        )
    ]
    if before and before.state is after.state and before.owner:
        made.append(events.TakenOver(key=after.key, provider=after.provider, task_id=after.task_id or ""))
    if after.state is EntryState.UNKNOWN:
        reason = str((after.error or {}).get("message", ""))
        elsewhere = before is None
        made.append(events.InDoubt(key=after.key, provider=after.provider, reason=reason, elsewhere=elsewhere))
    if after.state in ENDED:
        made.append(_end(after, observed))
    return made


def _end(entry: Entry, observed: Observation | None) -> Event:
    from sora_chars.events import Ended  # noqa: PLC0415 # as above

    completed_at = observed.completed_at if observed else None
    return Ended(
        key=entry.key,
        provider=entry.provider,
        elsewhere=observed is None,
        kind=entry.kind,
        state=entry.state.value,
        task_id=entry.task_id,
        created_at=entry.created_at,
        duration=max(0.0, entry.updated_at - entry.created_at),
        lag=None if completed_at is None else max(0.0, entry.updated_at - completed_at),
        credits=entry.credits,
        polls=observed.polls if observed else None,
        woken_by=observed.woken_by if observed else None,
        error=entry.error,
        meta=entry.meta,
    )
