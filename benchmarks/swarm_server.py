"""A server that counts the tasks of each key, for the swarm. Some of its answers are lost, late or wrong.

It speaks the two routes of kie.ai that the swarm needs. `/truth/KEY` reports what the provider's site would show to the
user of a key.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from aiohttp import web

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator

FATES = {
    "answered": 60,
    "answered late": 12,
    "made late": 8,
    "answer lost": 8,
    "closed, nothing made": 3,
    "code 500, nothing made": 5,
    "code 500, task made": 2,
    "code 422": 2,
    "code 429": 2,
}
"""How often each thing happens to a create."""
FAILURE_RATE = 0.08  # of the tasks
DURATIONS = (0.05, 0.6)  # seconds of a task
LATE = (0.2, 2.5)  # seconds; the time-out of the workers lies between them
CONFIRMATIONS = 20  # turns of the event loop after which bytes from a dead process have been read


@attrs.define(eq=False)
class Task:
    """A task on the server.

    Attributes:
        task_id: Its id.
        key: The key of its request, which the prompt names.
        fails: Whether it will fail. A failed task costs nothing.
        ends_at: When it ends, on the monotonic clock.
    """

    task_id: str
    key: str
    fails: bool
    ends_at: float

    @property
    def state(self) -> str:
        """The state, in kie.ai's words."""
        if time.monotonic() < self.ends_at:
            return "generating"
        return "fail" if self.fails else "success"


@attrs.define(eq=False)
class CountingServer:
    """Makes tasks, and counts them by key.

    Attributes:
        folder: Where workers mark the keys that they are sending, as files `KEY.NUMBER.PID`.
        rng: Decides the fate of each request.
        tasks: Every task, by its id.
        fates: How many creates met each fate.
        twice: A description of each task that was made although the key had a task that had not failed.
        calm: Whether every request is answered at once and every task succeeds.
        url: The address.
    """

    folder: Path
    rng: random.Random
    tasks: dict[str, Task] = attrs.field(factory=dict)
    fates: Counter[str] = attrs.field(factory=Counter)
    twice: list[str] = attrs.field(factory=list)
    calm: bool = False
    url: str = ""
    _in_progress: Counter[str] = attrs.field(factory=Counter)
    _by_key: dict[str, list[Task]] = attrs.field(factory=lambda: defaultdict(list))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[CountingServer, None]:
        """Listen on a free port of loopback."""
        app = web.Application()
        app.router.add_post("/api/v1/jobs/createTask", self._create)
        app.router.add_get("/api/v1/jobs/recordInfo", self._record)
        app.router.add_get("/truth/{key}", self._truth)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def tasks_of(self, key: str) -> list[Task]:
        """Return the tasks of a key, oldest first."""
        return self._by_key[key]

    async def is_certain(self, key: str) -> bool:
        """Return whether no create of this key is on its way: not here, and in no living process."""
        for _ in range(CONFIRMATIONS):
            if self._in_progress[key] or any(_is_alive(path) for path in self.folder.glob(f"{key}.*")):
                return False
            await asyncio.sleep(0.01)
        return True

    async def _create(self, request: web.Request) -> web.StreamResponse:
        key = str((await request.json())["input"]["character_prompt"])
        self._in_progress[key] += 1
        try:
            return await self._meet_fate(request, key)
        finally:
            self._in_progress[key] -= 1

    async def _meet_fate(self, request: web.Request, key: str) -> web.StreamResponse:
        fate = "answered" if self.calm else self.rng.choices([*FATES], [*FATES.values()])[0]
        self.fates[fate] += 1
        match fate:
            case "closed, nothing made":
                return _closed(request)
            case "code 500, nothing made" | "code 422" | "code 429":
                return _envelope(int(fate[5:8]), "the request was not carried out")
            case "made late":
                await asyncio.sleep(self.rng.uniform(*LATE))
        task = self._make_task(key)
        match fate:
            case "answer lost":
                return _closed(request)
            case "code 500, task made":
                return _envelope(500, "the answer of another server did not arrive")
            case "answered late":
                await asyncio.sleep(self.rng.uniform(*LATE))
        return _envelope(200, "success", {"taskId": task.task_id})

    def _make_task(self, key: str) -> Task:
        earlier = [task for task in self._by_key[key] if task.state != "fail"]
        ends_at = time.monotonic() + self.rng.uniform(*DURATIONS)
        fails = not self.calm and self.rng.random() < FAILURE_RATE
        task = Task(uuid.uuid4().hex, key, fails, ends_at)
        if earlier:
            self.twice.append(f"{time.time():.3f} {key}: {task.task_id} after {[one.task_id for one in earlier]}")
        self.tasks[task.task_id] = task
        self._by_key[key].append(task)
        return task

    async def _record(self, request: web.Request) -> web.StreamResponse:
        task = self.tasks.get(request.query["taskId"])
        if task is None:
            return _envelope(422, "recordInfo is null")
        failed = task.state == "fail"
        record = {
            "taskId": task.task_id,
            "model": "sora-2-characters",
            "state": task.state,
            "resultJson": json.dumps({"character_id": f"ch_{task.task_id}"}) if task.state == "success" else "",
            "failCode": "501" if failed else None,
            "failMsg": "generation failed" if failed else None,
        }
        return _envelope(200, "success", record)

    async def _truth(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        certain = await self.is_certain(key)
        return web.json_response({"certain": certain, "tasks": [task.task_id for task in self.tasks_of(key)]})


def _is_alive(marker: Path) -> bool:
    """Return whether the process that wrote a marker may still send. A stopped process may."""
    try:
        state = Path(f"/proc/{marker.name.rpartition('.')[2]}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def _envelope(code: int, message: str, data: object = None) -> web.Response:
    return web.json_response({"code": code, "msg": message, "data": data})


def _closed(request: web.Request) -> web.Response:
    """Close the connection without a response; aiohttp requires one that it cannot send."""
    if request.transport:
        request.transport.close()
    return web.Response()
