"""Part B: compares polling strategies with each other and with the bound, in virtual time.

There are 24 models: each duration of tests/recordings is the median of four, with log-normal durations. There is no
network: a poll takes no time. `gets`: polls per task, including the one that detects its end. `late`: the detection
delay, in seconds from the end of a task to that poll. `bound`: `late` relative to the minimum for this number of
polls, (integral of sqrt(f S))**2 / (2 gets). `even`: `late` relative to E[T] / (2 gets), the minimum for polls at even
intervals. `to_best`: `late` relative to the minimum for any rule (`least.py`).

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
LEARNED = 20  # durations after which a model counts as learned
STEADY = 10.0  # GETs per second that an API key may send
CROWD = 500  # tasks waiting at once


@attrs.frozen
class BackoffInterval(PollingStrategy):
    """The usual backoff: 1 s, then 1.5 times the previous interval, up to 30 s."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`. The age is the sum of all previous delays."""
        del snapshot
        return min(30.0, 1 + age / 2)


DRAWS: dict[str, Callable[[random.Random], float]] = {
    "5 to 20 s, uniform": lambda dice: dice.uniform(5, 20),
    "46 s, spread 0.25": lambda dice: 46 * math.exp(dice.gauss(0, 0.25)),
}

STRATEGIES: dict[str, Callable[[], PollingStrategy]] = {
    "every 1 s": lambda: FixedInterval(1),
    "every 3 s": lambda: FixedInterval(3),
    "every 10 s": lambda: FixedInterval(10),
    "x1.5 to 30 s": BackoffInterval,
    "ladder": lambda: SteppedInterval(random.Random(2)),
    "learned": lambda: AdaptiveInterval(random=random.Random(2)),
}


@attrs.frozen
class Model:
    """A model, whose durations are log-normal."""

    name: str
    median: float
    spread: float

    def draw(self, dice: random.Random) -> float:
        """Return a random duration."""
        return self.median * math.exp(dice.gauss(0, self.spread))

    def bound(self) -> float:
        """Return the minimum of polls times delay: (integral of sqrt(f S))**2 / 2, in z = ln(t / median) / spread."""
        step = 0.01
        total = 0.0
        for z in (step * k for k in range(-800, 801)):
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            surviving = math.erfc(z / math.sqrt(2)) / 2
            total += math.sqrt(density * surviving * self.spread * self.median * math.exp(self.spread * z)) * step
        return total * total / 2

    def mean(self) -> float:
        """Return the mean duration."""
        return self.median * math.exp(self.spread**2 / 2)


@attrs.define(eq=False)
class Task:
    """One task, its polls and its detection delay. Times are virtual seconds."""

    model: Model
    created: float
    ends: float
    snapshot: TaskSnapshot
    known: int = 0  # durations of its model that were known when it was created
    polled: float = 0.0  # for the last time
    due: float = 0.0
    gets: int = 0
    late: float = 0.0


def recorded() -> dict[str, float]:
    """Return the durations in the recordings, in seconds, by file."""
    found: dict[str, float] = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        for exchange in json.loads(path.read_text()):
            if '"completeTime":1' in exchange["response"]:
                record = json.loads(exchange["response"])["data"]
                found[path.stem] = (record["completeTime"] - record["createTime"]) / 1000
    return found


def models(spread: float) -> list[Model]:
    """Return the 24 models."""
    return [Model(f"{name} x {part}", median * part, spread) for name, median in recorded().items() for part in PARTS]


def make(model: Model, at: float, seconds: float) -> Task:
    """Return a task that is created at `at` and takes `seconds`."""
    running = TaskSnapshot(task_id="t", provider="kie", state="waiting", model=model.name)
    return Task(model, at, at + seconds, running, polled=at)


def ended(task: Task) -> TaskSnapshot:
    """Return what the last poll shows."""
    return attrs.evolve(task.snapshot, state="success", created_at=task.created, completed_at=task.ends)


def poll(strategy: PollingStrategy, task: Task, now: float) -> bool:
    """Poll a task as the watcher does. Return whether it has ended."""
    has_ended = now >= task.ends
    strategy.observe(ended(task) if has_ended else task.snapshot, now - task.created, now - task.polled)
    task.gets += 1
    task.polled = now
    if has_ended:
        task.late = now - task.ends
    return has_ended


def wait_for_all(strategy: PollingStrategy, tasks: Sequence[Task]) -> None:
    """Poll all tasks to their end when the strategy says so. It learns from each detected end."""
    order = count()
    known = 0
    due = [(task.created, next(order), task) for task in tasks]
    heapq.heapify(due)
    while due:
        now, _, task = heapq.heappop(due)
        if now == task.created:
            task.known = known
        elif poll(strategy, task, now):
            known += 1
            continue
        heapq.heappush(due, (now + strategy.delay(task.snapshot, now - task.created), next(order), task))


def compare(spread: float, seeds: Iterable[int], count_of: int) -> dict[str, Any]:
    """Return the costs of each strategy with all models, from a cold start: in all, and while it learns.

    Every strategy gets the same tasks.
    """
    spent: dict[str, list[Task]] = {name: [] for name in STRATEGIES}
    for seed in seeds:
        for number, model in enumerate(models(spread)):
            dice = random.Random(f"{seed} {number}")
            gap = model.mean() / AT_ONCE
            pairs = [((k + dice.random()) * gap, model.draw(dice)) for k in range(count_of)]
            for name, new in STRATEGIES.items():
                tasks = [make(model, at, seconds) for at, seconds in pairs]
                wait_for_all(new(), tasks)
                spent[name] += tasks
    # The adaptive strategy decides which tasks count as early; the others are compared on the same tasks.
    early = [task.known < LEARNED for task in spent["learned"]]
    parts = {"all": [True] * len(early), "learning": early, "learned": [not each for each in early]}
    return {
        part: {name: cost(list(compress(tasks, wanted))) for name, tasks in spent.items()}
        for part, wanted in parts.items()
    }


def cost(tasks: Sequence[Task]) -> dict[str, float]:
    """Return means over tasks, and their ratios to the bound and to even intervals with as many polls of each model."""
    by_model: dict[Model, list[Task]] = {}
    for task in tasks:
        by_model.setdefault(task.model, []).append(task)
    bound = even = 0.0
    for model, its in by_model.items():
        gets = fmean(task.gets for task in its)
        bound += len(its) * model.bound() / gets
        even += len(its) * model.mean() / 2 / gets
    late = [task.late for task in tasks]
    return {
        "gets": fmean(task.gets for task in tasks),
        "late": fmean(late),
        "late_p99": quantiles(late, n=100)[98],
        "bound": sum(late) / bound,
        "even": sum(late) / even,
    }


def change(kind: str, number: int, seconds: float, dice: random.Random) -> float:
    """Return the duration of a task, given its number, of a model that changes."""
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
    """Return the GETs and detection delay of the adaptive strategy relative to the stepped one.

    They are means of the 60 tasks after the 200 that were learned.
    """
    spent: dict[str, list[Task]] = {"ladder": [], "learned": []}
    for number, model in enumerate(models(spread)):
        dice = random.Random(number)
        at = 0.0
        pairs: list[tuple[float, float]] = []
        for k in range(TASKS + AFTER):
            pairs.append((at, change(kind, k, model.draw(dice), dice)))
            at += pairs[-1][1] / AT_ONCE
        for name, its in spent.items():
            tasks = [make(model, at, seconds) for at, seconds in pairs]
            wait_for_all(STRATEGIES[name](), tasks)
            its.extend(tasks[TASKS:])
    gets, late = ([fmean(getattr(task, what) for task in its) for its in spent.values()] for what in ("gets", "late"))
    return {"gets": gets[1] / gets[0], "late": late[1] / late[0]}


def batches(count_of: int, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """Return the GETs and detection delay of the adaptive strategy relative to the stepped one, for batches.

    All tasks of a batch are of one model and are created together. The first batch starts
    without any known duration, the second (`again`) with those of the first.
    """
    spent = {(draw, name): [list[Task](), list[Task]()] for draw in DRAWS for name in ("ladder", "learned")}
    for (draw, name), both in spent.items():
        for seed in seeds:
            dice = random.Random(seed)
            strategy = STRATEGIES[name]()
            for number, its in enumerate(both):
                tasks = [make(Model(draw, 0, 0), number * 1e6, DRAWS[draw](dice)) for _ in range(count_of)]
                wait_for_all(strategy, tasks)
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


def longest_unpolled(_: PollingStrategy, due: Sequence[Task], __: float) -> Task:
    """Return the task that was polled longest ago: round-robin."""
    return min(due, key=attrgetter("polled"))


def first_due(_: PollingStrategy, due: Sequence[Task], __: float) -> Task:
    """Return the task that became due first."""
    return min(due, key=attrgetter("due"))


def most_gained(strategy: PollingStrategy, due: Sequence[Task], now: float) -> Task:
    """Return the task whose poll saves the most waiting."""
    return max(due, key=lambda task: strategy.priority(task.snapshot, now - task.created, now - task.polled))


RULES: dict[str, tuple[Callable[[], PollingStrategy], Callable[[PollingStrategy, Sequence[Task], float], Task]]] = {
    "round-robin": (lambda: FixedInterval(0.001), longest_unpolled),
    "ladder, first due": (STRATEGIES["ladder"], first_due),
    "learned, first due": (STRATEGIES["learned"], first_due),
    "learned, most gained": (STRATEGIES["learned"], most_gained),
}


def crowd(rule: str, spread: float, seconds: float) -> dict[str, float]:
    """Return the costs of a rule with 500 waiting tasks of all models and 10 GETs per second, after the first third."""
    new, choose = RULES[rule]
    strategy = new()
    dice = random.Random(1)
    among = models(spread)

    def fresh(now: float) -> Task:
        model = dice.choice(among)
        task = make(model, now, model.draw(dice))
        task.due = now + strategy.delay(task.snapshot, 0.0)
        return task

    waiting = [fresh(0.0) for _ in range(CROWD)]
    found: list[Task] = []
    for now in (number / STEADY for number in range(1, int(seconds * STEADY))):
        due = [task for task in waiting if task.due <= now]
        if due:
            task = choose(strategy, due, now)
            has_ended = poll(strategy, task, now)
            task.due = now + strategy.delay(task.snapshot, now - task.created)
            if has_ended:
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
    """Return the costs of each rule and the minimum for any rule; `to_best` is relative to that minimum."""
    rows = {rule: crowd(rule, spread, seconds) for rule in RULES}
    gets, late = least([model.median for model in models(spread)], spread, waiting=CROWD, gets=STEADY)
    for row in rows.values():
        row["to_best"] = row["late"] / late
    rows["best possible"] = {"gets": gets, "late": late, "found_a_second": STEADY / gets, "to_best": 1.0}
    return rows


def figures(*, quick: bool) -> dict[str, Any]:
    """Return the results of part B. `goals` holds the figures that `goals.py` compares with its bounds."""
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
    """Print all results."""
    found = figures(quick="--quick" in sys.argv)
    for spread, parts in found["paces"].items():
        for part, rows in parts.items():
            show(f"spread {spread}, {part}", rows)
    for spread, rows in found["crowd"].items():
        show(f"spread {spread}, {CROWD} tasks, {STEADY:g} GETs per second", rows)
    show("learned / ladder, all at once", found["batches"])
    show("learned / ladder, a model that changes", found["drift"])
    show("goals, by spread", found["goals"])


if __name__ == "__main__":
    main()
