"""Part D: the fault cards, counted on the server. This project and its peers under the same faults, where both can."""

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
OUTAGE, OUTAGE_QUICK = 240.0, 4.0  # seconds
STORM, STORM_QUICK = 400, 40  # creates, at 20 in 2 s: 20 in 10 s, five times as fast
KILLED_KEYS, KILLED_KEYS_QUICK = 1000, 40
SAME_FOR_ALL = (OURS_1S, HAND, "azure-core, 1 s", "openai", "runwayml", "replicate, 1 s", "fal-client, 1 s")


def figures(*, quick: bool) -> dict[str, Any]:
    """Every card, one after the other; when it need not be exact, all at once."""
    cards = {
        "lost": lost,
        "kills": kills,
        "outage": outage,
        "storm": storm,
        "callbacks": junk.figures,
        "loops": two_loops,
    }

    def play(name: str) -> Any:
        began = time.perf_counter()
        made = cards[name](quick=quick)
        print(f"  {name} took {time.perf_counter() - began:.0f} s", flush=True)
        return made

    with ThreadPoolExecutor(len(cards) if quick else 1) as pool:
        return dict(zip(cards, pool.map(play, cards), strict=True))


def lost(*, quick: bool) -> dict[str, Any]:
    """The answers of 10 creates are lost: how many tasks there are then, and who knows of them."""
    with ThreadPoolExecutor(len(SAME_FOR_ALL)) as pool:
        return {
            "peers": list(pool.map(lambda peer: _faulty(peer, LOST, 20, lose=LOST, durations=(0.5, 1)), SAME_FOR_ALL)),
            "ours": asyncio.run(_lost_and_found()),
            "quick": quick,
        }


async def _lost_and_found() -> dict[str, int]:
    """With callbacks on: all are unknown at first, and found when their callbacks arrive."""
    unknown = recovered = 0
    async with Emulator(durations=(0.5, 1.0)) as emulator, faults.receiving() as (receivers, url):
        emulator.fault("lost_response", on="create", times=LOST)
        kie = Kie(KEY, base_url=emulator.url, callback_url=f"{url}/hooks", limits=None)
        with tempfile.TemporaryDirectory() as folder:
            ledger, pace = Path(folder) / "characters.db", FixedInterval(0.2)
            async with CharacterSession(kie, ledger=ledger, polling=pace) as session:
                receivers.append(CallbackReceiver(session))
                requests = [TaskRequest(**BODY, key=f"key-{number}") for number in range(LOST)]
                ends = await asyncio.gather(*(session.create(one) for one in requests), return_exceptions=True)
                unknown = sum(isinstance(end, SubmissionUnknownError) for end in ends)
                for _ in range(200):
                    entries = [entry async for entry in session.ledger.entries(states={EntryState.SUCCEEDED})]
                    recovered = len(entries)
                    if recovered == LOST:
                        break
                    await asyncio.sleep(0.05)
                again = await asyncio.gather(*(session.create(one) for one in requests), return_exceptions=True)
        found = sum(not isinstance(end, BaseException) for end in again)
        return {"tasks": len(emulator.tasks), "unknown": unknown, "recovered": recovered, "found_by_key": found}


def kills(*, quick: bool) -> list[dict[str, Any]]:
    """SIGKILL at every step, restarted until all is done; without and with callbacks."""
    keys = KILLED_KEYS_QUICK if quick else KILLED_KEYS
    rows = []
    for callbacks in (False, True):
        trial = faults.Trial(keys=keys, kills=faults.plan(keys, random.Random(1)), callbacks=callbacks)
        with tempfile.TemporaryDirectory() as folder:
            outcome = asyncio.run(faults.run(trial, Path(folder)))
        counted = {title: count(outcome) for title, count in faults.ROWS.items()}
        rows.append({"keys": keys, "callbacks": callbacks, **counted})
    return rows


def outage(*, quick: bool) -> list[dict[str, Any]]:
    """Every GET is answered with 503 for four minutes from the first create on, all peers beside each other."""
    seconds = OUTAGE_QUICK if quick else OUTAGE
    deadline = seconds + (8 if quick else 75)
    with ThreadPoolExecutor(len(SAME_FOR_ALL) + 1) as pool:
        plan = {"outage": seconds, "durations": (0.5, 1) if quick else (5, 20)}
        return list(pool.map(lambda peer: _faulty(peer, 20, deadline, **plan), (OURS, *SAME_FOR_ALL)))


def storm(*, quick: bool) -> list[dict[str, Any]]:
    """A server that counts a sliding window and refuses what is beyond it."""
    count = STORM_QUICK if quick else STORM
    peers = (OURS_LIMITED, *SAME_FOR_ALL[1:])
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
    with ThreadPoolExecutor(len(SAME_FOR_ALL)) as pool:
        return list(pool.map(_two_loops, SAME_FOR_ALL))


def _two_loops(peer: str) -> dict[str, Any]:
    with serving(durations=(0.1, 0.2)) as server:
        command = [sys.executable, str(Path(__file__).with_name("loops.py")), peer, server.url]
        environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        lines = done.stdout.splitlines()
        ends = json.loads(lines[-1]) if lines else {"first": "ends without a word", "second": done.stderr[-200:]}
        return {"peer": peer, **ends, "creates": server.counts()["creates"]}


if __name__ == "__main__":
    print(json.dumps(figures(quick="--quick" in sys.argv), indent=1))
