"""Measures the CPU time, the memory and the event-loop lag of this process.

As a program it is one run of one peer: `python measure.py PEER TASKS URL DEADLINE` creates
the tasks, waits for all of them and prints one line of JSON, at the latest after DEADLINE
seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

TICK_SECONDS = 0.05


def cpu_seconds() -> float:
    """Return the CPU time of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes(*, peak: bool = False) -> int:
    """Return the resident memory of this process, or its peak since `reset_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # outside Linux only the peak is available
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    match = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def reset_peak() -> None:
    """Reset the memory peak, if the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def at(share: float, values: list[float]) -> float:
    """Return the quantile `share` of the values."""
    ordered = sorted(values)
    return ordered[round((len(ordered) - 1) * share)] if ordered else 0.0


@attrs.define(eq=False)
class Meter:
    """Measures from `start`, inside the event loop; `read` works from any thread."""

    lags: list[float] = attrs.field(factory=list)
    used: list[tuple[float, float]] = attrs.field(factory=list)  # Unix seconds, CPU seconds
    _started: float = 0.0
    _cpu: float = 0.0
    _memory: int = 0
    _tick_started: float = 0.0
    _ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to measure."""
        reset_peak()
        self._ticker = asyncio.create_task(self._tick())
        self._tick_started = time.perf_counter()
        self._started = time.perf_counter()
        self._cpu = cpu_seconds()
        self._memory = memory_bytes()

    async def _tick(self) -> None:
        while True:
            self._tick_started = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.lags.append(time.perf_counter() - self._tick_started - TICK_SECONDS)
            self.used.append((time.time(), cpu_seconds()))

    def read(self) -> dict[str, float]:
        """Return what was used so far."""
        lags = [
            *self.lags,
            max(0.0, time.perf_counter() - self._tick_started - TICK_SECONDS),
        ]  # the loop may be blocked now
        return {
            "wall_s": time.perf_counter() - self._started,
            "cpu_s": cpu_seconds() - self._cpu,
            "memory_mb": max(0, memory_bytes(peak=True) - self._memory) / 2**20,
            "lag_p99_ms": at(0.99, lags) * 1000,
            "lag_max_ms": max(lags) * 1000,
        }

    def stop(self) -> None:
        """Stop the ticker."""
        if self._ticker:
            self._ticker.cancel()


@attrs.define(eq=False)
class Run:
    """One run of one peer."""

    peer: str
    tasks: int
    url: str
    deadline: float
    meter: Meter = attrs.field(factory=Meter)
    finished: int = 0
    errors: Counter[str] = attrs.field(factory=Counter)

    async def go(self) -> None:
        """Create all tasks at once, wait for all of them, and report."""
        from peers import PEERS, Batch  # noqa: PLC0415 # imports are not measured

        async with PEERS[self.peer](self.url) as one:
            # In a thread, because the event loop may be too busy to run a timer.
            threading.Timer(self.deadline, self.report).start()
            self.meter.start()
            if isinstance(one, Batch):
                async for error in one.many(self.tasks):
                    self._note(error)
            else:
                await asyncio.gather(*(self._wait_for(one(number)) for number in range(self.tasks)))
            self.report()

    async def _wait_for(self, end: Any) -> None:
        try:
            await end
        except Exception as error:  # noqa: BLE001 # whatever a peer raises
            self._note(error)
        else:
            self._note(None)

    def _note(self, error: Exception | None) -> None:
        if error is None:
            self.finished += 1
        else:
            self.errors[type(error).__name__] += 1

    def report(self) -> None:
        """Print the line of JSON and exit at once."""
        failed = sum(self.errors.values())
        counts = {"finished": self.finished, "failed": failed, "open": self.tasks - self.finished - failed}
        print(json.dumps({**counts, "errors": dict(self.errors), **self.meter.read(), "used": self.meter.used}))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    peer, tasks, url, deadline = sys.argv[1:]
    asyncio.run(Run(peer, int(tasks), url, float(deadline)).go())
