"""The progress of a batch: the live display, plain lines, the counts."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, cast

import attrs
import pytest
from rich.console import Console

from sora_chars.batch.progress import Progress
from sora_chars.cli.batch import progress as batch_progress
from sora_chars.cli.batch.progress import BatchDisplay, Tally
from sora_chars.cli.output import Output

if TYPE_CHECKING:
    from sora_chars.batch.batch import Batch

NOTHING = Progress(
    registered=0,
    running=0,
    succeeded=0,
    failed=0,
    rejected=0,
    unknown=0,
    remaining=None,
    credits=0.0,
    rate=0.0,
    eta=None,
)


@attrs.define(eq=False)
class FakeBatch:
    """A batch that has a progress and ten running tasks, and counts how often the progress is read."""

    progress_: Progress = NOTHING
    tasks_running: int = 10
    reads: int = 0
    read_twice: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def progress(self) -> Progress:
        """Return the progress, and count the call."""
        self.reads += 1
        if self.reads > 1:
            self.read_twice.set()
        return self.progress_


def console(*, terminal: bool) -> Console:
    """Return a console of 80 columns."""
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None, highlight=False)


def text(of: Console) -> str:
    """Return what was written to a console."""
    return cast("io.StringIO", of.file).getvalue()


@pytest.fixture
def tally() -> Tally:
    """Return the tally of sixty rows: thirty written, ten in flight and sent."""
    tally = Tally(60, credits=1.875, sent=10)
    tally.statuses.update({"succeeded": 26, "failed": 2, "unknown": 1, "running": 1})
    tally.in_flight = {str(n): {} for n in range(10)}
    return tally


def test_every_row_is_counted_once(tally: Tally) -> None:
    """Rows in flight that were sent count as running, and so do rows that were written as running."""
    counts = {"succeeded": 26, "failed": 2, "rejected": 0, "unknown": 1, "pending": 0, "running": 11, "not sent": 20}
    assert tally.counts == counts
    tally.add({"key": "3", "status": "succeeded", "credits": 0.5})
    tally.add({"key": "4", "status": "unknown"})
    assert (tally.counts["succeeded"], tally.counts["running"], tally.credits) == (27, 9, 2.375)
    assert (sum(tally.counts.values()), tally.unknown_keys) == (60, ["4"])


def test_only_the_first_unknown_keys_are_kept() -> None:
    """Five keys of unknown outcome are kept; all are counted."""
    tally = Tally(100)
    for number in range(100):
        tally.add({"key": str(number), "status": "unknown"})
    assert (tally.unknown_keys, tally.counts["unknown"]) == (["0", "1", "2", "3", "4"], 100)


def test_live_display(tally: Tally) -> None:
    """The display has a bar, the rate, the counts, the cost, and the last three errors as one line each."""
    output = Output(out=console(terminal=False), err=console(terminal=True))
    display = BatchDisplay(output, tally, budget=5.0)
    for key in ("a", "b", "c", "d"):
        display.add_error(key, f"[bold]failed\x1b[2J {'x' * 200}")
    output.err.print(display.render(attrs.evolve(NOTHING, rate=2.5, eta=201.0)))
    bar, counts, *errors = text(output.err).splitlines()
    assert bar.endswith("  30/60  50 %  2.5 per second  0:03:21 left")
    assert counts == "26 succeeded  2 failed  1 unknown  11 running  20 not sent  1.875 of 5 credits"
    assert [error[:19] for error in errors] == [f"! {key}  [bold]failed [" for key in "bcd"]
    assert all(len(error) == 80 for error in errors)


@pytest.mark.parametrize(
    ("credits_", "budget", "shown"),
    [(0.0, None, ""), (0.0, 5.0, "  0 of 5 credits"), (1.5, None, "  1.5 credits")],
)
def test_live_display_shows_the_cost_once_it_is_known(credits_: float, budget: float | None, shown: str) -> None:
    """The counts end with the credits, unless none were charged and there is no budget."""
    output = Output(out=console(terminal=False), err=console(terminal=True))
    display = BatchDisplay(output, Tally(3, credits=credits_), budget=budget)
    output.err.print(display.render(NOTHING))
    assert text(output.err).splitlines()[1] == f"3 not sent{shown}"


@pytest.mark.parametrize(
    ("rate", "eta", "texts"),
    [(0.0, None, []), (0.05, None, ["3.0 per minute"]), (0.0, 60.0, ["0:01:00 left"]), (1.0, 0.0, ["1.0 per second"])],
)
def test_speed(rate: float, eta: float | None, texts: list[str]) -> None:
    """A rate below one per second is given per minute; what is unknown is left out."""
    assert batch_progress._speed(attrs.evolve(NOTHING, rate=rate, eta=eta)) == texts


@pytest.mark.parametrize("piped", ["stdout", "rows"])
async def test_terminal_has_a_live_display(tally: Tally, piped: str) -> None:
    """The display is drawn while the batch runs and once at its end; nothing is written to stdout."""
    output = Output(out=console(terminal=piped != "stdout"), err=console(terminal=True))
    batch = FakeBatch()
    async with BatchDisplay(output, tally, rows_to_stdout=piped == "stdout").showing(cast("Batch", batch)):
        await batch.read_twice.wait()
        tally.add({"key": "0", "status": "succeeded"})
    assert "30/60" in text(output.err)
    assert "31/60" in text(output.err)
    assert text(output.out) == ""


async def test_no_live_display_among_rows(tally: Tally) -> None:
    """If rows are written to the same terminal, the progress is plain lines."""
    output = Output(out=console(terminal=True), err=console(terminal=True))
    batch = FakeBatch()
    async with BatchDisplay(output, tally, rows_to_stdout=True).showing(cast("Batch", batch)):
        await asyncio.sleep(0)
    assert text(output.err).startswith("30 of 60 ended: ")


def test_lines_off_a_terminal(tally: Tally) -> None:
    """A line is printed when another 10 % have ended, and after ten seconds."""
    output = Output(out=console(terminal=False), err=console(terminal=False))
    display = BatchDisplay(output, tally)

    for _ in range(6):
        display.show(NOTHING)
        tally.add({"key": "", "status": "failed"})
    display.show(NOTHING)
    display._printed_at -= 10
    display.show(attrs.evolve(NOTHING, rate=1.5))

    lines = text(output.err).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["30 of 60 ended", "36 of 60 ended", "36 of 60 ended"]
    assert lines[-1].endswith(
        "ended: 26 succeeded, 8 failed, 1 unknown, 11 running, 14 not sent, 1.875 credits, 1.5 per second"
    )


async def test_json_shows_no_progress(tally: Tally) -> None:
    """With JSON nothing is written to stderr, and the progress is not read."""
    output = Output(as_json=True, out=console(terminal=True), err=console(terminal=True))
    batch = FakeBatch()
    async with BatchDisplay(output, tally).showing(cast("Batch", batch)):
        pass
    assert (batch.reads, text(output.err)) == (0, "")
