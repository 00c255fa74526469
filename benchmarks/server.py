"""The fake server of the benchmarks: kie.ai's job API and the protocols of five peers.

It runs in a separate process. It makes the responses of a task when the task is created,
which keeps it cheap compared with what is measured. It counts creates, GETs of each task,
detection delays, 429s and connections. Its responses for kie.ai are byte for byte those
of `sora_chars.testing.Emulator`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import dialects
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK_ID = re.compile("[0-9a-f]{32}")


@attrs.frozen(kw_only=True)
class Plan:
    """How the server behaves. Times are in seconds.

    Attributes:
        durations: The bounds of a task's duration.
        seed: Seeds the ids and the durations.
        lose: For how many creates the response is lost although the task is created.
        outage: How long after the first create every GET gets HTTP 503.
        strict: The limit of creates and its sliding window; more are rejected.
    """

    durations: tuple[float, float] = (5.0, 20.0)
    seed: int = 1
    lose: int = 0
    outage: float = 0.0
    strict: tuple[int, float] | None = None


@attrs.define(eq=False)
class Task:
    """A task. Times are those of `time.monotonic`."""

    ends_at: float
    texts: dialects.Texts
    polls: int = 0
    detected_at: float | None = None


@attrs.define(eq=False)
class FakeProvider:
    """Creates tasks, responds to polls, and counts."""

    plan: Plan
    url: str = ""
    tasks: dict[str, Task] = attrs.field(factory=dict)
    rejected: int = 0
    outages: int = 0
    last_create: float = 0.0  # Unix seconds
    gets: int = 0
    gets_when_created: int = 0
    connections: int = 0
    most_connections: int = 0
    _rng: random.Random = attrs.field(init=False)
    _first: float | None = None
    _admitted: deque[float] = attrs.field(factory=deque)

    def __attrs_post_init__(self) -> None:
        self._rng = random.Random(self.plan.seed)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Respond to any request."""
        path = request.path
        if path == "/counts":
            return web.json_response(self.counts())
        self.most_connections = max(self.most_connections, self.connections)
        if request.method == "POST" and path in dialects.DIALECTS:
            await request.read()
            return self._create(request, dialects.DIALECTS[path])
        if request.method == "GET" and (match := TASK_ID.search(request.path_qs)) and match[0] in self.tasks:
            return self._poll(self.tasks[match[0]], path)
        return web.Response(status=404, text=f"{request.method} {request.path_qs}")

    def _create(self, request: web.BaseRequest, dialect: dialects.Dialect) -> web.Response:
        now = time.monotonic()
        self._first = self._first or now
        if not self._admits(now):
            self.rejected += 1
            return web.Response(
                status=dialect.rejection_status, body=dialects.REJECTION, content_type="application/json"
            )
        task_id = f"{self._rng.getrandbits(128):032x}"
        seconds = self._rng.uniform(*self.plan.durations)
        texts = dialect.respond(dialects.Facts(self.url, task_id, round(time.time() * 1000), seconds))
        self.tasks[task_id] = Task(now + seconds, texts)
        self.last_create = time.time()
        self.gets_when_created = self.gets
        if len(self.tasks) <= self.plan.lose and request.transport:
            request.transport.close()
        headers = {"Content-Type": dialect.content_type, **texts.headers}
        return web.Response(status=dialect.created_status, body=texts.created, headers=headers)

    def _admits(self, now: float) -> bool:
        if self.plan.strict is None:
            return True
        count, seconds = self.plan.strict
        while self._admitted and self._admitted[0] <= now - seconds:
            self._admitted.popleft()
        if len(self._admitted) >= count:
            return False
        self._admitted.append(now)
        return True

    def _poll(self, task: Task, path: str) -> web.Response:
        now = time.monotonic()
        task.polls += 1
        self.gets += 1
        if self._first is not None and now < self._first + self.plan.outage:
            self.outages += 1
            return web.Response(status=503, body=dialects.OUTAGE, content_type="application/json")
        if now < task.ends_at:
            body = task.texts.running
        else:
            body = task.texts.result if task.texts.result and not path.endswith("/status") else task.texts.done
            if task.detected_at is None:
                task.detected_at = now
        return web.Response(body=body, headers={"Content-Type": task.texts.content_type})

    def counts(self) -> dict[str, Any]:
        """Return the counts so far."""
        delays = sorted(task.detected_at - task.ends_at for task in self.tasks.values() if task.detected_at is not None)
        return {
            "creates": len(self.tasks),
            "gets": self.gets,
            "gets_after_creates": self.gets - self.gets_when_created,
            "last_create": self.last_create,
            "most_gets_of_a_task": max((task.polls for task in self.tasks.values()), default=0),
            "seen": len(delays),
            "detection_mean_s": sum(delays) / len(delays) if delays else None,
            "detection_p99_s": delays[(len(delays) - 1) * 99 // 100] if delays else None,
            "refused_429": self.rejected,
            "answers_503": self.outages,
            "sockets": self.most_connections,
        }


class CountingServer(web.Server):
    """Counts the open connections."""

    def __init__(self, fake: FakeProvider) -> None:
        super().__init__(fake.respond)
        self._fake = fake

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """See aiohttp."""
        super().connection_made(handler, transport)
        self._fake.connections += 1

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """See aiohttp."""
        super().connection_lost(handler, exc)
        self._fake.connections -= 1


async def serve(plan: Plan) -> None:
    """Serve until the standard input of this process is closed."""
    fake = FakeProvider(plan)
    runner = web.ServerRunner(CountingServer(fake))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    print(fake.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)


@attrs.frozen
class Server:
    """A running server, on the side of the process that started it."""

    url: str

    def counts(self) -> dict[str, Any]:
        """Return what the server has counted so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/counts", timeout=60) as response:
            counts: dict[str, Any] = json.load(response)
        return counts


@contextmanager
def serving(**plan: Any) -> Iterator[Server]:
    """Run the server with this plan in a separate process."""
    command = [sys.executable, str(Path(__file__)), json.dumps(plan)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        yield Server(process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(serve(Plan(**json.loads(sys.argv[1]))))
