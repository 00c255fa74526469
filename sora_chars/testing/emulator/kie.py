"""The routes of kie.ai: createTask, recordInfo, omni characters, credit, models (contracts: kie.ai)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from .faults import KINDS, parse_header
from .files import VIDEO
from .responses import Rejection, Reply, kie
from .validation import INPUT_RULES, KIE_ID, OMNI_RULES, TASK_RULES, TIMESTAMPS, problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .state import EmulatorState
    from .tasks import EmulatedTask

MODELS: Mapping[str, str] = {
    "sora-2-characters-pro": "character",
    "sora-2-characters": "character",
    "sora-2-text-to-video": "text-to-video",
    "sora-2-image-to-video": "image-to-video",
    "gpt-image-2-image-to-image": "image-to-image",
    "grok-imagine/text-to-image": "text-to-image",
    "happyhorse/image-to-video": "image-to-video",
    "kling-3.0/video": "image-to-video",
    "seedream/5-lite-text-to-image": "text-to-image",
    "wan/2-7-image": "text-to-image",
    "gemini-omni-video": "text-to-video",
}
"""The default job models, and what each makes."""
MODEL_GONE = "The model name you specified is not supported. Please verify that you are using a valid model name."
MAX_CLIP_BYTES = 10 * 1024 * 1024
CLIP_TYPES = {"video/mp4", "video/webm", "video/avi", "video/x-msvideo", "video/vnd.avi", "video/quicktime"}


async def json_object(request: web.Request) -> dict[str, object]:
    """Return the request's body.

    Raises:
        Rejection: The content type is not JSON, or the body is not a JSON object.
    """
    if request.content_type != "application/json":
        raise Rejection(kie(400, f"Content type '{request.content_type}' not supported"))
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Rejection(kie(400, "Request body is not valid JSON")) from error
    if not isinstance(value, dict):
        raise Rejection(kie(422, "Request body must be a JSON object"))
    return cast("dict[str, object]", value)


async def create_task(state: EmulatorState, request: web.Request) -> Reply:
    """Check the request, charge for the task, start it, and schedule its callback."""
    body = await json_object(request)
    model, inputs = _checked(state, body)
    callback_url = cast("str | None", body.get("callBackUrl"))
    task_store = state.task_store
    if task_store.credits < task_store.price:
        raise Rejection(kie(402, "Insufficient credits"))
    result = _result(state, model)
    task = task_store.create(model=model, inputs=inputs, callback_url=callback_url, result=result)
    state.counts.creates += 1
    await _apply_faults(state, request, task)
    return kie(200, "success", {"taskId": task.task_id, "recordId": task.task_id})


async def record_info(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with the current state of a task."""
    task_id = request.query.get("taskId", "")
    task = state.task_store.tasks.get(task_id)
    if not task_id:
        return kie(422, "taskId is required")
    if task is None:
        return kie(422, "recordInfo is null")
    state.counts.record_poll(task)
    return kie(200, "success", task.data())


async def create_omni_character(state: EmulatorState, request: web.Request) -> Reply:
    """Create a character from an image; the route is synchronous."""
    body = await json_object(request)
    if (error := problem(OMNI_RULES, body)) is not None:
        return kie(*error)
    state.counts.omni += 1
    return kie(200, "success", {"characterId": f"character_{state.task_store.new_id()}"})


async def credit(state: EmulatorState, _request: web.Request) -> Reply:
    """Respond with the remaining credits, as a float."""
    return kie(200, "success", float(state.task_store.credits))


async def models(state: EmulatorState, _request: web.Request) -> Reply:
    """Respond with the models that exist."""
    rows = [
        {
            "model": name,
            "slug": name.replace("/", "-"),
            "title": name,
            "provider": "Emulator",
            "taskType": kind,
        }
        for name, kind in state.models.items()
    ]
    return kie(200, "success", {"total": len(rows), "models": rows})


async def download_url(state: EmulatorState, request: web.Request) -> Reply:
    """Respond with a link to a file of this emulator, or with the recorded rejection."""
    url = (await json_object(request)).get("url")
    return kie(200, "success", url) if state.files.find(url) is not None else kie(422, "url is wrong")


def _checked(state: EmulatorState, body: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    if (error := problem(TASK_RULES, body)) is not None:
        raise Rejection(kie(*error))
    model = str(body["model"])
    inputs = cast("dict[str, object]", body["input"])
    if model not in state.models:
        raise Rejection(kie(422, MODEL_GONE))
    rules = INPUT_RULES.get(model)
    error = (problem(rules, inputs) or _source_problem(state, inputs)) if rules else None
    if error is not None:
        raise Rejection(kie(*error))
    return model, inputs


def _result(state: EmulatorState, model: str) -> object:
    id_ = state.task_store.new_id()
    if state.models[model] == "character":
        return {"character_id": f"ch_{id_}"}
    return {"resultUrls": [state.files.add(f"results/{id_}.mp4", VIDEO)]}


def _source_problem(state: EmulatorState, inputs: Mapping[str, object]) -> tuple[int, str] | None:
    """Return what is wrong with the source video, as far as the emulator can know."""
    if (origin := inputs.get("origin_task_id")) is not None:
        return _origin_problem(state, str(origin), str(inputs.get("timestamps")))
    urls = inputs.get("character_file_url")
    file = state.files.find(cast("list[object]", urls)[0]) if urls else None
    if file is not None and file.mime not in CLIP_TYPES:
        return 422, "character_file_url must be an mp4, mov, webm or avi video"
    if file is not None and len(file.content) > MAX_CLIP_BYTES:
        return 422, "character_file_url must be at most 10MB"
    return None


def _origin_problem(state: EmulatorState, origin: str, timestamps: str) -> tuple[int, str] | None:
    task = state.task_store.tasks.get(origin)
    if task is not None:
        if task.state != "success":
            return 422, "origin_task_id must be a finished task"
        length = float(str(task.input["n_frames"])) if "n_frames" in task.input else None
    elif origin in state.task_store.origins:
        length = state.task_store.origins[origin]
    elif KIE_ID.fullmatch(origin):
        length = None
    else:
        return 422, "origin_task_id does not exist"
    match = TIMESTAMPS.fullmatch(timestamps)
    if match is not None and length is not None and float(match[2]) > length:
        return 422, f"timestamps must lie inside the video of {length:g} seconds"
    return None


async def _apply_faults(state: EmulatorState, request: web.Request, task: EmulatedTask) -> None:
    """Apply the faults of a new task, then schedule its callback or deliver it early."""
    faults = state.faults.take("create")
    if (header := request.headers.get("X-Emulator-Fault")) is not None:
        faults.append(parse_header(header))
    for fault in faults:
        kind = KINDS[fault.kind]
        if kind.change_task is not None:
            kind.change_task(state.task_store, task, fault)
        if fault.on == "callback":
            state.callback_sender.add_task_fault(task, fault)
    if task.callback_url is not None and any(fault.kind == "early_callback" for fault in faults):
        await state.callback_sender.deliver(task)
    else:
        state.callback_sender.schedule(task)
