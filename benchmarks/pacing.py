"""Seeing it sooner for fewer GETs (part B): paces against each other and against the bound, in virtual time.

24 models: the durations of tests/recordings, each as four models, log-normal. `gets`: looks a task, the one that shows
the end too; `late`: seconds from the end of a task to that look; `bound`: `late` against (integral of sqrt(f S))**2 /
(2 gets), the least for so many looks; `even`: `late` against E[T] / (2 gets), the least for looks at even intervals.
`to_best`: `late` against the least that there is for any rule (`least.py`). No network: a look takes no time.
Usage: python benchmarks/pacing.py [--quick]
"""

from __future__ import annotations

import heapq
import json
import math
import random
import sys
from itertools import compress, count
from operator import attrgetter
from pathlib import Path
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any

import attrs
from least import least

from sora_chars import AdaptiveInterval, FixedInterval, PollingStrategy, SteppedInterval, TaskSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

RECORDINGS = Path(__file__).parent.parent / "tests" / "recordings" / "kie"
SPREADS = (0.15, 0.25, 0.4)  # of the logarithms of one model's durations
PARTS = (0.8, 1.0, 1.25, 1.6)  # of a recorded duration: a median of its own
TASKS = 200  # of each model
AFTER = 60  # tasks of a model after it has changed
CHANGES = (
    "none",
    "two kinds of tasks",
    "twice as slow from now on",
    "twice as fast from now on",
    "twice as slow every 200",
    "one in 50 takes 20 times as long",
)
AT_ONCE = 4  # of each model, on average
LEARNED = 20  # durations after which a model is taken for known
STEADY = 10.0  # GETs a second that a key may send
CROWD = 500  # tasks waiting at once


@attrs.frozen
class BackoffPace(PollingStrategy):
    """The usual one: 1 s, then half as long again each time, to 30 s."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`: by this age, that is where the sum of all delays has come to."""
        del snapshot
        return min(30.0, 1 + age / 2)


DRAWS: dict[str, Callable[[random.Random], float]] = {
    "5 to 20 s, uniform": lambda dice: dice.uniform(5, 20),
    "46 s, spread 0.25": lambda dice: 46 * math.exp(dice.gauss(0, 0.25)),
}

PACES: dict[str, Callable[[], PollingStrategy]] = {
    "every 1 s": lambda: FixedInterval(1),
    "every 3 s": lambda: FixedInterval(3),
    "every 10 s": lambda: FixedInterval(10),
    "x1.5 to 30 s": BackoffPace,
    "ladder": lambda: SteppedInterval(random.Random(2)),
    "learned": lambda: AdaptiveInterval(random=random.Random(2)),
}


@attrs.frozen
class Model:
    """How long the tasks of one model take."""

    name: str
    median: float
    spread: float

    def draw(self, dice: random.Random) -> float:
        """A duration."""
        return self.median * math.exp(dice.gauss(0, self.spread))

    def bound(self) -> float:
        """The least product of looks and lateness: (integral of sqrt(f S))**2 / 2, in z = ln(t / median) / spread."""
        step, total = 0.01, 0.0
        for z in (step * k for k in range(-800, 801)):
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            surviving = math.erfc(z / math.sqrt(2)) / 2
            total += math.sqrt(density * surviving * self.spread * self.median * math.exp(self.spread * z)) * step
        return total * total / 2

    def mean(self) -> float:
        """The mean duration."""
        return self.median * math.exp(self.spread**2 / 2)


@attrs.define(eq=False)
class Task:
    """One task, and what it cost."""

    model: Model
    made: float
    ends: float
    snapshot: TaskSnapshot
    known: int = 0  # durations of its model that were known when it was made
    seen: float = 0.0
    due: float = 0.0
    gets: int = 0
    late: float = 0.0


def recorded() -> dict[str, float]:
    """The durations in the recordings, in seconds, by file."""
    found: dict[str, float] = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        for exchange in json.loads(path.read_text()):
            if '"completeTime":1' in exchange["response"]:
                record = json.loads(exchange["response"])["data"]
                found[path.stem] = (record["completeTime"] - record["createTime"]) / 1000
    return found


def models(spread: float) -> list[Model]:
    """The 24 models."""
    return [Model(f"{name} x {part}", median * part, spread) for name, median in recorded().items() for part in PARTS]


def make(model: Model, at: float, seconds: float) -> Task:
    """A task that takes so long."""
    running = TaskSnapshot(task_id="t", provider="kie", state="waiting", model=model.name)
    return Task(model, at, at + seconds, running, seen=at)


def ended(task: Task) -> TaskSnapshot:
    """What the last look shows."""
    return attrs.evolve(task.snapshot, state="success", created_at=task.made, completed_at=task.ends)


def look(pace: PollingStrategy, task: Task, now: float) -> bool:
    """Look at a task, as the watcher does; whether it has ended."""
    over = now >= task.ends
    pace.observe(ended(task) if over else task.snapshot, now - task.made, now - task.seen)
    task.gets += 1
    task.seen = now
    if over:
        task.late = now - task.ends
    return over


def live(pace: PollingStrategy, tasks: Sequence[Task]) -> None:
    """Wait for all tasks, looking whenever the pace says so; it learns as they are seen to have ended."""
    turn, known = count(), 0
    due = [(task.made, next(turn), task) for task in tasks]
    heapq.heapify(due)
    while due:
        now, _, task = heapq.heappop(due)
        if now == task.made:
            task.known = known
        elif look(pace, task, now):
            known += 1
            continue
        heapq.heappush(due, (now + pace.delay(task.snapshot, now - task.made), next(turn), task))


def compare(spread: float, seeds: Iterable[int], count_of: int) -> dict[str, Any]:
    """What each pace costs at all models, from a cold start, the same tasks for each; in all, and while learning."""
    spent: dict[str, list[Task]] = {name: [] for name in PACES}
    for seed in seeds:
        for number, model in enumerate(models(spread)):
            dice = random.Random(f"{seed} {number}")
            gap = model.mean() / AT_ONCE
            lives = [((k + dice.random()) * gap, model.draw(dice)) for k in range(count_of)]
            for name, new in PACES.items():
                tasks = [make(model, at, seconds) for at, seconds in lives]
                live(new(), tasks)
                spent[name] += tasks
    # Which tasks were made while little was known is the learning pace's; the others are shown at the same ones.
    early = [task.known < LEARNED for task in spent["learned"]]
    parts = {"all": [True] * len(early), "learning": early, "learned": [not each for each in early]}
    return {
        part: {name: cost(list(compress(tasks, wanted))) for name, tasks in spent.items()}
        for part, wanted in parts.items()
    }


def cost(tasks: Sequence[Task]) -> dict[str, float]:
    """Means over tasks, and against the bound and even intervals at as many looks, model by model."""
    by_model: dict[Model, list[Task]] = {}
    for task in tasks:
        by_model.setdefault(task.model, []).append(task)
    least = even = 0.0
    for model, its in by_model.items():
        gets = fmean(task.gets for task in its)
        least += len(its) * model.bound() / gets
        even += len(its) * model.mean() / 2 / gets
    late = [task.late for task in tasks]
    return {
        "gets": fmean(task.gets for task in tasks),
        "late": fmean(late),
        "late_p99": quantiles(late, n=100)[98],
        "bound": sum(late) / least,
        "even": sum(late) / even,
    }


def change(kind: str, number: int, seconds: float, dice: random.Random) -> float:
    """The duration of the task of this number where the model does not stay what it was."""
    match kind:
        case "two kinds of tasks":
            return seconds / 4 if dice.random() < 0.3 else seconds
        case "twice as slow from now on":
            return seconds * 2 if number >= TASKS else seconds
        case "twice as fast from now on":
            return seconds / 2 if number >= TASKS else seconds
        case "twice as slow every 200":
            return seconds * 2 ** (number / 200)
        case "one in 50 takes 20 times as long":
            return seconds * 20 if dice.random() < 0.02 else seconds
        case _:
            return seconds


def drift(kind: str, spread: float = 0.25) -> dict[str, float]:
    """GETs and lateness of the learning pace against the ladder's, for the 60 tasks after the 200 that were learned."""
    spent: dict[str, list[Task]] = {"ladder": [], "learned": []}
    for number, model in enumerate(models(spread)):
        dice = random.Random(number)
        at, lives = 0.0, list[tuple[float, float]]()
        for k in range(TASKS + AFTER):
            lives.append((at, change(kind, k, model.draw(dice), dice)))
            at += lives[-1][1] / AT_ONCE
        for name, its in spent.items():
            tasks = [make(model, at, seconds) for at, seconds in lives]
            live(PACES[name](), tasks)
            its.extend(tasks[TASKS:])
    gets, late = ([fmean(getattr(task, what) for task in its) for its in spent.values()] for what in ("gets", "late"))
    return {"gets": gets[1] / gets[0], "late": late[1] / late[0]}


def batches(count_of: int, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """GETs and lateness of the learning pace against the ladder's, where so many tasks of one model begin at once.

    In a first batch, of which nothing is known before, and in a second one.
    """
    spent = {(draw, name): [list[Task](), list[Task]()] for draw in DRAWS for name in ("ladder", "learned")}
    for (draw, name), both in spent.items():
        for seed in seeds:
            dice, pace = random.Random(seed), PACES[name]()
            for number, its in enumerate(both):
                tasks = [make(Model(draw, 0, 0), number * 1e6, DRAWS[draw](dice)) for _ in range(count_of)]
                live(pace, tasks)
                its.extend(tasks)
    return {
        f"{draw}, {count_of} at once": {
            f"{what}{' again' * number}": fmean(getattr(task, what) for task in spent[draw, "learned"][number])
            / fmean(getattr(task, what) for task in spent[draw, "ladder"][number])
            for number in range(2)
            for what in ("gets", "late")
        }
        for draw in DRAWS
    }


def longest_unseen(_: PollingStrategy, due: Sequence[Task], __: float) -> Task:
    """Round-robin: the task that was looked at longest ago."""
    return min(due, key=attrgetter("seen"))


def first_due(_: PollingStrategy, due: Sequence[Task], __: float) -> Task:
    """The task that should have been looked at first."""
    return min(due, key=attrgetter("due"))


def most_gained(pace: PollingStrategy, due: Sequence[Task], now: float) -> Task:
    """The task whose look saves the most waiting."""
    return max(due, key=lambda task: pace.priority(task.snapshot, now - task.made, now - task.seen))


RULES: dict[str, tuple[Callable[[], PollingStrategy], Callable[[PollingStrategy, Sequence[Task], float], Task]]] = {
    "round-robin": (lambda: FixedInterval(0.001), longest_unseen),
    "ladder, first due": (PACES["ladder"], first_due),
    "learned, first due": (PACES["learned"], first_due),
    "learned, most gained": (PACES["learned"], most_gained),
}


def crowd(rule: str, spread: float, seconds: float) -> dict[str, float]:
    """500 tasks waiting at all times, of all models, and 10 GETs a second: what comes after the first third."""
    new, choose = RULES[rule]
    pace, dice, among = new(), random.Random(1), models(spread)

    def fresh(now: float) -> Task:
        model = dice.choice(among)
        task = make(model, now, model.draw(dice))
        task.due = now + pace.delay(task.snapshot, 0.0)
        return task

    waiting, found = [fresh(0.0) for _ in range(CROWD)], list[Task]()
    for now in (turn / STEADY for turn in range(1, int(seconds * STEADY))):
        due = [task for task in waiting if task.due <= now]
        if due:
            task = choose(pace, due, now)
            over = look(pace, task, now)
            task.due = now + pace.delay(task.snapshot, now - task.made)
            if over:
                waiting[waiting.index(task)] = fresh(now)
                found += [task] * (now > seconds / 3)
    return {
        "gets": fmean(task.gets for task in found),
        "late": fmean(task.late for task in found),
        "late_p99": quantiles([task.late for task in found], n=100)[98],
        "late_max": max(task.late for task in found),
        "found_a_second": len(found) / (seconds * 2 / 3),
    }


def crowds(spread: float, seconds: float) -> dict[str, dict[str, float]]:
    """What each rule comes to, and the best that any could, which the others are compared with as `to_best`."""
    rows = {rule: crowd(rule, spread, seconds) for rule in RULES}
    gets, late = least([model.median for model in models(spread)], spread, waiting=CROWD, gets=STEADY)
    for row in rows.values():
        row["to_best"] = row["late"] / late
    rows["best possible"] = {"gets": gets, "late": late, "found_a_second": STEADY / gets, "to_best": 1.0}
    return rows


def figures(*, quick: bool) -> dict[str, Any]:
    """All of part B; `goals` holds what BENCHMARKS.md asks for, each as the ratio it names."""
    seeds, each, seconds = (range(1), 60, 150.0) if quick else (range(3), TASKS, 900.0)
    compared = {str(spread): compare(spread, seeds, each) for spread in SPREADS}
    crowded = {str(spread): crowds(spread, seconds) for spread in SPREADS}
    goals = {
        spread: {
            "bound": parts["learned"]["learned"]["bound"],
            "learning_gets": parts["learning"]["learned"]["gets"] / parts["learning"]["ladder"]["gets"],
            "learning_late": parts["learning"]["learned"]["late"] / parts["learning"]["ladder"]["late"],
            "crowd": crowded[spread]["learned, most gained"]["late"] / crowded[spread]["round-robin"]["late"],
            "crowd_best": crowded[spread]["best possible"]["late"] / crowded[spread]["round-robin"]["late"],
        }
        for spread, parts in compared.items()
    }
    return {
        "goals": goals,
        "paces": compared,
        "crowd": crowded,
        "batches": batches(200, seeds) | batches(500, seeds),
        "drift": {kind: drift(kind) for kind in CHANGES},
    }


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title:<40}" + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        cells = (f"{row[column]:.3f}" if column in row else "" for column in columns)
        print(f"{name:<40}" + "".join(f"{cell:>15}" for cell in cells))


def main() -> None:
    """Print everything."""
    found = figures(quick="--quick" in sys.argv)
    for spread, parts in found["paces"].items():
        for part, rows in parts.items():
            show(f"spread {spread}, {part}", rows)
    for spread, rows in found["crowd"].items():
        show(f"spread {spread}, {CROWD} tasks, {STEADY:g} GETs a second", rows)
    show("learned / ladder, all at once", found["batches"])
    show("learned / ladder, a model that changes", found["drift"])
    show("goals, by spread", found["goals"])


if __name__ == "__main__":
    main()
