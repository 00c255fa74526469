"""Responses of Wavespeed: predictions, ids, uploads and every row of the table of errors."""

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
from sora_chars.providers import wavespeed_codec as codec
from sora_chars.responses import Response

TASK = "e6832d4abffb4d79bfbca19783fca133"
ELEMENT = 856528387816046601
SUCCESS = (
    b'{"code":200,"message":"success","data":{"id":"e6832d4abffb4d79bfbca19783fca133","model":'
    b'"kwaivgi/kling-elements-advanced","status":"completed","outputs":[{"element_id":856528387816046601,'
    b'"element_name":"Rex"}],"urls":{"get":"https://api.wavespeed.ai/api/v3/predictions/e6832d4a/result"},'
    b'"created_at":"2026-09-25T09:12:48.239112031Z","error":"","executionTime":6710}}'
)
HTML = b"<html><body>nginx</body></html>"


def envelope(code: int, message: str = "m", data: object = None, *, status: int = 200) -> Response:
    """Return a response in Wavespeed's envelope."""
    body = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return Response(status, {}, json.dumps(body).encode())


def record(status: str = "processing", **members: object) -> dict[str, object]:
    """Return the record of a prediction."""
    return {"id": TASK, "status": status, "outputs": []} | members


def read(response: Response, task_id: str = TASK, seen: TaskSnapshot | None = None) -> TaskSnapshot:
    """Read the response to a poll."""
    return codec.read_record(response, task_id=task_id, provider="wavespeed", seen=seen)


def test_success() -> None:
    """A completed prediction gives the character; its id, beyond 2**53, is exact text."""
    snapshot = read(Response(200, {}, SUCCESS))
    character = snapshot.character
    assert character is not None
    assert (snapshot.state, snapshot.model) == ("success", "kwaivgi/kling-elements-advanced")
    assert (character.id, character.name, character.task_id) == (str(ELEMENT), "Rex", TASK)
    assert character.usage == {"prompt": "<<<element_1>>>", "element_list": [{"element_id": str(ELEMENT)}]}
    assert snapshot.created_at == 1790327568.239112
    assert snapshot.duration == pytest.approx(6.71)


@pytest.mark.parametrize("digits", ["307212335131305", str(2**53 + 1), str(2**64 + 1), "9" * 40])
@pytest.mark.parametrize("form", ["object", "text"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_ids_are_exact(digits: str, form: str, quote: str) -> None:
    """An id of any size keeps every digit, as an integer and as text, in an object and in an object as text."""
    element = f'{{"element_id":{quote}{digits}{quote},"element_name":"Rex"}}'
    output = element if form == "object" else json.dumps(element)
    body = f'{{"code":200,"data":{{"id":"{TASK}","status":"completed","outputs":[{output}]}}}}'
    character = read(Response(200, {}, body.encode())).character
    assert character is not None
    assert (character.id, character.name) == (digits, "Rex")


@pytest.mark.parametrize(
    "outputs",
    [None, [], {}, "x", ["https://a.example/b.mp4"], ["{"], ["[1]"], [[]], [{}], [{"element_id": None}], ["7"]],
)
def test_success_without_element(outputs: object) -> None:
    """A success without an element id raises an error that shows the result."""
    with pytest.raises(MissingCharacterError, match="Ask Wavespeed about the result") as caught:
        read(envelope(200, data=record("completed", outputs=outputs)))
    assert (caught.value.task_id, caught.value.payload) == (TASK, outputs)


@pytest.mark.parametrize(
    ("members", "facts"),
    [
        ({"status": "created"}, ("created", "running", None)),
        ({"status": "processing"}, ("processing", "running", None)),
        ({"status": "dreaming"}, ("dreaming", "running", None)),
        ({"status": None}, ("", "running", None)),
        ({"status": "failed", "error": "no face", "code": 1403}, ("fail", "failed", ("1403", "no face"))),
        ({"status": "failed", "error": "", "code": 0}, ("fail", "failed", (None, ""))),
        ({"status": "failed", "error": ["x"]}, ("fail", "failed", (None, ""))),
        ({"status": "cancelled"}, ("fail", "failed", (None, "cancelled"))),
        ({"status": "timeout", "error": "took too long"}, ("fail", "failed", (None, "took too long"))),
        ({"status": "deleted"}, ("fail", "failed", (None, "deleted"))),
    ],
)
def test_states(members: dict[str, object], facts: tuple[object, ...]) -> None:
    """Each state has its status, and a failure its code and reason."""
    snapshot = read(envelope(200, data=record() | members))
    failure = attrs.astuple(snapshot.failure) if snapshot.failure else None
    assert (snapshot.state, snapshot.status, failure) == facts


@pytest.mark.parametrize("code", [1200, 1400, 1401, 1402, 1403, 1405, 5000, 5003, 5004])
def test_codes_of_a_failed_task(code: int) -> None:
    """Each code of the page "Error Codes" comes with the failure of a task."""
    snapshot = read(envelope(200, data=record("failed", code=code, error="why")))
    assert snapshot.failure is not None
    assert (snapshot.failure.code, snapshot.failure.message) == (str(code), "why")


@pytest.mark.parametrize(
    ("created_at", "expected"),
    [
        ("2025-05-19T06:09:15.948268264Z", 1747634955.948268),
        ("2025-05-19T06:09:15", 1747634955.0),
        ("2025-05-19T08:09:15+02:00", 1747634955.0),
        ("yesterday", None),
        (5, None),
        (None, None),
    ],
)
def test_times(created_at: object, expected: float | None) -> None:
    """A time is read with its fraction and its zone, which is UTC by default."""
    assert read(envelope(200, data=record(created_at=created_at))).created_at == expected


def test_end_by_the_clock_of_the_response() -> None:
    """Without an execution time, the response that shows the end says when it was."""
    members = {"created_at": "2026-09-25T09:12:48Z", "outputs": [{"element_id": 5}]}
    done = envelope(200, data=record("completed", **members))
    dated = attrs.evolve(done, headers={"Date": "Fri, 25 Sep 2026 09:13:00 GMT"})
    assert [read(response).duration for response in (done, dated)] == [None, 12.0]
    assert read(attrs.evolve(done, headers={"Date": "soon"})).duration is None


def test_unchanged_response_is_not_read_again() -> None:
    """The snapshot that was seen last is returned itself if nothing has changed."""
    seen = read(envelope(200, data=record()))
    assert read(envelope(200, data=record()), seen=seen) is seen
    assert read(envelope(200, data=record("failed")), seen=seen).status == "failed"


@pytest.mark.parametrize("data", [None, {}, [], "x", {"id": ""}, {"id": "a\nb"}, record(id="another")])
def test_polls_of_another_record(data: object) -> None:
    """A record of another task, and none, end no wait."""
    with pytest.raises(NoAnswerError) as caught:
        read(envelope(200, data=data))
    assert caught.value.transient


POLLED: dict[type[ProviderError], type[ProviderError]] = {
    NoAnswerError: ServiceUnavailableError,
    ModelUnavailableError: TaskNotFoundError,
}
ROWS: list[tuple[int, int, str, type[ProviderError], bool, bool]] = [
    *((code, 400, "m", RequestRejectedError, False, False) for code in (400, 1200, 1400, 1401, 1402, 1403, 1405)),
    (401, 401, "m", AuthenticationError, False, False),
    (402, 402, "m", InsufficientCreditsError, False, False),
    (400, 400, "Insufficient credits. Please top up.", InsufficientCreditsError, False, False),
    (403, 403, "Your balance is too low", InsufficientCreditsError, False, False),
    (429, 429, "Insufficient funds", InsufficientCreditsError, False, False),
    (403, 403, "insufficient permissions", PermissionDeniedError, False, False),
    (404, 404, "m", ModelUnavailableError, False, False),
    (422, 422, "m", RequestRejectedError, False, False),
    (429, 429, "m", RateLimitedError, True, True),
    *((code, code, "m", NoAnswerError, True, False) for code in (500, 502, 503, 504)),
    (500, 500, "balance", NoAnswerError, True, False),
    *((code, 500, "m", NoAnswerError, True, False) for code in (400, 5000, 5003, 5004)),
    *((code, 200, "m", RequestRejectedError, False, False) for code in (400, 422, 1200, 1400, 1401, 1402, 1403, 1405)),
    *((code, 200, "m", NoAnswerError, True, False) for code in (408, 500, 1999, 5000, 5003, 5004)),
    (429, 200, "m", RateLimitedError, True, True),
    (408, 408, "m", NoAnswerError, True, False),
]


@pytest.mark.parametrize(("code", "status", "message", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_create(
    *,
    code: int,
    status: int,
    message: str,
    kind: type[ProviderError],
    transient: bool,
    harmless: bool,
) -> None:
    """Each row of the table has its error; a server's error leaves the outcome of a create unknown."""
    with pytest.raises(ProviderError) as caught:
        codec.read_element(envelope(code, message, status=status), provider="wavespeed")
    error = caught.value
    assert type(error) is kind
    assert (error.transient, error.harmless, error.status, error.code) == (transient, harmless, status, code)
    assert error.message.startswith(f"Wavespeed answered HTTP {status}")
    assert error.message.endswith(f": {message}")


@pytest.mark.parametrize(("code", "status", "message", "kind", "transient", "harmless"), ROWS)
def test_errors_of_a_poll(
    *,
    code: int,
    status: int,
    message: str,
    kind: type[ProviderError],
    transient: bool,
    harmless: bool,
) -> None:
    """A poll has the same errors, apart from those of a server, which end no wait, and of an unknown task."""
    wanted = POLLED.get(kind, kind)
    with pytest.raises(ProviderError) as caught:
        read(envelope(code, message, status=status))
    assert type(caught.value) is wanted
    assert (caught.value.transient, caught.value.harmless) == (transient, harmless)


@pytest.mark.parametrize(("code", "status"), [(200, 200), (1401, 400), (500, 500), (402, 402)])
def test_an_id_in_any_answer_is_the_task(code: int, status: int) -> None:
    """A prediction id names the task, whatever status and code are; its end is left to the polls."""
    for state in ("created", "completed", "failed"):
        made = codec.read_element(envelope(code, data=record(state), status=status), provider="wavespeed")
        assert (made.task_id, made.state, made.model) == (TASK, "created", codec.MODEL)


@pytest.mark.parametrize("data", [None, {}, {"id": ""}, {"id": "a\nb"}, [TASK], TASK])
def test_success_without_a_task(data: object) -> None:
    """An accepted create without a prediction id leaves the outcome unknown."""
    with pytest.raises(NoAnswerError, match="no task id") as caught:
        codec.read_element(envelope(200, data=data), provider="wavespeed")
    assert not caught.value.harmless


@pytest.mark.parametrize(
    ("status", "body", "paid", "polled"),
    [
        (200, HTML, NoAnswerError, NoAnswerError),
        (200, b"", NoAnswerError, NoAnswerError),
        (200, b'{"error":"x"}', NoAnswerError, NoAnswerError),
        (200, b'{"code":"200","data":{"id":""}}', NoAnswerError, NoAnswerError),
        (200, b'{"code":true}', NoAnswerError, NoAnswerError),
        (302, HTML, BlockedError, BlockedError),
        (401, b'{"message":"no"}', AuthenticationError, AuthenticationError),
        (402, HTML, InsufficientCreditsError, InsufficientCreditsError),
        (403, HTML, BlockedError, BlockedError),
        (404, HTML, ModelUnavailableError, ModelUnavailableError),
        (408, HTML, NoAnswerError, NoAnswerError),
        (429, HTML, RateLimitedError, RateLimitedError),
        (500, HTML, NoAnswerError, NoAnswerError),
        (502, b'{"message":"Bad gateway"}', NoAnswerError, NoAnswerError),
    ],
)
def test_responses_that_wavespeed_did_not_write(
    status: int, body: bytes, paid: type[ProviderError], polled: type[ProviderError]
) -> None:
    """A proxy's page rejects a create only if it proves that nothing was done, and ends no wait by a poll."""
    response = Response(status, {"Location": "https://login.example/?token=secret"}, body)
    with pytest.raises(ProviderError) as caught:
        codec.read_element(response, provider="wavespeed")
    assert type(caught.value) is paid
    assert "secret" not in str(caught.value)
    with pytest.raises(ProviderError) as caught:
        read(response)
    assert type(caught.value) is polled
    assert caught.value.transient


def test_uploads_and_balance() -> None:
    """An upload gives its URL and the balance a number; anything else is an error."""
    assert codec.read_upload(envelope(200, data={"download_url": "https://a.example/b"})) == "https://a.example/b"
    assert codec.read_balance(envelope(200, data={"balance": 156.78})) == 156.78
    others: list[object] = [None, [], {}, {"download_url": "b", "balance": True}]
    for data in others:
        for reader in (codec.read_upload, codec.read_balance):
            with pytest.raises(NoAnswerError):
                reader(envelope(200, data=data))
    for reader in (codec.read_upload, codec.read_balance):
        with pytest.raises(AuthenticationError):
            reader(envelope(401, status=401))
