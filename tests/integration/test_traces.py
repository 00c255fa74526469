"""Own data takes no detours through the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "traces.py"
MOST = {"files": 41, "path": 12, "request": 8, "answer": 4, "end": 5}


def test_traces_stay_short() -> None:
    """A create enters few files, and few functions lie between an answer and the store."""
    done = subprocess.run([sys.executable, SCRIPT, "--json"], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"].keys() == MOST.keys()
    assert {kind: count for kind, count in found["counts"].items() if count > MOST[kind]} == {}
    steps = {kind: [step.rpartition(":")[2] for step in trace] for kind, trace in found["traces"].items()}
    assert (steps["key"][0], steps["key"][-1]) == ("CharacterSession.create", "SqliteStore.insert")
    assert steps["request"][0] == steps["result"][-1] == "CharacterSession.create"
    assert {steps["answer"][-1], steps["end"][-1]} == {"SqliteStore.replace"}
    assert steps["callback"][0] == "aiohttp_app"
    assert "CallbackReceiver.handle" in steps["callback"]
    assert steps["callback"][-1] == steps["request"][-1]
