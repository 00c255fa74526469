"""The functions that read the responses of kie.ai."""

from __future__ import annotations

import json

import pytest

from sora_chars import (
    AuthenticationError,
    Character,
    InsufficientCreditsError,
    MissingCharacterError,
    ModelInfo,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskFailure,
    TaskNotFoundError,
    TaskSnapshot,
)
from sora_chars.providers import kie_account
from sora_chars.providers import kie_codec as codec
from sora_chars.responses import Response

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def make_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with this body: bytes as they are, other values as JSON."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def envelope(code: int, message: str = "", data: object = None, *, status: int = 200) -> Response:
    """Return a response in kie.ai's envelope."""
    return make_response({"code": code, "msg": message, "data": data}, status=status)


def record(**fields: object) -> TaskSnapshot:
    """Read a response of recordInfo about task t."""
    return codec.read_record(envelope(200, "success", {"taskId": "t"} | fields), task_id="t", provider="kie")


@pytest.mark.parametrize("task_id", ["7118f712" * 4, "task_sora-2-characters-pro_1765174270120"])
def test_task_id(task_id: str) -> None:
    """Both known forms of ids are returned unchanged."""
    assert codec.read_task_id(envelope(200, "success", {"taskId": task_id, "recordId": task_id})) == task_id


@pytest.mark.parametrize(
    "data", [None, {}, {"taskId": ""}, {"taskId": None}, {"taskId": True}, [], "t", {"recordId": ""}]
)
def test_accepted_without_id(data: object) -> None:
    """A create that was accepted without an id has an unknown outcome, since it may be charged."""
    with pytest.raises(NoAnswerError, match="no task id") as caught:
        codec.read_task_id(envelope(200, "success", data))
    assert not caught.value.harmless


def test_recorded_record() -> None:
    """Every field of a finished record is read: milliseconds as seconds, and the result out of its string."""
    data = {
        "taskId": "t",
        "model": "wan/2-7-image",
        "state": "success",
        "param": '{"input":"{\\"n\\":1}","model":"wan/2-7-image","callBackUrl":"https://me/cb/secret"}',
        "resultJson": '{"resultUrls":["https://x/a.png"]}',
        "failCode": None,
        "failMsg": None,
        "costTime": 12,
        "completeTime": 1776323944883,
        "createTime": 1776323931830,
        "creditsConsumed": 4.5,
        "progress": 100,
        "updateTime": 1776323944883,
        "somethingNew": {"x": 1},
    }
    snapshot = codec.read_record(envelope(200, "success", data), task_id="t", provider="kie")
    assert snapshot == TaskSnapshot(
        task_id="t",
        provider="kie",
        state="success",
        model="wan/2-7-image",
        result={"resultUrls": ["https://x/a.png"]},
        created_at=1776323931.830,
        completed_at=1776323944.883,
        credits=4.5,
        progress=100.0,
    )
    assert snapshot.duration == pytest.approx(13.053)
    assert snapshot.raw == data, "an unknown field is kept"


@pytest.mark.parametrize("state", ["waiting", "queuing", "generating", "dreaming", "", None])
@pytest.mark.parametrize("result_json", ["", None, "absent"])
def test_running_task(state: str | None, result_json: str | None) -> None:
    """In any other state, known or not, a task is running and has no result."""
    fields = {} if result_json == "absent" else {"resultJson": result_json}
    snapshot = record(state=state, model="sora-2-characters", failCode=None, failMsg=None, **fields)
    assert (snapshot.state, snapshot.finished, snapshot.result) == (state or "", False, None)
    assert (snapshot.character, snapshot.failure) == (None, None)


def test_minimal_record() -> None:
    """A record needs nothing but the id."""
    assert record() == TaskSnapshot(task_id="t", provider="kie", state="")


@pytest.mark.parametrize(
    ("code", "message", "failure"),
    [
        ("500", "it broke", TaskFailure("500", "it broke")),
        ("501", None, TaskFailure("501", "")),
        (400, "it\nbroke", TaskFailure("400", "it broke")),
        ("SENSITIVE_WORD_ERROR", "no", TaskFailure("SENSITIVE_WORD_ERROR", "no")),
        (None, "it broke", TaskFailure(None, "it broke")),
        ("", "", TaskFailure(None, "")),
    ],
)
def test_failed_task(code: object, message: object, failure: TaskFailure) -> None:
    """A failure keeps its code, in digits or as a word, and its text."""
    snapshot = record(state="fail", model="sora-2-characters", failCode=code, failMsg=message, resultJson=None)
    assert (snapshot.finished, snapshot.failure, snapshot.character) == (True, failure, None)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (7, 7.0),
        (7.5, 7.5),
        ("7.5", 7.5),
        ("", None),
        (None, None),
        ("soon", None),
        ([], None),
        (10**400, None),
        ("nan", None),
    ],
)
def test_numbers(value: object, number: float | None) -> None:
    """A number may be text; any other value counts as missing and does not spoil the record."""
    snapshot = record(state="waiting", createTime=value, completeTime=value, creditsConsumed=value, progress=value)
    assert (snapshot.credits, snapshot.progress) == (number, number)
    assert snapshot.created_at == (None if number is None else number / 1000)


@pytest.mark.parametrize(
    ("result", "id_", "username"),
    [
        ({"character_id": "c1"}, "c1", None),
        ({"character_id": "c1", "character_user_name": "u.1"}, "c1", "u.1"),
        ({"resultObject": {"character_id": "c2", "character_user_name": "u.2"}}, "c2", "u.2"),
        ({"resultObject": {"character_id": "c2"}}, "c2", None),
        ({"character_id_list": "c3"}, "c3", None),
        ({"character_id_list": ["c3", "c4"]}, "c3", None),
        ({"characterId": "c5"}, "c5", None),
        (
            {
                "characterId": "c5",
                "character_id_list": ["c3"],
                "resultObject": {"character_id": "c2"},
                "character_id": "c1",
            },
            "c1",
            None,
        ),
        ({"characterId": "c5", "character_id_list": ["c3"], "resultObject": {"character_id": "c2"}}, "c2", None),
        ({"characterId": "c5", "character_id_list": ["c3"], "character_id": ""}, "c3", None),
        ({"characterId": "c5", "character_id_list": [], "resultObject": None}, "c5", None),
        ({"character_id": 5}, "5", None),
        ({"resultObject": {"character_id": 5}}, "5", None),
        ({"character_id_list": [5]}, "5", None),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_character_id_places(
    result: object,
    id_: str,
    username: str | None,
    as_text: bool,  # noqa: FBT001 # a column of the table
) -> None:
    """The id is found in each of its four places, in the documented order, and the raw result is kept."""
    snapshot = record(
        state="success", model="sora-2-characters-pro", resultJson=json.dumps(result) if as_text else result
    )
    usage = ({"prompt": f"@{username}"} if username else {}) | {"character_id_list": [id_]}
    expected = Character(id=id_, provider="kie", username=username, task_id="t", usage=usage, raw=result)
    assert snapshot.character == expected
    assert snapshot.result == result


@pytest.mark.parametrize("model", ["sora-2-characters-pro", "sora-2-characters"])
@pytest.mark.parametrize(
    "result_json",
    ["", None, "{}", "[]", '{"character_id":""}', '{"character_id":true}', '{"character_id_list":[""]}', '{"char', "5"],
)
def test_success_without_id(model: str, result_json: str | None) -> None:
    """A character task that succeeded without an id raises an error that shows the result."""
    with pytest.raises(MissingCharacterError) as caught:
        record(state="success", model=model, resultJson=result_json)
    assert (caught.value.task_id, caught.value.provider) == ("t", "kie")
    assert str(result_json)[:5] in str(caught.value)


@pytest.mark.parametrize(
    ("result_json", "result"),
    [('{"a":1}', {"a": 1}), ("", None), (None, None), ("not json", "not json"), ('{"a":NaN}', '{"a":NaN}')],
)
def test_results_of_other_models(result_json: object, result: object) -> None:
    """The result of another model is decoded if possible, and otherwise kept as it is."""
    snapshot = record(state="success", model="kling-3.0/video", resultJson=result_json)
    assert (snapshot.result, snapshot.character) == (result, None)


@pytest.mark.parametrize(
    ("param", "name"),
    [
        ('{"input":"{\\"character_user_name\\":\\"rex\\"}"}', "rex"),
        ({"input": {"character_user_name": "rex"}}, "rex"),
        ({"input": '{"character_user_name":"rex"}'}, "rex"),
        ('{"input":{"character_user_name":""}}', None),
        ('{"input":"{}"}', None),
        ('{"input":"[]"}', None),
        ('{"model":"m"}', None),
        ("", None),
        (None, None),
        ("{", None),
        ([], None),
    ],
)
def test_name_from_param(param: object, name: str | None) -> None:
    """The record repeats the request, as nested JSON strings or plainly, so a resumed task has its name."""
    snapshot = record(state="success", model="sora-2-characters-pro", resultJson='{"character_id":"c"}', param=param)
    assert snapshot.character is not None
    assert snapshot.character.name == name


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"state": "waiting"}, r"missing @ data\.task_id"),
        ({"taskId": "", "state": "waiting"}, r"@ data\.task_id"),
        ({"taskId": True, "state": "waiting"}, r"@ data\.task_id"),
        ({"taskId": ["t"], "state": "waiting"}, r"@ data\.task_id"),
        ({"taskId": "other", "state": "waiting"}, "another task"),
    ],
)
def test_malformed_record(data: object, why: str) -> None:
    """A record without its id, or another task's, is a transient error."""
    with pytest.raises(NoAnswerError, match=why) as caught:
        codec.read_record(envelope(200, "success", data), task_id="t", provider="kie")
    assert caught.value.transient


@pytest.mark.parametrize(
    "response",
    [
        envelope(422, "recordInfo is null"),
        envelope(404, "Task not found", status=404),
        envelope(404, "Task not found"),
        envelope(404, "nothing here"),
        envelope(200, "success", None),
        envelope(200, "success", []),
        envelope(500, "recordInfo is null"),
    ],
    ids=["422", "404", "404 in 200", "404 otherwise", "null", "list", "500"],
)
def test_unknown_task(response: Response) -> None:
    """Each form of "no such record" raises TaskNotFoundError, which has a grace period."""
    with pytest.raises(TaskNotFoundError):
        codec.read_record(response, task_id="t", provider="kie")


@pytest.mark.parametrize(("code", "status"), [(408, 200), (408, 408), (501, 200), (501, 501)])
def test_terminal_codes(code: int, status: int) -> None:
    """Codes 408 and 501 end the task, although they come without a record."""
    snapshot = codec.read_record(envelope(code, "it is over", status=status), task_id="t", provider="kie")
    assert (snapshot.state, snapshot.failure) == ("fail", TaskFailure(str(code), "it is over"))


def test_state_overrides_code() -> None:
    """A record with a state is read whatever the code of the envelope is."""
    response = envelope(501, "Playground task failed.", {"taskId": "t", "state": "fail", "failCode": "500"})
    assert codec.read_record(response, task_id="t", provider="kie").failure == TaskFailure("500", "")


@pytest.mark.parametrize(
    ("code", "kind"), [(401, AuthenticationError), (429, RateLimitedError), (455, ServiceUnavailableError)]
)
def test_rejected_poll(code: int, kind: type[ProviderError]) -> None:
    """Other codes of recordInfo give the errors of the table."""
    with pytest.raises(kind):
        codec.read_record(envelope(code, "no"), task_id="t", provider="kie")


def test_upload() -> None:
    """The URL of an uploaded file is its downloadUrl."""
    body = {"success": True, "code": 200, "msg": "ok", "data": {"success": True, "downloadUrl": "https://up/a.mp4"}}
    assert kie_account.read_upload(make_response(body)) == "https://up/a.mp4"


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (envelope(200, "ok", None), NoAnswerError),
        (envelope(200, "ok", {"downloadUrl": ""}), NoAnswerError),
        (envelope(405, "Method not allowed"), RequestRejectedError),
        (envelope(401, "No"), AuthenticationError),
        (make_response(HTML, status=502), NoAnswerError),
    ],
)
def test_failed_upload(response: Response, kind: type[ProviderError]) -> None:
    """An upload without a URL raises an error, and so does a rejected one."""
    with pytest.raises(kind):
        kie_account.read_upload(response)


def test_omni() -> None:
    """The synchronous route returns the character itself."""
    made = codec.read_omni(envelope(200, "success", {"characterId": "c"}), provider="kie")
    assert made == Character(id="c", provider="kie", usage={"character_ids": ["c"]}, raw={"characterId": "c"})


@pytest.mark.parametrize("data", [None, {}, {"characterId": ""}, {"characterId": True}, []])
def test_omni_without_id(data: object) -> None:
    """A success without an id raises an error with the payload."""
    with pytest.raises(MissingCharacterError) as caught:
        codec.read_omni(envelope(200, "success", data), provider="kie")
    assert (caught.value.payload, caught.value.task_id) == (data, None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(408, NoAnswerError), (504, NoAnswerError), (402, InsufficientCreditsError), (500, ServiceUnavailableError)],
)
def test_failed_omni(code: int, kind: type[ProviderError]) -> None:
    """The code of a gateway leaves a paid request unknown; other codes give the errors of the table."""
    with pytest.raises(kind) as caught:
        codec.read_omni(envelope(code, "no"), provider="kie")
    assert not caught.value.harmless


def test_credit() -> None:
    """The credit is a float; anything else is an unreadable response."""
    assert kie_account.read_credit(envelope(200, "success", 5916.25)) == 5916.25
    for junk in (None, "many", "inf"):
        with pytest.raises(NoAnswerError, match="no number"):
            kie_account.read_credit(envelope(200, "success", junk))


def test_models() -> None:
    """Each model is read with its known fields; junk in the list is skipped."""
    full = {
        "model": "kling-3.0/video",
        "slug": "k",
        "title": "Kling",
        "provider": "Kuaishou",
        "taskType": "text-to-video",
    }
    models = [full, {"model": "bare"}, {"title": "no name"}, None, {"model": 5}]
    assert kie_account.read_models(envelope(200, "success", {"total": 5, "models": models})) == [
        ModelInfo("kling-3.0/video", "Kling", "Kuaishou", "text-to-video", full),
        ModelInfo("bare", raw={"model": "bare"}),
    ]


@pytest.mark.parametrize("data", [None, {}, {"models": {}}, []])
def test_models_without_list(data: object) -> None:
    """A response without a list of models is unreadable, and not an empty list."""
    with pytest.raises(NoAnswerError, match="no list of models"):
        kie_account.read_models(envelope(200, "success", data))


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("0.5", 0.5), ("soon", None), ("-1", None), ("nan", None)])
def test_retry_after(text: str, seconds: float | None) -> None:
    """Retry-After in seconds goes into the snapshot of a successful response; other values are ignored."""
    body = {"code": 200, "msg": "success", "data": {"taskId": "t", "state": "waiting"}}
    response = make_response(body, headers={"Retry-After": text})
    assert codec.read_record(response, task_id="t", provider="kie").retry_after == seconds


def test_unchanged_response() -> None:
    """The same bytes give the same snapshot object; another body, status or Retry-After gives a new one."""
    body = {"code": 200, "msg": "success", "data": {"taskId": "t", "state": "generating"}}
    seen = codec.read_record(make_response(body), task_id="t", provider="kie")

    def again(response: Response) -> TaskSnapshot:
        return codec.read_record(response, task_id="t", provider="kie", seen=seen)

    assert again(make_response(body)) is seen
    assert again(make_response(body, headers={"Retry-After": "3"})).retry_after == 3
    assert again(make_response(body, status=201)) is not seen
    assert again(make_response(body | {"data": {"taskId": "t", "state": "success"}})).state == "success"
