"""Tasks and their states over time.

Tasks need no timers: a state is computed from the clock when it is read.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import attrs

from .responses import compact

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

PLAIN_STEPS = ((0.0, "waiting"),)
"""The state from each share of the task's time on. Most recorded tasks wait to the end."""
DETAILED_STEPS = ((0.0, "waiting"), (0.1, "queuing"), (0.25, "generating"))
DETAILED_SHARE = 0.3
"""The share of tasks that go through `DETAILED_STEPS`."""
RESULT_SHAPES: dict[str, Callable[[str], object]] = {
    "character_id": lambda id_: {"character_id": id_},
    "resultObject": lambda id_: {"resultObject": {"character_id": id_, "character_user_name": f"user.{id_[-8:]}"}},
    "character_id_list": lambda id_: {"character_id_list": [id_]},
    "character_id_list_str": lambda id_: {"character_id_list": id_},
    "characterId": lambda id_: {"characterId": id_},
    "resultUrls": lambda id_: {"resultUrls": [f"https://tempfile.invalid/{id_}.mp4"]},
    "empty_id": lambda _: {"character_id": ""},
    "none": lambda _: {},
    "array": lambda _: [],
}
RAW_SHAPES: dict[str, str | None] = {"empty": "", "null": None, "junk": '{"character_id": "ch_'}


@attrs.frozen
class Delivery:
    """The result of one POST of a callback. `status` is None if no response came."""

    attempt: int
    status: int | None
    forged: bool = False


@attrs.define(eq=False)
class EmulatedTask:
    """A task as the server knows it.

    Times without `_ms` are real seconds on the event loop's clock.

    Attributes:
        task_id: 32 hex digits.
        model: The model that the client named.
        input: The input that the client sent.
        param: The client's request as JSON text, as a record repeats it.
        callback_url: Where the callback is sent; None for nowhere.
        created: When the task was created.
        created_ms: The same in Unix milliseconds.
        ends_at: When the task ends; infinity for a task that never ends by itself.
        steps: The state from each share of the task's time on.
        result_json: The `resultJson` of the task once it has succeeded.
        credits: What the task costs.
        clock: The event loop's clock.
        fail_code: The code with which the task fails; None if it succeeds.
        fail_msg: The message with which the task fails.
        polls: How often the task was polled.
        detected_at: When a poll first saw the task ended.
        callback_started: Whether the delivery of the callback has begun.
        deliveries: The POSTs of the callback.
    """

    task_id: str
    model: str
    input: Mapping[str, object]
    param: str
    callback_url: str | None
    created: float
    created_ms: int
    ends_at: float
    steps: tuple[tuple[float, str], ...]
    result_json: str | None
    credits: float
    clock: Callable[[], float] = attrs.field(repr=False)
    fail_code: str | None = None
    fail_msg: str | None = None
    polls: int = 0
    detected_at: float | None = None
    callback_started: bool = False
    deliveries: list[Delivery] = attrs.field(factory=list)

    @property
    def state(self) -> str:
        """The current state: waiting, queuing, generating, success or fail."""
        if self.finished:
            return "success" if self.fail_code is None else "fail"
        progress = self.progress
        return [state for share, state in self.steps if share <= progress][-1]

    @property
    def finished(self) -> bool:
        """Whether the task has succeeded or failed."""
        return self.clock() >= self.ends_at

    @property
    def progress(self) -> float:
        """The share of the task's time that has passed, 0.0 to 1.0."""
        span = self.ends_at - self.created
        return min(1.0, (self.clock() - self.created) / span) if span > 0 else 1.0

    @property
    def completed_ms(self) -> int | None:
        """The task's end in Unix milliseconds; None while it runs."""
        return self.created_ms + round((self.ends_at - self.created) * 1000) if self.finished else None

    def data(self) -> dict[str, object]:
        """Return `data` of recordInfo and of a callback, with the keys in the recorded order."""
        state = self.state
        completed = self.completed_ms
        return {
            "taskId": self.task_id,
            "model": self.model,
            "state": state,
            "param": self.param,
            "resultJson": self.result_json if state == "success" else "",
            "failCode": self.fail_code if state == "fail" else None,
            "failMsg": self.fail_msg if state == "fail" else None,
            "costTime": None if completed is None else (completed - self.created_ms) // 1000,
            "completeTime": completed,
            "createTime": self.created_ms,
            "creditsConsumed": self.credits if state == "success" else 0.0,
        }

    def end(self) -> None:
        """End the task now, unless it has ended already."""
        self.ends_at = min(self.ends_at, self.clock())


@attrs.define(eq=False)
class TaskStore:
    """All tasks of the account, and its credits.

    Attributes:
        speed: Emulated seconds per real second.
        durations: The bounds of a task's duration, in emulated seconds.
        price: What a task costs.
        credits: What the account holds.
        rng: The seeded generator of ids and durations.
        clock: The event loop's clock, once the emulator has started.
        tasks: Every task by its id, oldest first.
        origins: Ids that were declared finished videos, with their length in seconds
            where it is known.
    """

    speed: float
    durations: tuple[float, float]
    price: float
    credits: float
    rng: random.Random
    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, EmulatedTask] = attrs.field(factory=dict)
    origins: dict[str, float | None] = attrs.field(factory=dict)

    def new_id(self) -> str:
        """Return a new id of 32 hex digits."""
        return f"{self.rng.getrandbits(128):032x}"

    def draw_duration(self) -> float:
        """Return the duration of the next task, in real seconds."""
        return self.rng.uniform(*self.durations) / self.speed

    def create(
        self, *, model: str, inputs: Mapping[str, object], callback_url: str | None, result: object
    ) -> EmulatedTask:
        """Start a task and charge for it. `result` becomes its `resultJson`."""
        now = self.clock()
        param = {"callBackUrl": callback_url} if callback_url else {}
        task = EmulatedTask(
            task_id=self.new_id(),
            model=model,
            input=inputs,
            param=compact(param | {"input": compact(inputs), "model": model}),
            callback_url=callback_url,
            created=now,
            created_ms=round(time.time() * 1000),
            ends_at=now + self.draw_duration(),
            steps=DETAILED_STEPS if self.rng.random() < DETAILED_SHARE else PLAIN_STEPS,
            result_json=compact(result),
            credits=self.price,
            clock=self.clock,
        )
        self.tasks[task.task_id] = task
        self.credits -= self.price
        return task

    def mark_failed(self, task: EmulatedTask, *, code: str, message: str) -> None:
        """Make the task fail when its time has passed, and refund its price."""
        task.fail_code, task.fail_msg = code, message
        self.credits += task.credits
        task.credits = 0.0

    def finish(self, task_id: str, override: Mapping[str, object]) -> EmulatedTask:
        """End a running task now, with success."""
        task = self._running(task_id)
        task.fail_code = task.fail_msg = None
        if override:
            task.result_json = compact(override)
        task.end()
        return task

    def fail(self, task_id: str, *, code: str, message: str) -> EmulatedTask:
        """End a running task now, with a failure."""
        task = self._running(task_id)
        self.mark_failed(task, code=code, message=message)
        task.end()
        return task

    def _running(self, task_id: str) -> EmulatedTask:
        task = self.tasks[task_id]
        if task.finished:
            raise ValueError(f"task {task_id} has ended already")
        return task


def never_end(task: EmulatedTask) -> None:
    """Keep the task from ending by itself."""
    task.ends_at = math.inf


def set_result_shape(task: EmulatedTask, shape: str, id_: str) -> None:
    """Give the task a `resultJson` of the named shape that contains the id."""
    task.result_json = RAW_SHAPES[shape] if shape in RAW_SHAPES else compact(RESULT_SHAPES[shape](id_))
