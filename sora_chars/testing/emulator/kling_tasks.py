"""Kling's tasks and elements over time (contracts: Kling, Create and Poll)."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROCESSING_SHARE = 0.2
"""The share of a task's time after which it is processed."""
TAGS = {
    "o_102": "Character",
    "o_103": "Animal",
    "o_104": "Item",
    "o_105": "Costume",
    "o_106": "Scene",
    "o_107": "Effect",
    "o_108": "Other",
}


@attrs.define(eq=False)
class KlingTask:
    """A task as Kling knows it. Times without `_ms` are real seconds on the event loop's clock.

    Attributes:
        task_id: 18 digits.
        element_id: Id of the element that the task makes, an integer beyond 2**53.
        body: The body of the create.
        created: When the task was created.
        created_ms: The same in Unix milliseconds.
        ends_at: When the task ends; infinity for a task that never ends by itself.
        clock: The event loop's clock.
        failure: Why the task fails; None if it succeeds.
        without_element: Whether it succeeds with a result that holds no element.
        deleted: Whether the element was deleted.
        makes_voice: Whether the task makes a voice in place of an element.
        polls: How often the task was polled.
        callbacks: The statuses that the receiver of its callbacks answered.
    """

    task_id: str
    element_id: int
    body: Mapping[str, object]
    created: float
    created_ms: int
    ends_at: float
    clock: Callable[[], float] = attrs.field(repr=False)
    failure: str | None = None
    without_element: bool = False
    deleted: bool = False
    makes_voice: bool = False
    polls: int = 0
    callbacks: list[int | None] = attrs.field(factory=list)

    @property
    def finished(self) -> bool:
        """Whether the task has ended."""
        return self.clock() >= self.ends_at

    @property
    def processing_at(self) -> float:
        """When the state changes from submitted to processing."""
        return self.created + (self.ends_at - self.created) * PROCESSING_SHARE

    @property
    def status(self) -> str:
        """The current state: submitted, processing, succeed or failed."""
        if self.finished:
            return "succeed" if self.failure is None else "failed"
        return "processing" if self.clock() >= self.processing_at else "submitted"

    @property
    def callback_url(self) -> str | None:
        """Where callbacks are sent."""
        url = self.body.get("callback_url")
        return None if url is None else str(url)

    @property
    def external_id(self) -> str | None:
        """The client's id of the task."""
        found = self.body.get("external_task_id")
        return None if found is None else str(found)

    def created_record(self) -> dict[str, object]:
        """Return `data` of the answer to the create."""
        return {
            "task_id": self.task_id,
            "task_info": {"external_task_id": self.external_id} if self.external_id else {},
            "task_status": "submitted",
            "created_at": self.created_ms,
            "updated_at": self.created_ms,
        }

    def record(self) -> dict[str, object]:
        """Return `data` of a poll, which is also the older form of a callback."""
        status = self.status
        record = self.created_record() | {"task_status": status, "updated_at": self.updated_ms}
        record["task_status_msg"] = self.failure if status == "failed" else ""
        if status == "succeed":
            name, made = ("voices", self.voice) if self.makes_voice else ("elements", self.element)
            record["task_result"] = {name: [] if self.without_element else [made()]}
            record["final_unit_deduction"] = "0.05" if self.makes_voice else "0"
        return record

    def event(self) -> dict[str, object]:
        """Return the newer form of a callback."""
        record = self.record()
        event: dict[str, object] = {
            "id": self.task_id,
            "status": {"succeed": "succeeded"}.get(self.status, self.status),
            "message": record["task_status_msg"],
            "create_time": self.created_ms,
            "update_time": self.updated_ms,
            "external_id": self.external_id,
        }
        return event | ({"outputs": [self.element()], "billing": {}} if self.status == "succeed" else {})

    @property
    def updated_ms(self) -> int:
        """The last change of the state in Unix milliseconds."""
        seconds = min(self.clock(), self.ends_at) - self.created
        return self.created_ms + round(seconds * 1000)

    def voice(self) -> dict[str, object]:
        """Return the voice."""
        return {
            "voice_id": str(self.element_id),
            "voice_name": self.body["voice_name"],
            "trial_url": f"https://voices.example/{self.element_id}.mp3",
            "owned_by": "855722760281784413",
        }

    def element(self) -> dict[str, object]:
        """Return the element, with the members of the recorded answer."""
        images = self.body.get("element_image_list", {})
        videos = self.body.get("element_video_list", {})
        return {
            "element_id": self.element_id,
            "element_name": self.body["element_name"],
            "element_description": self.body["element_description"],
            "element_type": self.body["reference_type"],
            "element_image_list": images,
            "element_video_list": videos,
            "owned_by": "855722760281784413",
            "status": "deleted" if self.deleted else "succeed",
            "tag_list": [{"id": "o_102", "name": TAGS["o_102"], "description": "None"}],
        }


@attrs.define(eq=False)
class KlingStore:
    """The tasks of one emulated Kling account.

    Attributes:
        clock: The event loop's clock.
        draw_duration: Returns the duration of the next task in real seconds.
        parallel: Tasks that may run at once; None for no limit.
        tasks: Every task by its id, oldest first.
        next_failure: Why the next task fails; None if it succeeds.
    """

    clock: Callable[[], float] = attrs.field(repr=False)
    draw_duration: Callable[[], float] = attrs.field(repr=False)
    parallel: int | None = None
    tasks: dict[str, KlingTask] = attrs.field(factory=dict)
    _rng: random.Random = attrs.field(factory=lambda: random.Random(7), init=False, repr=False)  # noqa: S311

    def create(self, body: Mapping[str, object], *, makes_voice: bool = False) -> KlingTask:
        """Start a task."""
        now = self.clock()
        task = KlingTask(
            task_id=str(self._rng.randrange(8 * 10**17, 9 * 10**17)),
            element_id=self._rng.randrange(8 * 10**17, 9 * 10**17) | 1,  # odd: as a double it would be another id
            body=body,
            created=now,
            created_ms=round(time.time() * 1000),
            ends_at=now + self.draw_duration(),
            clock=self.clock,
            makes_voice=makes_voice,
        )
        self.tasks[task.task_id] = task
        return task

    def find(self, name: str) -> KlingTask | None:
        """Return the task of a task id or of a client's id."""
        return self.tasks.get(name) or self.by_external_id(name)

    def by_external_id(self, name: object) -> KlingTask | None:
        """Return the task of a client's id."""
        return next((task for task in self.tasks.values() if task.external_id == name), None)

    def delete(self, element_id: str) -> bool:
        """Delete an element. Return whether it was there."""
        for task in self.tasks.values():
            if str(task.element_id) == element_id and task.status == "succeed" and not task.deleted:
                task.deleted = True
                return True
        return False

    @property
    def deleted_ids(self) -> list[str]:
        """The ids of the elements that were deleted."""
        return [str(task.element_id) for task in self.tasks.values() if task.deleted]

    @property
    def is_full(self) -> bool:
        """Whether as many tasks run as may run at once."""
        running = sum(not task.finished for task in self.tasks.values())
        return self.parallel is not None and running >= self.parallel


def never_end(task: KlingTask) -> None:
    """Keep the task from ending by itself."""
    task.ends_at = math.inf
