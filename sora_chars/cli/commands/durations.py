"""`sora-chars durations`: how long tasks take, and when the adaptive interval polls them. Nothing is sent."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import click

from sora_chars.cli.options import ledger_options, output_options
from sora_chars.cli.output import print_line
from sora_chars.cli.render import one_line
from sora_chars.cli.runner import run
from sora_chars.ledger import queries
from sora_chars.polling.durations import stepped_age, stepped_polls
from sora_chars.polling.strategies import AdaptiveInterval

if TYPE_CHECKING:
    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.ledger_location import LedgerLocation
    from sora_chars.cli.render import Cells
    from sora_chars.polling.durations import DurationStats

COLUMNS = (
    "model",
    "provider",
    "tasks",
    "duration s\n(10/50/90 %)",
    "polls\n(adaptive/\nstepped)",
    "delay s\n(adaptive/\nstepped)",
)
STEPS = "every 2-3 s for 30 s, every 5-10 s up to 2 min, then every 15-30 s"

_MAX_TASKS = 20_000  # read from the ledger, newest first
_WIDTH = 70  # columns of the plot
_HEIGHT = 8  # lines of the plot
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(_BLOCKS, "    #####")


@attrs.frozen(kw_only=True)
class ModelSummary:
    """One row of the table.

    Attributes:
        provider: The provider's name.
        model: The model, or None if the provider does not name it.
        tasks: How many tasks the summary is based on.
        low: Seconds within which 10 % of the tasks end.
        median: Seconds within which 50 % of the tasks end.
        high: Seconds within which 90 % of the tasks end.
        polls: Expected polls of one task with the adaptive interval.
        delay: Expected seconds from the end of a task to the poll that detects it.
        stepped_polls: `polls` with the stepped interval.
        stepped_delay: `delay` with the stepped interval.
    """

    provider: str
    model: str | None
    tasks: int
    low: float
    median: float
    high: float
    polls: float
    delay: float
    stepped_polls: float
    stepped_delay: float

    @classmethod
    def of(cls, stats: DurationStats) -> ModelSummary:
        """Summarize the durations of one model."""
        curve = stats.curve
        polls, delay = curve.cost()
        stepped = curve.stepped_cost()
        return cls(
            provider=stats.provider,
            model=stats.model,
            tasks=stats.tasks,
            low=curve.age(0.1),
            median=curve.age(0.5),
            high=curve.age(0.9),
            polls=polls,
            delay=delay,
            stepped_polls=stepped[0],
            stepped_delay=stepped[1],
        )

    def cells(self) -> Cells:
        """Return the cells of `COLUMNS`."""
        return (
            one_line(self.model or "-"),
            one_line(self.provider),
            _tasks(self.tasks),
            "/".join(_seconds(age, 10).removesuffix(" s") for age in (self.low, self.median, self.high)),
            f"{self.polls:.1f}/{self.stepped_polls:.1f}",
            f"{self.delay:.1f}/{self.stepped_delay:.1f}",
        )


@click.command()
@click.argument("model", required=False)
@ledger_options
@output_options
@click.pass_obj
def durations(context: CommandContext, /, *, model: str | None, location: LedgerLocation) -> None:
    """Show how long the tasks of each model take.

    The durations come from the ledger. `polls` is the expected number of polls of
    one task, and `delay` is the expected time from the end of a task to the poll
    that detects it; each is shown for the adaptive and for the stepped interval.

    With MODEL, plots when its tasks end and when they are polled.
    """
    context.use_ledger(location)
    stats = [each for each in run(context, _read_durations(location)) if model is None or model == (each.model or "-")]
    summaries = [ModelSummary.of(each) for each in stats]
    if model is None:
        payload = {"models": [attrs.asdict(each) for each in summaries]}
        context.output.show_table(payload, [each.cells() for each in summaries], columns=COLUMNS, stacked=(1, 1, 1))
    else:
        _plot(context, summaries, stats)
    if not stats:
        subject = "" if model is None else f" of {one_line(model)}"
        context.output.note(f"No finished task{subject} is recorded in {location}. Until one is, polls are")
        context.output.note(f"{STEPS}.")


def _plot(context: CommandContext, summaries: list[ModelSummary], stats: list[DurationStats]) -> None:
    output = context.output
    if output.as_json:
        pairs = zip(summaries, stats, strict=True)
        output.show_json({"models": [attrs.asdict(summary) | _points(each) for summary, each in pairs]})
        return
    for summary, each in zip(summaries, stats, strict=True):
        for line in plot(summary, each, blocks=output.out.encoding.startswith("utf")):
            print_line(output.out, line)


async def _read_durations(location: LedgerLocation) -> list[DurationStats]:
    strategy = AdaptiveInterval()
    async with location.open_existing() as ledger:
        for snapshot in await queries.finished_tasks(ledger, limit=_MAX_TASKS):
            strategy.observe_finished(snapshot)
    return strategy.stats()


def _points(stats: DurationStats) -> dict[str, Any]:
    """Return the numbers behind the plot, as ages of a task in seconds.

    `percentiles` are the ages by which 1 % to 99 % of the tasks end, `poll_ages`
    the expected ages of the polls.
    """
    until = stats.curve.age(0.99)
    return {
        "percentiles": [round(stats.curve.age(part / 100), 3) for part in range(1, 100)],
        "poll_ages": [round(age, 3) for age in _poll_ages(stats, until)],
    }


def _poll_ages(stats: DurationStats, until: float) -> list[float]:
    ages: list[float] = []
    while (age := stats.curve.next_poll_age(ages[-1] if ages else 0.0, 1.0)) < until:
        ages.append(age)
    return ages


def plot(summary: ModelSummary, stats: DurationStats, *, blocks: bool = True) -> list[str]:
    """Plot when the tasks of one model end and when they are polled.

    Args:
        summary: The summary of the model.
        stats: Its durations.
        blocks: Whether the terminal shows Unicode block characters.

    Returns:
        Lines of at most 80 columns.
    """
    until = stats.curve.age(0.99) * 1.05
    stepped = [stepped_age(number + 1.0) for number in range(int(stepped_polls(until)))]
    edges = [until * column / _WIDTH for column in range(_WIDTH + 1)]
    ended = [_ended_part(stats, right) - _ended_part(stats, left) for left, right in pairwise(edges)]
    bars = _bars(ended, until / _WIDTH)
    low = _seconds(summary.low)
    high = _seconds(summary.high)
    return [
        f"{one_line(summary.model or '-')} at {one_line(summary.provider)}, last {_tasks(summary.tasks)}",
        f"50 % end within {_seconds(summary.median)}, 80 % between {low} and {high}.",
        "",
        *(bars if blocks else [bar.translate(_ASCII).rstrip() for bar in bars]),
        *_axis(until),
        _marks("adaptive", _poll_ages(stats, until), edges),
        _marks("stepped", stepped, edges),
        "",
        f"Adaptive: {_cost(summary.polls, summary.delay)}",
        f"Stepped:  {_cost(summary.stepped_polls, summary.stepped_delay)}",
    ]


def _ended_part(stats: DurationStats, age: float) -> float:
    """Return the part of the tasks that have ended by an age."""
    return -math.expm1(-stats.curve.hazard(age)[0])


def _bars(parts: list[float], span: float) -> list[str]:
    """Return the lines of the histogram, top line first; each column spans `span` seconds."""
    top = max(parts)
    levels = [round(_HEIGHT * 8 * part / top) for part in parts]
    lines: list[str] = []
    for row in range(_HEIGHT - 1, -1, -1):
        label = f"{100 * top / span:.0f} %/s" if row == _HEIGHT - 1 else ""
        lines.append(f"{label:>8} " + "".join(_BLOCKS[min(8, max(0, level - 8 * row))] for level in levels).rstrip())
    return lines


def _axis(until: float) -> list[str]:
    """Return the axis of ages and its labels, which are round numbers."""
    size = 10.0 ** math.floor(math.log10(until / 4))
    step = next(size * factor for factor in (5, 2, 1) if until / 4 >= size * factor)
    ticks = ["-"] * _WIDTH
    labels = [" "] * (_WIDTH + 8)
    for tick in range(int(until / step) + 1):
        column = min(int(tick * step / until * _WIDTH), _WIDTH - 1)
        ticks[column] = "+"
        text = f"{tick * step:g}" if tick else "0 s"
        labels[column : column + len(text)] = text
    return [" " * 9 + "".join(ticks), f"{'age':>8} " + "".join(labels).rstrip()]


def _marks(label: str, ages: list[float], edges: list[float]) -> str:
    """Return a mark for each poll, or their number where a column holds several."""
    counts = [sum(left <= age < right for age in ages) for left, right in pairwise(edges)]
    return f"{label:>8} {''.join(map(_mark, counts))}".rstrip()


def _mark(count: int) -> str:
    if count > 1:
        return str(min(count, 9))
    return "|" if count else " "


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _cost(polls: float, delay: float) -> str:
    return f"{polls:.1f} polls per task; the end is detected {_seconds(delay)} late on average."


def _seconds(seconds: float, whole_from: float = 100) -> str:
    """Return seconds with one decimal place, or none from `whole_from` seconds."""
    return f"{seconds:.0f} s" if seconds >= whole_from else f"{seconds:.1f} s"
