"""Part A: the cost of waiting for N tasks at once. Each client runs in a separate process with a separate server."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import HAND, OURS_1S, OURS_BATCH, WAITING
from server import serving

SIZES = (200, 1000, 5000)
DEADLINE = 75.0  # seconds; the last task ends after 20
GRACE = 60.0  # seconds for a process that is too busy to end
# The goals compare these; on a shared machine single runs vary.
ROUNDS = dict.fromkeys((HAND, OURS_1S, OURS_BATCH), 3)
QUICK: dict[str, Any] = {"durations": (0.5, 2.0)}
QUICK_SIZE, QUICK_DEADLINE = 50, 15.0
SKIPPED_WHEN_QUICK = {"azure-core"}  # it polls every 30 s


def figures(*, quick: bool) -> dict[str, Any]:
    """Return all runs, and for each client and size the medians and their ratios to the hand-written loop."""
    rounds = range(max(ROUNDS.values()))
    todo = [(peer, size) for size in SIZES for number in rounds for peer in WAITING if number < ROUNDS.get(peer, 1)]
    if quick:
        todo = [(peer, QUICK_SIZE) for peer in WAITING if peer not in SKIPPED_WHEN_QUICK]
    with ThreadPoolExecutor(len(todo) if quick else 1) as pool:
        runs = list(pool.map(lambda one: run(*one, quick=quick), todo))
    return {"runs": runs, "table": table(runs)}


def run(peer: str, tasks: int, *, quick: bool) -> dict[str, Any]:
    """Run one client once. Return what it used and what the server counted."""
    with serving(**(QUICK if quick else {})) as server:
        found = {"peer": peer, "tasks": tasks, **measure(peer, tasks, server, QUICK_DEADLINE if quick else DEADLINE)}
    print(f"  {tasks:>5} {peer:<28}", summary(found), flush=True)
    return found


def measure(peer: str, tasks: int, server: Any, deadline: float) -> dict[str, Any]:
    """Run one client with a running server. Return what it used and what the server counted."""
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), peer, str(tasks), server.url, str(deadline)]
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    facts: dict[str, Any] = {"finished": 0, "failed": 0, "open": tasks}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=deadline + GRACE, env=environment, check=False
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        facts["errors"] = {"hung": tasks}
    except (IndexError, ValueError):
        facts["errors"] = {done.stderr.strip().rpartition("\n")[2]: tasks}
    counts = server.counts()
    used = facts.pop("used", [])
    since = [cpu for at, cpu in used if at >= counts["last_create"]]
    return {
        **facts,
        **counts,
        "cpu_per_get_us": _micro(facts.get("cpu_s", 0.0), counts["gets"]),
        "cpu_per_get_waiting_us": _micro(since[-1] - since[0] if since else 0.0, counts["gets_after_creates"]),
        "gets_per_task": counts["gets"] / counts["creates"] if counts["creates"] else None,
    }


def _micro(seconds: float, count: int) -> float | None:
    return seconds / count * 1e6 if seconds and count else None


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each client and size: the medians of its rounds, and of its ratios to the hand-written loop."""
    rows = []
    for peer, tasks in dict.fromkeys((run["peer"], run["tasks"]) for run in runs):
        same = [run for run in runs if (run["peer"], run["tasks"]) == (peer, tasks)]
        row = {name: middle([run.get(name) for run in same]) for name in same[0]}
        hands = [run for run in runs if (run["peer"], run["tasks"]) == (HAND, tasks)]
        for name in ("cpu_per_get_us", "cpu_per_get_waiting_us", "cpu_s"):
            pairs = [(run.get(name), hand.get(name)) for run, hand in zip(same, hands, strict=False)]
            row[f"{name}_ratio"] = middle([value / base if value and base else None for value, base in pairs])
        rows.append({**row, "rounds": len(same)})
    return rows


def middle(values: list[Any]) -> Any:
    """Return the median of numbers, or the first of other values."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return statistics.median(numbers) if numbers else values[0]


def summary(run: dict[str, Any]) -> str:
    """Return a summary of a run."""
    ended = f"{run['finished']} finished, {run['failed']} failed, {run['open']} open"
    if "wall_s" not in run:
        return ended
    cost = f"{run['cpu_s']:.1f} s CPU, {run['cpu_per_get_us'] or 0:.0f} us/GET, lag {run['lag_max_ms']:.0f} ms"
    return f"{ended}; {run['wall_s']:.1f} s, {cost}, {run['gets_per_task'] or 0:.1f} GETs/task"
