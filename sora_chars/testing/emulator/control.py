"""What other processes steer the emulator by: JSON over HTTP under `/_emulator/`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from .faults import described, wrong_fault
from .responses import PLAIN_JSON, Reply, encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from .state import World
    from .tasks import EmulatedTask


async def add_fault(world: World, request: web.Request) -> Reply:
    """`{"kind", "on"?, "times"?, "rate"?, ...settings}`: answers 201 and the fault, or 400 and why."""
    try:
        body = cast("object", json.loads(await request.read()))
        if not isinstance(body, dict):
            raise ValueError("a fault is a JSON object")  # noqa: TRY004, TRY301 - one answer for all that is wrong
        fault = world.fault(**cast("dict[str, object]", body))  # type: ignore[arg-type]  # checked there
    except (TypeError, ValueError) as error:
        return wrong_fault(error)
    return Reply(201, encoded(described(fault)), PLAIN_JSON)


async def clear_faults(world: World, _request: web.Request) -> Reply:
    """Remove all; answers those that were active."""
    gone = [described(fault) for fault in world.faults.active]
    world.faults.active.clear()
    return Reply(200, encoded({"faults": gone}), PLAIN_JSON)


async def counts(world: World, _request: web.Request) -> Reply:
    """`counts.snapshot()`."""
    return Reply(200, encoded(world.counts.snapshot()), PLAIN_JSON)


async def tasks(world: World, _request: web.Request) -> Reply:
    """Every task, without its callback URL, which holds a token."""
    return Reply(200, encoded({"tasks": [_row(task) for task in world.tasks.values()]}), PLAIN_JSON)


def _row(task: EmulatedTask) -> dict[str, object]:
    return {
        "taskId": task.task_id,
        "model": task.model,
        "state": task.state,
        "progress": round(task.progress * 100),
        "createTime": task.created_ms,
        "completeTime": task.completed_ms,
        "polls": task.polls,
        "callbacks": [delivery.status for delivery in task.deliveries],
    }


ROUTES: dict[tuple[str, str], Callable[[World, web.Request], Awaitable[Reply]]] = {
    ("POST", "/_emulator/faults"): add_fault,
    ("DELETE", "/_emulator/faults"): clear_faults,
    ("GET", "/_emulator/counts"): counts,
    ("GET", "/_emulator/tasks"): tasks,
}
