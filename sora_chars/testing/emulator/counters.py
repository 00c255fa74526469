"""Counts of what the emulator received, to compare a client's own numbers with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .tasks import EmulatedTask


@attrs.define(eq=False)
class Counts:
    """Numbers since the emulator was created.

    Attributes:
        creates: Tasks created by createTask. A rejected create is not counted.
        characters: Characters created by kkiai.com's route.
        omni: Omni characters created.
        elements: Tasks created by Kling's route. A rejected create is not counted.
        voices: The same for its voices.
        subjects: Subjects created by Vidu's route.
        gateway_elements: Tasks created by Wavespeed's and Evolink's routes. A rejected create is not counted.
        assets: Assets created by icover's and Ark's routes.
        avatars: Avatars created by HeyGen's route.
        polls: recordInfo requests received, including those that a limit or a fault
            rejected.
        uploads: Files uploaded.
        other: Requests for the credit, the models and download links.
        rejected: Requests that failed the emulator's own checks of keys, parameters,
            limits and credits.
        callbacks_sent: POSTs of callbacks, including retries and forged ones.
        callbacks_accepted: POSTs of callbacks that the receiver answered with 200.
        rate_limited: Responses with status or code 429, by endpoint: create, poll,
            character and so on.
        polls_by_task: recordInfo requests that found their task, by task id.
        detection_delays: Real seconds from a task's end to the first poll that saw the
            end; one value per task.
    """

    creates: int = 0
    characters: int = 0
    omni: int = 0
    elements: int = 0
    voices: int = 0
    subjects: int = 0
    gateway_elements: int = 0
    assets: int = 0
    avatars: int = 0
    polls: int = 0
    uploads: int = 0
    other: int = 0
    rejected: int = 0
    callbacks_sent: int = 0
    callbacks_accepted: int = 0
    rate_limited: Counter[str] = attrs.field(factory=Counter)
    polls_by_task: Counter[str] = attrs.field(factory=Counter)
    detection_delays: list[float] = attrs.field(factory=list)

    def record_poll(self, task: EmulatedTask) -> None:
        """Count a poll that found its task; the first one after its end detects the end."""
        task.polls += 1
        self.polls_by_task[task.task_id] += 1
        if task.detected_at is None and task.finished:
            task.detected_at = task.clock()
            self.detection_delays.append(task.detected_at - task.ends_at)

    def snapshot(self) -> dict[str, object]:
        """Return all counts as JSON values.

        `detection_delay` holds the count, mean, p99 and max of the detection delays, in
        seconds.
        """
        values: dict[str, object] = attrs.asdict(self, filter=lambda field, _: field.name != "detection_delays")
        values["rate_limited"] = dict(self.rate_limited)
        values["polls_by_task"] = dict(self.polls_by_task)
        return values | {"detection_delay": _summary(self.detection_delays)}


def _summary(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "p99": ordered[(len(ordered) - 1) * 99 // 100],
        "max": ordered[-1],
    }
