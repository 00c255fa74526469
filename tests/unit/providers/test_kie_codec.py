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
from sora_chars.providers import kie_codec as codec
from sora_chars.transport import Response

MB = 1024 * 1024
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def answer(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with this body: bytes as they are, everything else as JSON."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def envelope(code: int, message: str = "", data: object = None, *, status: int = 200) -> Response:
    """An answer in kie.ai's envelope."""
    return answer({"code": code, "msg": message, "data": data}, status=status)


def record(**fields: object) -> TaskSnapshot:
    """Read a record of task t, as recordInfo answers it."""
    return codec.read_record(envelope(200, "success", {"taskId": "t"} | fields), task_id="t", provider="kie")


@pytest.mark.parametrize("task_id", ["7118f712" * 4, "task_sora-2-characters-pro_1765174270120"])
def test_a_task_id_is_read(task_id: str) -> None:
    """Both known forms of ids are taken as they are."""
    assert codec.read_task_id(envelope(200, "success", {"taskId": task_id, "recordId": task_id})) == task_id


@pytest.mark.parametrize(
    "data", [None, {}, {"taskId": ""}, {"taskId": None}, {"taskId": 5}, [], "t", {"recordId": "t"}]
)
def test_accepted_without_an_id_is_unknown(data: object) -> None:
    """A create that was accepted without an id has an unknown outcome, for it may be paid."""
    with pytest.raises(NoAnswerError, match="no task id") as caught:
        codec.read_task_id(envelope(200, "success", data))
    assert not caught.value.harmless


def test_a_record_as_recorded() -> None:
    """Every fact of a finished record is read: seconds from milliseconds, and the result out of its string."""
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
def test_a_task_under_way(state: str | None, result_json: str | None) -> None:
    """Without an end in sight, known to us or not, a task is still running and has no result."""
    fields = {} if result_json == "absent" else {"resultJson": result_json}
    snapshot = record(state=state, model="sora-2-characters", failCode=None, failMsg=None, **fields)
    assert (snapshot.state, snapshot.finished, snapshot.result) == (state or "", False, None)
    assert (snapshot.character, snapshot.failure) == (None, None)


def test_a_bare_record_is_enough() -> None:
    """Everything but the id may be missing from a record."""
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
def test_a_failed_task(code: object, message: object, failure: TaskFailure) -> None:
    """A failure keeps its code, digits or a word, and its text."""
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
def test_numbers_are_read_where_they_are_some(value: object, number: float | None) -> None:
    """A number may come as one or as text; anything else counts as absent and never spoils the record."""
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
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_where_the_character_id_stands(
    result: object,
    id_: str,
    username: str | None,
    as_text: bool,  # noqa: FBT001 # a column of the table
) -> None:
    """The id is found in each of its four places, in the order of the contract, and the raw result is kept."""
    snapshot = record(
        state="success", model="sora-2-characters-pro", resultJson=json.dumps(result) if as_text else result
    )
    assert snapshot.character == Character(id=id_, provider="kie", username=username, task_id="t", raw=result)
    assert snapshot.result == result


@pytest.mark.parametrize("model", ["sora-2-characters-pro", "sora-2-characters"])
@pytest.mark.parametrize(
    "result_json",
    ["", None, "{}", "[]", '{"character_id":""}', '{"character_id":5}', '{"character_id_list":[""]}', '{"char', "5"],
)
def test_success_without_an_id(model: str, result_json: str | None) -> None:
    """A character task that succeeded without an id is an error that shows what came instead."""
    with pytest.raises(MissingCharacterError) as caught:
        record(state="success", model=model, resultJson=result_json)
    assert (caught.value.task_id, caught.value.provider) == ("t", "kie")
    assert str(result_json)[:5] in str(caught.value)


@pytest.mark.parametrize(
    ("result_json", "result"),
    [('{"a":1}', {"a": 1}), ("", None), (None, None), ("not json", "not json"), ('{"a":NaN}', '{"a":NaN}')],
)
def test_other_models_may_make_anything(result_json: object, result: object) -> None:
    """A result of another model is decoded where it can be, and otherwise kept as it came."""
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
def test_the_name_asked_for_is_read_back(param: object, name: str | None) -> None:
    """The record repeats the request, in a string inside a string or plainly, so that a resumed task has its name."""
    snapshot = record(state="success", model="sora-2-characters-pro", resultJson='{"character_id":"c"}', param=param)
    assert snapshot.character is not None
    assert snapshot.character.name == name


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"state": "waiting"}, r"missing @ data\.task_id"),
        ({"taskId": "", "state": "waiting"}, r"@ data\.task_id"),
        ({"taskId": 5, "state": "waiting"}, r"@ data\.task_id"),
        ({"taskId": "other", "state": "waiting"}, "another task"),
    ],
)
def test_an_unreadable_record_passes(data: object, why: str) -> None:
    """A record without its id, or of another task, is one bad look that a later one makes good."""
    with pytest.raises(NoAnswerError, match=why) as caught:
        codec.read_record(envelope(200, "success", data), task_id="t", provider="kie")
    assert caught.value.transient


@pytest.mark.parametrize(
    "seen",
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
def test_an_unknown_task(seen: Response) -> None:
    """Each way of saying that there is no such record is the one error that has a time of grace."""
    with pytest.raises(TaskNotFoundError):
        codec.read_record(seen, task_id="t", provider="kie")


@pytest.mark.parametrize(("code", "status"), [(408, 200), (408, 408), (501, 200), (501, 501)])
def test_a_task_may_end_without_a_record(code: int, status: int) -> None:
    """The codes of a dead task end it, although no record comes with them."""
    snapshot = codec.read_record(envelope(code, "it is over", status=status), task_id="t", provider="kie")
    assert (snapshot.state, snapshot.failure) == ("fail", TaskFailure(str(code), "it is over"))


def test_the_state_decides_and_not_the_code() -> None:
    """A record that says its state is read whatever the envelope's code is."""
    seen = envelope(501, "Playground task failed.", {"taskId": "t", "state": "fail", "failCode": "500"})
    assert codec.read_record(seen, task_id="t", provider="kie").failure == TaskFailure("500", "")


@pytest.mark.parametrize(
    ("code", "kind"), [(401, AuthenticationError), (429, RateLimitedError), (455, ServiceUnavailableError)]
)
def test_a_look_may_be_refused(code: int, kind: type[ProviderError]) -> None:
    """Other codes of recordInfo are those of the table."""
    with pytest.raises(kind):
        codec.read_record(envelope(code, "no"), task_id="t", provider="kie")


def test_an_upload_gives_its_url() -> None:
    """The URL of an uploaded file is its downloadUrl."""
    body = {"success": True, "code": 200, "msg": "ok", "data": {"success": True, "downloadUrl": "https://up/a.mp4"}}
    assert codec.read_upload(answer(body)) == "https://up/a.mp4"


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (envelope(200, "ok", None), NoAnswerError),
        (envelope(200, "ok", {"downloadUrl": ""}), NoAnswerError),
        (envelope(405, "Method not allowed"), RequestRejectedError),
        (envelope(401, "No"), AuthenticationError),
        (answer(HTML, status=502), NoAnswerError),
    ],
)
def test_a_failed_upload(seen: Response, kind: type[ProviderError]) -> None:
    """An upload without a URL is an error, and so is a refused one."""
    with pytest.raises(kind):
        codec.read_upload(seen)


def test_an_omni_character() -> None:
    """The synchronous route answers the character itself."""
    made = codec.read_omni(envelope(200, "success", {"characterId": "c"}), provider="kie")
    assert made == Character(id="c", provider="kie", raw={"characterId": "c"})


@pytest.mark.parametrize("data", [None, {}, {"characterId": ""}, {"characterId": 5}, []])
def test_an_omni_success_without_an_id(data: object) -> None:
    """Success without an id shows the payload."""
    with pytest.raises(MissingCharacterError) as caught:
        codec.read_omni(envelope(200, "success", data), provider="kie")
    assert (caught.value.payload, caught.value.task_id) == (data, None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(408, NoAnswerError), (504, NoAnswerError), (402, InsufficientCreditsError), (500, ServiceUnavailableError)],
)
def test_a_failed_omni_character(code: int, kind: type[ProviderError]) -> None:
    """A gateway's code leaves a paid request unknown; the others are those of the table."""
    with pytest.raises(kind) as caught:
        codec.read_omni(envelope(code, "no"), provider="kie")
    assert not caught.value.harmless


def test_credit_is_a_number() -> None:
    """Credit is a float, and anything else an unreadable answer."""
    assert codec.read_credit(envelope(200, "success", 5916.25)) == 5916.25
    for junk in (None, "many", "inf"):
        with pytest.raises(NoAnswerError, match="no number"):
            codec.read_credit(envelope(200, "success", junk))


def test_models_are_listed() -> None:
    """Each model is read with what is known of it; junk in the list is passed over."""
    full = {
        "model": "kling-3.0/video",
        "slug": "k",
        "title": "Kling",
        "provider": "Kuaishou",
        "taskType": "text-to-video",
    }
    models = [full, {"model": "bare"}, {"title": "no name"}, None, {"model": 5}]
    assert codec.read_models(envelope(200, "success", {"total": 5, "models": models})) == [
        ModelInfo("kling-3.0/video", "Kling", "Kuaishou", "text-to-video", full),
        ModelInfo("bare", raw={"model": "bare"}),
    ]


@pytest.mark.parametrize("data", [None, {}, {"models": {}}, []])
def test_an_answer_without_a_list_of_models(data: object) -> None:
    """An answer that lists no models is unreadable, and not an empty list."""
    with pytest.raises(NoAnswerError, match="no list of models"):
        codec.read_models(envelope(200, "success", data))


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("0.5", 0.5), ("soon", None), ("-1", None), ("nan", None)])
def test_a_good_answer_may_name_the_next_look(text: str, seconds: float | None) -> None:
    """`Retry-After` of a good answer, in seconds, goes into the snapshot; anything else there is ignored."""
    body = {"code": 200, "msg": "success", "data": {"taskId": "t", "state": "waiting"}}
    seen = answer(body, headers={"Retry-After": text})
    assert codec.read_record(seen, task_id="t", provider="kie").retry_after == seconds


def test_an_unchanged_answer_is_not_read_again() -> None:
    """The same bytes give the very same snapshot; another body, status or Retry-After gives a new one."""
    body = {"code": 200, "msg": "success", "data": {"taskId": "t", "state": "generating"}}
    seen = codec.read_record(answer(body), task_id="t", provider="kie")

    def again(came: Response) -> TaskSnapshot:
        return codec.read_record(came, task_id="t", provider="kie", seen=seen)

    assert again(answer(body)) is seen
    assert again(answer(body, headers={"Retry-After": "3"})).retry_after == 3
    assert again(answer(body, status=201)) is not seen
    assert again(answer(body | {"data": {"taskId": "t", "state": "success"}})).state == "success"
