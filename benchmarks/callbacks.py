"""Part C: signed callbacks through the receiver on one core, compared with a bare handler that sets a future.

Run as a program, this file is one of two processes: `receive KIND FLOOD STEADY` receives
callbacks and prints one line of JSON, and `send FILE URL RATE` posts the callbacks of a file.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from dialects import Facts, kie
from measure import at, cpu_seconds
from watched import Stub

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, TaskRequest, TaskSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request

    Await = Callable[[str], Awaitable[object]]

HMAC_KEY = b"benchmark-hmac-key"
BARE, MEMORY, SQLITE, CONFIRMED = "bare handler", "receiver, memory:", "receiver, sqlite:", "receiver, confirmed"
KINDS = (BARE, MEMORY, SQLITE, CONFIRMED)
FLOOD, STEADY, RATE = 5000, 1000, 200  # callbacks at full speed, callbacks at a rate, callbacks a second
QUICK_FLOOD, QUICK_STEADY = 200, 50
WARM = 200  # callbacks before the measured ones, as a server runs for days
CONNECTIONS = 16
ROUNDS = 5


class Called(Stub):
    """A provider that records callback URLs. Its tasks end at creation, or by the first poll."""

    def __init__(self, url: str, *, ended: bool) -> None:
        super().__init__()
        self.callback_url = f"{url}/hooks"
        self.urls: dict[str, str] = {}
        self._first = "success" if ended else "waiting"

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`."""
        snapshot = await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)
        self.urls[snapshot.task_id] = callback_url or ""
        return TaskSnapshot(task_id=snapshot.task_id, provider=self.name, state=self._first)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`."""
        return TaskSnapshot(task_id=task_id, provider=self.name, state="success")

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`."""
        return await self.fetch(seen.task_id)


# ---- The process that receives


async def receive(kind: str, flood: int, steady: int) -> dict[str, float]:
    """Receive some callbacks to warm up, then both series; return what the series cost."""
    received: dict[str, float] = {}

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        received[request.path.rpartition("/")[2]] = time.perf_counter()
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(middlewares=[note])
    async with contextlib.AsyncExitStack() as stack:
        tasks, wait = await stack.enter_async_context(
            bare(app, WARM + flood + steady) if kind == BARE else ours(app, kind, WARM + flood + steady)
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        paths = iter(tasks.items())
        await take(dict(islice(paths, WARM)), wait, received, url, 0)
        fast = await take(dict(islice(paths, flood)), wait, received, url, 0)
        slow = await take(dict(paths), wait, received, url, RATE)
    return {
        "callbacks_a_second": flood / fast["seconds"],
        "cpu_us": fast["cpu_s"] / flood * 1e6,
        "p50_ms": slow["p50_ms"],
        "p99_ms": slow["p99_ms"],
        "flood_p50_ms": fast["p50_ms"],
        "flood_p99_ms": fast["p99_ms"],
    }


@contextlib.asynccontextmanager
async def bare(app: web.Application, count: int) -> AsyncGenerator[tuple[dict[str, str], Await], None]:
    """A handler that only sets a future."""
    futures: dict[str, asyncio.Future[Any]] = {}

    async def respond(request: web.Request) -> web.Response:
        data = (await request.json())["data"]
        futures[data["taskId"]].set_result(data)
        return web.json_response({"code": 200, "msg": "success"})

    def wait(task_id: str) -> asyncio.Future[Any]:
        return futures.setdefault(task_id, asyncio.get_running_loop().create_future())

    app.router.add_post("/hooks/{token}", respond)
    yield {f"{number:032x}": f"/hooks/{number:032x}" for number in range(count)}, wait


@contextlib.asynccontextmanager
async def ours(app: web.Application, kind: str, count: int) -> AsyncGenerator[tuple[dict[str, str], Await], None]:
    """A session with `count` submitted tasks, and its receiver."""
    provider = Called("http://127.0.0.1", ended=kind != CONFIRMED)
    with tempfile.TemporaryDirectory() as folder:
        ledger = "memory:" if kind == MEMORY else str(Path(folder) / "characters.db")
        async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(3600)) as session:
            receiver = CallbackReceiver(session, HMAC_KEY)
            app.add_subapp("/hooks/", receiver.aiohttp_app())
            requests = [TaskRequest(model="wan/2-7-image", key=f"{number}") for number in range(count)]
            handles = await asyncio.gather(*(session.submit(request) for request in requests))
            ends = {handle.task_id: handle.result for handle in handles}
            wait: Await = receiver.expect if kind != CONFIRMED else lambda task_id: ends[task_id]()
            yield {task_id: url.removeprefix("http://127.0.0.1") for task_id, url in provider.urls.items()}, wait


async def take(paths: dict[str, str], wait: Await, received: dict[str, float], url: str, rate: int) -> dict[str, float]:
    """Await the callbacks of `paths` while the other process posts them."""
    waits: list[float] = []

    async def resumed(task_id: str, path: str) -> None:
        await wait(task_id)
        waits.append(time.perf_counter() - received[path.rpartition("/")[2]])

    awaiters = [asyncio.create_task(resumed(task_id, path)) for task_id, path in paths.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(paths, file)
        file.flush()
        command = [sys.executable, __file__, "send", file.name, url, str(rate)]
        pipe = asyncio.subprocess.PIPE
        sender = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert sender.stdin
        assert sender.stdout
        await sender.stdout.readline()  # "ready"
        cpu, began = cpu_seconds(), time.perf_counter()
        sender.stdin.write(b"go\n")
        await asyncio.gather(*awaiters)
        await sender.stdout.readline()  # "done": all responses have arrived
        used = {"seconds": time.perf_counter() - began, "cpu_s": cpu_seconds() - cpu}
        sender.stdin.close()
        await sender.wait()
    return {**used, "p50_ms": at(0.5, waits) * 1000, "p99_ms": at(0.99, waits) * 1000}


# ---- The process that sends


def posts(paths: dict[str, str]) -> list[bytes]:
    """Return complete signed requests."""
    now = str(int(time.time()))
    made = []
    for task_id, path in paths.items():
        data = json.loads(kie(Facts("http://127.0.0.1", task_id, round(time.time() * 1000), 10.0)).done)["data"]
        body = json.dumps({"code": 200, "msg": "Playground task completed successfully.", "data": data}).encode()
        signature = base64.b64encode(hmac.digest(HMAC_KEY, f"{task_id}.{now}".encode(), hashlib.sha256)).decode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Webhook-Timestamp: {now}\r\nX-Webhook-Signature: {signature}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


async def send(requests: list[bytes], url: str, rate: float) -> None:
    """Post all requests over a few connections, as fast as responses arrive or at a rate."""
    host, port = url.removeprefix("http://").split(":")
    todo = iter(enumerate(requests))
    began = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number, request in todo:
            if rate:
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))


def pin(core: int) -> None:
    """Bind the process to one core, on Linux with several cores."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


# ---- The part


def figures(*, quick: bool) -> list[dict[str, Any]]:
    """Return the medians of some rounds for each kind, and the CPU ratio to the bare handler of the same round."""
    flood, steady, rounds = (QUICK_FLOOD, QUICK_STEADY, 1) if quick else (FLOOD, STEADY, ROUNDS)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            command = [sys.executable, __file__, "receive", kind, str(flood), str(steady)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
            found[kind].append(json.loads(done.stdout))
    rows = []
    for kind, some in found.items():
        row: dict[str, Any] = {name: at(0.5, [one[name] for one in some]) for name in some[0]}
        ratios = [one["cpu_us"] / bare["cpu_us"] for one, bare in zip(some, found[BARE], strict=True)]
        rows.append({"kind": kind, "callbacks": flood, **row, "cpu_ratio": at(0.5, ratios)})
        cost = f"{row['cpu_us']:.0f} us ({rows[-1]['cpu_ratio']:.2f} x)"
        print(f"  {kind}: {row['callbacks_a_second']:.0f}/s, {cost}, p99 {row['p99_ms']:.2f} ms")
    return rows


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        pin(0)
        print(json.dumps(asyncio.run(receive(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
    else:
        pin(1)
        ready = posts(json.loads(Path(sys.argv[2]).read_text()))
        print("ready", flush=True)
        sys.stdin.readline()
        asyncio.run(send(ready, sys.argv[3], float(sys.argv[4])))
        print("done", flush=True)
