"""The control API for other processes: JSON over HTTP under `/_emulator/`."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .faults import fault_json, invalid_fault
from .responses import PLAIN_JSON, Reply, encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from .state import EmulatorState
    from .tasks import EmulatedTask


async def add_fault(state: EmulatorState, request: web.Request) -> Reply:
    """Add the fault `{"kind", "on"?, "times"?, "rate"?, ...settings}`.

    Responds 201 with the fault, or 400 with the reason.
    """
    try:
        body = cast("object", json.loads(await request.read()))
        if not isinstance(body, dict):
            raise ValueError("fault must be a JSON object")  # noqa: TRY004, TRY301 - one response for every mistake
        fault = state.fault(**cast("dict[str, object]", body))  # type: ignore[arg-type]  # checked there
    except (TypeError, ValueError) as error:
        return invalid_fault(error)
    return Reply(HTTPStatus.CREATED, encoded(fault_json(fault)), PLAIN_JSON)


async def clear_faults(state: EmulatorState, _request: web.Request) -> Reply:
    """Remove all faults, and respond with those that were active."""
    removed = [fault_json(fault) for fault in state.faults.active]
    state.faults.active.clear()
    return Reply(HTTPStatus.OK, encoded({"faults": removed}), PLAIN_JSON)


async def counts(state: EmulatorState, _request: web.Request) -> Reply:
    """Respond with `Counts.snapshot()`."""
    return Reply(HTTPStatus.OK, encoded(state.counts.snapshot()), PLAIN_JSON)


async def tasks(state: EmulatorState, _request: web.Request) -> Reply:
    """Respond with every task, without callback URLs, which contain tokens."""
    return Reply(HTTPStatus.OK, encoded({"tasks": [_task_json(task) for task in state.tasks.values()]}), PLAIN_JSON)


def _task_json(task: EmulatedTask) -> dict[str, object]:
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


ROUTES: dict[tuple[str, str], Callable[[EmulatorState, web.Request], Awaitable[Reply]]] = {
    ("POST", "/_emulator/faults"): add_fault,
    ("DELETE", "/_emulator/faults"): clear_faults,
    ("GET", "/_emulator/counts"): counts,
    ("GET", "/_emulator/tasks"): tasks,
}
