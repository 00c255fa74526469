"""`sora-chars pace`: what was learned of how long tasks take, and when it makes the SDK look. Nothing is sent."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import click

from sora_chars.cli.context import speaking
from sora_chars.cli.keeping import keeping
from sora_chars.cli.output import plain
from sora_chars.cli.render import shown
from sora_chars.cli.runner import run
from sora_chars.ledger import queries
from sora_chars.polling.durations import ladder_age, ladder_polls
from sora_chars.polling.strategies import AdaptiveInterval

if TYPE_CHECKING:
    from sora_chars.cli.context import Job
    from sora_chars.cli.keeping import Place
    from sora_chars.cli.render import Cells
    from sora_chars.polling.durations import DurationStats

HEAD = ("model", "provider", "tasks", "10-50-90 % take, s", "GETs/ ladder's", "late/ ladder's, s")
LADDER = "every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s"

_TASKS = 20_000  # of the ledger, newest first; more than all models need
_WIDTH, _HEIGHT = 70, 8  # of the plot, in characters
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PLAIN = str.maketrans(_BLOCKS, "    #####")


@attrs.frozen
class Facts:
    """What the table shows of one model. Times are seconds, the GETs those of one task; `late` from its end on."""

    provider: str
    model: str | None
    tasks: int
    low: float
    median: float
    high: float
    gets: float
    late: float
    ladder_gets: float
    ladder_late: float

    @classmethod
    def of(cls, lesson: DurationStats) -> Facts:
        """The facts of what was learned."""
        curve = lesson.curve
        low, median, high = (curve.age(part) for part in (0.1, 0.5, 0.9))
        costs = (*curve.cost(), *curve.ladder_cost())
        return cls(lesson.provider, lesson.model, lesson.tasks, low, median, high, *costs)

    def cells(self) -> Cells:
        """The facts as the cells of `HEAD`."""
        return (
            shown(self.model or "-"),
            shown(self.provider),
            f"{self.tasks} tasks",
            "-".join(_seconds(age, 10).removesuffix(" s") for age in (self.low, self.median, self.high)),
            f"{self.gets:.1f}/{self.ladder_gets:.1f}",
            f"{self.late:.1f}/{self.ladder_late:.1f}",
        )


@click.command()
@click.argument("model", required=False)
@keeping
@speaking
@click.pass_obj
def pace(job: Job, /, *, model: str | None, place: Place) -> None:
    """Show how long the tasks of each model take, as the ledger tells; or plot MODEL, and when its tasks are looked at.

    GETs are those of one task, and "late" is from its end to the GET that shows it, both on average.
    """
    job.place = place
    stats = run(job, _learn(place))
    if model is not None:
        stats = [lesson for lesson in stats if model == (lesson.model or "-")]
    facts = [Facts.of(lesson) for lesson in stats]
    payload = {"models": [attrs.asdict(each) for each in facts]}
    if model is None:
        job.screen.show_table(payload, [each.cells() for each in facts], head=HEAD, stacked=3)
    elif job.screen.as_json:
        job.screen.show_json(
            {"models": [attrs.asdict(f) | _points(each) for f, each in zip(facts, stats, strict=True)]}
        )
    else:
        for each, lesson in zip(facts, stats, strict=True):
            for line in explain(each, lesson, blocks=job.screen.out.encoding.startswith("utf")):
                plain(job.screen.out, line)
    if not stats:
        what = "any model" if model is None else shown(model)
        job.screen.note(
            f"No task of {what} that has ended is in {place} yet. Until one is, looks follow kie.ai's ladder:"
        )
        job.screen.note(f"{LADDER}.")


async def _learn(place: Place) -> list[DurationStats]:
    learned = AdaptiveInterval()
    async with place.find() as ledger:
        for snapshot in await queries.finished_tasks(ledger, limit=_TASKS):
            learned.observe_finished(snapshot)
    return learned.stats()


def _points(lesson: DurationStats) -> dict[str, Any]:
    """What the plot is drawn from: when each hundredth of all tasks has ended, and when one is looked at on average."""
    until = lesson.curve.age(0.99)
    return {
        "ends": [round(lesson.curve.age(part / 100), 3) for part in range(1, 100)],
        "looks": [round(age, 3) for age in _looks(lesson, until)],
    }


def _looks(lesson: DurationStats, until: float) -> list[float]:
    ages: list[float] = []
    while (age := lesson.curve.next_poll_age(ages[-1] if ages else 0.0, 1.0)) < until:
        ages.append(age)
    return ages


def explain(facts: Facts, lesson: DurationStats, *, blocks: bool = True) -> list[str]:
    """The plot of one model in lines of up to 80 columns: where its tasks end, and the looks at one that does not."""
    until = lesson.curve.age(0.99) * 1.05
    ladder = [ladder_age(number + 1.0) for number in range(int(ladder_polls(until)))]
    edges = [until * column / _WIDTH for column in range(_WIDTH + 1)]
    ends = [_ended(lesson, right) - _ended(lesson, left) for left, right in pairwise(edges)]
    bars = _bars(ends, until / _WIDTH)
    return [
        f"{shown(facts.model or '-')} at {shown(facts.provider)}, from its last {facts.tasks} tasks",
        f"Half take less than {_seconds(facts.median)}, 8 in 10 from {_seconds(facts.low)} to {_seconds(facts.high)}.",
        "",
        *(bars if blocks else [bar.translate(_PLAIN).rstrip() for bar in bars]),
        *_axis(until),
        _marks("looks", _looks(lesson, until), edges),
        _marks("ladder", ladder, edges),
        "",
        f"A task costs {facts.gets:.1f} GETs, and its end is seen {_seconds(facts.late)} late on average.",
        f"kie.ai's ladder: {facts.ladder_gets:.1f} GETs, {_seconds(facts.ladder_late)} late.",
    ]


def _ended(lesson: DurationStats, age: float) -> float:
    """Which part of the tasks has ended by then."""
    return -math.expm1(-lesson.curve.hazard(age)[0])


def _bars(ends: list[float], span: float) -> list[str]:
    """The density of ends, the upper lines first, each column of `span` seconds."""
    top = max(ends)
    levels = [round(_HEIGHT * 8 * part / top) for part in ends]
    lines: list[str] = []
    for row in range(_HEIGHT - 1, -1, -1):
        label = f"{100 * top / span:.2g} %/s" if row == _HEIGHT - 1 else ""
        lines.append(f"{label:>8} " + "".join(_BLOCKS[min(8, max(0, level - 8 * row))] for level in levels).rstrip())
    return lines


def _axis(until: float) -> list[str]:
    """A line, and ages below it at round numbers."""
    size = 10.0 ** math.floor(math.log10(until / 4))
    step = next(size * by for by in (5, 2, 1) if until / 4 >= size * by)
    ticks, labels = ["-"] * _WIDTH, [" "] * (_WIDTH + 8)
    for tick in range(int(until / step) + 1):
        column = min(int(tick * step / until * _WIDTH), _WIDTH - 1)
        ticks[column] = "+"
        text = f"{tick * step:g}" if tick else "0 s"
        labels[column : column + len(text)] = text
    return [" " * 9 + "".join(ticks), f"{'age':>8} " + "".join(labels).rstrip()]


def _marks(label: str, looks: list[float], edges: list[float]) -> str:
    """A mark for each look, a number where a column holds more than one."""
    counts = [sum(left <= look < right for look in looks) for left, right in pairwise(edges)]
    marks = "".join(" " if not count else "|" if count == 1 else str(min(count, 9)) for count in counts)
    return f"{label:>8} {marks}".rstrip()


def _seconds(seconds: float, whole: float = 100) -> str:
    """With a tenth, unless there are so many that a tenth says nothing."""
    return f"{seconds:.0f} s" if seconds >= whole else f"{seconds:.1f} s"
