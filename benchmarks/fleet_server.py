"""The fake provider of the fleet: a strict one, which counts by key what is paid, polled, refused and called back.

It speaks the two routes of kie.ai that the fleet needs. A create is charged when it arrives, and answered later.
`/stats` reports everything that was counted. Usage: python benchmarks/fleet_server.py CONFIG
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from typing import Any

import aiohttp
import attrs
from aiohttp import web

CREATES, POLLS = (20, 10.0), (10, 1.0)  # the documented limits


@attrs.define(eq=False)
class Window:
    """A sliding window that takes at most `count` requests in any `seconds`."""

    count: int
    seconds: float
    taken: deque[float] = attrs.field(factory=deque)

    def admits(self) -> bool:
        """Take a request, unless the window is full."""
        now = time.monotonic()
        while self.taken and self.taken[0] <= now - self.seconds:
            self.taken.popleft()
        if len(self.taken) >= self.count:
            return False
        self.taken.append(now)
        return True


@attrs.define(eq=False)
class Task:
    """A task: its times by the monotonic clock and by the wall clock, and its callback URL."""

    task_id: str
    key: str
    ends_at: float
    created: float
    completed: float
    callback_url: str | None
    polls: int = 0
    seen_at: float | None = None


@attrs.define(eq=False)
class Server:
    """The provider.

    Attributes:
        scale: The limits, as a multiple of the documented ones.
        answer: Seconds from the charge to the answer of a create.
        durations: The bounds of a task's duration in seconds.
    """

    scale: int = 10
    answer: float = 0.3
    durations: tuple[float, float] = (3.0, 8.0)
    tasks: dict[str, Task] = attrs.field(factory=dict)
    keys: Counter[str] = attrs.field(factory=Counter)
    refused: Counter[str] = attrs.field(factory=Counter)
    called_back: int = 0
    called_at: dict[str, float] = attrs.field(factory=dict)
    in_flight: int = 0
    _rng: random.Random = attrs.field(factory=lambda: random.Random(7))
    _background: set[asyncio.Task[None]] = attrs.field(factory=set)
    _creates: Window = attrs.field(init=False)
    _polls: Window = attrs.field(init=False)
    _client: aiohttp.ClientSession = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._creates = Window(CREATES[0] * self.scale, CREATES[1])
        self._polls = Window(POLLS[0] * self.scale, POLLS[1])

    async def serve(self) -> None:
        """Listen on a free port of loopback, print it, and serve for ever."""
        app = web.Application()
        app.router.add_post("/api/v1/jobs/createTask", self._create)
        app.router.add_get("/api/v1/jobs/recordInfo", self._record)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/called", self._called)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as self._client:
            print(runner.addresses[0][1], flush=True)
            await asyncio.Event().wait()

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self._creates.admits():
            self.refused["create"] += 1
            return _envelope(429, "too many requests")
        key = str(body["input"]["character_prompt"])
        self.keys[key] += 1
        duration = self._rng.uniform(*self.durations)
        ends_at = time.monotonic() + duration
        callback_url = body.get("callBackUrl")
        task = Task(f"task{len(self.tasks):06}", key, ends_at, time.time(), time.time() + duration, callback_url)
        self.tasks[task.task_id] = task
        if task.callback_url:
            calling = asyncio.create_task(self._call_back(task))
            self._background.add(calling)
            calling.add_done_callback(self._background.discard)
        self.in_flight += 1
        try:
            await asyncio.sleep(self.answer)
        finally:
            self.in_flight -= 1
        return _envelope(200, "success", {"taskId": task.task_id})

    async def _record(self, request: web.Request) -> web.Response:
        task = self.tasks[request.query["taskId"]]
        if not self._polls.admits():
            self.refused["poll"] += 1
            return _envelope(429, "too many requests")
        task.polls += 1
        now = time.monotonic()
        if now >= task.ends_at and task.seen_at is None:
            task.seen_at = now
        return _envelope(200, "success", _record_of(task))

    async def _call_back(self, task: Task) -> None:
        await asyncio.sleep(task.ends_at - time.monotonic())
        body = _envelope(200, "success", _record_of(task)).body
        for delay in (0.0, 1.0, 3.0):
            await asyncio.sleep(delay)
            self.called_at[task.key] = time.time()
            try:
                async with self._client.post(
                    task.callback_url or "", data=body, headers={"Content-Type": "application/json"}
                ) as answer:
                    if answer.status == 200:
                        self.called_back += 1
                        return
            except aiohttp.ClientError:
                continue

    async def _called(self, _request: web.Request) -> web.Response:
        return web.json_response(self.called_at)

    async def _stats(self, _request: web.Request) -> web.Response:
        seen = [task.seen_at - task.ends_at for task in self.tasks.values() if task.seen_at is not None]
        return web.json_response(
            {
                "tasks": len(self.tasks),
                "keys": len(self.keys),
                "twice": sum(count > 1 for count in self.keys.values()),
                "refused": sum(self.refused.values()),
                "polls": sum(task.polls for task in self.tasks.values()),
                "seen": len(seen),
                "detection_mean_s": sum(seen) / len(seen) if seen else None,
                "called_back": self.called_back,
                "in_flight": self.in_flight,
            }
        )


def _record_of(task: Task) -> dict[str, Any]:
    done = time.monotonic() >= task.ends_at
    return {
        "taskId": task.task_id,
        "model": "sora-2-characters",
        "state": "success" if done else "generating",
        "createTime": round(task.created * 1000),
        "completeTime": round(task.completed * 1000) if done else None,
        "resultJson": json.dumps({"character_id": f"ch_{task.task_id}"}) if done else "",
    }


def _envelope(code: int, message: str, data: object = None) -> web.Response:
    return web.json_response({"code": code, "msg": message, "data": data})


if __name__ == "__main__":
    asyncio.run(Server(**json.loads(sys.argv[1])).serve())
