"""Responses of the asset library: assets, lists and errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    BlockedError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskSnapshot,
)
from sora_chars.providers import seedance_codec as codec
from sora_chars.providers.seedance_icover import Presigned, read_presigned, read_stored
from sora_chars.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

METADATA = {"RequestId": "r1", "Action": "GetAsset", "Version": "2024-01-01", "Service": "ark", "Region": "cn-beijing"}
TIMES = {"CreateTime": "2026-09-16T12:00:00Z", "UpdateTime": "2026-09-16T12:00:13Z"}


def respond(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with JSON, or with these bytes."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def ark(result: object, status: int = 200) -> Response:
    """Return Ark's envelope of a result."""
    return respond(status, {"ResponseMetadata": METADATA, "Result": result})


def failed(code: str, status: int = 200) -> Response:
    """Return Ark's envelope of an error."""
    return respond(status, {"ResponseMetadata": METADATA | {"Error": {"Code": code, "Message": "no luck"}}})


def read(response: Response, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Read the response to a poll of asset-1."""
    return codec.read_asset(response, task_id="asset-1", provider="seedance", seen=seen)


def create(response: Response) -> TaskSnapshot:
    """Read the response to a create."""
    return codec.read_created(response, asset_type="Video", provider="seedance")


@pytest.mark.parametrize("status", [200, 201, 400, 500])
def test_an_id_in_any_answer_is_the_asset(status: int) -> None:
    """An id is enough, whatever the status is."""
    made = create(ark({"Id": "asset-1"}, status))
    assert (made.task_id, made.state, made.status, made.model) == (
        "asset-1", "Processing", "running", "seedance-video"
    )  # fmt: skip


@pytest.mark.parametrize("result", [{}, {"Id": ""}, {"Id": None}, {"Id": True}, {"Id": "a\nb"}])
def test_success_without_an_id(result: object) -> None:
    """A success without an id leaves the outcome unknown: the list may show the asset."""
    with pytest.raises(NoAnswerError, match="no asset id") as caught:
        create(ark(result))
    assert not caught.value.harmless


@pytest.mark.parametrize("asset_type", ["Image", "Video", "Audio"])
def test_ready_asset(asset_type: str) -> None:
    """An active asset is a character, used by its id in a role, and mentioned by its kind."""
    kind = asset_type.lower()
    record = {"Id": "asset-1", "Name": "Rex_1", "AssetType": asset_type, "Status": "Active", **TIMES}
    snapshot = read(ark(record))
    character = snapshot.character
    assert character is not None
    assert (snapshot.status, snapshot.duration, snapshot.model) == ("succeeded", 13.0, f"seedance-{kind}")
    assert (character.id, character.name, character.task_id, character.raw) == ("asset-1", "Rex_1", "asset-1", record)
    item = {"type": f"{kind}_url", f"{kind}_url": {"url": "asset://asset-1"}, "role": f"reference_{kind}"}
    assert character.usage == {"prompt": f"{asset_type} 1", "content": [item]}


def test_little_is_known_of_an_asset() -> None:
    """Without a type the role comes from the create, and without that there is none; odd times are left out."""
    record = {"Status": "Active", "CreateTime": "yesterday", "UpdateTime": "2026-09-16T12:00:13", "Name": 5}
    found = read(ark(record), create(ark({"Id": "asset-1"}))).character
    assert found is not None
    assert found.usage is not None
    assert found.usage["prompt"] == "Video 1"
    snapshot = read(ark(record))
    assert snapshot.character is not None
    assert (snapshot.character.usage, snapshot.character.name) == (None, None)
    assert (snapshot.created_at, snapshot.completed_at, snapshot.model) == (None, None, None)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ({"Code": "InvalidParameter.FaceCheck", "Message": "a real person"}, "InvalidParameter.FaceCheck", "a real"),
        (None, None, "no reason was given"),
        ({"Code": "", "Message": None}, None, "no reason was given"),
    ],
)
def test_failed_asset(error: object, code: str | None, text: str) -> None:
    """A failed asset raises its code and message."""
    snapshot = read(ark({"Status": "Failed", "Error": error}))
    with pytest.raises(TaskFailedError, match=text) as caught:
        snapshot.outcome()
    assert caught.value.code == code


@pytest.mark.parametrize("status", ["Processing", "Queued"])
def test_running_asset(status: str) -> None:
    """A state that is not known is still running; an unchanged response is not parsed again."""
    response = respond(200, {"ResponseMetadata": METADATA, "Result": {"Status": status}}, {"Retry-After": "3"})
    snapshot = read(response)
    assert (snapshot.state, snapshot.finished, snapshot.retry_after) == (status, False, 3.0)
    assert read(response, snapshot) is snapshot


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (ark({"Id": "asset-2", "Status": "Active"}), "another asset's record"),
        (ark({}), "no status"),
        (ark({"Status": 5}), "no status"),
        (ark([]), "no status"),
        (respond(200, {}), "no status"),
        (respond(200, []), "unreadable"),
        (respond(200, {"Items": []}), "unreadable"),
        (respond(200, b"<html>"), "unreadable"),
        (respond(204, b""), "no status"),
        (respond(502, b"<html>"), "unreadable"),
        (respond(500, {"message": "no"}), "unreadable"),
    ],
)
def test_unreadable_responses(response: Response, why: str) -> None:
    """A response that the asset library did not write ends no wait, and leaves a create unknown."""
    with pytest.raises(NoAnswerError, match=why) as caught:
        read(response)
    assert caught.value.transient
    with pytest.raises(NoAnswerError):
        create(response if b"asset-2" not in response.body else ark({}))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("code", "paid", "free"),
    [
        ("MissingParameter.URL", RequestRejectedError, RequestRejectedError),
        ("InvalidParameter", RequestRejectedError, RequestRejectedError),
        ("InvalidParameterValue.Name", RequestRejectedError, RequestRejectedError),
        ("SignatureDoesNotMatch", AuthenticationError, AuthenticationError),
        ("InvalidAccessKeyId", AuthenticationError, AuthenticationError),
        ("AccessDenied", PermissionDeniedError, PermissionDeniedError),
        ("SubscriptionRequired", PermissionDeniedError, PermissionDeniedError),
        ("NotFound.Asset", RequestRejectedError, TaskNotFoundError),
        ("Throttling", RateLimitedError, RateLimitedError),
        ("RequestLimitExceeded", RateLimitedError, RateLimitedError),
        ("InternalError", NoAnswerError, ServiceUnavailableError),
        ("ServiceUnavailable", NoAnswerError, ServiceUnavailableError),
        ("Novel", RequestRejectedError, RequestRejectedError),
    ],
)
def test_errors_of_ark(status: int, code: str, paid: type[ProviderError], free: type[ProviderError]) -> None:
    """The code decides, also inside HTTP 200; a server's error leaves the outcome of a create unknown."""
    with pytest.raises(ProviderError, match="no luck") as caught:
        create(failed(code, status))
    error = caught.value
    assert (type(error), error.code, error.request_id, error.status) == (paid, code, "r1", status)
    assert error.harmless is (paid is RateLimitedError)
    with pytest.raises(ProviderError) as caught:
        read(failed(code, status))
    assert type(caught.value) is free


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, TaskNotFoundError),
        (429, RateLimitedError),
        (500, ServiceUnavailableError),
        (408, ServiceUnavailableError),
    ],
)
def test_unknown_codes(status: int, kind: type[ProviderError]) -> None:
    """The HTTP status decides about a code that is not known."""
    with pytest.raises(ProviderError) as caught:
        read(failed("Novel", status))
    assert type(caught.value) is kind


def test_odd_envelopes() -> None:
    """An error without a message and a request id without text are read."""
    body = {"ResponseMetadata": {"RequestId": 5, "Error": {"Code": "AccessDenied", "Message": None}}}
    with pytest.raises(PermissionDeniedError, match="no message") as caught:
        read(respond(200, body))
    assert caught.value.request_id is None


@pytest.mark.parametrize(
    ("status", "paid", "free"),
    [
        (400, RequestRejectedError, RequestRejectedError),
        (401, AuthenticationError, AuthenticationError),
        (403, PermissionDeniedError, PermissionDeniedError),
        (404, RequestRejectedError, TaskNotFoundError),
        (502, NoAnswerError, ServiceUnavailableError),
    ],
)
def test_errors_of_icover(status: int, paid: type[ProviderError], free: type[ProviderError]) -> None:
    """Icover's own errors are plain text, whose status decides."""
    response = respond(status, b"[client] not today")
    with pytest.raises(ProviderError, match=f"HTTP {status}: not today") as caught:
        create(response)
    assert type(caught.value) is paid
    with pytest.raises(ProviderError) as caught:
        read(response)
    assert type(caught.value) is free


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (302, b"", BlockedError),
        (400, b"<html>", BlockedError),
        (403, {"message": "denied"}, BlockedError),
        (401, b"<html>", AuthenticationError),
        (404, b"<html>", ModelUnavailableError),
        (404, b"[server] x", ModelUnavailableError),
        (429, b"", RateLimitedError),
    ],
)
def test_pages_in_front(status: int, body: object, kind: type[ProviderError]) -> None:
    """A page of a proxy or a firewall rejects a create, and ends no wait."""
    with pytest.raises(ProviderError) as caught:
        create(respond(status, body))
    assert type(caught.value) is kind
    with pytest.raises(ProviderError) as caught:
        read(respond(status, body))
    assert (type(caught.value), caught.value.transient) == (kind, True)


def test_lists() -> None:
    """The readable assets of a page, and whether more follow: by the total, else by a full page."""
    items: list[Any] = [{"Id": "asset-1", "Name": "Rex", "Status": "Active", "_library": "x"}, {"Id": ""}, 5, {}]

    def page(result: dict[str, Any], number: int = 1) -> tuple[list[str], bool]:
        found, follows = codec.read_list(ark(result), page=number, provider="seedance")
        return [codec.name_of(asset) for asset in found], follows

    assert page({"Items": items, "TotalCount": 101}) == (["Rex"], True)
    assert page({"Items": items, "TotalCount": 101}, 2) == (["Rex"], False)
    assert page({"Items": items}) == (["Rex"], False)
    assert page({"Items": [{"Id": f"asset-{n}"} for n in range(100)]}) == ([""] * 100, True)
    assert codec.name_of(TaskSnapshot(task_id="asset-1", provider="seedance", state="Active")) == ""
    empty: tuple[dict[str, Any], ...] = ({}, {"Items": {}})
    for result in empty:
        with pytest.raises(NoAnswerError, match="no list"):
            codec.read_list(ark(result), page=1, provider="seedance")


def test_deletes() -> None:
    """A delete answers with an empty object; one that finds nothing is a success too, and a page is none."""
    responses = (
        ark({}),
        respond(200, {"ResponseMetadata": METADATA}),
        respond(200, {}),
        respond(204, b""),
        failed("NotFound.Asset", 404),
        respond(404, b"[client] asset not found"),
    )
    for response in responses:
        codec.read_deleted(response)
    with pytest.raises(AuthenticationError):
        codec.read_deleted(respond(401, b"[client] no"))
    for response in (respond(404, b"<html>"), failed("InvalidActionOrVersion", 404)):
        with pytest.raises(ModelUnavailableError):
            codec.read_deleted(response)


def presigned(body: object, status: int = 200, base_url: str = "https://icover.ai") -> Presigned:
    """Read the response to a request for an upload."""
    return read_presigned(respond(status, body), base_url=base_url)


def test_addresses_of_uploads() -> None:
    """The addresses are links; a code other than 0 is a rejection, and anything else is unreadable."""
    data = {"uploadUrl": "https://s3.example/x?Signature=abc", "publicUrl": "https://cdn.icover.ai/x"}
    address = presigned({"code": 0, "data": data})
    assert (address.upload_url, address.public_url) == (data["uploadUrl"], data["publicUrl"])
    assert "abc" not in repr(address)
    with pytest.raises(RequestRejectedError, match="code 7 to a request for an upload: too large") as caught:
        presigned({"code": 7, "message": "too large"})
    assert caught.value.code == 7
    with pytest.raises(RequestRejectedError, match="no message"):
        presigned({"code": 7, "message": None})
    with pytest.raises(NoAnswerError, match="no address"):
        presigned({"ResponseMetadata": METADATA, "Result": {}})
    with pytest.raises(AuthenticationError):
        presigned(b"[client] no", 401)


@pytest.mark.parametrize(
    ("upload_url", "public_url", "is_safe"),
    [
        ("https://s3.example/x", "https://cdn.icover.ai/x", True),
        ("http://s3.example/x", "https://cdn.icover.ai/x", False),
        ("http://127.0.0.1:8765/storage/x", "http://127.0.0.1:8765/files/x", True),
        ("http://127.0.0.1:87659/x", "http://127.0.0.1:8765/files/x", False),
        ("file:///etc/passwd", "https://cdn.icover.ai/x", False),
        ("https://s3.example/x\r\nX: y", "https://cdn.icover.ai/x", False),
        ("https://s3.example/x", "file:///x", False),
    ],
)
def test_files_are_sent_over_tls(upload_url: str, public_url: str, *, is_safe: bool) -> None:
    """A file is sent over TLS, or to the host that the provider itself is at, such as an emulator's."""
    body = {"code": 0, "data": {"uploadUrl": upload_url, "publicUrl": public_url}}
    if is_safe:
        assert presigned(body, base_url="http://127.0.0.1:8765").upload_url == upload_url
    else:
        with pytest.raises(NoAnswerError, match="no address for the upload"):
            presigned(body, base_url="http://127.0.0.1:8765")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, None), (204, None), (403, RequestRejectedError), (503, ServiceUnavailableError)],
)
def test_storage(status: int, kind: type[ProviderError] | None) -> None:
    """The storage answers a stored file with a success; a failure of it is repeated, a rejection is not."""
    response = respond(status, b"<Error>")
    if kind is None:
        read_stored(response)
    else:
        with pytest.raises(kind, match=f"storage answered HTTP {status}") as caught:
            read_stored(response)
        assert caught.value.transient is (kind is ServiceUnavailableError)
