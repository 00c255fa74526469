"""The route of kkiai.com: one synchronous request that creates a character (contracts: kkiai.com)."""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .files import PICTURE
from .responses import PLAIN_JSON, Rejection, Reply, encoded, kkiai_error
from .validation import is_url, span_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .state import EmulatorState

FIELDS = {"timestamps", "url", "from_task"}
MAX_CLIP_SECONDS = 3
TASK_ID = re.compile(r"video_[0-9a-fA-F-]{36}|(sora-2:)?task_[0-9A-Za-z]{26}")


async def create_character(state: EmulatorState, request: web.Request) -> Reply:
    """Check the request, take as long as a task takes, and respond with the character."""
    body = await _json_object(request, state)
    if (error := _problem(state, body)) is not None:
        raise Rejection(_invalid(state, error))
    if (source := body.get("from_task")) is not None and not _exists(state, str(source)):
        return kkiai_error(2, 400, message="task does not exist", type="", code="task_not_exist")
    state.counts.characters += 1
    id_ = state.task_store.new_id()
    await asyncio.sleep(state.task_store.draw_duration())
    character = {
        "id": f"ch_{id_}",
        "username": f"{id_[:9]}.{id_[9:18]}",
        "permalink": f"https://sora.chatgpt.com/profile/{id_[:9]}.{id_[9:18]}",
        "profile_picture_url": state.files.add(f"pictures/{id_}.gif", PICTURE),
    }
    return Reply(HTTPStatus.OK, encoded(character), PLAIN_JSON)


async def _json_object(request: web.Request, state: EmulatorState) -> dict[str, object]:
    try:
        value = cast("object", json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        raise Rejection(_invalid(state, "invalid character in the request body")) from error
    if request.content_type != "application/json" or not isinstance(value, dict):
        raise Rejection(_invalid(state, "the request body must be a JSON object"))
    return cast("dict[str, object]", value)


def _problem(state: EmulatorState, body: Mapping[str, object]) -> str | None:
    model = state.kkiai_model
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
    error = span_problem(body["timestamps"], MAX_CLIP_SECONDS)
    return error and f"timestamps {error}"


def _exists(state: EmulatorState, source: str) -> bool:
    return source in state.task_store.origins or TASK_ID.fullmatch(source) is not None


def _invalid(state: EmulatorState, message: str) -> Reply:
    text = f"{message} (request id: {state.task_store.new_id()[:20]})"
    return kkiai_error(1, 400, message=text, type="invalid_request_error", code="invalid_request")
