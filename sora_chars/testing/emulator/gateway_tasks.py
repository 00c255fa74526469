"""The tasks of the gateways that make Kling's elements, over time (contracts: Kling, gateways)."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import attrs

from .kling_tasks import KlingTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .element_callbacks import ElementCallbacks


@attrs.define(eq=False)
class GatewayTask(KlingTask):
    """A task of a gateway. `body` describes its element in Kling's words.

    Attributes:
        input: The body of the create, as it came.
        root: The URL of the emulator.
        code: The gateway's code of a failure, a number or a word.
        cancelled: Whether it ends cancelled.
        as_text: Whether the element in the result is JSON text.
    """

    input: Mapping[str, object] = attrs.field(factory=dict)
    root: str = ""
    code: int | str | None = None
    cancelled: bool = False
    as_text: bool = False

    def end(self) -> None:
        """End the task now."""
        self.ends_at = min(self.ends_at, self.clock())


@attrs.define(eq=False)
class GatewayAccount:
    """The tasks of one account at a gateway.

    Attributes:
        clock: The event loop's clock.
        draw_duration: Returns the duration of the next task in real seconds.
        callbacks: Sends the callbacks.
        new_id: Returns the id of a new task.
        early_callbacks: Whether tasks end at once, and their callbacks come before the response to the create.
        tasks: Every task by its id, oldest first.
    """

    clock: Callable[[], float] = attrs.field(repr=False)
    draw_duration: Callable[[], float] = attrs.field(repr=False)
    callbacks: ElementCallbacks
    new_id: Callable[[random.Random], str] = attrs.field(repr=False)
    early_callbacks: bool = False
    tasks: dict[str, GatewayTask] = attrs.field(factory=dict)
    _rng: random.Random = attrs.field(factory=lambda: random.Random(11), init=False, repr=False)  # noqa: S311

    def create(self, body: Mapping[str, object], *, given: Mapping[str, object]) -> GatewayTask:
        """Start a task. `body` is in Kling's words, and `given` as it came."""
        now = self.clock()
        task = GatewayTask(
            task_id=self.new_id(self._rng),
            element_id=self._rng.randrange(8 * 10**17, 9 * 10**17) | 1,  # odd: as a double it would be another id
            body=body,
            created=now,
            created_ms=round(time.time() * 1000),
            ends_at=now + self.draw_duration(),
            clock=self.clock,
            input=given,
        )
        self.tasks[task.task_id] = task
        return task

    async def send_callbacks(self, task: GatewayTask) -> None:
        """Schedule the callback of a new task, or deliver it before the response to the create."""
        if not self.early_callbacks:
            self.callbacks.schedule(task)
            return
        task.end()
        if task.callback_url is not None and not self.callbacks.lost:
            await self.callbacks.deliver(task)


def change_task(task: GatewayTask, kind: str, settings: Mapping[str, Any]) -> None:
    """Apply a fault to a new task."""
    match kind:
        case "gateway_stuck":
            task.ends_at = float("inf")
        case "gateway_fail":
            task.failure = str(settings["message"])
            task.code = settings["code"] or None
        case "gateway_cancel":
            task.failure = ""
            task.cancelled = True
        case "gateway_text":
            task.as_text = True
        case _:
            task.without_element = True
