"""What waiting for many tasks costs: this package beside a loop written by hand, against one emulator.

The emulator runs in a process of its own. Both wait for the same number of tasks of 3 to 8 s and look once a second.
Printed: wall and CPU seconds, CPU per poll, the worst event-loop lag (a 50 ms ticker), and how long after its end a
task was seen. Only the ratios mean anything on a shared machine. Usage: python benchmarks/waiting.py [TASKS]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from sora_chars import CharacterSession, FixedPace, Kie, TaskRequest
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

KEY = "benchmark-key-of-no-account"
BODY: dict[str, Any] = {"model": "wan/2-7-image", "input": {"prompt": "A lighthouse"}}


def serve(pipe: Connection) -> None:
    """Run the emulator until anything comes through the pipe; then send what it counted."""

    async def main() -> None:
        async with Emulator(durations=(3.0, 8.0)) as emulator:
            pipe.send(emulator.url)
            while not pipe.poll():  # noqa: ASYNC110 # a pipe has no event to wait for
                await asyncio.sleep(0.1)
            pipe.send(emulator.counts.snapshot())

    asyncio.run(main())


async def by_hand(url: str, tasks: int) -> None:
    """Wait with one asyncio task a task and nothing else: no limits, no faults, no time-outs."""

    async def one(http: aiohttp.ClientSession) -> None:
        async with http.post(f"{url}/api/v1/jobs/createTask", json=BODY) as response:
            task_id = (await response.json())["data"]["taskId"]
        while True:
            await asyncio.sleep(1)
            async with http.get(f"{url}/api/v1/jobs/recordInfo", params={"taskId": task_id}) as response:
                data = (await response.json())["data"]
            if data["state"] in {"success", "fail"}:
                json.loads(data["resultJson"])
                return

    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100), headers=headers) as http:
        await asyncio.gather(*(one(http) for _ in range(tasks)))


async def by_session(url: str, tasks: int) -> None:
    """Wait with a `CharacterSession`, as a user would; the limits are off since the other side has none."""
    request = TaskRequest(**BODY)
    async with CharacterSession(Kie(KEY, base_url=url, limits=None), pace=FixedPace(1)) as session:
        await asyncio.gather(*(session.create(request) for _ in range(tasks)))


async def worst_lag(work: Awaitable[None]) -> float:
    """Await the work, and return by how many seconds a 50 ms ticker was late at worst."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.05)
            worst = max(worst, time.perf_counter() - began - 0.05)

    ticker = asyncio.create_task(tick())
    await work
    ticker.cancel()
    return worst


def measure(work: Callable[[str, int], Awaitable[None]], tasks: int) -> dict[str, float]:
    """Run one side against a fresh emulator."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    url = ours.recv()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    lag = asyncio.run(worst_lag(work(url, tasks)))
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    ours.send("stop")
    counts = ours.recv()
    server.join()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "cpu_us_per_poll": cpu / counts["polls"] * 1e6,
        "worst_lag_ms": lag * 1000,
        "polls_per_task": counts["polls"] / tasks,
        "mean_detection_s": counts["detection"]["mean"],
    }


def main() -> None:
    """Measure both and print a table."""
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    hand, session = measure(by_hand, tasks), measure(by_session, tasks)
    print(f"{tasks} tasks of 3 to 8 s, one look a second{'by hand':>16}{'session':>12}{'ratio':>8}")
    for figure, value in hand.items():
        print(f"{figure:>40}{value:>20.2f}{session[figure]:>12.2f}{session[figure] / value:>8.2f}")


if __name__ == "__main__":
    main()
