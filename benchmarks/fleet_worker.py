"""The processes of the fleet: workers, a web process that takes callbacks, and `create_many` as the yardstick.

Usage: python benchmarks/fleet_worker.py worker|web|serve|create_many, with FLEET in the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from procrastinate import App, PsycopgConnector

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, Kie, Limits
from sora_chars.contrib.procrastinate import Characters

CONFIG: dict[str, Any] = json.loads(os.environ["FLEET"])
SCALE: int = CONFIG["scale"]
KEYS: int = CONFIG["keys"]


def make_session() -> CharacterSession:
    """Return a session on the fleet's ledger."""
    limits = Limits(creates=(20 * SCALE, 10), polls=(10 * SCALE, 1))
    provider = Kie("fleet-key", base_url=CONFIG["url"], limits=limits, callback_url=CONFIG.get("callback_url"))
    return CharacterSession(provider, ledger=CONFIG["database"])


def fields(number: int) -> dict[str, Any]:
    """Return the request of a key. The server knows the key by the prompt."""
    return {"from_task": "a" * 32, "clip": "1,3", "prompt": f"key-{number}", "key": f"key-{number}"}


app = App(connector=PsycopgConnector(conninfo=CONFIG["database"]))
characters = Characters(make_session)
app.add_tasks_from(characters.blueprint, namespace="sora_chars")


@app.task(name="own", queue="own")
async def own(number: int, deferred_at: float) -> None:
    """A job of the user's own: it notes how long it waited."""
    with Path(CONFIG["own_log"]).open("a") as log:  # noqa: ASYNC230 # one short line
        log.write(json.dumps({"number": number, "waited": time.time() - deferred_at}) + "\n")


async def create_many() -> None:
    """Create every key in this process, and print the CPU seconds and the wall time."""
    async with make_session() as session:
        wall = time.monotonic()
        cpu = time.process_time()
        outcomes = await session.create_all((fields(number) for number in range(KEYS)), concurrency=KEYS)
        cpu = time.process_time() - cpu
        wall = time.monotonic() - wall
    assert len(outcomes) == KEYS
    print(json.dumps({"cpu_s": cpu, "wall_s": wall}), flush=True)


async def receive() -> None:
    """Take callbacks until the process is killed."""
    async with app.open_async(), characters:
        receiver = CallbackReceiver(
            await characters.session(), on_event=characters.on_event, settle_only=True, max_events=KEYS
        )
        application = web.Application()
        application.add_subapp("/hooks", receiver.aiohttp_app())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", CONFIG["callback_port"]).start()
        print("ready", flush=True)
        await asyncio.Event().wait()


async def serve() -> None:
    """Be one of several web processes: create, await, and take the callbacks of another one's tasks.

    Prints "ready", waits for a line, and prints the time at which each key's awaiter resumed.
    """
    index, count = (int(text) for text in sys.argv[2:4])
    port: int = CONFIG["callback_port"]
    other = f"http://127.0.0.1:{port + (index + 1) % count}/hooks"
    provider = Kie("fleet-key", base_url=CONFIG["url"], limits=Limits(), callback_url=other)
    async with CharacterSession(provider, ledger=CONFIG["database"], polling=FixedInterval(1000)) as session:
        application = web.Application()
        application.add_subapp("/hooks", CallbackReceiver(session).aiohttp_app())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port + index).start()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        resumed: dict[str, float] = {}

        async def one(number: int) -> None:
            handle = await session.submit(**fields(number))
            others = [asyncio.create_task(session.wait(f"key-{number}")) for _ in range(3)]
            await handle
            resumed[f"key-{number}"] = time.time()
            await asyncio.gather(*others)

        await asyncio.gather(*(one(number) for number in range(index, KEYS, count)))
        print(json.dumps(resumed), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await runner.cleanup()


if __name__ == "__main__":
    match sys.argv[1]:
        case "worker":
            asyncio.run(characters.run_worker(app, concurrency=20, queues=["own"]))
        case "web":
            asyncio.run(receive())
        case "serve":
            asyncio.run(serve())
        case _:
            asyncio.run(create_many())
