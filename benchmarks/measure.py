"""What a piece of work costs the process that does it: CPU, memory, how late its event loop is.

As a program it is one run of one peer, in a process of its own: `python measure.py PEER TASKS URL DEADLINE` makes the
tasks, waits for all and prints one line of JSON, at the deadline (seconds) whatever is finished then.
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

TICK = 0.05  # seconds


def cpu_seconds() -> float:
    """CPU of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes(*, peak: bool = False) -> int:
    """Resident memory of this process now, or its peak since `forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux: there is only a peak
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    match = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def at(share: float, values: list[float]) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[round((len(ordered) - 1) * share)] if ordered else 0.0


@attrs.define(eq=False)
class Meter:
    """Start it inside the event loop; `read` gives what was used since then, from any thread."""

    lags: list[float] = attrs.field(factory=list[float])
    used: list[tuple[float, float]] = attrs.field(factory=list["tuple[float, float]"])  # epoch seconds, CPU seconds
    _began: float = 0.0
    _cpu: float = 0.0
    _memory: int = 0
    _tick_began: float = 0.0
    _ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        forget_peak()
        self._ticker = asyncio.create_task(self._tick())
        self._tick_began = time.perf_counter()
        self._began, self._cpu, self._memory = time.perf_counter(), cpu_seconds(), memory_bytes()

    async def _tick(self) -> None:
        while True:
            self._tick_began = time.perf_counter()
            await asyncio.sleep(TICK)
            self.lags.append(time.perf_counter() - self._tick_began - TICK)
            self.used.append((time.time(), cpu_seconds()))

    def read(self) -> dict[str, float]:
        """What was used so far."""
        lags = [*self.lags, max(0.0, time.perf_counter() - self._tick_began - TICK)]  # a loop may stand still now
        return {
            "wall_s": time.perf_counter() - self._began,
            "cpu_s": cpu_seconds() - self._cpu,
            "memory_mb": max(0, memory_bytes(peak=True) - self._memory) / 2**20,
            "lag_p99_ms": at(0.99, lags) * 1000,
            "lag_max_ms": max(lags) * 1000,
        }

    def stop(self) -> None:
        """End the ticker."""
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
    errors: Counter[str] = attrs.field(factory=Counter[str])

    async def go(self) -> None:
        """Make all tasks at once, wait for all, report."""
        from peers import PEERS, Batch  # noqa: PLC0415 # the first import of anything big is not measured

        async with PEERS[self.peer](self.url) as one:
            # A thread, since the loop may be too busy to hear a timer.
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
        """Print the line and end at once, whatever goes on."""
        failed = sum(self.errors.values())
        facts = {"finished": self.finished, "failed": failed, "open": self.tasks - self.finished - failed}
        print(json.dumps({**facts, "errors": dict(self.errors), **self.meter.read(), "used": self.meter.used}))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    name, count, address, seconds = sys.argv[1:]
    asyncio.run(Run(name, int(count), address, float(seconds)).go())
