"""The routes of Wavespeed: create and poll of elements, uploads and the balance (contracts: Kling, gateways)."""

from __future__ import annotations

import hashlib
import hmac
import json
import mimetypes
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import attrs
from aiohttp import BodyPartReader

from .element_callbacks import ElementCallbacks
from .files import File
from .gateway_tasks import GatewayTask, change_task
from .gateway_validation import wavespeed_problem
from .responses import PLAIN_JSON, Rejection, Reply, compact, encoded
from .validation import is_url

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from aiohttp import web

    from .kling_tasks import KlingTask
    from .state import EmulatorState

MODEL = "kwaivgi/kling-elements-advanced"
CREATE = f"/api/v3/{MODEL}"
PREDICTIONS = "/api/v3/predictions"
PREDICTION = PREDICTIONS + "/{id}/result"
UPLOAD = "/api/v3/media/upload/binary"
BALANCE = "/api/v3/balance"
MESSAGES: Mapping[int, str] = {
    400: "Invalid request",
    401: "Invalid authentication",
    402: "Insufficient credits. Please top up.",
    403: "Access denied",
    404: "Resource not found",
    429: "Too many requests",
    500: "Internal server error",
    503: "Service unavailable",
    504: "Gateway timeout",
    1200: "The content contains sensitive information",
    1400: "A required parameter is missing",
    1401: "The parameter value is invalid",
    1402: "Unable to access the provided media URL",
    1403: "The task could not be completed",
    1405: "The task execution failed",
    5000: "An internal error occurred",
    5003: "The service is temporarily unavailable",
    5004: "The request timed out",
}
"""A message for each HTTP status, and for each code of the page "Error Codes"."""
STATES = {"submitted": "created", "processing": "processing", "succeed": "completed", "failed": "failed"}
MEDIA = ("image", "video", "audio")


def reply(status: int, code: int, message: str = "", data: object = None) -> Reply:
    """Return Wavespeed's envelope."""
    body: dict[str, object] = {"code": code, "message": message or MESSAGES.get(code, "success")}
    return Reply(status, encoded(body | ({} if data is None else {"data": data})), PLAIN_JSON)


def new_id(rng: random.Random) -> str:
    """Return the id of a prediction: 32 hexadecimal digits."""
    return f"{rng.getrandbits(128):032x}"


async def create(state: EmulatorState, request: web.Request) -> Reply:
    """Check the body and the query, start the task, and schedule its callback."""
    body = await _json_object(request)
    if (error := wavespeed_problem(body, state.files)) is not None:
        raise Rejection(reply(400, 400, error))
    webhook = request.query.get("webhook")
    if webhook is not None and not is_url(webhook):
        raise Rejection(reply(400, 400, "webhook must be an http or https URL"))
    task = state.wavespeed.create(_kling_words(body) | {"callback_url": webhook}, given=body)
    task.root = state.url
    state.counts.gateway_elements += 1
    for fault in state.faults.take("prediction"):
        change_task(task, fault.kind, fault.settings)
    answer = reply(200, 200, data=record(task))
    await state.wavespeed.send_callbacks(task)
    return answer


async def poll(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the record of a prediction."""
    task = state.wavespeed.tasks.get(request.path.removeprefix(PREDICTIONS + "/").removesuffix("/result"))
    if task is None:
        return reply(404, 404)
    task.polls += 1
    return reply(200, 200, data=record(task))


async def upload(state: EmulatorState, request: web.Request) -> Reply:
    """Store the part "file" of a multipart body, and respond with its URL."""
    if request.content_type != "multipart/form-data":
        raise Rejection(reply(400, 400, "the body must be multipart/form-data"))
    content: bytes | None = None
    name = ""
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                name = part.filename or ""
                content = bytes(await part.read(decode=False))
    except ValueError as error:  # raised by aiohttp for a broken multipart body
        raise Rejection(reply(400, 400, "malformed multipart body")) from error
    mime = mimetypes.guess_type(name)[0] or ""
    kind = mime.partition("/")[0]
    if content is None or kind not in MEDIA:
        raise Rejection(reply(400, 400, "file must be an image, a video or an audio file"))
    state.counts.uploads += 1
    url = state.files.add(f"wavespeed/{state.counts.uploads}/{name}", File(mime, content))
    return reply(200, 200, data={"type": kind, "download_url": url, "filename": name, "size": len(content)})


async def balance(state: EmulatorState, _request: web.Request) -> Reply:
    """Respond with what the account holds."""
    return reply(200, 200, data={"balance": state.task_store.credits})


def admit(authorization: str, api_key: str | None) -> Reply | None:
    """Check the Authorization header; return the response that rejects it, or None."""
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer" or not token or (api_key is not None and token != api_key):
        return reply(401, 401)
    return None


def template(path: str) -> str:
    """Return the path of the route for a poll, whose id stands in its middle; any other path as it is."""
    is_poll = path.startswith(f"{PREDICTIONS}/") and path.endswith("/result")
    return PREDICTION if is_poll else path


def record(task: GatewayTask) -> dict[str, object]:
    """Return the record of a prediction."""
    status = STATES[task.status]
    milliseconds = task.updated_ms - task.created_ms if task.finished else 0
    found: dict[str, object] = {
        "id": task.task_id,
        "model": MODEL,
        "outputs": _outputs(task) if status == "completed" else [],
        "urls": {"get": f"{task.root}{PREDICTIONS}/{task.task_id}/result"},
        "has_nsfw_contents": [],
        "status": "cancelled" if task.cancelled and task.finished else status,
        "created_at": datetime.fromtimestamp(task.created_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "error": task.failure if status == "failed" else "",
        "executionTime": milliseconds,
        "timings": {"inference": milliseconds},
    }
    return found | ({"code": task.code} if status == "failed" and task.code else {})


def _outputs(task: GatewayTask) -> list[object]:
    if task.without_element:
        return []
    element = task.element()
    return [compact(element) if task.as_text else element]


def _kling_words(body: Mapping[str, object]) -> dict[str, object]:
    """Return the body of a create as Kling would get it."""
    videos = cast("list[object]", body.get("element_video_list", []))
    images = cast("list[object]", body.get("refer_images", []))
    words: dict[str, object] = {
        "element_name": body["name"],
        "element_description": body["description"],
        "reference_type": body.get("reference_type", "image_refer"),
    }
    if videos:
        return words | {"element_video_list": {"refer_videos": [{"video_url": url} for url in videos]}}
    references = [{"image_url": url} for url in images]
    return words | {"element_image_list": {"frontal_image": body["frontal_image"], "refer_images": references}}


@attrs.define(eq=False)
class WavespeedCallbacks(ElementCallbacks):
    """Sends the record of a prediction when it ends."""

    def content(self, task: KlingTask) -> bytes:
        """Return the record, with the input of the task."""
        found = cast("GatewayTask", task)
        return encoded(record(found) | {"input": dict(found.input)})

    def signature(self, task: KlingTask, body: bytes) -> dict[str, str]:
        """Return the headers that sign a callback, if there is a secret."""
        if self.secret is None:
            return {}
        timestamp = str(int(time.time()))
        return {
            "webhook-id": task.task_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self.secret, task.task_id, timestamp, body),
        }


def sign(secret: str, id_: str, timestamp: str, body: bytes) -> str:
    """Return "v3," and the hexadecimal HMAC-SHA256 over id, timestamp and body; the key is text after "whsec_"."""
    key = secret.removeprefix("whsec_").encode()
    return "v3," + hmac.new(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Rejection(reply(400, 400, "the request body is not valid JSON")) from error
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(reply(HTTPStatus.BAD_REQUEST, 400, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)
