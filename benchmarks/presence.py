"""Part E: what it costs to have the package around: its import, and what is there before the first use."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

STATEMENTS = {
    "theirs": "import aiohttp, attrs, cattrs, backoff",
    "bare": "import sora_chars",
    "used": "from sora_chars import CharacterSession, Kie",
}
"""`bare` loads next to nothing, since names are loaded when they are asked for; `used` is what a program does."""
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
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STATEMENTS}
    with tempfile.TemporaryDirectory() as byte_code:
        for statement in STATEMENTS.values():
            timed(statement, byte_code)  # writes it
        for turn in range(QUICK_TURNS if quick else TURNS):
            for name in sorted(STATEMENTS, reverse=turn % 2 == 1):
                times[name].append(timed(STATEMENTS[name], byte_code))
    rows = {name: _middle(found) for name, found in times.items()}
    for row in rows.values():
        row |= {f"{figure}_ratio": row[figure] / rows["theirs"][figure] for figure in ("wall_ms", "cpu_ms")}
    return {"turns": len(times["bare"]), "imports": rows, "steps": look()}


def _middle(times: list[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*times, strict=True)
    return {"wall_ms": statistics.median(walls) * 1000, "cpu_ms": statistics.median(cpus) * 1000}


def timed(statement: str, byte_code: str) -> tuple[float, float]:
    """Wall and CPU seconds of an import in a fresh interpreter, that keeps byte code in the folder `byte_code`.

    An installer writes it for every package. A checkout may have none, where the environment forbids to write it.
    """
    environment = os.environ | {"PYTHONPYCACHEPREFIX": byte_code, "PYTHONDONTWRITEBYTECODE": ""}
    out = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
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
