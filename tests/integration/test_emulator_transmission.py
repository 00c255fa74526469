"""The emulator's faults, as a client meets them over real sockets."""

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
    """Start a task, and return the whole response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(CREATE, json=TASK, headers=named) as response:
        return cast("dict[str, object]", json.loads(await response.read()))


async def record(http: aiohttp.ClientSession, task_id: str) -> dict[str, object]:
    """Poll a task, and return `data`."""
    async with http.get(RECORD, params={"taskId": task_id}) as response:
        return cast("dict[str, object]", (await response.json())["data"])


@pytest.mark.parametrize("kind", ["lost_response", "truncated"])
async def test_lost_response_has_created_a_task(emulator: Emulator, http: aiohttp.ClientSession, kind: str) -> None:
    """The client gets an error although the task was created."""
    fault = emulator.fault(kind)
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        await create(http)
    assert (emulator.counts.creates, fault.hits, len(emulator.tasks)) == (1, 1, 1)
    assert (await create(http))["code"] == 200


async def test_reset_creates_nothing(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """The client gets a connection reset, and nothing is created."""
    emulator.fault("reset")
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await create(http)
    assert isinstance(caught.value, ConnectionResetError) or "reset" in str(caught.value)
    assert emulator.counts.creates == 0


async def test_delayed_response_has_created_a_task(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """The task exists before a delayed response is sent."""
    emulator.fault("delay", seconds=30.0)
    waiting = asyncio.create_task(create(http))
    await emulator.until(lambda: emulator.counts.creates == 1)
    waiting.cancel()
    emulator.fault("delay", seconds=0.01)
    assert (await create(http))["code"] == 200


async def test_slow_body_is_complete(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A response that is sent slowly is complete."""
    emulator.fault("slow_body", seconds=0.02)
    assert (await create(http))["msg"] == "success"


async def test_junk_json(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Truncated JSON comes with HTTP 200, and the task is created."""
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
async def test_rejection_creates_nothing(
    emulator: Emulator, http: aiohttp.ClientSession, kind: str, status: int, code: int
) -> None:
    """Each rejection has its status and code, also in kkiai's form; 429s are counted."""
    emulator.fault(kind)
    async with http.post(CREATE, json=TASK) as response:
        assert (response.status, (await response.json())["code"]) == (status, code)
    emulator.fault(kind, on="character")
    async with http.post(CHARACTER, json=CLIP) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (code, str(code))
    assert (emulator.counts.creates, emulator.counts.characters) == (0, 0)
    assert emulator.counts.rate_limited == ({"create": 1, "character": 1} if code == 429 else {})


async def test_settings_of_a_rejection(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Status, code and message can be set, and so can the status of a proxy's page."""
    emulator.fault("status", status=200, code=505, message="feature disabled")
    assert await create(http) == {"code": 505, "msg": "feature disabled", "data": None}
    emulator.fault("html", status=524)
    async with http.post(CREATE, json=TASK) as response:
        assert (response.status, response.content_type) == (524, "text/html")


@pytest.mark.parametrize(
    ("form", "status", "text"),
    [
        ("422", 200, '{"code":422,"msg":"recordInfo is null","data":null}'),
        ("404", 404, '{"code":404,"msg":"Task not found","data":null}'),
        ("null", 200, '{"code":200,"msg":"success","data":null}'),
    ],
)
async def test_task_is_not_visible_at_first(
    emulator: Emulator, http: aiohttp.ClientSession, form: str, status: int, text: str
) -> None:
    """Each response for an unknown task is given once, and counted as a poll."""
    await create(http)
    task_id = next(iter(emulator.tasks))
    emulator.fault("not_visible", form=form)
    async with http.get(RECORD, params={"taskId": task_id}) as response:
        assert (response.status, await response.text()) == (status, text)
    assert (await record(http, task_id))["state"] == "success"
    assert (emulator.counts.polls, emulator.tasks[task_id].polls) == (2, 1)


async def test_young_task_is_not_visible(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """With `seconds`, a task is visible once it is older; an unknown task is not hit."""
    fault = emulator.fault("not_visible", seconds=0.05, times=None)
    await create(http)
    task = next(iter(emulator.tasks.values()))
    assert await record(http, task.task_id) is None
    await emulator.until(lambda: task.clock() - task.created > 0.05)
    assert (await record(http, task.task_id))["state"] == "success"
    await record(http, "0" * 32)
    assert fault.hits == 1


async def test_stuck_task_never_ends(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A stuck task keeps waiting; the next task ends."""
    emulator.fault("stuck")
    await create(http)
    await create(http)
    assert [task.state for task in emulator.tasks.values()] == ["waiting", "success"]


async def test_failed_task_has_the_given_code(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A failed task has the given code and message."""
    emulator.fault("fail_task", code="SENSITIVE_WORD_ERROR", message="no")
    await create(http)
    data = await record(http, next(iter(emulator.tasks)))
    assert (data["state"], data["failCode"], data["failMsg"]) == ("fail", "SENSITIVE_WORD_ERROR", "no")


async def test_result_has_the_given_shape(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A result has the given shape, including null."""
    for shape in ("characterId", "null"):
        emulator.fault("result_shape", shape=shape)
        await create(http)
    results = [(await record(http, task_id))["resultJson"] for task_id in emulator.tasks]
    assert list(json.loads(str(results[0]))) == ["characterId"]
    assert results[1] is None


async def test_header_hits_one_request(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A fault in a header hits its own request or task only; an unknown one is an error."""
    rejected = await create(http, X_Emulator_Fault="status; code=433; status=200")
    assert rejected["code"] == 433
    assert "unknown fault 'x'" in str((await create(http, X_Emulator_Fault="x"))["error"])
    assert emulator.counts.creates == 0
    await create(http, X_Emulator_Fault="fail_task; code=400")
    await create(http)
    assert [task.state for task in emulator.tasks.values()] == ["fail", "success"]


@pytest.mark.parametrize("shape", range(1, 8))
async def test_kkiai_error_shapes(emulator: Emulator, http: aiohttp.ClientSession, shape: int) -> None:
    """An error has the given shape, and nothing is created."""
    emulator.fault("quota", shape=shape, status=403)
    async with http.post(CHARACTER, json=CLIP) as response:
        assert response.status == (200 if shape in {5, 6} else 403)
        assert ("user quota is not enough" in await response.text()) == (shape != 5)
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
async def test_kkiai_errors(emulator: Emulator, http: aiohttp.ClientSession, kind: str, status: int, word: str) -> None:
    """Each error has the contract's status and its code or text."""
    emulator.fault(kind)
    async with http.post(CHARACTER, json=CLIP) as response:
        assert response.status == status
        assert word in await response.text()


async def test_lost_responses_of_all_endpoints(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A fault with on="any" hits uploads and credit requests."""
    emulator.fault("lost_response", on="any", times=None)
    body = {"base64Data": "AAAA", "uploadPath": "x"}
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await http.post("/api/file-base64-upload", json=body)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await http.get("/api/v1/chat/credit")
    assert (emulator.counts.uploads, emulator.counts.other) == (1, 2)  # aiohttp repeats a GET once


async def test_lost_response_to_a_disconnected_client() -> None:
    """Closing the connection of a client that has disconnected is not an error."""
    async with Emulator(durations=(0.1, 0.1)) as emulator:
        emulator.fault("lost_response", on="character")
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
            leaving = asyncio.create_task(http.post(emulator.url + CHARACTER, json=CLIP))
            await emulator.until(lambda: emulator.counts.characters)
            leaving.cancel()
        await emulator.until(lambda: emulator.requests)
        assert emulator.requests[0].fault == "lost_response"


async def test_closing_disconnects_running_requests() -> None:
    """Closing the emulator disconnects the client of a running request."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        async with Emulator(durations=(60.0, 60.0)) as emulator:
            waiting = asyncio.create_task(http.post(emulator.url + CHARACTER, json=CLIP))
            await emulator.until(lambda: emulator.counts.characters)
        with pytest.raises(aiohttp.ClientError):
            await waiting
