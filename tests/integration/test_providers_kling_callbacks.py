"""Kling's callbacks and odd requests: signatures, echoes, foreign clients and what the emulator rejects."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    FixedInterval,
    Kling,
    RequestRejectedError,
)
from sora_chars.testing import Emulator
from tests.support.kling_account import IMAGES, KEY, SECRET_KEY, VIDEO, WEBHOOK_SECRET, only_task, session_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), kling_key=KEY, kling_secret_key=SECRET_KEY) as running:
        yield running


@pytest.mark.parametrize("form", ["record", "event"])
@pytest.mark.parametrize("rotated", [False, True])
async def test_callbacks(emulator: Emulator, form: Any, rotated: bool) -> None:  # noqa: FBT001
    """A signed callback of either form ends the wait long before the next poll is due; early ones change nothing."""
    emulator.kling_callbacks.form = form
    emulator.kling_callbacks.secret = WEBHOOK_SECRET
    if rotated:
        emulator.kling_callbacks.old_secret = "whsec_" + base64.b64encode(b"an earlier secret").decode()
    session: CharacterSession
    app = web.Application()
    runner = web.AppRunner(app)
    port: list[int] = []

    async def forward(request: web.Request) -> web.Response:
        status, content = await receiver.handle("POST", request.path, request.headers, await request.read())
        return web.json_response(content, status=status)

    app.router.add_post("/{token}", forward)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port.append(runner.addresses[0][1])
    provider = Kling(
        KEY,
        base_url=emulator.url,
        callback_url=f"http://127.0.0.1:{port[0]}",
        webhook_secret=WEBHOOK_SECRET,
    )
    async with CharacterSession(provider, polling=FixedInterval(60.0), timeout=20) as session:
        receiver = CallbackReceiver(session)
        assert (await session.create(**VIDEO)).name == "Rex"
    await runner.cleanup()
    task = only_task(emulator)
    assert task.polls <= 3
    assert emulator.counts.callbacks_sent == 3


async def test_callbacks_with_a_wrong_signature(emulator: Emulator) -> None:
    """A callback that another secret signed is rejected, although its token is right."""
    provider = Kling(
        KEY, base_url=emulator.url, callback_url="https://hooks.example", webhook_secret="whsec_YW5vdGhlcg=="
    )
    async with CharacterSession(provider, polling=FixedInterval(60.0)) as session:
        handle = await session.submit(**VIDEO)
        path = str(only_task(emulator).callback_url).removeprefix("https://hooks.example")
        body = b'{"task_id":"%s"}' % handle.task_id.encode()
        headers = {"content-type": "application/json", "webhook-id": "1", "webhook-timestamp": "1"}
        assert (await CallbackReceiver(session).handle("POST", path, headers, body))[0] == 401


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client that follows Kling's page is served."""
    body = {
        "element_name": "Rex",
        "element_description": "A friendly dog",
        "reference_type": "video_refer",
        "element_video_list": {"refer_videos": [{"video_url": VIDEO["video"]}]},
    }
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as client:
        url = f"{emulator.url}/v1/general/advanced-custom-elements"
        async with client.post(url, json=body) as response:
            made = await response.json()
        task_id = made["data"]["task_id"]
        await emulator.until(lambda: emulator.kling.tasks[task_id].finished)
        async with client.get(f"{url}/{task_id}") as response:
            done = await response.json()
    assert (made["code"], made["data"]["task_status"]) == (0, "submitted")
    assert done["data"]["task_status"] == "succeed"
    assert done["data"]["task_result"]["elements"][0]["element_type"] == "video_refer"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "advanced-custom-elements", b"{", 400, 1200),
        ("POST", "advanced-custom-elements", b"[]", 400, 1200),
        ("POST", "advanced-custom-elements", b"{}", 400, 1201),
        ("PUT", "advanced-custom-elements", b"{}", 404, 1202),
        ("GET", "advanced-custom-elements/none", b"", 404, 1203),
        ("GET", "advanced-custom-elements?pageNum=0", b"", 400, 1201),
        ("GET", "advanced-custom-elements?pageSize=501", b"", 400, 1201),
        ("GET", "advanced-custom-elements?pageNum=1000&pageSize=500", b"", 200, 0),
        ("GET", "delete-advanced-elements", b"", 404, 1202),
        ("POST", "delete-advanced-elements", b'{"element_id":5}', 400, 1201),
    ],
)
async def test_invalid_requests(
    emulator: Emulator, *, method: str, path: str, body: bytes, status: int, code: int
) -> None:
    """The emulator rejects what Kling's page does not describe, with the documented code."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as client:
        url = f"{emulator.url}/v1/general/{path}"
        async with client.request(method, url, data=body) as response:
            assert (response.status, (await response.json())["code"]) == (status, code)


async def test_emulated_faults(emulator: Emulator) -> None:
    """A task can be stuck, callbacks can get lost or find no receiver, and a gateway can answer in Kling's place."""
    emulator.fault("kling_stuck")
    emulator.fault("http_500", on="element_poll")
    async with session_at(emulator, callback_url="http://127.0.0.1:9") as session:
        handle = await session.submit(**VIDEO)
        await emulator.until(lambda: only_task(emulator).callbacks == [None])
        assert not (await handle.refresh()).finished
        emulator.kling_callbacks.lost = True
        await session.create(images=IMAGES, name="Bello", prompt="Another dog")
    assert emulator.counts.callbacks_sent == 1


@pytest.mark.parametrize(
    "keys", [{"api_key": KEY}, {"access_key": "access-0123456789abcdef", "secret_key": SECRET_KEY}]
)
async def test_echoed_signature(keys: dict[str, Any]) -> None:
    """A response that repeats the Authorization header reaches neither the error nor the ledger."""

    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"code": 1201, "message": f"not {request.headers['Authorization']}"}, status=400)

    app = web.Application()
    app.router.add_post("/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with CharacterSession(Kling(**keys, base_url=url)) as session:
        with pytest.raises(RequestRejectedError) as caught:
            await session.create(**VIDEO, key="order-17")
        entry = await session.entry("order-17")
    await runner.cleanup()
    assert str(caught.value).startswith("Kling answered 400 with code 1201: not Bearer ***")
    assert entry is not None
    assert not any(part in f"{caught.value} {entry.error_json}" for part in ("eyJ", KEY, SECRET_KEY))
