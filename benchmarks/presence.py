"""Part E: the cost of the import, and what exists before the first use."""

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
"""`bare` loads almost nothing, because names load on first use; `used` is what programs do."""
ROUNDS = 61
QUICK_ROUNDS = 3

TIMED = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""

COUNT = """
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
def opened():
    now = count()
    return {**now, "sockets": now["sockets"] - base}
import sora_chars
steps = {"imported": opened()}
session = sora_chars.CharacterSession(sora_chars.Kie("benchmark-key-of-no-account"), ledger=sys.argv[1])
steps["session made"] = opened()
async def main():
    loop_sockets = count()["sockets"] - base  # the pair with which the loop wakes itself
    async with session:
        now = opened()
        steps["session opened, no request"] = {**now, "sockets": now["sockets"] - loop_sockets}
asyncio.run(main())
print(json.dumps(steps))
"""


def figures(*, quick: bool) -> dict[str, Any]:
    """Return medians of interleaved imports in fresh interpreters, and counts before the first use."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STATEMENTS}
    with tempfile.TemporaryDirectory() as byte_code:
        for statement in STATEMENTS.values():
            timed(statement, byte_code)  # writes the byte code
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            for name in sorted(STATEMENTS, reverse=number % 2 == 1):
                times[name].append(timed(STATEMENTS[name], byte_code))
    rows = {name: _middle(found) for name, found in times.items()}
    for row in rows.values():
        row |= {f"{figure}_ratio": row[figure] / rows["theirs"][figure] for figure in ("wall_ms", "cpu_ms")}
    return {"turns": len(times["bare"]), "imports": rows, "steps": count_resources()}


def _middle(times: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "wall_ms": statistics.median(wall for wall, _ in times) * 1000,
        "cpu_ms": statistics.median(cpu for _, cpu in times) * 1000,
    }


def timed(statement: str, byte_code: str) -> tuple[float, float]:
    """Return the wall and CPU seconds of an import in a fresh interpreter.

    Byte code is stored in the folder `byte_code`, as an installer stores it with a package.
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


def count_resources() -> dict[str, dict[str, int]]:
    """Return threads, asyncio tasks and sockets after each step; nothing outside Linux."""
    if sys.platform != "linux":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(
            [sys.executable, "-c", COUNT, f"{folder}/characters.db"], capture_output=True, text=True, check=True
        )
    steps: dict[str, dict[str, int]] = json.loads(out.stdout)
    return steps
