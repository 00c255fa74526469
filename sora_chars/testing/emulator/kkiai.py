"""The route of kkiai.com: one synchronous call that makes a character (contracts: kkiai.com)."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, cast

from .files import PICTURE
from .responses import PLAIN_JSON, Refusal, Reply, encoded, kkiai_error
from .validation import is_url, span_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .state import World

FIELDS = {"timestamps", "url", "from_task"}
LONGEST_SPAN = 3
TASK_ID = re.compile(r"video_[0-9a-fA-F-]{36}|(sora-2:)?task_[0-9A-Za-z]{26}")


async def create_character(world: World, request: web.Request) -> Reply:
    """Check the request, take as long as a task takes, answer with the character."""
    body = await _json_object(request, world)
    if (trouble := _problem(world, body)) is not None:
        raise Refusal(_invalid(world, trouble))
    if (source := body.get("from_task")) is not None and not _known(world, str(source)):
        return kkiai_error(2, 400, message="task does not exist", type="", code="task_not_exist")
    world.counts.characters += 1
    id_ = world.book.hex_id()
    await asyncio.sleep(world.book.real_seconds())
    character = {
        "id": f"ch_{id_}",
        "username": f"{id_[:9]}.{id_[9:18]}",
        "permalink": f"https://sora.chatgpt.com/profile/{id_[:9]}.{id_[9:18]}",
        "profile_picture_url": world.files.keep(f"pictures/{id_}.gif", PICTURE),
    }
    return Reply(200, encoded(character), PLAIN_JSON)


async def _json_object(request: web.Request, world: World) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Refusal(_invalid(world, "invalid character in the request body")) from error
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Refusal(_invalid(world, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)


def _problem(world: World, body: Mapping[str, object]) -> str | None:
    model = world.kkiai_model
    if unknown := sorted(set(body) - FIELDS - ({"model"} if model else set())):
        return f"unknown field {unknown[0]}"
    if model and body.get("model") != model:
        return f"model must be {model}"
    if (body.get("url") is None) == (body.get("from_task") is None):
        return "exactly one of url and from_task is required"
    if body.get("url") is not None and not is_url(body["url"]):
        return "url must be an http or https URL"
    if "timestamps" not in body:
        return "timestamps is required"
    trouble = span_problem(body["timestamps"], LONGEST_SPAN)
    return trouble and f"timestamps {trouble}"


def _known(world: World, source: str) -> bool:
    return source in world.book.origins or TASK_ID.fullmatch(source) is not None


def _invalid(world: World, message: str) -> Reply:
    text = f"{message} (request id: {world.book.hex_id()[:20]})"
    return kkiai_error(1, 400, message=text, type="invalid_request_error", code="invalid_request")
