"""The emulator's callbacks, as a real server receives them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import aiohttp
import attrs
import pytest
from aiohttp import web

from sora_chars.testing import EmulatedTask, Emulator
from sora_chars.testing.emulator.tasks import Delivery

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

CREATE = "/api/v1/jobs/createTask"
TOKEN = "abcdefghijklmnopqrstuvwx"


@attrs.frozen
class Received:
    """One received POST."""

    path: str
    headers: CIMultiDictProxy[str]
    body: dict[str, object]

    @property
    def data(self) -> dict[str, object]:
        """The member `data` of the body."""
        return cast("dict[str, object]", self.body["data"])


@attrs.define(eq=False)
class Receiver:
    """A server that stores what it receives and responds with chosen statuses."""

    received: list[Received] = attrs.field(factory=list)
    statuses: list[int] = attrs.field(factory=list)
    """The statuses of the first responses; later ones have 200."""
    gate: asyncio.Event | None = None
    """Responses wait for it."""
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        """Receive a callback."""
        body = cast("dict[str, object]", await request.json())
        self.received.append(Received(request.path_qs, request.headers, body))
        if self.gate is not None:
            await self.gate.wait()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200, headers={"Location": "/elsewhere"})


Start = Callable[..., Awaitable[EmulatedTask]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A running receiver."""
    running = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", running.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator that signs callbacks, retries fast, and ends no task by itself."""
    async with Emulator(speed=1000.0, durations=(1e6, 1e6), hmac_key="hmac") as running:
        yield running


@asynccontextmanager
async def task_starter(emulator: Emulator, receiver: Receiver) -> AsyncGenerator[Start]:
    """Give a function that starts a task whose callback goes to the receiver."""
    async with aiohttp.ClientSession(emulator.url, headers={"Authorization": "Bearer key"}) as http:

        async def start(**headers: str) -> EmulatedTask:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            body = {"model": "wan/2-7-image", "input": {}, "callBackUrl": f"{receiver.url}/kie/{TOKEN}?a=%2F&b="}
            async with http.post(CREATE, json=body, headers=named) as response:
                return emulator.tasks[(await response.json())["data"]["taskId"]]

        yield start


@pytest.fixture
async def start(emulator: Emulator, receiver: Receiver) -> AsyncIterator[Start]:
    """A function that starts a task whose callback goes to the receiver."""
    async with task_starter(emulator, receiver) as starter:
        yield starter


async def test_sends_success_once(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A success is sent once, in the documented envelope, signed, to the URL verbatim."""
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: task.deliveries)
    (callback,) = receiver.received
    assert callback.path == f"/kie/{TOKEN}?a=%2F&b="
    assert (callback.body["code"], callback.body["msg"]) == (200, "Playground task completed successfully.")
    assert callback.data == task.data()
    assert callback.headers["Content-Type"] == "application/json"
    timestamp = callback.headers["X-Webhook-Timestamp"]
    assert abs(int(timestamp) - time.time()) < 60
    digest = hmac.digest(b"hmac", f"{task.task_id}.{timestamp}".encode(), hashlib.sha256)
    assert callback.headers["X-Webhook-Signature"] == base64.b64encode(digest).decode()
    assert task.deliveries == [Delivery(1, 200)]
    assert (emulator.counts.callbacks_sent, emulator.counts.callbacks_accepted) == (1, 1)


async def test_sends_failure(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A failure has the code 501 and null as its result."""
    task = await start()
    emulator.fail(task.task_id, "400", "no face")
    await emulator.until(lambda: task.deliveries)
    body, data = receiver.received[0].body, receiver.received[0].data
    assert (body["code"], body["msg"]) == (501, "Playground task failed.")
    assert (data["state"], data["failCode"], data["failMsg"], data["resultJson"]) == ("fail", "400", "no face", None)


async def test_sends_callback_at_the_end(receiver: Receiver) -> None:
    """The callback is sent when the task ends by itself, unsigned if there is no key."""
    async with Emulator(durations=(0.01, 0.01)) as emulator, task_starter(emulator, receiver) as start:
        task = await start()
        await emulator.until(lambda: task.deliveries)
        assert receiver.received[0].data["state"] == "success"
        assert not [name for name in receiver.received[0].headers if name.startswith("X-Webhook")]


async def test_retries_rejected_callbacks(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A rejected callback is retried three times; each delivery is stored with its status."""
    receiver.statuses = [500, 302, 401, 404, 200]
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: len(task.deliveries) == 4)
    assert [delivery.status for delivery in task.deliveries] == [500, 302, 401, 404]
    other = await start()
    receiver.statuses = [503]
    emulator.finish(other.task_id)
    await emulator.until(lambda: len(other.deliveries) == 2)
    assert other.deliveries == [Delivery(1, 503), Delivery(2, 200)]
    assert (len(receiver.received), emulator.counts.callbacks_sent, emulator.counts.callbacks_accepted) == (6, 6, 1)


async def test_retries_unanswered_callbacks(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A receiver that responds too late gets a retry, and the delivery has no status."""
    receiver.gate = asyncio.Event()
    emulator.callback_sender.timeout = 0.02
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: len(task.deliveries) == 4)
    assert {delivery.status for delivery in task.deliveries} == {None}
    receiver.gate.set()


async def test_early_callback_precedes_the_response(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """The response of createTask waits until the callback is delivered."""
    receiver.gate = asyncio.Event()
    emulator.fault("early_callback")
    creating = asyncio.ensure_future(start())
    await emulator.until(lambda: receiver.received)
    assert not creating.done()
    receiver.gate.set()
    task = await creating
    assert (task.state, receiver.received[0].data["taskId"]) == ("success", task.task_id)
    assert emulator.counts.callbacks_sent == 1


async def test_early_callback_without_url(emulator: Emulator) -> None:
    """A task without a callback URL ends early and sends no callback."""
    emulator.fault("early_callback")
    async with aiohttp.ClientSession(emulator.url, headers={"Authorization": "Bearer key"}) as http:
        await http.post(CREATE, json={"model": "wan/2-7-image", "input": {}})
    assert next(iter(emulator.tasks.values())).state == "success"
    assert emulator.counts.callbacks_sent == 0


async def test_double_callback(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """The same callback is sent twice."""
    emulator.fault("double_callback")
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: len(task.deliveries) == 2)
    assert receiver.received[0].body == receiver.received[1].body


async def test_lost_callback_of_one_task(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A callback fault in the header of a create hits the callback of that task only."""
    lost, other = await start(X_Emulator_Fault="lost_callback"), await start()
    emulator.finish(lost.task_id)
    await emulator.until(lambda: lost.callback_started)
    emulator.finish(other.task_id)
    await emulator.until(lambda: other.deliveries)
    assert [callback.data["taskId"] for callback in receiver.received] == [other.task_id]


@pytest.mark.parametrize("how", ["signature", "token"])
async def test_forged_callback_comes_first(emulator: Emulator, receiver: Receiver, start: Start, how: str) -> None:
    """A forged callback with a wrong signature or token precedes the true one, without retries."""
    emulator.fault("forged_callback", how=how)
    receiver.statuses = [401]
    task = await start()
    emulator.fail(task.task_id)
    await emulator.until(lambda: len(task.deliveries) == 2)
    forged, true = receiver.received
    assert task.deliveries == [Delivery(1, 401, forged=True), Delivery(1, 200)]
    assert (forged.data["state"], true.data["state"]) == ("success", "fail")
    assert json.loads(str(forged.data["resultJson"])) == {"character_id": "ch_forged"}
    assert (TOKEN in forged.path) == (how == "signature")
    signatures = {callback.headers["X-Webhook-Signature"] for callback in (forged, true)}
    assert how == "token" or len(signatures) == 2


async def test_late_callback(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A delayed callback is sent `seconds` after the end of its task."""
    emulator.fault("delay", on="callback", seconds=0.05)
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: task.deliveries)
    assert task.clock() - task.ends_at >= 0.05
    assert len(receiver.received) == 1


async def test_delivers_once(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A second delivery of the same task sends nothing."""
    task = await start()
    emulator.finish(task.task_id)
    await emulator.until(lambda: task.deliveries)
    await emulator.callback_sender.deliver(task)
    assert len(receiver.received) == 1


async def test_finished_task_has_no_second_end(receiver: Receiver) -> None:
    """Nothing is sent at the time at which a finished task would have ended."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with Emulator(durations=(0.05, 0.05)) as emulator, task_starter(emulator, receiver) as start:
        task = await start()
        natural_end = task.ends_at
        emulator.finish(task.task_id)
        await emulator.until(lambda: task.deliveries)
        await emulator.until(lambda: task.clock() > natural_end + 0.01)
    assert (len(receiver.received), errors) == (1, [])


async def test_stuck_task_sends_no_callback(emulator: Emulator, receiver: Receiver, start: Start) -> None:
    """A stuck task sends its callback only once it is finished."""
    emulator.fault("stuck")
    task = await start()
    assert not receiver.received
    emulator.finish(task.task_id)
    await emulator.until(lambda: task.deliveries)


async def test_closing_drops_deliveries(receiver: Receiver) -> None:
    """Closing drops running and scheduled deliveries, and leaves no asyncio task."""
    receiver.gate = asyncio.Event()
    before = asyncio.all_tasks()
    async with Emulator() as emulator, task_starter(emulator, receiver) as start:
        task, _ = await start(), await start()
        emulator.finish(task.task_id)
        await emulator.until(lambda: receiver.received)
    receiver.gate.set()
    left = {task.get_name() for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)}
    assert not left
    assert len(receiver.received) == 1
