"""What goes wrong on demand, as a client meets it over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

import aiohttp
import pytest

from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CREATE, RECORD, CHARACTER = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo", "/sora/v1/characters"
TASK = {"model": "sora-2-characters", "input": {"character_file_url": ["https://example.com/clip.mp4"]}}
CLIP = {"url": "https://example.com/clip.mp4", "timestamps": "1,3"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.0, 0.0)) as running:
        yield running


async def create(http: aiohttp.ClientSession, **headers: str) -> dict[str, object]:
    """Start a task, and give the whole answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(CREATE, json=TASK, headers=named) as answer:
        return cast("dict[str, object]", json.loads(await answer.read()))


async def record(http: aiohttp.ClientSession, task_id: str) -> dict[str, object]:
    """Look at a task, and give its `data`."""
    async with http.get(RECORD, params={"taskId": task_id}) as answer:
        return cast("dict[str, object]", (await answer.json())["data"])


@pytest.mark.parametrize("kind", ["lost_answer", "truncated"])
async def test_the_request_lands_though_its_answer_is_lost(
    emulator: Emulator, http: aiohttp.ClientSession, kind: str
) -> None:
    """The client gets an error, and there is a task all the same."""
    fault = emulator.fault(kind)
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        await create(http)
    assert (emulator.counts.creates, fault.hits, len(emulator.tasks)) == (1, 1, 1)
    assert (await create(http))["code"] == 200


async def test_a_reset_connection_creates_nothing(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """The client sees a reset by the peer, and nothing was created."""
    emulator.fault("reset")
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await create(http)
    assert isinstance(caught.value, ConnectionResetError) or "reset" in str(caught.value)
    assert emulator.counts.creates == 0


async def test_a_delayed_answer_has_landed_long_before(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A client that does not wait for a delayed answer leaves a task behind; one that waits gets its answer."""
    emulator.fault("delay", seconds=30.0)
    waiting = asyncio.create_task(create(http))
    await emulator.until(lambda: emulator.counts.creates == 1)
    waiting.cancel()
    emulator.fault("delay", seconds=0.01)
    assert (await create(http))["code"] == 200


async def test_a_slow_body_arrives_whole(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """An answer that trickles in is the same answer."""
    emulator.fault("slow_body", seconds=0.02)
    assert (await create(http))["msg"] == "success"


async def test_an_answer_that_is_no_json(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Junk comes with HTTP 200, and the task is there."""
    emulator.fault("junk_json")
    with pytest.raises(json.JSONDecodeError):
        await create(http)
    assert emulator.counts.creates == 1


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("http_429", 429, 429),
        ("body_429", 200, 429),
        ("http_500", 500, 500),
        ("body_500", 200, 500),
        ("status", 503, 503),
        ("maintenance", 200, 455),
        ("credits", 200, 402),
        ("credits_500", 200, 500),
        ("cap", 200, 433),
        ("unauthorized", 200, 401),
    ],
)
async def test_a_refusal_creates_nothing(
    emulator: Emulator, http: aiohttp.ClientSession, kind: str, status: int, code: int
) -> None:
    """Each refusal has its status and its code, in kkiai's manner too, and only 429s are counted as rejected."""
    emulator.fault(kind)
    async with http.post(CREATE, json=TASK) as answer:
        assert (answer.status, (await answer.json())["code"]) == (status, code)
    emulator.fault(kind, on="character")
    async with http.post(CHARACTER, json=CLIP) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (code, str(code))
    assert (emulator.counts.creates, emulator.counts.characters) == (0, 0)
    assert emulator.counts.rejected == ({"create": 1, "character": 1} if code == 429 else {})


async def test_settings_change_a_refusal(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Any status, code and message can be asked for, and a proxy's page with any status."""
    emulator.fault("status", status=200, code=505, message="feature disabled")
    assert await create(http) == {"code": 505, "msg": "feature disabled", "data": None}
    emulator.fault("html", status=524)
    async with http.post(CREATE, json=TASK) as answer:
        assert (answer.status, answer.content_type) == (524, "text/html")


@pytest.mark.parametrize(
    ("form", "status", "text"),
    [
        ("422", 200, '{"code":422,"msg":"recordInfo is null","data":null}'),
        ("404", 404, '{"code":404,"msg":"Task not found","data":null}'),
        ("null", 200, '{"code":200,"msg":"success","data":null}'),
    ],
)
async def test_a_task_is_not_visible_at_first(
    emulator: Emulator, http: aiohttp.ClientSession, form: str, status: int, text: str
) -> None:
    """Each way of not knowing a task yet, as often as told, and counted as a poll."""
    await create(http)
    task_id = next(iter(emulator.tasks))
    emulator.fault("not_visible", form=form)
    async with http.get(RECORD, params={"taskId": task_id}) as answer:
        assert (answer.status, await answer.text()) == (status, text)
    assert (await record(http, task_id))["state"] == "success"
    assert (emulator.counts.polls, emulator.tasks[task_id].polls) == (2, 1)


async def test_a_young_task_is_not_visible(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """With seconds, a task shows once it is old enough, and an unknown one is not struck."""
    fault = emulator.fault("not_visible", seconds=0.05, times=None)
    await create(http)
    task = next(iter(emulator.tasks.values()))
    assert await record(http, task.task_id) is None
    await emulator.until(lambda: task.clock() - task.created > 0.05)
    assert (await record(http, task.task_id))["state"] == "success"
    await record(http, "0" * 32)
    assert fault.hits == 1


async def test_a_stuck_task_waits_forever(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A stuck task is not over when its time is, unlike the next one."""
    emulator.fault("stuck")
    await create(http)
    await create(http)
    assert [task.state for task in emulator.tasks.values()] == ["waiting", "success"]


async def test_a_task_fails_with_any_code(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A failed task shows the code and message that were asked for."""
    emulator.fault("fail_task", code="SENSITIVE_WORD_ERROR", message="no")
    await create(http)
    data = await record(http, next(iter(emulator.tasks)))
    assert (data["state"], data["failCode"], data["failMsg"]) == ("fail", "SENSITIVE_WORD_ERROR", "no")


async def test_a_result_has_any_shape(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A result comes in the shape that was asked for, null included."""
    for shape in ("characterId", "null"):
        emulator.fault("result_shape", shape=shape)
        await create(http)
    results = [(await record(http, task_id))["resultJson"] for task_id in emulator.tasks]
    assert list(json.loads(str(results[0]))) == ["characterId"]
    assert results[1] is None


async def test_a_header_strikes_one_request(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A fault in a header consecutive_429s its own request alone: as an answer, as a task, or not at all when it is unknown."""
    refused = await create(http, X_Emulator_Fault="status; code=433; status=200")
    assert refused["code"] == 433
    assert "no fault 'x'" in str((await create(http, X_Emulator_Fault="x"))["error"])
    assert emulator.counts.creates == 0
    await create(http, X_Emulator_Fault="fail_task; code=400")
    await create(http)
    assert [task.state for task in emulator.tasks.values()] == ["fail", "success"]


@pytest.mark.parametrize("shape", range(1, 8))
async def test_kkiai_errors_in_every_shape(emulator: Emulator, http: aiohttp.ClientSession, shape: int) -> None:
    """A named error comes in the shape that was asked for, and nothing was made."""
    emulator.fault("quota", shape=shape, status=403)
    async with http.post(CHARACTER, json=CLIP) as answer:
        assert answer.status == (200 if shape in {5, 6} else 403)
        assert ("user quota is not enough" in await answer.text()) == (shape != 5)
    assert emulator.counts.characters == 0


@pytest.mark.parametrize(
    ("kind", "status", "word"),
    [
        ("kkiai_error", 500, "request id: "),
        ("quota", 429, "insufficient_user_quota"),
        ("model_not_found", 503, "model_not_found"),
        ("invalid_url", 404, "Invalid URL (POST /sora/v1/characters)"),
        ("get_origin_task_failed", 500, "get_origin_task_failed"),
        ("task_not_exist", 400, "task_not_exist"),
        ("cameo_permission_denied", 400, "cameo_permission_denied"),
        ("rate", 429, "rate_limit_exceeded"),
    ],
)
async def test_the_rows_of_kkiais_table(
    emulator: Emulator, http: aiohttp.ClientSession, kind: str, status: int, word: str
) -> None:
    """Each named error has the contract's status and its code or text."""
    emulator.fault(kind)
    async with http.post(CHARACTER, json=CLIP) as answer:
        assert answer.status == status
        assert word in await answer.text()


async def test_a_lost_answer_of_every_route(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A fault on any route consecutive_429s credit and uploads as well as creates."""
    emulator.fault("lost_answer", on="any", times=None)
    body = {"base64Data": "AAAA", "uploadPath": "x"}
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await http.post("/api/file-base64-upload", json=body)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await http.get("/api/v1/chat/credit")
    assert (emulator.counts.uploads, emulator.counts.other) == (1, 2)  # aiohttp repeats a GET once


async def test_a_client_that_left_before_its_answer_was_lost() -> None:
    """A connection that is gone already cannot be closed again, and that is no error."""
    async with Emulator(durations=(0.1, 0.1)) as emulator:
        emulator.fault("lost_answer", on="character")
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
            leaving = asyncio.create_task(http.post(emulator.url + CHARACTER, json=CLIP))
            await emulator.until(lambda: emulator.counts.characters)
            leaving.cancel()
        await emulator.until(lambda: emulator.requests)
        assert emulator.requests[0].fault == "lost_answer"


async def test_closing_in_the_middle_of_a_slow_answer() -> None:
    """An emulator that is closed while it answers cuts the connection and leaves nothing behind."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        async with Emulator(durations=(60.0, 60.0)) as emulator:
            waiting = asyncio.create_task(http.post(emulator.url + CHARACTER, json=CLIP))
            await emulator.until(lambda: emulator.counts.characters)
        with pytest.raises(aiohttp.ClientError):
            await waiting
