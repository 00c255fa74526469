"""What the emulator saw: the truth that a client's own numbers are held against."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .tasks import EmulatedTask


@attrs.define(eq=False)
class Counts:
    """Numbers since the start. Only what really happened counts: a rejected create is not in `creates`."""

    creates: int = 0
    characters: int = 0
    omni: int = 0
    polls: int = 0
    """Every recordInfo that came, also those that a limit or a fault turned away."""
    uploads: int = 0
    other: int = 0
    """Requests for credit, models and download links."""
    refused: int = 0
    """Requests turned away by the emulator's own rules: keys, parameters, limits, credits."""
    callbacks_sent: int = 0
    callbacks_accepted: int = 0
    rejected: Counter[str] = attrs.field(factory=Counter)
    """429s by what they were for: create, poll, character, ..."""
    polls_by_task: Counter[str] = attrs.field(factory=Counter)
    detections: list[float] = attrs.field(factory=list)
    """Real seconds from a task's end to the first GET that saw it, one per task."""

    def saw(self, task: EmulatedTask) -> None:
        """A GET that found its task; the first one after the task's end is its detection."""
        task.polls += 1
        self.polls_by_task[task.task_id] += 1
        if task.seen_at is None and task.finished:
            task.seen_at = task.clock()
            self.detections.append(task.seen_at - task.done_at)

    def snapshot(self) -> dict[str, object]:
        """All of it as JSON values; the detections as count, mean, p99 and max in seconds."""
        facts: dict[str, object] = attrs.asdict(self, filter=lambda field, _: field.name != "detections")
        facts["rejected"] = dict(self.rejected)
        facts["polls_by_task"] = dict(self.polls_by_task)
        return facts | {"detection": _spread(self.detections)}


def _spread(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "p99": ordered[(len(ordered) - 1) * 99 // 100],
        "max": ordered[-1],
    }
