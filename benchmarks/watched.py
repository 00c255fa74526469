"""Part A, at scale: 20,000 and 100,000 waiting tasks in one process, with responses from memory instead of a network.

`python watched.py TASKS SECONDS` measures one size and prints one line of JSON. It submits TASKS tasks through a
session with a ledger on disk, watches them for SECONDS with a poll of each every 20 s, awaits each in its own asyncio
task, and closes the session.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialects import Facts, kie
from measure import Meter, cpu_seconds, memory_bytes

from sora_chars import CharacterSession, FixedInterval, Provider, TaskHandle, TaskRequest, TaskSnapshot
from sora_chars.providers.kie_codec import read_record
from sora_chars.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request

SIZES = (20_000, 100_000)
SECONDS = 40.0  # two polls of each task
POLL_INTERVAL = 20.0  # seconds
AT_ONCE = 1000
QUICK_SIZE, QUICK_SECONDS = 2000, 2.0


class Stub(Provider):
    """A provider without a network: kie.ai's responses, read by the package's codec. Its tasks never end."""

    name = "stub"
    _polls = 0

    def __init__(self) -> None:
        self._answers = ("0" * 32, kie(Facts("http://localhost", "0" * 32, round(time.time() * 1000), 10.0)).running)

    @property
    def polls(self) -> int:
        """The number of polls so far."""
        return self._polls

    def check(self, _request: Request) -> list[str]:
        """See `Provider.check`."""
        return []

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`."""
        del key, callback_url
        async with on_send():
            return TaskSnapshot(task_id=f"{int(str(request.key)):032x}", provider=self.name, state="waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`."""
        return self._poll(task_id, None)

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`."""
        return self._poll(seen.task_id, seen)

    def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        self._polls += 1
        blank, body = self._answers
        answer = Response(200, {}, body.replace(blank.encode(), task_id.encode()))
        return read_record(answer, task_id=task_id, provider=self.name, seen=seen)


async def watch(tasks: int, seconds: float) -> dict[str, Any]:
    """Submit, watch, await and close. Return the bytes and seconds that each step takes."""
    stub = Stub()
    figures: dict[str, Any] = {"tasks": tasks}
    with tempfile.TemporaryDirectory() as folder:
        session = CharacterSession(stub, ledger=Path(folder) / "characters.db", polling=FixedInterval(POLL_INTERVAL))
        await session.open()
        handles = await submit(session, 0, 100)  # what is allocated once does not count
        memory = settled()
        cpu = cpu_seconds()
        began = time.perf_counter()
        handles += await submit(session, 100, tasks)
        figures["submit_s"] = time.perf_counter() - began
        figures["submit_cpu_s"] = cpu_seconds() - cpu
        figures["bytes_a_task_before_a_look"] = (settled() - memory) / (tasks - 100)
        figures |= await watched(stub, seconds)
        figures["bytes_a_task"] = (settled() - memory) / (tasks - 100)
        memory = settled()
        awaiters = [asyncio.create_task(handle.result()) for handle in handles]
        await asyncio.sleep(0)
        figures["bytes_an_awaiter"] = (settled() - memory) / tasks
        began = time.perf_counter()
        await session.aclose()
        await asyncio.wait(awaiters)
        figures["close_s"] = time.perf_counter() - began
        figures["told"] = sum(type(awaiter.exception()).__name__ == "WatcherStoppedError" for awaiter in awaiters)
    return figures


async def submit(session: CharacterSession, first: int, last: int) -> list[TaskHandle[TaskSnapshot]]:
    """Submit the tasks from number `first` up to `last`, 1000 at a time."""
    handles: list[TaskHandle[TaskSnapshot]] = []
    for begin in range(first, last, AT_ONCE):
        requests = [
            TaskRequest(model="wan/2-7-image", input={"prompt": "A lighthouse"}, key=f"{number}")
            for number in range(begin, min(begin + AT_ONCE, last))
        ]
        handles += await asyncio.gather(*(session.submit(request) for request in requests))
    return handles


async def watched(stub: Stub, seconds: float) -> dict[str, float]:
    """Measure the watcher for `seconds`."""
    meter = Meter()
    before = stub.polls
    meter.start()
    await asyncio.sleep(seconds)
    read = meter.read()
    meter.stop()
    polls = stub.polls - before
    lags = {name: read[name] for name in ("lag_p99_ms", "lag_max_ms")}
    return {**lags, "looks_a_second": polls / read["wall_s"], "cpu_a_look_us": read["cpu_s"] / max(polls, 1) * 1e6}


def settled() -> int:
    """Return the resident memory in bytes after a garbage collection."""
    gc.collect()
    return memory_bytes()


def figures(*, quick: bool) -> list[dict[str, Any]]:
    """Return one row for each size, each measured in a separate process."""
    rows = []
    for tasks in (QUICK_SIZE,) if quick else SIZES:
        command = [sys.executable, __file__, str(tasks), str(QUICK_SECONDS if quick else SECONDS)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
        rows.append(json.loads(done.stdout))
        print(f"  {tasks} watched:", {name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    return rows


if __name__ == "__main__":
    print(json.dumps(asyncio.run(watch(int(sys.argv[1]), float(sys.argv[2])))))
