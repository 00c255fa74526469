"""The errors that the codes of kie.ai stand for."""

from __future__ import annotations

import json

import pytest

from sora_chars import (
    AuthenticationError,
    BlockedError,
    InsufficientCreditsError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskNotFoundError,
    UsageCapError,
)
from sora_chars.providers import kie_codec as codec
from sora_chars.providers import kie_envelope
from sora_chars.responses import Response

NOT_SUPPORTED = (
    "The model name you specified is not supported. Please verify that you are using a valid and supported model name."
)
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def make_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with this body: bytes as they are, other values as JSON."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


CODES: list[tuple[int, str, type[ProviderError]]] = [
    (400, "Invalid parameter", RequestRejectedError),
    (422, "Invalid parameter", RequestRejectedError),
    (422, "The aspect ratio is not supported by this model", RequestRejectedError),
    (422, NOT_SUPPORTED, ModelUnavailableError),
    (500, NOT_SUPPORTED, ModelUnavailableError),
    (422, "recordInfo is null", TaskNotFoundError),
    (401, "You do not have access permissions", AuthenticationError),
    (402, "Insufficient credits", InsufficientCreditsError),
    (500, "Credits insufficient. Your balance is not enough.", InsufficientCreditsError),
    (403, "Forbidden", PermissionDeniedError),
    (404, "Not found", ModelUnavailableError),
    (405, "Method not allowed", RequestRejectedError),
    (408, "No result for over 10 minutes", NoAnswerError),
    (429, "Your call frequency is too high", RateLimitedError),
    (433, "The usage of this key has reached its limit", UsageCapError),
    (455, "Under maintenance", ServiceUnavailableError),
    (500, "Server exception", ServiceUnavailableError),
    (500, "origin_task_id is required", RequestRejectedError),
    (501, "Generation failed", ServiceUnavailableError),
    (502, "Bad gateway", NoAnswerError),
    (504, "Gateway time-out", NoAnswerError),
    (524, "A time-out occurred", NoAnswerError),
    (505, "The feature is disabled", ModelUnavailableError),
    (599, "Something new", ServiceUnavailableError),
]
HARMLESS = {429, 455}


@pytest.mark.parametrize("form", ["code in 200", "code and status", "status only", "message for msg"])
@pytest.mark.parametrize(("code", "message", "kind"), CODES)
def test_codes(code: int, message: str, kind: type[ProviderError], form: str) -> None:
    """Each code gives its error, in the envelope or as an HTTP status; only two of them allow a second create.

    A server error that does not bear kie.ai's own code may come from a gateway, which leaves the outcome unknown.
    """
    body: dict[str, object] = {"code": code, "msg": message, "data": None}
    status = 200 if form == "code in 200" else code
    if form == "status only":
        body["code"] = "none"
    elif form == "message for msg":
        body["message"] = body.pop("msg")
    with pytest.raises(ProviderError) as caught:
        codec.read_task_id(make_response(body, status=status))
    error = caught.value
    is_unproven = form == "status only" and kind is ServiceUnavailableError and code not in HARMLESS
    assert type(error) is (NoAnswerError if is_unproven else kind)
    assert (error.transient and error.harmless) == (code in HARMLESS)
    assert error.status == status
    assert message in error.message or kind is NoAnswerError


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, HTML, NoAnswerError),
        (200, b"", NoAnswerError),
        (200, [], NoAnswerError),
        (200, b'{"code":200,"msg":"succ', NoAnswerError),
        (301, b"", BlockedError),
        (400, HTML, BlockedError),
        (403, HTML, BlockedError),
        (405, b"", BlockedError),
        (411, HTML, BlockedError),
        (413, HTML, BlockedError),
        (414, HTML, BlockedError),
        (415, HTML, BlockedError),
        (421, HTML, BlockedError),
        (426, b"", BlockedError),
        (431, b"", BlockedError),
        (451, b"no", BlockedError),
        (408, HTML, NoAnswerError),
        (500, HTML, NoAnswerError),
        (502, HTML, NoAnswerError),
        (504, b"", NoAnswerError),
        (524, {"error": "timeout"}, NoAnswerError),
        (500, {"timestamp": "2026", "path": "/api", "status": 500, "error": "Internal Server Error"}, NoAnswerError),
        (503, {"message": "Internal server error"}, NoAnswerError),
        (530, {"message": "origin unreachable"}, NoAnswerError),
        (200, {"code": 201, "data": None}, NoAnswerError),
        (202, {"code": 0, "msg": "accepted"}, NoAnswerError),
        (401, HTML, AuthenticationError),
        (404, b"404 page not found", ModelUnavailableError),
        (429, b"", RateLimitedError),
    ],
)
def test_not_an_envelope(status: int, body: object, kind: type[ProviderError]) -> None:
    """A response that kie.ai did not write leaves a create unknown, unless its status alone means a rejection."""
    with pytest.raises(ProviderError) as caught:
        codec.read_task_id(make_response(body, status=status))
    assert type(caught.value) is kind
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, 200),
        (200, 201),
        (200, 202),
        (200, 0),
        (202, 200),
        (201, 201),
        (200, 500),
        (500, 500),
        (502, 200),
        (504, 504),
    ],
)
def test_an_id_is_never_thrown_away(status: int, code: int) -> None:
    """A response that names a task is the response of a create that was carried out, whatever else it holds."""
    body = {"code": code, "msg": "x", "data": {"taskId": "t-1"}}
    assert codec.read_task_id(make_response(body, status=status)) == "t-1"


@pytest.mark.parametrize(("code", "effective"), [(True, 402), ("200", 402), (None, 402), (200.0, 402), (455, 455)])
def test_effective_code(code: object, effective: int) -> None:
    """The code of the envelope counts if it is an integer, else the HTTP status."""
    assert kie_envelope.read_envelope(make_response({"code": code, "msg": "x"}, status=402)).code == effective


@pytest.mark.parametrize("body", [{"code": 429, "msg": "busy"}, HTML])
def test_retry_after(body: object) -> None:
    """The error holds the seconds of Retry-After, which kie.ai was never seen to send."""
    for status in (429, 503):
        with pytest.raises(ProviderError) as caught:
            codec.read_task_id(make_response(body, status=status, headers={"Retry-After": "7"}))
        assert caught.value.retry_after == 7


def test_no_message() -> None:
    """An envelope without text gives a message all the same."""
    with pytest.raises(RequestRejectedError, match="answered 422: no message"):
        codec.read_task_id(make_response({"code": 422}))


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 429, 451, 500, 502, 503])
@pytest.mark.parametrize("body", [HTML, b"", b"404 page not found", {"message": "Not Found"}])
def test_a_page_ends_no_wait(status: int, body: object) -> None:
    """A poll's response that kie.ai did not write is a transient error, and means nothing about the task."""
    with pytest.raises(ProviderError) as caught:
        codec.read_record(make_response(body, status=status), task_id="t", provider="kie")
    assert caught.value.transient
    assert not isinstance(caught.value, TaskNotFoundError)


@pytest.mark.parametrize("body", [HTML, b"", {"message": "Found"}])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:pw@login.example/in?token=secret#secret", "https://login.example/in"),
        ("/login?next=secret", "/login"),
        ("http://user:pw@[::1/in?token=secret", "[::1/in"),
        ("http://ex\u2100mple.com/in#secret", "http://ex\u2100mple.com/in"),
    ],
)
def test_a_redirect_shows_its_target(body: object, location: str, shown: str) -> None:
    """A redirect is a rejection that shows where it leads, also if that is no URL."""
    with pytest.raises(BlockedError) as caught:
        codec.read_task_id(make_response(body, status=302, headers={"Location": location}))
    assert (caught.value.location, caught.value.charged) == (shown, "no")
    assert f"redirects to {shown}." in caught.value.message


@pytest.mark.parametrize(("code", "text"), [(401, "bad key"), (402, "no credits"), (403, "no"), (433, "cap")])
def test_an_envelope_ends_the_wait(code: int, text: str) -> None:
    """kie.ai's own rejection of a poll is no transient error."""
    with pytest.raises(ProviderError) as caught:
        codec.read_record(make_response({"code": code, "msg": text}), task_id="t", provider="kie")
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("code", "message", "charged"),
    [
        (500, "Internal error, please try again later", "maybe"),
        (501, "generation failed", "maybe"),
        (599, "", "maybe"),
        (500, "prompt is required", "no"),
        (500, "Credits insufficient", "no"),
        (402, "no credits", "no"),
        (422, "invalid", "no"),
        (429, "too many", "no"),
        (455, "maintenance", "no"),
        (505, "disabled", "no"),
        (-1, "system busy", "maybe"),
        (1, "", "maybe"),
        (302, "", "maybe"),
    ],
)
def test_what_a_rejection_proves(code: int, message: str, charged: str) -> None:
    """kie.ai's server faults and unknown codes prove nothing, unless their text names a parameter or money."""
    with pytest.raises(ProviderError) as caught:
        codec.read_task_id(make_response({"code": code, "msg": message}))
    assert caught.value.charged == charged


def test_an_id_of_the_omni_route_counts_whatever_the_code_is() -> None:
    """A character id is never thrown away."""
    response = make_response({"code": 500, "msg": "late", "data": {"characterId": "ch_9"}})
    assert codec.read_omni(response, provider="kie").id == "ch_9"


@pytest.mark.parametrize(
    ("data", "task_id"),
    [
        ({"taskId": 123}, "123"),
        ({"taskId": 281474976710657}, "281474976710657"),
        ({"taskId": " t1\n"}, "t1"),
        ({"task_id": "t1"}, "t1"),
        ({"id": "t1"}, "t1"),
        ({"recordId": "t1"}, "t1"),
        ("7118f712a5efa1d0f1c3f2ac1b3f9a55", "7118f712a5efa1d0f1c3f2ac1b3f9a55"),
    ],
)
def test_an_id_counts_whatever_its_place_is(data: object, task_id: str) -> None:
    """A task that was paid for is found where other pages of the provider write its id, also as a number."""
    assert codec.read_task_id(make_response({"code": 200, "msg": "success", "data": data})) == task_id


def test_an_id_beside_the_envelope_counts() -> None:
    """An answer without the envelope that names a task is that task."""
    assert codec.read_task_id(make_response({"taskId": "t1"}, status=201)) == "t1"
    assert codec.read_task_id(make_response({"task_id": 7}, status=503)) == "7"


@pytest.mark.parametrize("data", [True, "success", "ok", "", 1.5, [], {}, {"id": None}, {"taskId": ""}])
def test_a_word_is_no_id(data: object) -> None:
    """A success that names no task leaves the outcome unknown."""
    with pytest.raises(NoAnswerError, match="no task id"):
        codec.read_task_id(make_response({"code": 200, "msg": "success", "data": data}))


@pytest.mark.parametrize("data", [{"id": "request-12345678"}, "error-12345678"])
def test_an_id_in_a_rejection_is_no_task(data: object) -> None:
    """Beside an error, only a member that names a task counts: others hold ids of the HTTP request."""
    with pytest.raises(RequestRejectedError):
        codec.read_task_id(make_response({"code": 422, "msg": "invalid", "data": data}))
