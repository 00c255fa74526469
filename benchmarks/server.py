"""The one fake server of the benchmarks, in a process of its own: kie.ai's job API and the protocols of five peers.

Cheap on purpose, so that it is never what is measured: answers are made when a task is made. It keeps the truth:
creates, GETs of each task, how long after its end a task was first seen, 429s, connections. kie.ai's answers are those
of `sora_chars.testing.Emulator`, byte for byte.
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
    """How the server behaves. Times are seconds.

    `durations`: least and most that a task takes. `lose`: how many answers of creates are lost, the first ones; their
    tasks are made all the same. `outage`: how long after the first create every GET is answered with HTTP 503.
    `strict`: creates in seconds, as a sliding window beyond which they are refused.
    """

    durations: tuple[float, float] = (5.0, 20.0)
    seed: int = 1
    lose: int = 0
    outage: float = 0.0
    strict: tuple[int, float] | None = None


@attrs.define(eq=False)
class Task:
    """A task. Times are those of `time.monotonic`."""

    done_at: float
    texts: dialects.Texts
    polls: int = 0
    seen_at: float | None = None


@attrs.define(eq=False)
class Fake:
    """Makes tasks, answers GETs, and counts."""

    plan: Plan
    url: str = ""
    tasks: dict[str, Task] = attrs.field(factory=dict[str, Task])
    refused: int = 0
    outages: int = 0
    last_create: float = 0.0  # epoch seconds
    gets: int = 0
    gets_when_created: int = 0
    connections: int = 0
    most_connections: int = 0
    _chance: random.Random = attrs.field(init=False)
    _first: float | None = None
    _admitted: deque[float] = attrs.field(factory=deque)

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.plan.seed)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request."""
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
            self.refused += 1
            return web.Response(
                status=dialect.rejection_status, body=dialects.REJECTION, content_type="application/json"
            )
        task_id = f"{self._chance.getrandbits(128):032x}"
        seconds = self._chance.uniform(*self.plan.durations)
        texts = dialect.respond(dialects.Facts(self.url, task_id, round(time.time() * 1000), seconds))
        self.tasks[task_id] = Task(now + seconds, texts)
        self.last_create, self.gets_when_created = time.time(), self.gets
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
        if now < task.done_at:
            body = task.texts.running
        else:
            body = task.texts.result if task.texts.result and not path.endswith("/status") else task.texts.done
            if task.seen_at is None:
                task.seen_at = now
        return web.Response(body=body, headers={"Content-Type": task.texts.content_type})

    def counts(self) -> dict[str, Any]:
        """The truth so far."""
        waits = sorted(task.seen_at - task.done_at for task in self.tasks.values() if task.seen_at is not None)
        return {
            "creates": len(self.tasks),
            "gets": self.gets,
            "gets_after_creates": self.gets - self.gets_when_created,
            "last_create": self.last_create,
            "most_gets_of_a_task": max((task.polls for task in self.tasks.values()), default=0),
            "seen": len(waits),
            "detection_mean_s": sum(waits) / len(waits) if waits else None,
            "detection_p99_s": waits[(len(waits) - 1) * 99 // 100] if waits else None,
            "refused_429": self.refused,
            "answers_503": self.outages,
            "sockets": self.most_connections,
        }


class Counted(web.Server):
    """Counts connections."""

    def __init__(self, fake: Fake) -> None:
        super().__init__(fake.answer)
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
    """Serve until whoever started this process closes its standard input, or ends."""
    fake = Fake(plan)
    runner = web.ServerRunner(Counted(fake))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    print(fake.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)


@attrs.frozen
class Server:
    """A running server, as who started it sees it."""

    url: str

    def counts(self) -> dict[str, Any]:
        """What it counted so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/counts", timeout=60) as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts


@contextmanager
def serving(**plan: Any) -> Iterator[Server]:
    """Run the server with this plan in a process of its own."""
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
