"""What a person sees of a batch: the live display, plain lines, the count of everything."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, cast

import attrs
import pytest
from rich.console import Console

from sora_chars.batch.progress import Progress
from sora_chars.cli.batch import progress as batch_progress
from sora_chars.cli.batch.progress import Display, Tally
from sora_chars.cli.output import Screen

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
class FakeOutcomes:
    """As much of a batch as a display looks at. `looks`: after so many the batch ends."""

    progress_: Progress = NOTHING
    polls: int = 0
    seen: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def progress(self) -> Progress:
        """Count a look."""
        self.polls += 1
        if self.polls > 1:
            self.seen.set()
        return self.progress_


def console(*, terminal: bool) -> Console:
    """A screen of 80 columns."""
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None, highlight=False)


def text(of: Console) -> str:
    """What stands on it."""
    return cast("io.StringIO", of.file).getvalue()


@pytest.fixture
def tally() -> Tally:
    """Half of sixty rows told, ten under way."""
    tally = Tally(60, credits=1.875)
    tally.ends.update({"succeeded": 26, "failed": 2, "unknown": 1, "running": 1})
    tally.taken = {str(n): {} for n in range(10)}
    return tally


def test_every_row_is_counted_once(tally: Tally) -> None:
    """Those under way are running, as are those that ran when they were told."""
    assert tally.counts == {"succeeded": 26, "failed": 2, "rejected": 0, "unknown": 1, "running": 11, "not sent": 20}
    tally.put({"key": "3", "status": "succeeded", "credits": 0.5})
    tally.put({"key": "4", "status": "unknown"})
    assert (tally.counts["succeeded"], tally.counts["running"], tally.credits) == (27, 9, 2.375)
    assert (sum(tally.counts.values()), tally.unknown) == (60, ["4"])


def test_only_the_first_unknown_keys_are_kept() -> None:
    """A million of them would be nothing to read."""
    tally = Tally(100)
    for number in range(100):
        tally.put({"key": str(number), "status": "unknown"})
    assert (tally.unknown, tally.counts["unknown"]) == (["0", "1", "2", "3", "4"], 100)


def test_the_live_display(tally: Tally) -> None:
    """A bar, the pace, the counts, what it cost, and the last three errors, a line each and safe to show."""
    screen = Screen(out=console(terminal=False), err=console(terminal=True))
    display = Display(screen, tally, budget=5.0)
    for key in ("a", "b", "c", "d"):
        display.tell(key, f"[bold]failed\x1b[2J {'x' * 200}")
    screen.err.print(display.render(attrs.evolve(NOTHING, rate=2.5, eta=201.0)))
    bar, counts, *errors = text(screen.err).splitlines()
    assert bar.endswith("  30/60  50 %  2.5 a second  0:03:21 left")
    assert counts == "26 succeeded  2 failed  1 unknown  11 running  20 not sent  1.875 of 5 credits"
    assert [error[:19] for error in errors] == [f"! {key}  [bold]failed [" for key in "bcd"]
    assert all(len(error) == 80 for error in errors)


@pytest.mark.parametrize(
    ("rate", "eta", "says"),
    [(0.0, None, []), (0.05, None, ["3.0 a minute"]), (0.0, 60.0, ["0:01:00 left"]), (1.0, 0.0, ["1.0 a second"])],
)
def test_the_pace_is_told_as_far_as_it_is_known(rate: float, eta: float | None, says: list[str]) -> None:
    """By the minute where it is slow."""
    assert batch_progress._pace(attrs.evolve(NOTHING, rate=rate, eta=eta)) == says


@pytest.mark.parametrize("piped", ["stdout", "rows"])
async def test_a_terminal_has_a_live_display(tally: Tally, piped: str) -> None:
    """It is drawn while the batch goes on, and once more at its end; stdout stays clean."""
    screen = Screen(out=console(terminal=piped != "stdout"), err=console(terminal=True))
    outcomes = FakeOutcomes()
    async with Display(screen, tally, to_stdout=piped == "stdout").follow(cast("Batch", outcomes)):
        await outcomes.seen.wait()
        tally.put({"key": "0", "status": "succeeded"})
    assert "30/60" in text(screen.err)
    assert "31/60" in text(screen.err)
    assert text(screen.out) == ""


async def test_a_display_and_rows_do_not_share_a_terminal(tally: Tally) -> None:
    """Plain lines stand beside the rows then."""
    screen = Screen(out=console(terminal=True), err=console(terminal=True))
    outcomes = FakeOutcomes()
    async with Display(screen, tally, to_stdout=True).follow(cast("Batch", outcomes)):
        await asyncio.sleep(0)
    assert text(screen.err).startswith("30 of 60 ended: ")


def test_elsewhere_a_line_says_how_far_it_is(tally: Tally) -> None:
    """At each tenth, and else after ten seconds."""
    screen = Screen(out=console(terminal=False), err=console(terminal=False))
    display = Display(screen, tally)

    for _ in range(6):
        display.show(NOTHING)
        tally.put({"key": "", "status": "failed"})
    display.show(NOTHING)
    display._said -= 10
    display.show(attrs.evolve(NOTHING, rate=1.5))

    lines = text(screen.err).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["30 of 60 ended", "36 of 60 ended", "36 of 60 ended"]
    assert lines[-1].endswith(
        "ended: 26 succeeded, 8 failed, 1 unknown, 11 running, 14 not sent, 1.875 credits, 1.5 a second"
    )


async def test_json_leaves_stderr_alone(tally: Tally) -> None:
    """Not even a look is taken."""
    screen = Screen(as_json=True, out=console(terminal=True), err=console(terminal=True))
    outcomes = FakeOutcomes()
    async with Display(screen, tally).follow(cast("Batch", outcomes)):
        pass
    assert (outcomes.polls, text(screen.err)) == (0, "")
