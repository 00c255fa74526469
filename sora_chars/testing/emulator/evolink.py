"""The routes of Evolink: create and poll of elements, and the credits (contracts: Kling, gateways)."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import attrs

from .element_callbacks import ElementCallbacks
from .gateway_tasks import GatewayTask, change_task
from .gateway_validation import evolink_problem
from .kling_validation import body_problem
from .responses import PLAIN_JSON, Rejection, Reply, encoded

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from aiohttp import web

    from .counters import Counts
    from .kling_tasks import KlingTask
    from .state import EmulatorState

MODEL = "kling-custom-element"
CREATE = "/v1/videos/generations"
TASKS = "/v1/tasks"
TASK = TASKS + "/{id}"
CREDITS = "/v1/credits"
ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "Invalid request parameters"),
    401: ("authentication_error", "Invalid or expired token"),
    402: ("insufficient_quota_error", "Insufficient quota"),
    403: ("permission_error", "Access denied for this model"),
    404: ("not_found_error", "Specified model not found"),
    413: ("request_too_large_error", "Image file too large"),
    429: ("rate_limit_error", "Rate limit exceeded"),
    500: ("internal_server_error", "Internal server error"),
    502: ("upstream_error", "Upstream AI service unavailable"),
    503: ("service_unavailable_error", "Service temporarily unavailable"),
}
"""The type and the message of each HTTP status, by the page of the route."""
STATES = {"submitted": "pending", "processing": "processing", "succeed": "completed", "failed": "failed"}
RETRY_DELAYS = (1.0, 2.0, 4.0)
TIMEOUT = 10.0
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def error(status: int, message: str = "", *, parameter: str = "") -> Reply:
    """Return an error."""
    kind, text = ERRORS.get(status, ("api_error", "Error"))
    detail: dict[str, object] = {"code": status, "message": message or text, "type": kind}
    return Reply(status, encoded({"error": detail | ({"param": parameter} if parameter else {})}), PLAIN_JSON)


def new_id(rng: random.Random) -> str:
    """Return the id of a task."""
    return f"task-unified-{int(time.time())}-{''.join(rng.choices(_LETTERS, k=8))}"


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body, start the task, and schedule its callback."""
    body = await _json_object(request)
    if body.get("model") != MODEL:
        raise Rejection(error(404, parameter="model"))
    if (problem := evolink_problem(body)) is not None:
        raise Rejection(error(400, " ".join(problem), parameter=problem[0]))
    parameters = cast("dict[str, object]", body["model_params"])
    if (text := body_problem(parameters)) is not None:
        raise Rejection(error(400, text, parameter=text.partition(" ")[0]))
    task = state.evolink.create(parameters | {"callback_url": body.get("callback_url")}, given=body)
    state.counts.gateway_elements += 1
    for fault in state.faults.take("generation"):
        change_task(task, fault.kind, fault.settings)
    answer = Reply(HTTPStatus.OK, encoded(created(task)), PLAIN_JSON)
    await state.evolink.send_callbacks(task)
    return answer


async def poll(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the record of a task."""
    task = state.evolink.tasks.get(request.path.removeprefix(TASKS + "/"))
    if task is None:
        return error(404, "Task not found or expired", parameter="task_id")
    task.polls += 1
    return Reply(HTTPStatus.OK, encoded(record(task)), PLAIN_JSON)


async def credits(state: EmulatorState, _request: web.Request) -> Reply:  # noqa: A001 - the name of the route
    """Respond with what the account and its key have left."""
    left = state.task_store.credits
    data = {
        "token": {"remaining_credits": 0, "unlimited_credits": True, "used_credits": 0},
        "user": {"remaining_credits": left, "used_credits": 0},
    }
    return Reply(HTTPStatus.OK, encoded({"data": data, "message": "", "success": True}), PLAIN_JSON)


def admit(authorization: str, api_key: str | None) -> Reply | None:
    """Check the Authorization header; return the response that rejects it, or None."""
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer" or not token or (api_key is not None and token != api_key):
        return error(401)
    return None


def created(task: GatewayTask) -> dict[str, object]:
    """Return the answer to a create."""
    return {
        "created": task.created_ms // 1000,
        "id": task.task_id,
        "model": MODEL,
        "object": "video.generation.task",
        "progress": 0,
        "status": "pending",
        "task_info": {"can_cancel": True, "estimated_time": 600},
        "type": "video",
        "usage": {"billing_rule": "per_call", "credits_reserved": 1, "user_group": "default"},
    }


def record(task: GatewayTask) -> dict[str, object]:
    """Return the record of a task, which is also the body of its callback."""
    status = "cancelled" if task.cancelled and task.finished else STATES[task.status]
    progress = {"pending": 0, "processing": 50}.get(status, 100)
    found = created(task) | {"status": status, "progress": progress, "task_info": {"can_cancel": not task.finished}}
    if status == "completed":
        element = task.element()
        if task.without_element:
            del element["element_id"]
        found["result_data"] = {"elements": [element]} if task.as_text else element
    if status == "failed":
        found["error"] = {"code": task.code, "message": task.failure, "type": "task_failed"}
    return found


@attrs.define(eq=False)
class EvolinkCallbacks(ElementCallbacks):
    """Sends the record of a task when it ends, unsigned, and again after 1, 2 and 4 seconds."""

    @classmethod
    def at(cls, counts: Counts, speed: float) -> EvolinkCallbacks:
        """Return a sender whose delays are divided by the speed."""
        return cls(counts, timeout=TIMEOUT, retry_delays=tuple(delay / speed for delay in RETRY_DELAYS))

    def content(self, task: KlingTask) -> bytes:
        """Return the record."""
        return encoded(record(cast("GatewayTask", task)))


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as problem:
        raise Rejection(error(400, "the request body is not valid JSON")) from problem
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(error(400, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)
