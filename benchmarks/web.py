"""Part G, a web application: from a callback in one of its workers to the awaiters in the others.

Four workers of uvicorn serve one application on one ledger. Tasks are created in any of them.
Each worker has one awaiter of every task, either of its key (`wait`) or by the same request
(`create`). The emulator sends signed callbacks, which land in any worker. The tasks end within
30 seconds, before any process polls of its own accord, so each GET is caused by a callback or
an awaiter. `bare` is a request to a worker that does nothing, at the same time: how busy the
machine was.

Usage: python benchmarks/web.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from growth import make_database
from limits import database
from measure import at

from sora_chars import CharacterRequest, CharacterSession, FixedInterval, Kie
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

WORKERS = 4
TASKS, QUICK_TASKS = 100, 12
INTERVAL = 0.2  # seconds between the ends of two tasks
BUSY = 0.02  # seconds for which a worker is blocked, so that another one takes the next connection
DEADLINE = 300.0  # seconds for all awaiters of a run
HMAC_KEY = "benchmark-hmac-key"


# ---- The application, in each worker of uvicorn


def request_of(key: str) -> CharacterRequest:
    """Return the request of a key."""
    return CharacterRequest(from_task="7118f712" * 4, clip="1,3", prompt="A friendly dog", key=key)


class Application:
    """The ASGI application of a worker, with callbacks at `/hooks`."""

    def __init__(self, ledger: str, log: str, emulator: str, public_url: str) -> None:
        kie = Kie("benchmark-key-of-no-account", base_url=emulator, limits=None)
        self._session = CharacterSession(
            kie, ledger=ledger, polling=FixedInterval(3600), public_url=f"{public_url}/hooks"
        )
        self._log = log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or the lifespan of the server."""
        if scope["type"] == "lifespan":
            async with self._session:
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"].startswith("/hooks/"):
            line = f"{scope['path'].rpartition('/')[2]} {os.getpid()} {time.monotonic()}\n"
            await self._session.asgi(scope, receive, send)
            with open(self._log, "a") as file:  # noqa: ASYNC230, PTH123 # a line of a few bytes
                file.write(line)
        else:
            answer = await self._respond(scope["path"], await _body(receive))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _respond(self, path: str, keys: Sequence[str]) -> Any:
        match path:
            case "/create":
                return (await self._session.submit(request_of(keys[0]))).task_id
            case "/awaited":
                return len(self._session.ledger.notifier.keys)
            case "/follow/wait" | "/follow/create":
                return await asyncio.gather(*(self._follow(path, key) for key in keys))
            case _:
                time.sleep(BUSY)  # noqa: ASYNC251 # see there
                return os.getpid()

    async def _follow(self, path: str, key: str) -> float:
        if path == "/follow/wait":
            await self._session.wait(key, timeout=DEADLINE)
        else:
            await self._session.create(request_of(key), timeout=DEADLINE)
        return time.monotonic()


async def _body(receive: Any) -> Any:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return json.loads(body or b"[]")


if settings := os.environ.get("BENCHMARK_WEB"):
    app = Application(**json.loads(settings))


# ---- The run


@contextmanager
def uvicorn(listening: socket.socket, settings: Mapping[str, str]) -> Generator[None]:
    """Run the workers on a socket that listens."""
    options = ("--workers", str(WORKERS), "--fd", str(listening.fileno()), "--lifespan", "on")
    with subprocess.Popen(
        (sys.executable, "-m", "uvicorn", "web:app", *options, "--log-level", "error", "--no-access-log"),
        cwd=Path(__file__).parent,
        env=os.environ | {"BENCHMARK_WEB": json.dumps(settings), "KIE_WEBHOOK_HMAC_KEY": HMAC_KEY},
        pass_fds=[listening.fileno()],
    ) as process:
        try:
            yield
        finally:
            process.terminate()


async def connect(stack: AsyncExitStack, url: str) -> dict[int, aiohttp.ClientSession]:
    """Return a client with a connection to each worker, by its process id."""
    clients: dict[int, aiohttp.ClientSession] = {}
    while len(clients) < WORKERS:
        opened = [
            await stack.enter_async_context(
                aiohttp.ClientSession(
                    url,
                    connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=DEADLINE),
                    timeout=aiohttp.ClientTimeout(total=DEADLINE),
                )
            )
            for _ in range(WORKERS * 2)
        ]
        for process, client in zip(await asyncio.gather(*(ask(one, "/worker") for one in opened)), opened, strict=True):
            clients.setdefault(process, client)
    return clients


async def ask(client: aiohttp.ClientSession, path: str, keys: Sequence[str] = ()) -> Any:
    """Return the answer of a worker."""
    async with client.post(path, json=keys) as response:
        return json.loads(await response.read())


async def measure(ledger: str, folder: Path, awaiter: str, tasks: int) -> dict[str, Any]:
    """Measure one ledger with one kind of awaiters."""
    log = folder / "callbacks"
    log.touch()
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(3600, 3600), hmac_key=HMAC_KEY))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = {"ledger": ledger, "log": str(log), "emulator": emulator.url, "public_url": url}
        stack.enter_context(uvicorn(listening, settings))
        clients = await connect(stack, url)
        keys = [f"order-{number}" for number in range(tasks)]
        creators = [clients[process] for process in sorted(clients)]
        created = [await ask(creators[number % WORKERS], "/create", [key]) for number, key in enumerate(keys)]
        follows = {
            process: asyncio.create_task(ask(client, f"/follow/{awaiter}", keys)) for process, client in clients.items()
        }
        others = list((await connect(stack, url)).values())
        for client in others:
            while await ask(client, "/awaited") < tasks:  # noqa: ASYNC110 # awaiters of another process
                await asyncio.sleep(0.1)
        bare: list[float] = []
        for number, task_id in enumerate(created):
            await asyncio.sleep(INTERVAL)
            began = time.monotonic()
            await ask(others[number % WORKERS], "/awaited")
            bare.append(time.monotonic() - began)
            emulator.finish(task_id)
        resumed = {process: await follow for process, follow in follows.items()}
        await emulator.until(lambda: len(log.read_text().splitlines()) == tasks)
        ended = [emulator.tasks[task_id] for task_id in created]
    received = {token: (int(process), float(when)) for token, process, when in map(str.split, log.open())}
    landed = [received[str(task.callback_url).rpartition("/")[2]] for task in ended]
    delays = [
        times[number] - when
        for process, times in resumed.items()
        for number, (receiver, when) in enumerate(landed)
        if process != receiver
    ]
    shares = [[process for process, _ in landed].count(process) for process in resumed]
    return {
        "tasks": tasks,
        "awaiters": len(delays),
        "callbacks per worker": "/".join(map(str, sorted(shares))),
        "p50, ms": at(0.5, delays) * 1000,
        "p95, ms": at(0.95, delays) * 1000,
        "max, ms": max(delays) * 1000,
        "bare p50, ms": at(0.5, bare) * 1000,
        "bare p95, ms": at(0.95, bare) * 1000,
        "GETs per task": sum(task.polls for task in ended) / tasks,
        "most GETs of a task": max(task.polls for task in ended),
        "creates": emulator.counts.creates,
    }


def figures(*, quick: bool) -> list[dict[str, Any]]:
    """Measure each ledger with each kind of awaiters; a delay is that of an awaiter outside the callback's worker."""
    measured: list[dict[str, Any]] = []
    with database() as server:
        for kind in ("postgresql", "sqlite"):
            for awaiter in ("wait", "create"):
                if kind == "postgresql" and not isinstance(server, str):
                    print(f"  {kind}: {server}")
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    ledger = f"sqlite:///{folder}/characters.db"
                    if kind == "postgresql":
                        ledger = make_database(str(server), f"web_{awaiter}")
                    tasks = QUICK_TASKS if quick else TASKS
                    row = asyncio.run(measure(ledger, Path(folder), awaiter, tasks))
                measured.append({"ledger": kind, "awaiter": awaiter, **row})
                print(
                    "  "
                    + ", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured[-1].items())
                )
    return measured


if __name__ == "__main__":
    figures(quick="--quick" in sys.argv[1:])
