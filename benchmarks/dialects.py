"""The responses of each protocol: to a create, about a running task and about a finished one, made once a task."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = "application/json"
KIE_JSON = "application/json;charset=UTF-8"  # as recorded
REJECTION = b'{"code":429,"msg":"Your call frequency is too high. Please try again later.","data":null}'
OUTAGE = b'{"code":503,"msg":"Service unavailable","data":null}'


@attrs.frozen
class Facts:
    """The facts in the responses about a task. `created_ms` is milliseconds since the epoch."""

    url: str
    task_id: str
    created_ms: int
    seconds: float

    @property
    def created_at(self) -> str:
        """The time of creation as ISO 8601."""
        return datetime.fromtimestamp(self.created_ms / 1000, UTC).isoformat()


@attrs.frozen
class Texts:
    """The responses about one task. `result` is that of a second URL, for protocols that have one."""

    created: bytes
    running: bytes
    done: bytes
    result: bytes | None = None
    headers: dict[str, str] = attrs.field(factory=dict)
    content_type: str = JSON


@attrs.frozen
class Dialect:
    """How a protocol responds to a create. `rejection_status` is the HTTP status of a rate limit."""

    respond: Callable[[Facts], Texts]
    created_status: int = 200
    rejection_status: int = 429
    content_type: str = JSON


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def kie(facts: Facts) -> Texts:
    """kie.ai: createTask and recordInfo."""
    inputs = json.dumps({"prompt": "A lighthouse"}, separators=(",", ":"))
    running = {
        "taskId": facts.task_id,
        "model": "wan/2-7-image",
        "state": "waiting",
        "param": json.dumps({"input": inputs, "model": "wan/2-7-image"}, separators=(",", ":")),
        "resultJson": "",
        "failCode": None,
        "failMsg": None,
        "costTime": None,
        "completeTime": None,
        "createTime": facts.created_ms,
        "creditsConsumed": 0.0,
    }
    result = {"resultUrls": [f"{facts.url}/files/results/{facts.task_id}.mp4"]}
    done = {
        **running,
        "state": "success",
        "resultJson": json.dumps(result, separators=(",", ":")),
        "costTime": round(facts.seconds * 1000) // 1000,
        "completeTime": facts.created_ms + round(facts.seconds * 1000),
        "creditsConsumed": 0.0625,
    }
    created = {"taskId": facts.task_id, "recordId": facts.task_id}
    created, running, done = (_text({"code": 200, "msg": "success", "data": data}) for data in (created, running, done))
    return Texts(created, running, done, content_type=KIE_JSON)


def openai(facts: Facts) -> Texts:
    """The videos of openai."""
    video = {
        "id": facts.task_id,
        "object": "video",
        "created_at": facts.created_ms // 1000,
        "model": "sora-2",
        "progress": 0,
        "prompt": "x",
        "seconds": "4",
        "size": "720x1280",
        "status": "queued",
    }
    done = {**video, "status": "completed", "progress": 100, "completed_at": video["created_at"]}
    return Texts(_text(video), _text({**video, "status": "in_progress"}), _text(done))


def fal(facts: Facts) -> Texts:
    """The queue of fal.ai, whose result has its own URL."""
    address = f"{facts.url}/fal/o/a/requests/{facts.task_id}"
    urls = {"response_url": address, "status_url": f"{address}/status", "cancel_url": f"{address}/cancel"}
    status = {"request_id": facts.task_id, **urls}
    return Texts(
        _text({"status": "IN_QUEUE", "queue_position": 0, **status}),
        _text({"status": "IN_PROGRESS", "logs": None, **status}),
        _text({"status": "COMPLETED", "logs": None, "metrics": {}, **status}),
        _text({"video": {"url": f"{facts.url}/files/{facts.task_id}.mp4"}}),
    )


def replicate(facts: Facts) -> Texts:
    """The predictions of replicate."""
    address = f"{facts.url}/v1/predictions/{facts.task_id}"
    prediction: dict[str, Any] = {
        "id": facts.task_id,
        "model": "o/m",
        "version": "v",
        "status": "starting",
        "input": {},
        "output": None,
        "logs": "",
        "error": None,
        "metrics": None,
        "created_at": facts.created_at,
        "started_at": None,
        "completed_at": None,
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }
    done = {**prediction, "status": "succeeded", "output": ["x"], "completed_at": facts.created_at}
    return Texts(_text(prediction), _text({**prediction, "status": "processing"}), _text(done))


def runway(facts: Facts) -> Texts:
    """The tasks of Runway."""
    task = {"id": facts.task_id, "createdAt": facts.created_at}
    cost = {"estimatedCost": {"credits": 1}}
    return Texts(
        _text({"id": facts.task_id, **cost}),
        _text({**task, **cost, "status": "RUNNING", "progress": 0.5}),
        _text({**task, "cost": {"credits": 1}, "status": "SUCCEEDED", "output": ["x"]}),
    )


def azure(facts: Facts) -> Texts:
    """A long-running operation after Azure's guidelines."""
    headers = {"Operation-Location": f"{facts.url}/azure/operations/{facts.task_id}"}
    operation = {"id": facts.task_id, "status": "Running"}
    return Texts(_text(operation), _text(operation), _text({**operation, "status": "Succeeded"}), headers=headers)


DIALECTS = {
    "/api/v1/jobs/createTask": Dialect(kie, rejection_status=200, content_type=KIE_JSON),
    "/v1/videos": Dialect(openai),
    "/fal/o/a": Dialect(fal),
    "/v1/predictions": Dialect(replicate, created_status=201),
    "/v1/text_to_image": Dialect(runway),
    "/azure/operations": Dialect(azure, created_status=202),
}
"""The dialects by the path of the POST that creates a task."""
