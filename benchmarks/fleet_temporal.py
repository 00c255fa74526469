"""A fleet of workers on a Temporal server: what is paid twice or lost when a worker is killed (part G).

Two worker processes share a PostgreSQL ledger, and a strict server counts. The program `temporal` must be installed.
Usage: python benchmarks/fleet_temporal.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from fleet import server, states, stats
from limits import database
from temporalio.client import Client
from temporalio.worker import Worker

from sora_chars import CharacterSession, Kie, Limits
from sora_chars.contrib.temporal import CharacterActivities, CharacterWorkflow

WORKERS = 2
QUEUE = "characters"
SCALE = 10


def make_session(config: dict[str, Any]) -> CharacterSession:
    """Return a session on the fleet's ledger."""
    limits = Limits(creates=(20 * SCALE, 10), polls=(10 * SCALE, 1))
    return CharacterSession(Kie("fleet-key", base_url=config["url"], limits=limits), ledger=config["database"])


async def work(config: dict[str, Any]) -> None:
    """Serve the workflow and its activity until the process is killed."""
    client = await Client.connect(config["temporal"])
    async with make_session(config) as session:
        activities = CharacterActivities(session)
        async with Worker(client, task_queue=QUEUE, workflows=[CharacterWorkflow], activities=[activities.advance]):
            await asyncio.Event().wait()


async def connected(address: str) -> Client:
    """Return a client of the Temporal server, once it has started."""
    while True:
        try:
            return await Client.connect(address)
        except RuntimeError:
            await asyncio.sleep(0.1)


async def run(url: str, *, keys: int) -> dict[str, Any]:
    """Run the workflows of `keys` requests, kill one worker when a third was sent, and return what was counted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with AsyncExitStack() as stack:
        config: dict[str, Any] = {"database": url, "temporal": f"127.0.0.1:{port}"}
        config["url"] = await stack.enter_async_context(server(scale=SCALE))
        arguments = ("server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port))
        engine = await asyncio.create_subprocess_exec(
            str(shutil.which("temporal")), *arguments, "--log-level", "never", stdout=asyncio.subprocess.DEVNULL
        )
        stack.push_async_callback(engine.wait)
        stack.callback(engine.terminate)

        async def add_worker() -> asyncio.subprocess.Process:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "worker", env=os.environ | {"FLEET": json.dumps(config)}
            )
            stack.callback(lambda: worker.returncode is not None or worker.kill())
            return worker

        client = await connected(config["temporal"])
        workers = [await add_worker() for _ in range(WORKERS)]
        async with make_session(config) as session:
            began = time.monotonic()
            handles = []
            for number in range(keys):
                prompt = key = f"key-{number}"
                await session.register(from_task="a" * 32, clip="1,3", prompt=prompt, key=key)
                handles.append(
                    await client.start_workflow(CharacterWorkflow.run, key, id=f"character-{key}", task_queue=QUEUE)
                )
            while (await stats(config["url"]))["tasks"] < keys / 3:  # noqa: ASYNC110 # of another process
                await asyncio.sleep(0.05)
            workers[0].kill()
            await add_worker()
            results = [await handle.result() for handle in handles]
            wall = time.monotonic() - began
        counted = await stats(config["url"])
        ends = [result["state"] for result in results]
        row = {"keys": keys, "kills": 1, "wall_s": wall, "lost": keys - sum((await states(url)).values())}
        row |= {state: ends.count(state) for state in ("succeeded", "unknown")}
        row |= {name: counted[name] for name in ("twice", "refused", "polls", "detection_mean_s")}
        return row


def figures(*, quick: bool) -> list[dict[str, Any]]:
    """Run it, for `benchmarks/run.py`."""
    if shutil.which("temporal") is None:
        print("  the program `temporal` is not installed")
        return []
    with database() as url:
        if not isinstance(url, str):
            print(f"  {url}")
            return []
        return [asyncio.run(run(url, keys=30 if quick else 150))]


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        asyncio.run(work(json.loads(os.environ["FLEET"])))
    else:
        print(json.dumps(figures(quick="--quick" in sys.argv), indent=1))
