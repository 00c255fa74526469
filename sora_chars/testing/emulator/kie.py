"""The routes of kie.ai: createTask, recordInfo, omni characters, credit, models (contracts: kie.ai)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from .faults import KINDS, from_header
from .files import VIDEO
from .responses import Refusal, Reply, kie
from .validation import INPUT_RULES, KIE_ID, OMNI_RULES, TASK_RULES, TIMESTAMPS, problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .state import World
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
"""The job models that exist unless told otherwise, and what each makes."""
MODEL_GONE = "The model name you specified is not supported. Please verify that you are using a valid model name."
LARGEST_CLIP = 10 * 1024 * 1024
CLIP_TYPES = {"video/mp4", "video/webm", "video/avi", "video/x-msvideo", "video/vnd.avi"}


async def json_object(request: web.Request) -> dict[str, object]:
    """The request's body, which must be a JSON object and say that it is JSON."""
    if request.content_type != "application/json":
        raise Refusal(kie(400, f"Content type '{request.content_type}' not supported"))
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Refusal(kie(400, "Request body is not valid JSON")) from error
    if not isinstance(value, dict):
        raise Refusal(kie(422, "Request body must be a JSON object"))
    return cast("dict[str, object]", value)


async def create_task(world: World, request: web.Request) -> Reply:
    """Check, charge, start the task, and arrange its callback."""
    body = await json_object(request)
    model, inputs = _checked(world, body)
    callback_url = cast("str | None", body.get("callBackUrl"))
    book = world.book
    if book.credits < book.price:
        raise Refusal(kie(402, "Insufficient credits"))
    result = _result(world, model)
    task = book.open(model=model, inputs=inputs, callback_url=callback_url, result=result)
    world.counts.creates += 1
    await _mark(world, request, task)
    return kie(200, "success", {"taskId": task.task_id, "recordId": task.task_id})


async def record_info(world: World, request: web.Request) -> Reply:
    """The task as of now."""
    task_id = request.query.get("taskId", "")
    task = world.book.tasks.get(task_id)
    if not task_id:
        return kie(422, "taskId is required")
    if task is None:
        return kie(422, "recordInfo is null")
    world.counts.saw(task)
    return kie(200, "success", task.data())


async def create_omni_character(world: World, request: web.Request) -> Reply:
    """Make a character of an image, at once."""
    body = await json_object(request)
    if (trouble := problem(OMNI_RULES, body)) is not None:
        return kie(*trouble)
    world.counts.omni += 1
    return kie(200, "success", {"characterId": f"character_{world.book.hex_id()}"})


async def credit(world: World, _request: web.Request) -> Reply:
    """What is left, as a float."""
    return kie(200, "success", float(world.book.credits))


async def models(world: World, _request: web.Request) -> Reply:
    """Which models there are."""
    rows = [
        {
            "model": name,
            "slug": name.replace("/", "-"),
            "title": name,
            "provider": "Emulator",
            "taskType": kind,
        }
        for name, kind in world.models.items()
    ]
    return kie(200, "success", {"total": len(rows), "models": rows})


async def download_url(world: World, request: web.Request) -> Reply:
    """A link to a file that was made or uploaded here; for any other the recorded refusal."""
    url = (await json_object(request)).get("url")
    return kie(200, "success", url) if world.files.at(url) is not None else kie(422, "url is wrong")


def _checked(world: World, body: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    if (trouble := problem(TASK_RULES, body)) is not None:
        raise Refusal(kie(*trouble))
    model, inputs = str(body["model"]), cast("dict[str, object]", body["input"])
    if model not in world.models:
        raise Refusal(kie(422, MODEL_GONE))
    rules = INPUT_RULES.get(model)
    trouble = (problem(rules, inputs) or _source_problem(world, inputs)) if rules else None
    if trouble is not None:
        raise Refusal(kie(*trouble))
    return model, inputs


def _result(world: World, model: str) -> object:
    id_ = world.book.hex_id()
    if world.models[model] == "character":
        return {"character_id": f"ch_{id_}"}
    return {"resultUrls": [world.files.keep(f"results/{id_}.mp4", VIDEO)]}


def _source_problem(world: World, inputs: Mapping[str, object]) -> tuple[int, str] | None:
    """What is wrong with the video that a character is to be made from, as far as the emulator can know."""
    if (origin := inputs.get("origin_task_id")) is not None:
        return _origin_problem(world, str(origin), str(inputs.get("timestamps")))
    urls = inputs.get("character_file_url")
    file = world.files.at(cast("list[object]", urls)[0]) if urls else None
    if file is not None and file.mime not in CLIP_TYPES:
        return 422, "character_file_url must be an mp4, webm or avi video"
    if file is not None and len(file.content) > LARGEST_CLIP:
        return 422, "character_file_url must be at most 10MB"
    return None


def _origin_problem(world: World, origin: str, timestamps: str) -> tuple[int, str] | None:
    task = world.book.tasks.get(origin)
    if task is not None:
        if task.state != "success":
            return 422, "origin_task_id must be a finished task"
        length = float(str(task.input["n_frames"])) if "n_frames" in task.input else None
    elif origin in world.book.origins:
        length = world.book.origins[origin]
    elif KIE_ID.fullmatch(origin):
        length = None
    else:
        return 422, "origin_task_id does not exist"
    match = TIMESTAMPS.fullmatch(timestamps)
    if match is not None and length is not None and float(match[2]) > length:
        return 422, f"timestamps must lie inside the video of {length:g} seconds"
    return None


async def _mark(world: World, request: web.Request, task: EmulatedTask) -> None:
    """Let the faults of a new task act on it, then arrange or make its callback."""
    faults = world.faults.take("create")
    if (header := request.headers.get("X-Emulator-Fault")) is not None:
        faults.append(from_header(header))
    for fault in faults:
        kind = KINDS[fault.kind]
        if kind.mark is not None:
            kind.mark(world.book, task, fault)
        if fault.on == "callback":
            world.courier.bind(task, fault)
    if task.callback_url is not None and any(fault.kind == "early_callback" for fault in faults):
        await world.courier.deliver(task)
    else:
        world.courier.expect(task)
