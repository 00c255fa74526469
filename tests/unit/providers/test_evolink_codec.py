"""Responses of Evolink: tasks, ids, credits and every row of the table of errors."""

from __future__ import annotations

import json

import attrs
import pytest

from sora_chars import (
    AuthenticationError,
    BlockedError,
    InsufficientCreditsError,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskNotFoundError,
    TaskSnapshot,
)
from sora_chars.providers import evolink_codec as codec
from sora_chars.responses import Response

TASK = "task-unified-1757169743-8dxnm6yz"
ELEMENT = 856528387816046601
DOCUMENTED = (
    b'{"created":1757169743,"id":"task-unified-1757169743-8dxnm6yz","model":"kling-custom-element","object":'
    b'"video.generation.task","progress":0,"status":"pending","task_info":{"can_cancel":true,"estimated_time":600},'
    b'"type":"video","usage":{"billing_rule":"per_call","credits_reserved":1,"user_group":"default"}}'
)
HTML = b"<html><body>nginx</body></html>"


def answer(body: object, status: int = 200) -> Response:
    """Return a response with a JSON body."""
    return Response(status, {}, json.dumps(body).encode())


def failure(status: int, message: str = "m", kind: str | None = "a_type", code: object = None) -> Response:
    """Return an error."""
    detail = {"code": status if code is None else code, "message": message} | ({"type": kind} if kind else {})
    return answer({"error": detail}, status)


def record(status: str = "processing", **members: object) -> dict[str, object]:
    """Return a task."""
    return {"id": TASK, "status": status, "created": 1757169743, "progress": 50} | members


def read(response: Response, task_id: str = TASK, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Read the response to a poll."""
    return codec.read_record(response, task_id=task_id, provider="evolink", seen=seen)


def test_documented_answer() -> None:
    """The answer of Evolink's page is a task, which has not started."""
    made = codec.read_element(Response(200, {}, DOCUMENTED), provider="evolink")
    assert (made.task_id, made.state, made.finished, made.model) == (TASK, "pending", False, "kling-custom-element")
    polled = read(Response(200, {}, DOCUMENTED))
    assert (polled.state, polled.created_at, polled.progress) == ("pending", 1757169743, 0)


@pytest.mark.parametrize("digits", ["307212335131305", str(2**53 + 1), str(2**64 + 1), "9" * 40])
@pytest.mark.parametrize("form", ['{"element_id":%s,"element_name":"Rex"}', '{"elements":[{"element_id":%s}]}'])
@pytest.mark.parametrize("quote", ["", '"'])
def test_ids_are_exact(digits: str, form: str, quote: str) -> None:
    """An id of any size keeps every digit, as an integer and as text, in the result and in a list of elements."""
    body = f'{{"id":"{TASK}","status":"completed","result_data":{form % f"{quote}{digits}{quote}"}}}'
    character = read(Response(200, {}, body.encode())).character
    assert character is not None
    assert character.id == digits
    assert character.usage == {
        "prompt": "<<<element_1>>>",
        "model_params": {"element_list": [{"element_id": digits}]},
    }


@pytest.mark.parametrize("result", [None, [], {}, "x", {"element_id": None}, {"elements": []}, {"elements": [{}]}])
def test_success_without_element(result: object) -> None:
    """A success without an element id raises an error that shows the result."""
    with pytest.raises(MissingCharacterError, match="Ask Evolink about the result") as caught:
        read(answer(record("completed", result_data=result)))
    assert (caught.value.task_id, caught.value.payload) == (TASK, result)


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        ({"status": "pending"}, ("pending", "running", None)),
        ({"status": "processing"}, ("processing", "running", None)),
        ({"status": "dreaming"}, ("dreaming", "running", None)),
        ({"status": "failed", "error": {"message": "no face"}}, ("fail", "failed", (None, "no face"))),
        ({"status": "failed", "error": {"code": "invalid_image"}}, ("fail", "failed", ("invalid_image", ""))),
        ({"status": "failed", "error": {"code": 400, "message": []}}, ("fail", "failed", ("400", ""))),
        ({"status": "failed", "error": "x"}, ("fail", "failed", (None, ""))),
        ({"status": "cancelled"}, ("fail", "failed", (None, "cancelled"))),
    ],
)
def test_states(members: dict[str, object], facts: tuple[object, ...]) -> None:
    """Each state has its status, and a failure its code and reason."""
    snapshot = read(answer(record() | members))
    reason = attrs.astuple(snapshot.failure) if snapshot.failure else None
    assert (snapshot.state, snapshot.status, reason) == facts


def test_end_by_the_clock_of_the_response() -> None:
    """No record states when a task has ended: the response that shows it first does."""
    done = answer(record("failed"))
    dated = attrs.evolve(done, headers={"Date": "Sat, 06 Sep 2025 14:42:35 GMT"})
    assert [read(response).duration for response in (done, dated)] == [None, 12.0]
    assert read(attrs.evolve(dated, body=answer(record()).body)).duration is None


def test_unchanged_response_is_not_read_again() -> None:
    """The snapshot that was seen last is returned itself if nothing has changed."""
    seen = read(answer(record()))
    assert read(answer(record()), seen=seen) is seen
    assert read(answer(record("failed")), seen=seen).status == "failed"


@pytest.mark.parametrize("body", [{}, [], "x", {"id": TASK}, {"id": "", "status": "pending"}, record(id="another")])
def test_polls_of_another_record(body: object) -> None:
    """A record of another task, and none, end no wait."""
    with pytest.raises(NoAnswerError) as caught:
        read(answer(body))
    assert caught.value.transient


POLLED: dict[type[ProviderError], type[ProviderError]] = {
    NoAnswerError: ServiceUnavailableError,
    ModelUnavailableError: TaskNotFoundError,
}
ROWS: list[tuple[int, str, type[ProviderError], bool, bool]] = [
    (400, "Invalid request parameters", RequestRejectedError, False, False),
    (401, "Invalid or expired token", AuthenticationError, False, False),
    (402, "Insufficient quota", InsufficientCreditsError, False, False),
    (403, "Access denied for this model", PermissionDeniedError, False, False),
    (403, "Insufficient quota", InsufficientCreditsError, False, False),
    (404, "Specified model not found", ModelUnavailableError, False, False),
    (413, "Image file too large", RequestRejectedError, False, False),
    (429, "Rate limit exceeded", RateLimitedError, True, True),
    (500, "Internal server error", NoAnswerError, True, False),
    (502, "Upstream AI service unavailable", NoAnswerError, True, False),
    (503, "Service temporarily unavailable", NoAnswerError, True, False),
]


@pytest.mark.parametrize(("status", "message", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_create(
    *,
    status: int,
    message: str,
    kind: type[ProviderError],
    transient: bool,
    harmless: bool,
) -> None:
    """Each row of the table has its error; a server's error leaves the outcome of a create unknown."""
    with pytest.raises(ProviderError) as caught:
        codec.read_element(failure(status, message), provider="evolink")
    error = caught.value
    assert type(error) is kind
    assert (error.transient, error.harmless, error.status, error.code) == (transient, harmless, status, status)
    assert error.message == f"Evolink answered HTTP {status}: {message} (a_type)"


@pytest.mark.parametrize(("status", "message", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_poll(
    *,
    status: int,
    message: str,
    kind: type[ProviderError],
    transient: bool,
    harmless: bool,
) -> None:
    """A poll has the same errors, apart from those of a server, which end no wait, and of an unknown task."""
    wanted = POLLED.get(kind, kind)
    with pytest.raises(ProviderError) as caught:
        read(failure(status, message))
    assert type(caught.value) is wanted
    assert (caught.value.transient, caught.value.harmless) == (transient, harmless)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (failure(400, "no", None), RequestRejectedError),
        (failure(400, "no", code="invalid"), RequestRejectedError),
        (failure(402, "no", code=True), InsufficientCreditsError),
        (failure(200, "no", code=401), AuthenticationError),
        (failure(200, "no", code=500), NoAnswerError),
    ],
)
def test_other_forms_of_an_error(response: Response, kind: type[ProviderError]) -> None:
    """Without a type and with a code that is no number, the HTTP status decides; within HTTP 200 the code does."""
    with pytest.raises(ProviderError) as caught:
        codec.read_element(response, provider="evolink")
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_id_in_any_answer_is_the_task(status: int) -> None:
    """A task names itself, whatever the HTTP status is; its end is left to the polls."""
    for state in ("pending", "completed", "failed"):
        body = record(state, error={"code": 500, "message": "x"})
        made = codec.read_element(answer(body, status), provider="evolink")
        assert (made.task_id, made.state) == (TASK, "pending")


@pytest.mark.parametrize("body", [{}, {"id": ""}, {"id": "a\nb", "status": "pending"}, {"error": "x"}])
def test_success_without_a_task(body: object) -> None:
    """An accepted create without a task leaves the outcome unknown."""
    with pytest.raises(NoAnswerError, match="no task id") as caught:
        codec.read_element(answer(body), provider="evolink")
    assert not caught.value.harmless


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, HTML, NoAnswerError),
        (200, b"", NoAnswerError),
        (200, b"[]", NoAnswerError),
        (302, HTML, BlockedError),
        (401, b'{"message":"no"}', AuthenticationError),
        (402, HTML, InsufficientCreditsError),
        (403, HTML, BlockedError),
        (404, HTML, ModelUnavailableError),
        (429, HTML, RateLimitedError),
        (500, HTML, NoAnswerError),
        (502, b'{"message":"Bad gateway"}', NoAnswerError),
    ],
)
def test_responses_that_evolink_did_not_write(status: int, body: bytes, kind: type[ProviderError]) -> None:
    """A proxy's page rejects a create only if it proves that nothing was done, and ends no wait by a poll."""
    response = Response(status, {"Location": "https://login.example/?token=secret"}, body)
    with pytest.raises(ProviderError) as caught:
        codec.read_element(response, provider="evolink")
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)
    with pytest.raises(ProviderError) as caught:
        read(response)
    assert type(caught.value) is kind
    assert caught.value.transient


def test_credits() -> None:
    """The credits of the user are those that are left; anything else is an error."""
    documented = {
        "data": {
            "token": {"remaining_credits": 99416.4429, "unlimited_credits": False, "used_credits": 583.5571},
            "user": {"remaining_credits": 1095.3996, "used_credits": 135.9048},
        },
        "message": "",
        "success": True,
    }
    assert codec.read_credits(answer(documented)) == 1095.3996
    for body in ({}, {"data": {"user": {"remaining_credits": None}}}):
        with pytest.raises(NoAnswerError):
            codec.read_credits(answer(body))
    with pytest.raises(AuthenticationError):
        codec.read_credits(failure(401))
