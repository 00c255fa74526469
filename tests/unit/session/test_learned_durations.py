"""What a pace learns from the ledger, and how the command line shows it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from rich.console import Console

from sora_chars import (
    AdaptiveInterval,
    CharacterSession,
    EntryState,
    PollingStrategy,
    Provider,
    SteppedInterval,
    TaskSnapshot,
    open_ledger,
)
from sora_chars.cli import app, output
from sora_chars.cli.commands import pace as pacing
from sora_chars.cli.context import Job
from sora_chars.ledger.queries import finished_tasks
from sora_chars.ledger.serialize import to_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sora_chars import Ledger

SEEDREAM = "bytedance/seedream"
LADDER = "every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s."


class Bare(Provider):
    """A provider that is never asked."""

    name = "kie"


@attrs.define(eq=False)
class Pupil(PollingStrategy):
    """Somebody's pace that writes down what it is told."""

    told: list[str] = attrs.field(factory=list[str])

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Every second."""
        del snapshot, age
        return 1.0

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """Keep the id."""
        self.told.append(snapshot.task_id)


def ended(number: int, seconds: float = 46.0, model: str | None = SEEDREAM, state: str = "success") -> TaskSnapshot:
    """A task that took so long."""
    return TaskSnapshot(
        task_id=f"t{number}", provider="kie", state=state, model=model, created_at=1.7e9, completed_at=1.7e9 + seconds
    )


async def put(ledger: Ledger, number: int, result: Any, to: EntryState = EntryState.SUCCEEDED) -> None:
    """Record a task that has ended."""
    entry = await ledger.register(key=f"k{number}", provider="kie", kind="task", request={"model": "m"})
    entry = await ledger.transition(entry, EntryState.SENDING)
    entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"t{number}")
    await ledger.transition(entry, to, result=result)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Give an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


async def test_endings_come_oldest_first_and_bounded(ledger: Ledger) -> None:
    """The last that ended, well or not; what runs is not among them."""
    for number in range(3):
        await put(ledger, number, to_result(ended(number)))
    await put(ledger, 3, to_result(ended(3, state="fail")), EntryState.FAILED)
    await ledger.register(key="k4", provider="kie", kind="task", request={})
    assert [snapshot.task_id for snapshot in await finished_tasks(ledger, limit=9)] == ["t0", "t1", "t2", "t3"]
    assert [snapshot.task_id for snapshot in await finished_tasks(ledger, limit=2)] == ["t2", "t3"]
    assert await finished_tasks(ledger, limit=0) == []


@pytest.mark.parametrize(
    "result",
    [
        *(None, 1, [], "x", {}),
        *({"created_at": "soon"}, {"completed_at": math.nan}, {"completed_at": math.inf}, {"completed_at": 10**400}),
        *({"model": ["m"]}, {"model": 1}, {"provider": ["kie"]}, {"provider": "other"}, {"more": 1}),
        *({"character": {"who": "x"}}, {"failure": [1]}, {"failure": 1}),
    ],
)
async def test_rows_that_others_wrote_do_no_harm(ledger: Ledger, result: Any) -> None:
    """What cannot be read is left out; the rest is learned and the session opens."""
    row = to_result(ended(1)) | result if isinstance(result, dict) and len(result) == 1 else result
    await put(ledger, 1, row)
    await put(ledger, 2, to_result(ended(2)))
    async with CharacterSession(Bare(), ledger=ledger) as session:  # type: ignore[abstract]  # it is never asked
        assert isinstance(session.watcher.polling, AdaptiveInterval)
        (lesson,) = session.watcher.polling.stats()
    assert (lesson.provider, lesson.model) == ("kie", SEEDREAM)
    assert lesson.tasks == 1
    assert lesson.curve.age(0.5) == pytest.approx(46.0, rel=0.1)


async def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    """A session on an old ledger looks at its first task as if it had never been closed."""
    path = tmp_path / "a.db"
    async with open_ledger(path) as ledger:
        for number in range(30):
            await put(ledger, number, to_result(ended(number)))
    async with CharacterSession(Bare(), ledger=path) as session:  # type: ignore[abstract]  # as above
        assert (
            session.watcher.polling.delay(TaskSnapshot(task_id="t", provider="kie", state="", model=SEEDREAM), 0.0) > 20
        )


async def test_every_pace_that_learns_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody's pace hears of what is on record; for one that does not learn, nothing is read."""
    await put(ledger, 1, to_result(ended(1)))
    pupil = Pupil()
    async with CharacterSession(Bare(), ledger=ledger, polling=pupil):  # type: ignore[abstract]  # as above
        assert pupil.told == ["t1"]
    monkeypatch.setattr("sora_chars.session.dispatcher.finished_tasks", None)
    async with CharacterSession(Bare(), ledger=ledger, polling=SteppedInterval()) as session:  # type: ignore[abstract]  # as above
        assert session.watcher.polling.estimate(None, 0.0) is None


def make_ledger(path: Path, counts: dict[str | None, int]) -> Path:
    """A ledger with so many ended tasks of each model."""

    async def write() -> None:
        dice = random.Random(1)
        async with open_ledger(path) as ledger:
            for model, count in counts.items():
                for number in range(count):
                    took = 46 * math.exp(dice.gauss(0, 0.2))
                    await put(ledger, hash((model, number)), to_result(ended(number, took, model)))

    asyncio.run(write())
    return path


def pace(path: Path, *arguments: str) -> int:
    """Run the command, and return its exit status."""
    return app.main(["pace", *arguments, "--ledger", str(path)])


def test_models_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each model: how many tasks, how long they take, what they cost, and what the ladder would."""
    path = make_ledger(tmp_path / "a.db", {SEEDREAM: 30, None: 1})
    assert pace(path) == 0
    line, nameless = capsys.readouterr().out.splitlines()
    assert nameless.startswith("-\tkie\t1 tasks\t")
    name, provider, tasks, times, gets, late = line.split("\t")
    assert (name, provider, tasks) == (SEEDREAM, "kie", "30 tasks")
    low, median, high = map(int, times.split("-"))
    assert 30 < low < median < high < 65
    assert [float(number) for number in gets.split("/")] == [pytest.approx(14, abs=1.5)] * 2
    mine, ladders = (float(number) for number in late.split("/"))
    assert mine < ladders / 3

    assert pace(path, "--json") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [(each["model"], each["tasks"]) for each in models] == [(SEEDREAM, 30), (None, 1)]
    assert round(models[0]["median"]) == median


def test_a_model_is_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person sees where tasks end and where it looks, in 80 columns; a program gets the numbers."""
    path = make_ledger(tmp_path / "a.db", {SEEDREAM: 30, "other": 5})
    assert pace(path, SEEDREAM) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{SEEDREAM} at kie, from its last 30 tasks"
    assert all(len(line) <= 80 for line in lines)
    (marks,) = (line for line in lines if line.startswith("   looks "))
    (ladders,) = (line for line in lines if line.startswith("  ladder "))
    assert len(marks) - len(marks[9:].lstrip()) > 25 > len(ladders) - len(ladders[9:].lstrip())

    assert pace(path, SEEDREAM, "--json") == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["ends"] == sorted(model["ends"])
    assert model["ends"][49] == pytest.approx(model["median"], abs=0.001)
    assert model["looks"][0] > 15
    assert model["looks"] == sorted(model["looks"])


@pytest.mark.parametrize("arguments", [[], ["nobody/heard-of"], ["nobody/heard-of", "--json"]])
def test_what_is_not_known_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    """Where nothing was learned yet, the ladder is shown in words; that is no error."""
    path = make_ledger(tmp_path / "a.db", {} if not arguments else {SEEDREAM: 1})
    assert pace(path, *arguments) == 0
    said = capsys.readouterr()
    if "--json" in arguments:
        assert (said.out, said.err) == ('{"models": []}\n', "")
    else:
        assert said.out == ""
        assert ("any model" if not arguments else "nobody/heard-of") in said.err
        assert said.err.endswith(f"{LADDER}\n")


def test_a_table_fits_a_terminal(tmp_path: Path) -> None:
    """With a long name all numbers are still whole in 80 columns."""
    name = "bytedance/seedream-v4-text-to-image"
    path = make_ledger(tmp_path / "a.db", {name: 30})
    shown = io.StringIO()
    screen = output.Screen(
        out=Console(file=shown, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    )
    assert app._status(Job(screen), ["pace", "--ledger", str(path)]) == 0
    assert name in shown.getvalue()
    assert "30 tasks" in shown.getvalue()
    assert "…" not in shown.getvalue()


@pytest.mark.parametrize("median", [0.3, 46.0, 5000.0])
def test_a_plot_needs_nothing_but_ascii(median: float) -> None:
    """Where the terminal has no blocks, the plot is of what it has; at any scale all lines fit, and ages are whole."""
    learned = AdaptiveInterval()
    for number in range(20):
        learned.observe_finished(ended(number, median * (1 + number / 40)))
    (lesson,) = learned.stats()
    lines = pacing.explain(pacing.Facts.of(lesson), lesson, blocks=False)
    assert all(line.isascii() and len(line) <= 80 for line in lines)
    assert sum("#" in line for line in lines) == 8
    (ages,) = (line.split() for line in lines if line.startswith("     age "))
    assert len(ages) >= 6
