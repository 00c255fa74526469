"""The emulator's dashboard and its control API."""

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


async def test_control_api(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """Other processes add and clear faults, and read counts and tasks, over HTTP."""
    fault = {"kind": "body_429", "on": "create", "times": 2}
    async with http.post("/_emulator/faults", json=fault) as response:
        assert (response.status, (await response.json())["times"]) == (201, 2)
    async with http.post(CREATE, json=TASK) as response:
        assert (await response.json())["code"] == 429
    async with http.delete("/_emulator/faults") as response:
        assert [(fault["kind"], fault["hits"]) for fault in (await response.json())["faults"]] == [("body_429", 1)]
    assert not emulator.faults.active
    async with http.post(CREATE, json=TASK | {"callBackUrl": "http://127.0.0.1:9/token"}) as response:
        task_id = (await response.json())["data"]["taskId"]
    async with http.get("/_emulator/counts") as response:
        assert (await response.json())["creates"] == 1
    async with http.get("/_emulator/tasks") as response:
        assert [(row["taskId"], row["state"]) for row in (await response.json())["tasks"]] == [(task_id, "success")]
        assert "token" not in await response.text()


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"kind":"no"}', b'{"kind":"stuck","rate":"x"}', b'{"kind":[]}'])
async def test_control_api_rejects_invalid_faults(emulator: Emulator, http: aiohttp.ClientSession, body: bytes) -> None:
    """An invalid fault is HTTP 400 with a reason, and is not added."""
    async with http.post("/_emulator/faults", data=body) as response:
        assert (response.status, list(await response.json())) == (400, ["error"])
    assert not emulator.faults.active


async def test_empty_dashboard(http: aiohttp.ClientSession) -> None:
    """The dashboard is served before the first request, and does not list itself."""
    for _ in range(2):
        async with http.get("/") as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
            assert (await response.text()).count("none") == 3


async def test_dashboard_shows_activity(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """The dashboard lists endpoints, tasks, faults and requests, escapes text, and shows no token."""
    emulator.models = {**emulator.models, "<script>": "text-to-image"}
    secret = f"{emulator.url}/secret-callback-token?too"
    emulator.fault("lost_callback", times=None)
    emulator.fault("delay", times=None, rate=0.5, on="upload")
    emulator.fault("stuck")
    for body in (TASK | {"callBackUrl": secret}, TASK | {"callBackUrl": secret}, TASK | {"model": "<script>"}):
        await (await http.post(CREATE, json=body)).read()
    for _ in range(2):  # the first poll of a finished task detects its end
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
        "pending",
        "due",
        "reset",
    ):
        assert word in text
    assert "seconds=1.0" in text
    assert "&ndash;" not in text  # the mean detection delay is a number
    assert not [word for word in ("<script>", "<i>", "secret-callback-token", "Bearer") if word in text]


async def test_dashboard_shows_deliveries(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """A delivery is shown with its status; the path of a failed request has no query string."""
    await (await http.post(CREATE, json=TASK | {"callBackUrl": f"{emulator.url}/missing?token=secret"})).read()
    await emulator.until(lambda: next(iter(emulator.tasks.values())).deliveries)
    text = await (await http.get("/")).text()
    assert "<td>404</td>" in text
    assert "/missing<" in text
    assert "secret" not in text
