"""The actions of Ark on its asset library, and its check of signatures (contracts: Seedance assets, Ark itself)."""

from __future__ import annotations

import calendar
import hashlib
import hmac
import json
import re
import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .responses import PLAIN_JSON, Rejection, Reply, encoded
from .seedance_assets import TYPES
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from .faults import Fault
    from .seedance_assets import EmulatedAsset
    from .state import EmulatorState

    Handler = Callable[[EmulatorState, Mapping[str, object]], object]

VERSION = "2024-01-01"
ENDPOINTS = ("asset", "asset_poll", "asset_other", "asset_upload")
REGIONS = ("cn-beijing", "ap-southeast-1")
CLOCK_TOLERANCE = 900  # seconds
MAX_PAGE_SIZE = 100
SIGNED_HEADERS = ("content-type", "host", "x-content-sha256", "x-date")
AUTHORIZATION = re.compile(
    r"HMAC-SHA256 Credential=(?P<key>[^/, ]+)/(?P<scope>(?P<day>\d{8})/(?P<region>[a-z0-9-]+)/ark/request), "
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def answer(action: str, result: object) -> Reply:
    """Return a successful answer."""
    return Reply(HTTPStatus.OK, encoded({"ResponseMetadata": _metadata(action), "Result": result}), PLAIN_JSON)


def failure(code: str, message: str, status: int = 400) -> Reply:
    """Return an error."""
    body = {"ResponseMetadata": _metadata("") | {"Error": {"Code": code, "Message": message}}}
    return Reply(status, encoded(body), PLAIN_JSON)


def _metadata(action: str) -> dict[str, object]:
    names = {"Action": action, "Version": VERSION, "Service": "ark", "Region": "cn-beijing"}
    return {"RequestId": secrets.token_hex(16), **names}


def path_of(request: web.Request) -> str:
    """Return the path of a request, with its action at Ark, which has one path for all."""
    if request.path == "/" and request.method == "POST":
        return f"/?Action={request.query.get('Action', '')}"
    return request.path


def signature_problem(request: web.Request, body: bytes, keys: tuple[str, str] | None) -> Reply | None:
    """Check the signature of a request; return the answer that rejects it, or None.

    Args:
        request: The request.
        body: Its body.
        keys: The access key and the secret key to accept; None accepts any well-formed signature.
    """
    found = AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
    if found is None or tuple(found["headers"].split(";")) != SIGNED_HEADERS or found["region"] not in REGIONS:
        return failure("SignatureDoesNotMatch", "the Authorization header is malformed", 401)
    if not _is_present(request.headers.get("X-Date", ""), found["day"]):
        return failure("SignatureDoesNotMatch", "X-Date is malformed or too far from the present time", 401)
    if request.headers.get("X-Content-Sha256") != hashlib.sha256(body).hexdigest():
        return failure("SignatureDoesNotMatch", "the digest of the body is wrong", 401)
    if keys is not None and found["key"] != keys[0]:
        return failure("InvalidAccessKeyId", "the access key does not exist", 401)
    if keys is not None and found["signature"] != _signature(request, found["scope"], keys[1]):
        return failure("SignatureDoesNotMatch", "the signature does not match", 401)
    return None


def _is_present(date: str, day: str) -> bool:
    try:
        sent = calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return False
    return date[:8] == day and abs(time.time() - sent) <= CLOCK_TOLERANCE


def _signature(request: web.Request, scope: str, secret_key: str) -> str:
    headers = [f"{name}:{request.headers.get(name, '').strip()}\n" for name in SIGNED_HEADERS]
    query = "&".join(sorted(request.rel_url.raw_query_string.split("&")))
    lines = [request.method, request.rel_url.raw_path, query, "".join(headers), ";".join(SIGNED_HEADERS)]
    canonical = "\n".join([*lines, request.headers["X-Content-Sha256"]])
    key = secret_key.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"HMAC-SHA256\n{request.headers['X-Date']}\n{scope}\n{hashed}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def create(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Start to process a file."""
    _require(body, "GroupId", "URL", "AssetType")
    if body["GroupId"] not in state.seedance.groups:
        raise Rejection(failure("NotFound.Group", "the group does not exist", 404))
    url = str(body["URL"])
    asset = state.seedance.create(
        asset_type=str(body["AssetType"]),
        group_id=str(body["GroupId"]),
        name=str(body.get("Name", "")),
        url=url,
        file=state.files.find(url),
    )
    state.counts.assets += 1
    for fault in state.faults.take("asset"):
        asset.apply(fault.kind, fault.settings)
    return {"Id": asset.asset_id}


def poll(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Return the record of an asset."""
    asset = _find(state, body)
    asset.polls += 1
    return asset.record()


def delete(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Delete an asset. The second time is an error."""
    del state.seedance.assets[_find(state, body).asset_id]
    return {}


def assets(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Return a page of assets, newest first."""
    wanted = cast("Mapping[str, object]", body.get("Filter", {}))
    groups = wanted.get("GroupIds")
    statuses = wanted.get("Statuses")
    found = [
        asset.record()
        for asset in reversed(state.seedance.assets.values())
        if str(wanted.get("Name", "")) in asset.name
        and (groups is None or asset.group_id in cast("list[object]", groups))
        and (statuses is None or asset.status in cast("list[object]", statuses))
    ]
    return _page(found, body)


def groups(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Return a page of groups."""
    wanted = cast("Mapping[str, object]", body.get("Filter", {}))
    name = str(wanted.get("Name", ""))
    return _page([{"Id": key, "Name": text} for key, text in state.seedance.groups.items() if name in text], body)


def create_group(state: EmulatorState, body: Mapping[str, object]) -> object:
    """Make a group."""
    _require(body, "Name")
    group_id = state.seedance.new_id("group")
    state.seedance.groups[group_id] = str(body["Name"])
    return {"Id": group_id}


def _page(found: list[dict[str, object]], body: Mapping[str, object]) -> dict[str, object]:
    size = cast("int", body.get("PageSize", 10))
    first = (cast("int", body.get("PageNumber", 1)) - 1) * size
    return {"TotalCount": len(found), "Items": found[first : first + size]}


def _find(state: EmulatorState, body: Mapping[str, object]) -> EmulatedAsset:
    _require(body, "Id")
    asset = state.seedance.assets.get(str(body["Id"]))
    if asset is None:
        raise Rejection(failure("NotFound.Asset", "the asset does not exist", 404))
    return asset


def _require(body: Mapping[str, object], *names: str) -> None:
    for name in names:
        if name not in body:
            raise Rejection(failure(f"MissingParameter.{name}", f"{name} is required"))


def _text(limit: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _number(limit: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and 1 <= value <= limit


def _filter(value: object) -> bool:
    names = {"GroupIds", "GroupType", "Name", "Statuses"}
    return isinstance(value, dict) and cast("dict[object, object]", value).keys() <= names


FIELDS: Mapping[str, Callable[[object], bool]] = {
    "Id": _text(100),
    "GroupId": _text(100),
    "URL": is_url,
    "AssetType": lambda value: value in TYPES,
    "Name": _text(64),
    "Description": _text(300),
    "GroupType": lambda value: value in {"AIGC", "LivenessFace"},
    "ProjectName": _text(100),
    "Filter": _filter,
    "PageNumber": _number(10**9),
    "PageSize": _number(MAX_PAGE_SIZE),
}
"""Whether the value of a field is allowed."""

ACTIONS: Mapping[str, tuple[str, frozenset[str], Handler]] = {
    "CreateAssetGroup": ("asset_other", frozenset({"Name", "Description", "GroupType"}), create_group),
    "ListAssetGroups": ("asset_other", frozenset({"Filter", "PageNumber", "PageSize"}), groups),
    "CreateAsset": ("asset", frozenset({"GroupId", "URL", "AssetType", "Name"}), create),
    "GetAsset": ("asset_poll", frozenset({"Id"}), poll),
    "ListAssets": ("asset_other", frozenset({"Filter", "PageNumber", "PageSize"}), assets),
    "DeleteAsset": ("asset_other", frozenset({"Id"}), delete),
}
"""The name of each action in faults, its fields besides ProjectName, and its handler."""


async def act(state: EmulatorState, request: web.Request) -> Reply:
    """Check the signature and the body of a request, and carry out its action."""
    content = await request.read()
    if problem := signature_problem(request, content, state.ark_keys):
        raise Rejection(problem)
    action = request.query["Action"]
    if request.query.get("Version") != VERSION:
        raise Rejection(failure("InvalidParameter.Version", f"Version must be {VERSION}"))
    try:
        body = cast("object", json.loads(content))
    except (ValueError, RecursionError) as error:
        raise Rejection(failure("InvalidParameter.Body", "the body is not valid JSON")) from error
    if request.content_type != "application/json" or not isinstance(body, dict):
        raise Rejection(failure("InvalidParameter.Body", "the body must be a JSON object"))
    fields = cast("dict[str, object]", body)
    _, known, handler = ACTIONS[action]
    for name, value in fields.items():
        if name not in known | {"ProjectName"} or not FIELDS[name](value):
            raise Rejection(failure(f"InvalidParameter.{name}", f"{name} is not valid"))
    return answer(action, handler(state, fields))


def unknown_action() -> Reply:
    """Return the answer to an action that does not exist."""
    return failure("InvalidActionOrVersion", "Could not find the operation", 404)


def _coded_error(fault: Fault, _endpoint: str) -> Reply:
    return failure(fault.text("code"), fault.text("message"), fault.integer("status"))


ROUTES: Mapping[tuple[str, str], tuple[str, str, Callable[[EmulatorState, web.Request], Awaitable[Reply]]]] = {
    ("POST", f"/?Action={action}"): (endpoint, "ark", act) for action, (endpoint, _, _) in ACTIONS.items()
}
"""The name of each action in faults, the provider that it belongs to, and its handler."""

FAULTS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object], Callable[[Fault, str], Reply] | None]] = {
    "ark_error": (
        "Seedance: an error of Ark by its code, with any HTTP status, also 200",
        ENDPOINTS,
        {"status": 200, "code": "InternalError", "message": "internal error"},
        _coded_error,
    ),
    "asset_stuck": ("Seedance: the asset is never ready", ("asset",), {}, None),
    "asset_fail": (
        "Seedance: the asset fails",
        ("asset",),
        {"code": "InvalidParameter.FaceCheck", "message": "The image shows a real person"},
        None,
    ),
}
"""The faults of assets: description, targets, settings and response. Those without one change the asset."""
