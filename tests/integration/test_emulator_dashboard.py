"""What people and other processes see of the emulator: its page and its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CREATE, RECORD = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"
TASK = {"model": "wan/2-7-image", "input": {}}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.0, 0.0)) as running:
        yield running


async def test_control_from_another_process(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Faults can be added and cleared over HTTP, counts and tasks read."""
    fault = {"kind": "body_429", "on": "create", "times": 2}
    async with http.post("/_emulator/faults", json=fault) as answer:
        assert (answer.status, (await answer.json())["times"]) == (201, 2)
    async with http.post(CREATE, json=TASK) as answer:
        assert (await answer.json())["code"] == 429
    async with http.delete("/_emulator/faults") as answer:
        assert [(fault["kind"], fault["hits"]) for fault in (await answer.json())["faults"]] == [("body_429", 1)]
    assert not emulator.faults.active
    async with http.post(CREATE, json=TASK | {"callBackUrl": "http://127.0.0.1:9/token"}) as answer:
        task_id = (await answer.json())["data"]["taskId"]
    async with http.get("/_emulator/counts") as answer:
        assert (await answer.json())["creates"] == 1
    async with http.get("/_emulator/tasks") as answer:
        assert [(row["taskId"], row["state"]) for row in (await answer.json())["tasks"]] == [(task_id, "success")]
        assert "token" not in await answer.text()


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"kind":"no"}', b'{"kind":"stuck","rate":"x"}', b'{"kind":[]}'])
async def test_a_wrong_fault_from_another_process(emulator: Emulator, http: aiohttp.ClientSession, body: bytes) -> None:
    """What is no fault is HTTP 400 that says why, and adds none."""
    async with http.post("/_emulator/faults", data=body) as answer:
        assert (answer.status, list(await answer.json())) == (400, ["error"])
    assert not emulator.faults.active


async def test_an_idle_page(http: aiohttp.ClientSession) -> None:
    """The page can be seen before anything happened, and looking at it is not a request."""
    for _ in range(2):
        async with http.get("/") as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
            assert (await answer.text()).count("none") == 3


async def test_the_page_shows_what_goes_on(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """The page lists routes, tasks, faults and requests, escapes what came from outside, and shows no token."""
    emulator.models = {**emulator.models, "<script>": "text-to-image"}
    secret = f"{emulator.url}/secret-callback-token?too"
    emulator.fault("lost_callback", times=None)
    emulator.fault("delay", times=None, rate=0.5, on="upload")
    emulator.fault("stuck")
    for body in (TASK | {"callBackUrl": secret}, TASK | {"callBackUrl": secret}, TASK | {"model": "<script>"}):
        await (await http.post(CREATE, json=body)).read()
    for _ in range(2):  # the first look at a finished task is its detection
        await (await http.get(RECORD, params={"taskId": list(emulator.tasks)[1]})).read()
    emulator.fault("reset", on="poll", times=2)  # aiohttp repeats a GET once
    with pytest.raises(aiohttp.ClientOSError):
        await http.get(RECORD, params={"taskId": "<i>"})
    text = await (await http.get("/")).text()
    for word in (
        *emulator.tasks,
        CREATE,
        "&lt;script&gt;",
        "delay",
        "50%",
        "&infin;",
        "awaited",
        "due",
        "reset",
    ):
        assert word in text
    assert "seconds=1.0" in text
    assert "&ndash;" not in text  # the mean detection is a number
    assert not [word for word in ("<script>", "<i>", "secret-callback-token", "Bearer") if word in text]


async def test_the_page_shows_how_callbacks_went(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A delivery shows with its status, and the path of a refused one without its query."""
    await (await http.post(CREATE, json=TASK | {"callBackUrl": f"{emulator.url}/nobody?token=secret"})).read()
    await emulator.until(lambda: next(iter(emulator.tasks.values())).deliveries)
    text = await (await http.get("/")).text()
    assert "<td>404</td>" in text
    assert "/nobody<" in text
    assert "secret" not in text
