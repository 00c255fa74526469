"""Part E: what it costs to have the package around: its import, and what is there before the first use."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

OURS, THEIRS = "import sora_chars", "import aiohttp, attrs, cattrs, backoff"
TURNS, QUICK_TURNS = 61, 3

TIMED = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""

LOOK = """
import asyncio, json, os, sys, threading
def count():
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    sockets = sum(os.readlink(link).startswith("socket:") for link in links if os.path.islink(link))
    try:
        tasks = len(asyncio.all_tasks()) - 1
    except RuntimeError:
        tasks = 0
    return {"threads": threading.active_count() - 1, "tasks": tasks, "sockets": sockets}
base = count()["sockets"]
def seen():
    now = count()
    return {**now, "sockets": now["sockets"] - base}
import sora_chars
steps = {"imported": seen()}
session = sora_chars.CharacterSession(sora_chars.Kie("benchmark-key-of-no-account"), ledger=sys.argv[1])
steps["session made"] = seen()
async def main():
    loop_sockets = count()["sockets"] - base  # the loop's own pair, which wakes it
    async with session:
        opened = seen()
        steps["session opened, nothing asked"] = {**opened, "sockets": opened["sockets"] - loop_sockets}
asyncio.run(main())
print(json.dumps(steps))
"""


def figures(*, quick: bool) -> dict[str, Any]:
    """Medians of interleaved imports, each in a fresh interpreter, and what was counted before the first use."""
    for statement in (OURS, THEIRS):
        timed(statement)  # writes the byte code
    walls: dict[str, list[float]] = {OURS: [], THEIRS: []}
    cpus: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for turn in range(QUICK_TURNS if quick else TURNS):
        for statement in (OURS, THEIRS) if turn % 2 else (THEIRS, OURS):
            wall, cpu = timed(statement)
            walls[statement].append(wall)
            cpus[statement].append(cpu)
    middle = {statement: statistics.median(found) for statement, found in walls.items()}
    middle_cpu = {statement: statistics.median(found) for statement, found in cpus.items()}
    return {
        "turns": len(walls[OURS]),
        "ours_ms": middle[OURS] * 1000,
        "theirs_ms": middle[THEIRS] * 1000,
        "ratio": middle[OURS] / middle[THEIRS],
        "cpu_ratio": middle_cpu[OURS] / middle_cpu[THEIRS],
        "steps": look(),
    }


def timed(statement: str) -> tuple[float, float]:
    """Wall and CPU seconds of an import in a fresh interpreter."""
    out = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement=statement)], capture_output=True, text=True, check=True
    )
    wall, cpu = out.stdout.split()
    return float(wall), float(cpu)


def look() -> dict[str, dict[str, int]]:
    """Threads, asyncio tasks and sockets after each step; empty where there is no /proc."""
    if sys.platform != "linux":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(
            [sys.executable, "-c", LOOK, f"{folder}/characters.db"], capture_output=True, text=True, check=True
        )
    steps: dict[str, dict[str, int]] = json.loads(out.stdout)
    return steps
