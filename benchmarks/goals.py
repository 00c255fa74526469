"""The goals of each part, and whether the results reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from peers import HAND, OURS, OURS_1S, OURS_BATCH, OURS_LIMITED, OURS_RARE
from presence import STATEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CPU_RATIO = 1.15
LAG_RATIO, LAG_MS = 0.25, 25.0
TASK_BYTES = 1600.0
CLOSING_SECONDS = 2.0
CPU_OF = {"cpu_per_get_us": "including creates", "cpu_per_get_waiting_us": "after the last create"}
MIN_WATCHED_TASKS = 10_000
BOUND_RATIO = 1.2
LEARNING_RATIO = 1.1
CROWD_RATIO = 0.5
CALLBACK_CPU_RATIO = 1.5
IMPORT_RATIO = 1.15
GROWTH_RATIO, GROWTH_MS = 1.5, 50.0
GROWING = ("entries", "export, s", "export, MB", "first search, s", "bytes an entry")  # no goals, or other ones
EXPORT_MB = 8.0
FLEET_DETECTION_RATIO, FLEET_CPU_RATIO, FLEET_KILLS_RATIO = 1.3, 3.0, 1.6
OWN_WAIT_S = 0.1
TABLES = ("orders", "sora_chars_entries", "procrastinate_jobs")
AWAITER_MS = {"postgresql": 25.0, "sqlite": 100.0}


@attrs.frozen
class Goal:
    """A goal and what was measured.

    Attributes:
        part: The part of the benchmarks.
        what: What is measured.
        measured: The measured value, in `unit`.
        most: The upper bound, if any.
        least: The lower bound, if any.
        unit: The unit of the three values.
    """

    part: str
    what: str
    measured: float
    most: float | None = None
    least: float | None = None
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the measured value is within the bounds."""
        return (self.most is None or self.measured <= self.most) and (self.least is None or self.measured >= self.least)

    @property
    def bounds(self) -> str:
        """The bounds as text."""
        pairs = [("at most", self.most), ("at least", self.least)]
        if self.most == self.least:
            pairs = [("exactly", self.most)]
        return " and ".join(f"{word} {number(value)}{self.unit}" for word, value in pairs if value is not None)

    @property
    def missed_by(self) -> str:
        """The distance from the bound, also as a share of it."""
        if self.reached:
            return ""
        limit = self.most if self.most is not None and self.measured > self.most else self.least or 0.0
        share = f" ({abs(self.measured / limit - 1):.0%})" if limit else ""
        return f"{number(abs(self.measured - limit))}{self.unit}{share}"


def number(value: float) -> str:
    """Return a number as text with its significant digits."""
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return every goal that has results."""
    found: list[Goal] = []
    for name, judge in JUDGES.items():
        if name in results:
            found += judge(results[name]["figures"])
    return found


def _waiting(figures: dict[str, Any]) -> Iterator[Goal]:
    for row in figures["table"]:
        peer, tasks = row["peer"], int(row["tasks"])
        runs = _runs(figures, peer, tasks)
        if peer in {OURS, OURS_1S, OURS_BATCH}:
            finished = min(run["finished"] for run in runs)
            yield Goal("A", f"{peer}, {tasks:,} tasks: finished", finished, least=tasks)
        if tasks < 1000:
            continue
        for figure, what in CPU_OF.items():
            if peer in {OURS_1S, OURS_BATCH} and (ratio := row[f"{figure}_ratio"]):
                title = f"{peer}, {tasks:,} tasks: CPU per GET, {what}, relative to the {HAND}"
                yield Goal("A", title, ratio, most=CPU_RATIO, unit=" x")
        if tasks == 5000 and peer in {OURS, OURS_1S, OURS_BATCH}:
            share = _worst_lag(runs) / _worst_lag(_runs(figures, HAND, tasks))
            title = f"{peer}, {tasks:,} tasks: worst lag of all rounds, relative to the {HAND}"
            yield Goal("A", title, share, most=LAG_RATIO, unit=" x")
        if tasks == 5000 and peer == OURS_RARE:
            yield Goal("A", f"{peer}, {tasks:,} tasks: worst lag", _worst_lag(runs), most=LAG_MS, unit=" ms")


def _runs(figures: dict[str, Any], peer: str, tasks: int) -> list[dict[str, Any]]:
    return [run for run in figures["runs"] if (run["peer"], run["tasks"]) == (peer, tasks)]


def _worst_lag(runs: list[dict[str, Any]]) -> float:
    return max(run.get("lag_max_ms", 0.0) for run in runs)


def _watched(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    row = rows[-1]
    if row["tasks"] < MIN_WATCHED_TASKS:  # fixed costs outweigh those of each task
        return
    size = f"{row['tasks']:,} watched tasks"
    yield Goal("A", f"{size}: memory per task", row["bytes_a_task"], most=TASK_BYTES, unit=" bytes")
    yield Goal("A", f"{size}: worst lag", row["lag_max_ms"], most=LAG_MS, unit=" ms")
    yield Goal("A", f"{size} with a waiter each: closing", row["close_s"], most=CLOSING_SECONDS, unit=" s")


def _pacing(figures: dict[str, Any]) -> Iterator[Goal]:
    for spread, found in figures["goals"].items():
        title = f"durations of spread {spread}:"
        yield Goal(
            "B",
            f"{title} once learned, detection delay relative to the bound",
            found["bound"],
            most=BOUND_RATIO,
            unit=" x",
        )
        for name, what in (("learning_gets", "GETs"), ("learning_late", "detection delay")):
            yield Goal(
                "B", f"{title} before that, {what} relative to the ladder", found[name], most=LEARNING_RATIO, unit=" x"
            )
        what = f"{title} 500 tasks at 10 GETs per second, detection delay relative to round-robin"
        if "crowd_best" in found:
            what += f" (best possible: {number(found['crowd_best'])} x)"
        yield Goal("B", what, found["crowd"], most=CROWD_RATIO, unit=" x")
    for name, row in figures.get("batches", {}).items():
        yield Goal(
            "B", f"a first batch, {name}: GETs relative to the ladder", row["gets"], most=LEARNING_RATIO, unit=" x"
        )
        yield Goal(
            "B", f"a first batch, {name}: detection delay relative to the ladder", row["late"], most=1.0, unit=" x"
        )


def _callbacks(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in rows[1:3]:
        yield Goal(
            "C",
            f"{row['kind']} CPU relative to {rows[0]['kind']}",
            row["cpu_ratio"],
            most=CALLBACK_CPU_RATIO,
            unit=" x",
        )


def _cards(cards: dict[str, Any]) -> Iterator[Goal]:
    lost = cards["lost"]["ours"]
    for name, what in (("tasks", "tasks created"), ("unknown", "SubmissionUnknownError"), ("recovered", "recovered")):
        yield Goal("D", f"10 lost responses: {what}", lost[name], least=10, most=10)
    for row in cards["kills"]:
        title, keys = f"SIGKILL, callbacks {'on' if row['callbacks'] else 'off'}: ", row["keys"]
        yield Goal("D", f"{title}keys with two tasks", row["keys with two tasks then"], most=0)
        yield Goal("D", f"{title}tasks lost", row["tasks that no entry accounts for"], most=0)
        yield Goal("D", f"{title}keys succeeded in the end", row["succeeded then"], least=keys)
    for row in cards["outage"]:
        if row["peer"] in {OURS, OURS_1S}:
            yield Goal("D", f"503 throughout: {row['peer']}, waits succeeded", row["finished"], least=row["asked"])
    storm = next(row for row in cards["storm"] if row["peer"] == OURS_LIMITED)
    yield Goal("D", "strict server, all at once: creates rejected", storm["refused_429"], most=0)
    yield Goal("D", "strict server, all at once: finished", storm["finished"], least=storm["asked"])
    for row in cards["callbacks"]["kinds"]:
        what = f"callbacks {row['kind']}: entries that succeeded, one per task"
        yield Goal("D", what, row["entries_succeeded"], least=row["tasks"], most=row["entries"])
    flood = cards["callbacks"]["flood"]
    yield Goal("D", "junk callbacks accepted", flood["taken"], most=0)
    yield Goal("D", "memory retained per junk callback", flood["bytes_each"], most=10, unit=" bytes")
    ours = next(row for row in cards["loops"] if row["peer"] == OURS_1S)
    clear = ours["second"].startswith("WrongLoopError") and ours["creates"] == 1
    yield Goal("D", "second event loop: a clear error before anything is sent", int(clear), least=1)


def _limits(rows: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    for title, row in rows.items():
        if "creates" in row:
            what = f"strict server, {title}: of {row['creates']:,} creates rejected"
            yield Goal("D", what, row["rejected creates"], most=0)


def _presence(figures: dict[str, Any]) -> Iterator[Goal]:
    for name in ("bare", "used"):
        ratio = figures["imports"][name]["cpu_ms_ratio"]
        yield Goal(
            "E",
            f"CPU of `{STATEMENTS[name]}` relative to `{STATEMENTS['theirs']}`",
            ratio,
            most=IMPORT_RATIO,
            unit=" x",
        )
    for step in ("imported", "session made"):
        if step in figures["steps"]:
            things = sum(figures["steps"][step].values())
            yield Goal("E", f"threads, asyncio tasks and sockets, {step}", things, most=0)


def _growth(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for large in rows:
        small = next(row for row in rows if row["ledger"] == large["ledger"])
        if large is small or large["entries"] < max(row["entries"] for row in rows):
            continue
        title = f"{large['ledger']}, {large['entries']:,} entries:"
        for name, took in large.items():
            if isinstance(took, float) and name not in GROWING:
                yield Goal("F", f"{title} {name}", took, most=max(GROWTH_MS, GROWTH_RATIO * small[name]), unit=" ms")
        yield Goal("F", f"{title} memory of an export", large["export, MB"], most=EXPORT_MB, unit=" MB")


def _fleet(runs: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    alone = runs["yardstick"]
    for name in ("plain", "kills", "callbacks", "limits"):
        run = runs[name]
        known = run.get("succeeded", 0) + run.get("unknown", 0)
        yield Goal("G", f"{name}: keys paid twice", run["twice"], most=0)
        yield Goal("G", f"{name}: keys that succeeded or are unknown", known, least=100 if name == "limits" else 500)
        yield Goal("G", f"{name}: requests refused", run["refused"], most=0)
    plain, kills, limits = runs["plain"], runs["kills"], runs["limits"]
    ratios = {
        "plain: detection delay": (plain["detection_mean_s"] / alone["detection_mean_s"], FLEET_DETECTION_RATIO),
        "plain: CPU of the workers per job": (plain["cpu_s"] / alone["cpu_s"], FLEET_CPU_RATIO),
        "kills: wall time": (kills["wall_s"] / alone["wall_s"], FLEET_KILLS_RATIO),
    }
    for what, (ratio, most) in ratios.items():
        yield Goal("G", f"{what} relative to `create_many` in one process", ratio, most=most, unit=" x")
    yield Goal("G", "callbacks: unknown outcomes", runs["callbacks"].get("unknown", 0), most=0)
    yield Goal("G", "limits: wait of the user's own jobs, p50", limits["own_wait_p50_s"], most=OWN_WAIT_S, unit=" s")
    none = sum(runs["transaction rolled back"][table] for table in TABLES)
    yield Goal("G", "a transaction that is rolled back: orders, entries and jobs", none, most=0)


def _temporal(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in rows:
        yield Goal("G", "Temporal: keys paid twice", row["twice"], most=0)
        yield Goal("G", "Temporal: keys lost", row["lost"], most=0)


def _web(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in rows:
        title = f"web, {row['ledger']}, awaiter of `{row['awaiter']}`"
        yield Goal("G", f"{title}: resumed, p95", row["p95, ms"], most=AWAITER_MS[row["ledger"]], unit=" ms")
        yield Goal("G", f"{title}: GETs of a task", row["most GETs of a task"], most=1)


JUDGES = {
    "waiting": _waiting,
    "watched": _watched,
    "pacing": _pacing,
    "callbacks": _callbacks,
    "cards": _cards,
    "limits": _limits,
    "presence": _presence,
    "growth": _growth,
    "fleet": _fleet,
    "temporal": _temporal,
    "web": _web,
}
