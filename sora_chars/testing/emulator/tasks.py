"""Tasks and how they move through their states in time. No timers: a state is computed when somebody asks."""

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
"""Most recorded tasks say `waiting` until they end."""
LIVELY_STEPS = ((0.0, "waiting"), (0.1, "queuing"), (0.25, "generating"))
LIVELY_SHARE = 0.3
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
    """One POST of a callback: how it went. `status` is None when no answer came."""

    attempt: int
    status: int | None
    forged: bool = False


@attrs.define(eq=False)
class EmulatedTask:
    """A task as the server knows it. Times without `_ms` are the event loop's clock, in real seconds."""

    task_id: str
    model: str
    input: Mapping[str, object]
    param: str
    callback_url: str | None
    created: float
    created_ms: int
    done_at: float
    """When it ends; infinity for a stuck task."""
    steps: tuple[tuple[float, str], ...]
    result_json: str | None
    credits: float
    clock: Callable[[], float] = attrs.field(repr=False)
    fail_code: str | None = None
    fail_msg: str | None = None
    polls: int = 0
    seen_at: float | None = None
    notified: bool = False
    """Whether the delivery of its callback has begun."""
    deliveries: list[Delivery] = attrs.field(factory=list)

    @property
    def state(self) -> str:
        """waiting, queuing, generating, success or fail, as of now."""
        if self.finished:
            return "success" if self.fail_code is None else "fail"
        progress = self.progress
        return [state for share, state in self.steps if share <= progress][-1]

    @property
    def finished(self) -> bool:
        """Whether the task has ended, well or badly."""
        return self.clock() >= self.done_at

    @property
    def progress(self) -> float:
        """The share of its time that has passed: 0.0 to 1.0."""
        span = self.done_at - self.created
        return min(1.0, (self.clock() - self.created) / span) if span > 0 else 1.0

    @property
    def completed_ms(self) -> int | None:
        """Epoch milliseconds of its end; None while it runs."""
        return self.created_ms + round((self.done_at - self.created) * 1000) if self.finished else None

    def data(self) -> dict[str, object]:
        """`data` of recordInfo and of a callback, keys in the recorded order."""
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
        """Let it end now."""
        self.done_at = min(self.done_at, self.clock())


@attrs.define(eq=False)
class TaskBook:
    """Every task of the account, its credits, and the seeded chance that decides how long each takes."""

    speed: float
    durations: tuple[float, float]
    price: float
    credits: float
    chance: random.Random
    clock: Callable[[], float] = time.monotonic
    """The event loop's, once the emulator has started."""
    tasks: dict[str, EmulatedTask] = attrs.field(factory=dict)
    origins: dict[str, float | None] = attrs.field(factory=dict)
    """Ids declared to be finished videos, and their length in seconds where that is known."""

    def hex_id(self) -> str:
        """A new id of 32 hex digits."""
        return f"{self.chance.getrandbits(128):032x}"

    def real_seconds(self) -> float:
        """How long the next piece of work takes, in real seconds."""
        return self.chance.uniform(*self.durations) / self.speed

    def open(
        self, *, model: str, inputs: Mapping[str, object], callback_url: str | None, result: object
    ) -> EmulatedTask:
        """Start a task and charge for it. `result` is what it will have made."""
        now = self.clock()
        param = {"callBackUrl": callback_url} if callback_url else {}
        task = EmulatedTask(
            task_id=self.hex_id(),
            model=model,
            input=inputs,
            param=compact(param | {"input": compact(inputs), "model": model}),
            callback_url=callback_url,
            created=now,
            created_ms=round(time.time() * 1000),
            done_at=now + self.real_seconds(),
            steps=LIVELY_STEPS if self.chance.random() < LIVELY_SHARE else PLAIN_STEPS,
            result_json=compact(result),
            credits=self.price,
            clock=self.clock,
        )
        self.tasks[task.task_id] = task
        self.credits -= self.price
        return task

    def spoil(self, task: EmulatedTask, *, code: str, message: str) -> None:
        """Let the task end as failed, when its time has come; a failed task costs nothing."""
        task.fail_code, task.fail_msg = code, message
        self.credits += task.credits
        task.credits = 0.0

    def finish(self, task_id: str, override: Mapping[str, object]) -> EmulatedTask:
        """End a running task well, now."""
        task = self._running(task_id)
        task.fail_code = task.fail_msg = None
        if override:
            task.result_json = compact(override)
        task.end()
        return task

    def fail(self, task_id: str, *, code: str, message: str) -> EmulatedTask:
        """End a running task badly, now."""
        task = self._running(task_id)
        self.spoil(task, code=code, message=message)
        task.end()
        return task

    def _running(self, task_id: str) -> EmulatedTask:
        task = self.tasks[task_id]
        if task.finished:
            raise ValueError(f"task {task_id} has ended already")
        return task


def stick(task: EmulatedTask) -> None:
    """Never let it end."""
    task.done_at = math.inf


def reshape(task: EmulatedTask, shape: str, id_: str) -> None:
    """Give it a `resultJson` of the named shape around the id."""
    task.result_json = RAW_SHAPES[shape] if shape in RAW_SHAPES else compact(RESULT_SHAPES[shape](id_))
