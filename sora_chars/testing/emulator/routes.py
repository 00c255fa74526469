"""The routes of the emulated providers, and what answers requests that reach none of them or have a wrong key."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from . import ark, assets, evolink, gateways, heygen, icover, kie, kkiai, kling, uploads, vidu, wavespeed
from .responses import Reply, encoded, kkiai_error
from .responses import kie as kie_reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from .state import EmulatorState


class Route(NamedTuple):
    """A route: its name in faults and counts, the provider that it belongs to, its handler."""

    endpoint: str
    provider: str
    handler: Callable[[EmulatorState, web.Request], Awaitable[Reply]]


ROUTES: dict[tuple[str, str], Route] = {
    ("POST", "/api/v1/jobs/createTask"): Route("create", "kie", kie.create_task),
    ("GET", "/api/v1/jobs/recordInfo"): Route("poll", "kie", kie.record_info),
    ("POST", "/api/v1/omni/character/create"): Route("omni", "kie", kie.create_omni_character),
    ("GET", "/api/v1/chat/credit"): Route("other", "kie", kie.credit),
    ("GET", "/api/v1/models"): Route("other", "kie", kie.models),
    ("POST", "/api/v1/common/download-url"): Route("other", "kie", kie.download_url),
    ("POST", "/api/file-stream-upload"): Route("upload", "kie", uploads.stream_upload),
    ("POST", "/api/file-url-upload"): Route("upload", "kie", uploads.url_upload),
    ("POST", "/api/file-base64-upload"): Route("upload", "kie", uploads.base64_upload),
    ("POST", "/sora/v1/characters"): Route("character", "kkiai", kkiai.create_character),
    ("POST", kling.ELEMENTS): Route("element", "kling", kling.create),
    ("GET", kling.ELEMENTS): Route("element_other", "kling", kling.tasks),
    ("GET", kling.ELEMENT): Route("element_poll", "kling", kling.poll),
    ("POST", kling.DELETE): Route("element_other", "kling", kling.delete),
    ("POST", kling.VOICES): Route("voice", "kling", kling.create),
    ("GET", kling.VOICE): Route("voice_poll", "kling", kling.poll),
    ("POST", vidu.SUBJECTS): Route("subject", "vidu", vidu.create),
    ("GET", vidu.SUBJECTS): Route("subject_other", "vidu", vidu.subjects),
    ("PUT", vidu.SUBJECT): Route("subject_other", "vidu", vidu.edit),
    **{path: Route(*row) for path, row in {**gateways.ROUTES, **assets.ROUTES}.items()},
}
TEMPLATES = {
    kling.ELEMENTS: kling.ELEMENT,
    kling.VOICES: kling.VOICE,
    vidu.SUBJECTS: vidu.SUBJECT,
    evolink.TASKS: evolink.TASK,
    **assets.TEMPLATES,
}
"""The paths that end in an id, by what stands before it."""
ADMIT = {"vidu": vidu.admit, "wavespeed": wavespeed.admit, "evolink": evolink.admit, "icover": icover.admit}
"""What checks the Authorization header of a provider that has errors of its own."""


def template(request: web.Request) -> str:
    """Return the path of a request as `ROUTES` has it."""
    path = heygen.template(wavespeed.template(ark.path_of(request)))
    return TEMPLATES.get(path.rpartition("/")[0], path)


def admit(route: Route, request: web.Request, expected: str | None, kling_secret_key: str | None) -> Reply | None:
    """Check the API key of a request; return the response that rejects it, or None.

    Args:
        route: The route of the request.
        request: The request.
        expected: The key to accept; None accepts any.
        kling_secret_key: The secret key with which JWTs for Kling must be signed.
    """
    if route.provider == "heygen":
        return heygen.admit(request.headers.get("X-Api-Key", ""), expected)
    authorization = request.headers.get("Authorization", "")
    if route.provider in assets.UNSIGNED:
        return None
    if route.provider == "kling":
        return kling.admit(authorization, expected, kling_secret_key)
    if check := ADMIT.get(route.provider):
        return check(authorization, expected)
    scheme, _, key = authorization.partition(" ")
    is_wrong = scheme != "Bearer" or not key or (expected is not None and key != expected)
    return _unauthorized(route) if is_wrong else None


def _unauthorized(route: Route) -> Reply:
    if route.provider == "kie":
        return kie_reply(401, "You do not have access permissions")
    return kkiai_error(1, 401, message="Invalid token", type="new_api_error", code="")


def unknown_route(request: web.Request) -> Reply:
    """Return the response to a path or a method that does not exist."""
    if ark.path_of(request) != request.path:
        return ark.unknown_action()
    if request.path.startswith((kling.ELEMENTS, kling.VOICES, kling.DELETE)):
        return kling.reply(1202)
    if any(path == request.path for _, path in ROUTES):
        body = encoded({"code": 405, "msg": "Method not allowed", "data": None})
        return Reply(HTTPStatus.METHOD_NOT_ALLOWED, body)
    text = f"Invalid URL ({request.method} {request.path})"
    return kkiai_error(1, 404, message=text, type="invalid_request_error", code="")
