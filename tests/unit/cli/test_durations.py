"""`sora-chars durations`: the table of models, and the plot of one model."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from sora_chars import AdaptiveInterval, EntryState, TaskSnapshot, open_ledger
from sora_chars.cli import app
from sora_chars.cli.commands import durations
from sora_chars.cli.context import CommandContext
from sora_chars.cli.output import Output
from sora_chars.ledger.serialize import to_result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sora_chars import Ledger

SEEDREAM = "bytedance/seedream"
STEPS = "every 2-3 s for 30 s, every 5-10 s up to 2 min, then every 15-30 s."


def finished(number: int, seconds: float, model: str | None = SEEDREAM) -> TaskSnapshot:
    """Return a task that took this many seconds."""
    return TaskSnapshot(
        task_id=f"t{number}",
        provider="kie",
        state="success",
        model=model,
        created_at=1.7e9,
        completed_at=1.7e9 + seconds,
    )


async def record(ledger: Ledger, number: int, snapshot: TaskSnapshot) -> None:
    """Record a finished task."""
    entry = await ledger.register(key=f"k{number}", provider="kie", kind="task", request={"model": "m"})
    entry = await ledger.transition(entry, EntryState.SENDING)
    entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"t{number}")
    await ledger.transition(entry, EntryState.SUCCEEDED, result=to_result(snapshot))


def make_ledger(path: Path, counts: dict[str | None, int]) -> Path:
    """Return a ledger with this many finished tasks of each model, of about 46 seconds."""

    async def write() -> None:
        dice = random.Random(1)
        async with open_ledger(path) as ledger:
            for model, count in counts.items():
                for number in range(count):
                    seconds = 46 * math.exp(dice.gauss(0, 0.2))
                    await record(ledger, hash((model, number)), finished(number, seconds, model))

    asyncio.run(write())
    return path


def run(path: Path, *arguments: str) -> int:
    """Run the command, and return its exit status."""
    return app.main(["durations", *arguments, "--ledger", str(path)])


def test_models_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model has its number of tasks, their durations, and the polls and delays of both intervals."""
    path = make_ledger(tmp_path / "a.db", {SEEDREAM: 30, None: 1})
    assert run(path) == 0
    line, nameless = capsys.readouterr().out.splitlines()
    assert nameless.startswith("-\tkie\t1 task\t")
    name, provider, tasks, times, polls, delay = line.split("\t")
    assert (name, provider, tasks) == (SEEDREAM, "kie", "30 tasks")
    low, median, high = map(int, times.split("/"))
    assert 30 < low < median < high < 65
    assert [float(number) for number in polls.split("/")] == [pytest.approx(14, abs=1.5)] * 2
    adaptive, stepped = (float(number) for number in delay.split("/"))
    assert adaptive < stepped / 3

    assert run(path, "--json") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [(each["model"], each["tasks"]) for each in models] == [(SEEDREAM, 30), (None, 1)]
    assert round(models[0]["median"]) == median


def test_model_is_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plot has 80 columns, and marks the polls of both intervals; JSON has the numbers behind it."""
    path = make_ledger(tmp_path / "a.db", {SEEDREAM: 30, "other": 5})
    assert run(path, SEEDREAM) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{SEEDREAM} at kie, last 30 tasks"
    assert all(len(line) <= 80 for line in lines)
    (adaptive,) = (line for line in lines if line.startswith("adaptive "))
    (stepped,) = (line for line in lines if line.startswith(" stepped "))
    assert len(adaptive) - len(adaptive[9:].lstrip()) > 25 > len(stepped) - len(stepped[9:].lstrip())

    assert run(path, SEEDREAM, "--json") == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["percentiles"] == sorted(model["percentiles"])
    assert model["percentiles"][49] == pytest.approx(model["median"], abs=0.001)
    assert model["poll_ages"][0] > 15
    assert model["poll_ages"] == sorted(model["poll_ages"])


@pytest.mark.parametrize("arguments", [[], ["acme/unknown"], ["acme/unknown", "--json"]])
def test_no_finished_task(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    """Without a finished task the command explains the stepped interval, and ends with status 0."""
    path = make_ledger(tmp_path / "a.db", {} if not arguments else {SEEDREAM: 1})
    assert run(path, *arguments) == 0
    written = capsys.readouterr()
    if "--json" in arguments:
        assert (written.out, written.err) == ('{"models": []}\n', "")
    else:
        assert written.out == ""
        assert ("No finished task is" if not arguments else "No finished task of acme/unknown is") in written.err
        assert written.err.endswith(f"{STEPS}\n")


def test_table_fits_a_terminal(tmp_path: Path) -> None:
    """With a long model name no number is truncated in 80 columns."""
    name = "bytedance/seedream-v4-text-to-image"
    path = make_ledger(tmp_path / "a.db", {name: 30})
    written = io.StringIO()
    output = Output(out=Console(file=written, force_terminal=True, width=80, color_system=None, legacy_windows=False))
    assert app._status(CommandContext(output), ["durations", "--ledger", str(path)]) == 0
    assert name in written.getvalue()
    assert "30 tasks" in written.getvalue()
    assert "…" not in written.getvalue()


@pytest.mark.parametrize("median", [0.3, 46.0, 5000.0])
def test_plot_in_ascii(median: float) -> None:
    """A terminal without block characters gets an ASCII plot, whose lines fit at every scale."""
    strategy = AdaptiveInterval()
    for number in range(20):
        strategy.observe_finished(finished(number, median * (1 + number / 40)))
    (stats,) = strategy.stats()
    lines = durations.plot(durations.ModelSummary.of(stats), stats, blocks=False)
    assert all(line.isascii() and len(line) <= 80 for line in lines)
    assert sum("#" in line for line in lines) == 8
    (ages,) = (line.split() for line in lines if line.startswith("     age "))
    assert len(ages) >= 6
