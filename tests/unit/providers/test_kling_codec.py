"""Responses of Kling: records, ids, lists and every row of the table of errors."""

from __future__ import annotations

import json
from typing import Any

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
)
from sora_chars.providers import kling_codec as codec
from sora_chars.responses import Response

TASK = "856528333369769993"
ELEMENT = 856528387816046601
RECORDED = (
    b'{"code":0,"message":"SUCCEED","data":{"task_id":"856528333369769993","task_status":"succeed","task_result":'
    b'{"elements":[{"element_id":856528387816046601,"element_name":"Rex","element_description":"A dog","element_type":'
    b'"video_refer","element_image_list":{},"element_video_list":{"refer_videos":[{"video_url":"https://a.example/b.mp4"'
    b'}]},"owned_by":"855722760281784413","status":"succeed","tag_list":[{"id":"o_102","name":"Character",'
    b'"description":"None"}]}]}}}'
)
HTML = b"<html><body>nginx</body></html>"


def envelope(code: int, message: str = "m", data: object = None, *, status: int | None = None) -> Response:
    """Return a response in Kling's envelope."""
    body = {"code": code, "message": message, "request_id": "r-1"} | ({} if data is None else {"data": data})
    return Response(status or (200 if code == 0 else 400), {}, json.dumps(body).encode())


def record(status: str = "processing", **members: object) -> dict[str, object]:
    """Return a record of the task."""
    return {"task_id": TASK, "task_status": status, "task_info": {"external_task_id": "order-17"}} | members


def read(response: Response, task_id: str = TASK) -> Any:
    """Read the response to a poll."""
    return codec.read_record(response, task_id=task_id, provider="kling")


def test_recorded_success() -> None:
    """The recorded success gives the character; its id, beyond 2**53, is exact text."""
    snapshot = read(Response(200, {}, RECORDED))
    character = snapshot.character
    assert (snapshot.state, snapshot.status, snapshot.model) == ("success", "succeeded", "kling-elements")
    assert (character.id, character.name, character.task_id) == (str(ELEMENT), "Rex", TASK)
    assert character.usage == {"prompt": "<<<element_1>>>", "element_list": [{"element_id": str(ELEMENT)}]}
    assert character.mention is None


@pytest.mark.parametrize("digits", [str(2**53 + 1), str(2**63 - 1), str(2**64 + 1), "9" * 40])
def test_ids_are_exact(digits: str) -> None:
    """An id of any size keeps every digit, as an integer and as text."""
    for value in (digits, f'"{digits}"'):
        body = RECORDED.replace(str(ELEMENT).encode(), value.encode())
        assert read(Response(200, {}, body)).character.id == digits


@pytest.mark.parametrize("element_id", [None, "", True, 8.5, "a\nb", [], {}])
@pytest.mark.parametrize("place", ["elements", "none"])
def test_success_without_element(element_id: object, place: str) -> None:
    """A success without a valid element id raises an error that shows the result."""
    result = {"elements": [{"element_id": element_id}]} if place == "elements" else {"elements": []}
    with pytest.raises(MissingCharacterError) as caught:
        read(envelope(0, data=record("succeed", task_result=result)))
    assert (caught.value.task_id, caught.value.payload) == (TASK, result)


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        ({"task_status": "submitted"}, ("submitted", "running", None, None, None)),
        ({"task_status": "processing"}, ("processing", "running", None, None, None)),
        ({"task_status": "dreaming"}, ("dreaming", "running", None, None, None)),
        ({"task_status": None}, ("", "running", None, None, None)),
        (
            {"task_status": "failed", "task_status_msg": "no face", "final_unit_deduction": "0.5", "updated_at": 9000},
            ("fail", "failed", "no face", 0.5, 9.0),
        ),
        ({"task_status": "failed", "task_status_msg": None}, ("fail", "failed", "", None, None)),
        ({"final_unit_deduction": "many", "updated_at": 9000}, ("processing", "running", None, None, None)),
        ({"final_unit_deduction": True, "created_at": 10**400}, ("processing", "running", None, None, None)),
    ],
)
def test_states(members: dict[str, object], facts: tuple[object, ...]) -> None:
    """Each state has its status; a failure has its reason, and a finished task its end and its cost."""
    snapshot = read(envelope(0, data=record() | members))
    reason = snapshot.failure.message if snapshot.failure else None
    assert (snapshot.state, snapshot.status, reason, snapshot.credits, snapshot.completed_at) == facts


def test_polls_by_either_id() -> None:
    """A record is accepted for the task id and for the external id, and not for another one."""
    assert read(envelope(0, data=record(created_at=1500))).created_at == 1.5
    assert read(envelope(0, data=record()), "order-17").task_id == TASK
    others: list[object] = [record(), record(task_info=None), [], "x"]
    for data in others:
        with pytest.raises(NoAnswerError):
            read(envelope(0, data=data), "order-18")


def test_unchanged_response_is_not_read_again() -> None:
    """The snapshot that was seen last is returned itself if nothing has changed."""
    seen = read(envelope(0, data=record()))
    again = codec.read_record(envelope(0, data=record()), task_id=TASK, provider="kling", seen=seen)
    assert again is seen
    done = envelope(0, data=record("failed"))
    assert codec.read_record(done, task_id=TASK, provider="kling", seen=seen).status == "failed"


@pytest.mark.parametrize("code", [1202, 1203])
def test_unknown_task(code: int) -> None:
    """A task that is not shown raises an error of its own, which a grace period follows."""
    with pytest.raises(TaskNotFoundError) as caught:
        read(envelope(code, status=404))
    assert (caught.value.code, caught.value.request_id) == (code, "r-1")


ROWS: list[tuple[int, int, type[ProviderError], bool, bool]] = [
    *((code, 401, AuthenticationError, False, False) for code in (1000, 1001, 1002, 1003, 1004)),
    *((code, 429, InsufficientCreditsError, False, False) for code in (1100, 1101, 1102)),
    (1103, 403, PermissionDeniedError, False, False),
    (1200, 400, RequestRejectedError, False, False),
    (1201, 400, RequestRejectedError, False, False),
    (1202, 404, ModelUnavailableError, False, False),
    (1203, 404, ModelUnavailableError, False, False),
    (1300, 400, RequestRejectedError, False, False),
    (1301, 400, RequestRejectedError, False, False),
    (1302, 429, RateLimitedError, True, True),
    (1303, 429, RateLimitedError, True, True),
    (1304, 429, PermissionDeniedError, False, False),
    *((code, status, NoAnswerError, True, False) for code, status in ((5000, 500), (5001, 503), (5002, 504))),
    (1999, 401, AuthenticationError, False, False),
    (1999, 402, InsufficientCreditsError, False, False),
    (1999, 403, PermissionDeniedError, False, False),
    (1999, 418, RequestRejectedError, False, False),
    (1999, 429, RateLimitedError, True, True),
    (1999, 500, NoAnswerError, True, False),
]


@pytest.mark.parametrize(("code", "status", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_create(code: int, status: int, kind: type[ProviderError], transient: bool, harmless: bool) -> None:  # noqa: FBT001
    """Each row of the table has its error; a server's error leaves the outcome of a create unknown."""
    with pytest.raises(ProviderError) as caught:
        codec.read_created(envelope(code, "the reason", status=status), provider="kling")
    error = caught.value
    assert type(error) is kind
    assert (error.transient, error.harmless, error.status, error.code) == (transient, harmless, status, code)
    assert "the reason" in error.message
    assert error.request_id == "r-1"


@pytest.mark.parametrize(("code", "status", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_poll(code: int, status: int, kind: type[ProviderError], transient: bool, harmless: bool) -> None:  # noqa: FBT001
    """A poll has the same errors, apart from those of a server, which end no wait, and of an unknown task."""
    wanted: type[ProviderError] = ServiceUnavailableError if kind is NoAnswerError else kind
    if status == 404:
        wanted = TaskNotFoundError
    with pytest.raises(ProviderError) as caught:
        read(envelope(code, status=status))
    assert type(caught.value) is wanted
    assert (caught.value.transient, caught.value.harmless) == (transient, harmless)


def test_created() -> None:
    """The answer to a create is the task, which has not started."""
    made = codec.read_created(envelope(0, data=record("submitted")), provider="kling")
    assert made is not None
    assert (made.task_id, made.state, made.finished) == (TASK, "submitted", False)


@pytest.mark.parametrize("code", [0, 1201, 5000])
@pytest.mark.parametrize("task_id", [TASK, int(TASK)])
def test_an_id_in_any_answer_is_the_task(code: int, task_id: object) -> None:
    """A task id names the task, whatever the code is and whatever else is missing."""
    made = codec.read_created(envelope(code, data={"task_id": task_id}), provider="kling")
    assert made is not None
    assert (made.task_id, made.state) == (TASK, "submitted")


@pytest.mark.parametrize("data", [None, {}, {"task_id": ""}, {"task_id": "a\nb"}, [TASK], TASK])
def test_success_without_a_task(data: object) -> None:
    """An accepted create without a task id leaves the outcome unknown."""
    with pytest.raises(NoAnswerError) as caught:
        codec.read_created(envelope(0, data=data), provider="kling")
    assert not caught.value.harmless


def test_duplicate_create() -> None:
    """A used external_task_id is no error of the request: the task exists."""
    assert codec.read_created(envelope(1201, "external_task_id Already Exists"), provider="kling") is None


@pytest.mark.parametrize(
    ("status", "body", "paid", "polled"),
    [
        (200, HTML, NoAnswerError, NoAnswerError),
        (200, b"", NoAnswerError, NoAnswerError),
        (200, b'{"error":"x"}', NoAnswerError, NoAnswerError),
        (200, b'{"code":"0","data":{"task_id":""}}', NoAnswerError, NoAnswerError),
        (200, b'{"code":true}', NoAnswerError, NoAnswerError),
        (302, HTML, BlockedError, BlockedError),
        (400, HTML, BlockedError, BlockedError),
        (402, HTML, InsufficientCreditsError, InsufficientCreditsError),
        (401, b'{"message":"no"}', AuthenticationError, AuthenticationError),
        (403, HTML, BlockedError, BlockedError),
        (404, HTML, ModelUnavailableError, ModelUnavailableError),
        (408, HTML, NoAnswerError, NoAnswerError),
        (429, HTML, RateLimitedError, RateLimitedError),
        (500, HTML, NoAnswerError, NoAnswerError),
        (502, b'{"message":"Bad gateway"}', NoAnswerError, NoAnswerError),
        (504, HTML, NoAnswerError, NoAnswerError),
    ],
)
def test_responses_that_kling_did_not_write(
    status: int, body: bytes, paid: type[ProviderError], polled: type[ProviderError]
) -> None:
    """A proxy's page rejects a create only if it proves that nothing was done, and ends no wait by a poll."""
    response = Response(status, {"Location": "https://login.example/?token=secret"}, body)
    with pytest.raises(ProviderError) as caught:
        codec.read_created(response, provider="kling")
    assert type(caught.value) is paid
    assert "secret" not in str(caught.value)
    with pytest.raises(ProviderError) as caught:
        read(response)
    assert type(caught.value) is polled
    assert caught.value.transient


def test_lookup() -> None:
    """A task is found by the id of its key, also if its record does not repeat the id."""
    for info in ({"external_task_id": "order-17"}, {}, None):
        found = codec.read_lookup(envelope(0, data=record(task_info=info)), external_id="order-17", provider="kling")
        assert found is not None
        assert (found.task_id, found.state) == (TASK, "processing")
    assert codec.read_lookup(envelope(1203, status=404), external_id="order-17", provider="kling") is None


def test_lookup_of_an_empty_success() -> None:
    """A success without an element is found as a task, which the next poll reports."""
    found = codec.read_lookup(envelope(0, data=record("succeed")), external_id="order-17", provider="kling")
    assert found is not None
    assert (found.task_id, found.finished) == (TASK, False)


@pytest.mark.parametrize(
    "response",
    [
        envelope(0, data=record(task_info={"external_task_id": "order-18"})),
        envelope(0, data=record(task_id=None)),
        envelope(0, data=[]),
        envelope(5000, status=500),
        envelope(1000, status=401),
    ],
)
def test_lookup_without_an_answer(response: Response) -> None:
    """Another task's record, no record and an error prove nothing."""
    with pytest.raises(ProviderError):
        codec.read_lookup(response, external_id="order-17", provider="kling")


def test_list() -> None:
    """A page gives its readable records, and the number of all."""
    done = record("succeed", task_result={"elements": [{"element_id": 5}]})
    page = envelope(0, data=[done, record("succeed"), {"task_id": None}, "x", record()])
    found, count = codec.read_list(page, provider="kling")
    assert ([snapshot.state for snapshot in found], count) == (["success", "processing"], 5)
    for wrong in (envelope(0, data={}), envelope(1200)):
        with pytest.raises(ProviderError):
            codec.read_list(wrong, provider="kling")


def test_delete() -> None:
    """An element that is gone, which Kling answers with 1201, counts as deleted; any other error is raised."""
    codec.read_deleted(envelope(0))
    codec.read_deleted(envelope(1201))
    codec.read_deleted(envelope(1203, status=404))
    with pytest.raises(AuthenticationError):
        codec.read_deleted(envelope(1002, status=401))
    for code in (1202, 404):  # of a proxy that serves no such route
        with pytest.raises(ProviderError):
            codec.read_deleted(envelope(code, status=404))
