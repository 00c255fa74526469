"""Processes killed at each step lose no task and pay none twice; small runs of `benchmarks/faults.py` and its Kling."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.timeout(180)  # starting processes is slow on a busy machine

KEYS = 30


def load(name: str) -> ModuleType:
    """Import a benchmark, which belongs to no package."""
    path = Path(__file__).parents[2] / f"benchmarks/{name}.py"
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    """Import the benchmark of kie."""
    return load("faults")


@pytest.fixture(scope="module")
def faults_kling(faults: ModuleType) -> ModuleType:
    """Import the benchmark of Kling, which uses that of kie."""
    del faults
    return load("faults_kling")


@pytest.mark.parametrize("callbacks", [False, True], ids=["polls", "callbacks"])
async def test_killed_at_every_step(faults: ModuleType, tmp_path: Path, *, callbacks: bool) -> None:
    """Workers killed once at each named step create each key's task at most once; unclear outcomes are unknown."""
    kills = [(step, 1) for step in faults.STEPS]
    trial = faults.Trial(keys=KEYS, kills=kills, workers=1, concurrency=2, callbacks=callbacks)
    outcome = await faults.run(trial, tmp_path)
    assert outcome.killed == dict.fromkeys(faults.STEPS, 1)
    assert (outcome.twice, outcome.lost) == (0, 0)
    assert outcome.succeeded + outcome.unknown == KEYS
    assert outcome.tasks == outcome.succeeded + outcome.unknown_created
    assert 0 < outcome.unknown <= outcome.in_flight
    assert bool(outcome.unknown_created) is not callbacks
    assert (outcome.final_tasks, outcome.final_twice, outcome.final_succeeded) == (KEYS, 0, KEYS)


async def test_kling_settles_what_was_killed(faults: ModuleType, faults_kling: ModuleType, tmp_path: Path) -> None:
    """Kling is asked after each kill: no key is sent or paid twice, and only what never arrived stays unknown."""
    trial = faults.Trial(keys=KEYS, kills=[(step, 1) for step in faults.STEPS], workers=1, concurrency=2)
    outcome, received = await faults_kling.run(trial, tmp_path)
    assert outcome.killed == dict.fromkeys(faults.STEPS, 1)
    assert (outcome.twice, outcome.lost, outcome.unknown_created) == (0, 0, 0)
    assert (outcome.tasks, outcome.tasks + outcome.unknown) == (outcome.succeeded, KEYS)
    assert (outcome.final_tasks, outcome.final_twice, outcome.final_succeeded, received) == (KEYS, 0, KEYS, KEYS)
