"""Part D: fault scenarios for this package and other clients, counted on the server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faults
import junk
from peers import BODY, HAND, KEY, OURS, OURS_1S, OURS_LIMITED
from server import serving
from waiting import measure

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    EntryState,
    FixedInterval,
    Kie,
    SubmissionUnknownError,
    TaskRequest,
)
from sora_chars.testing import Emulator

LOST = 10
OUTAGE_SECONDS = 240.0
QUICK_OUTAGE_SECONDS = 4.0
STORM_CREATES = 400  # at 20 in 2 seconds: the documented limit at five times the speed
QUICK_STORM_CREATES = 40
KILLED_KEYS = 1000
QUICK_KILLED_KEYS = 40
COMPARED = (OURS_1S, HAND, "azure-core, 1 s", "openai", "runwayml", "replicate, 1 s", "fal-client, 1 s")


def figures(*, quick: bool) -> dict[str, Any]:
    """Run every scenario: one after the other, or all at once if `quick`."""
    scenarios = {
        "lost": lost,
        "kills": kills,
        "outage": outage,
        "storm": storm,
        "callbacks": junk.figures,
        "loops": two_loops,
    }

    def run(name: str) -> Any:
        started = time.perf_counter()
        result = scenarios[name](quick=quick)
        print(f"  {name} took {time.perf_counter() - started:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(len(scenarios) if quick else 1) as pool:
        return dict(zip(scenarios, pool.map(run, scenarios), strict=True))


def lost(*, quick: bool) -> dict[str, Any]:
    """The responses of 10 creates are lost: how many tasks exist, and which are recovered."""
    with ThreadPoolExecutor(len(COMPARED)) as pool:
        return {
            "peers": list(pool.map(lambda peer: _faulty(peer, LOST, 20, lose=LOST, durations=(0.5, 1)), COMPARED)),
            "ours": asyncio.run(_recover_lost()),
            "quick": quick,
        }


async def _recover_lost() -> dict[str, int]:
    """With callbacks, every entry is unknown at first and recovered when its callback arrives."""
    unknown = 0
    recovered = 0
    async with Emulator(durations=(0.5, 1.0)) as emulator, faults.receiving() as (receivers, url):
        emulator.fault("lost_response", on="create", times=LOST)
        kie = Kie(KEY, base_url=emulator.url, callback_url=f"{url}/hooks", limits=None)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "characters.db"
            async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.2)) as session:
                receivers.append(CallbackReceiver(session))
                requests = [TaskRequest(**BODY, key=f"key-{number}") for number in range(LOST)]
                results = await asyncio.gather(
                    *(session.create(request) for request in requests), return_exceptions=True
                )
                unknown = sum(isinstance(result, SubmissionUnknownError) for result in results)
                for _ in range(200):
                    entries = [entry async for entry in session.ledger.entries(states={EntryState.SUCCEEDED})]
                    recovered = len(entries)
                    if recovered == LOST:
                        break
                    await asyncio.sleep(0.05)
                again = await asyncio.gather(*(session.create(request) for request in requests), return_exceptions=True)
        found = sum(not isinstance(result, BaseException) for result in again)
        return {"tasks": len(emulator.tasks), "unknown": unknown, "recovered": recovered, "found_by_key": found}


def kills(*, quick: bool) -> list[dict[str, Any]]:
    """SIGKILL at every step, restarted until every key is done; without and with callbacks."""
    keys = QUICK_KILLED_KEYS if quick else KILLED_KEYS
    rows = []
    for callbacks in (False, True):
        trial = faults.Trial(keys=keys, kills=faults.plan(keys, random.Random(1)), callbacks=callbacks)
        with tempfile.TemporaryDirectory() as folder:
            outcome = asyncio.run(faults.run(trial, Path(folder)))
        counted = {title: count(outcome) for title, count in faults.ROWS.items()}
        rows.append({"keys": keys, "callbacks": callbacks, **counted})
    return rows


def outage(*, quick: bool) -> list[dict[str, Any]]:
    """Every GET gets HTTP 503 for four minutes after the first create; all clients run at once."""
    seconds = QUICK_OUTAGE_SECONDS if quick else OUTAGE_SECONDS
    deadline = seconds + (8 if quick else 75)
    with ThreadPoolExecutor(len(COMPARED) + 1) as pool:
        plan = {"outage": seconds, "durations": (0.5, 1) if quick else (5, 20)}
        return list(pool.map(lambda peer: _faulty(peer, 20, deadline, **plan), (OURS, *COMPARED)))


def storm(*, quick: bool) -> list[dict[str, Any]]:
    """The server rejects creates beyond a sliding window."""
    count = QUICK_STORM_CREATES if quick else STORM_CREATES
    peers = (OURS_LIMITED, *COMPARED[1:])
    with ThreadPoolExecutor(len(peers)) as pool:
        plan = {"strict": (20, 2.0), "durations": (0.5, 1)}
        return list(pool.map(lambda peer: _faulty(peer, count, 20 if quick else 75, **plan), peers))


def _faulty(peer: str, tasks: int, deadline: float, **plan: Any) -> dict[str, Any]:
    with serving(**plan) as server:
        counted = measure(peer, tasks, server, deadline)
    names = ("finished", "failed", "open", "errors", "creates", "gets", "refused_429", "answers_503", "wall_s")
    return {"peer": peer, "asked": tasks, **{name: counted.get(name) for name in names}}


def two_loops(*, quick: bool) -> list[dict[str, Any]]:
    """A client opened in one `asyncio.run` and used in another."""
    del quick
    with ThreadPoolExecutor(len(COMPARED)) as pool:
        return list(pool.map(_two_loops, COMPARED))


def _two_loops(peer: str) -> dict[str, Any]:
    with serving(durations=(0.1, 0.2)) as server:
        command = [sys.executable, str(Path(__file__).with_name("loops.py")), peer, server.url]
        environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        lines = done.stdout.splitlines()
        ends = json.loads(lines[-1]) if lines else {"first": "ends without output", "second": done.stderr[-200:]}
        return {"peer": peer, **ends, "creates": server.counts()["creates"]}


if __name__ == "__main__":
    print(json.dumps(figures(quick="--quick" in sys.argv), indent=1))
