"""What was to be reached, part by part (the numbers of the project's benchmark plan), and whether it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from peers import HAND, OURS, OURS_1S, OURS_BATCH, OURS_LIMITED, OURS_RARE
from presence import STATEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CPU, LAG_MS, BYTES, CLOSING_S = 1.25, 25.0, 2048.0, 2.0
CPU_OF = {"cpu_per_get_us": "creating included", "cpu_per_get_waiting_us": "after the last create"}
MANY = 10_000
BOUND, LEARNING, CROWD = 1.2, 1.1, 0.5
CALLBACK_CPU, IMPORT = 1.5, 1.15


@attrs.frozen
class Goal:
    """`most`: what is allowed, in `unit`; a goal that is a count has `least` instead."""

    part: str
    what: str
    measured: float
    most: float | None = None
    least: float | None = None
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether it is so."""
        return (self.most is None or self.measured <= self.most) and (self.least is None or self.measured >= self.least)

    @property
    def wanted(self) -> str:
        """The limit in words."""
        bounds = [("at most", self.most), ("at least", self.least)]
        if self.most == self.least:
            bounds = [("exactly", self.most)]
        return " and ".join(f"{word} {number(value)}{self.unit}" for word, value in bounds if value is not None)

    @property
    def missed_by(self) -> str:
        """How far off, as a share of the limit where there is one."""
        if self.reached:
            return ""
        limit = self.most if self.most is not None and self.measured > self.most else self.least or 0.0
        share = f" ({abs(self.measured / limit - 1):.0%})" if limit else ""
        return f"{number(abs(self.measured - limit))}{self.unit}{share}"


def number(value: float) -> str:
    """With as many digits as mean something."""
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Every goal of which there are figures."""
    found: list[Goal] = []
    for name, judge in JUDGES.items():
        if name in results:
            found += judge(results[name]["figures"])
    return found


def _waiting(figures: dict[str, Any]) -> Iterator[Goal]:
    for row in figures["table"]:
        peer, tasks = row["peer"], int(row["tasks"])
        runs = [run for run in figures["runs"] if (run["peer"], run["tasks"]) == (peer, tasks)]
        if peer in {OURS, OURS_1S, OURS_BATCH}:
            finished = min(run["finished"] for run in runs)
            yield Goal("A", f"{peer}, {tasks:,} tasks: finished", finished, least=tasks)
        if tasks < 1000:
            continue
        for figure, what in CPU_OF.items():
            if peer in {OURS_1S, OURS_BATCH} and (ratio := row[f"{figure}_ratio"]):
                title = f"{peer}, {tasks:,} tasks: CPU a GET, {what}, to the {HAND}'s"
                yield Goal("A", title, ratio, most=CPU, unit=" x")
        if tasks == 5000 and peer in {OURS, OURS_1S, OURS_BATCH, OURS_RARE}:
            worst = max(run.get("lag_max_ms", 0.0) for run in runs)
            yield Goal("A", f"{peer}, {tasks:,} tasks: worst lag of all rounds", worst, most=LAG_MS, unit=" ms")


def _watched(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    row = rows[-1]
    if row["tasks"] < MANY:  # where what is made once weighs more than what is made for each
        return
    size = f"{row['tasks']:,} watched"
    yield Goal("A", f"{size}: memory of one", row["bytes_a_task"], most=BYTES, unit=" bytes")
    yield Goal("A", f"{size}: worst lag", row["lag_max_ms"], most=LAG_MS, unit=" ms")
    yield Goal("A", f"{size} and awaited: closing", row["close_s"], most=CLOSING_S, unit=" s")


def _pacing(figures: dict[str, Any]) -> Iterator[Goal]:
    for spread, found in figures["goals"].items():
        title = f"durations of spread {spread}:"
        yield Goal("B", f"{title} once learned, seen after, to the bound", found["bound"], most=BOUND, unit=" x")
        for name, what in (("learning_gets", "GETs"), ("learning_late", "seen after")):
            yield Goal("B", f"{title} before that, {what}, to the ladder's", found[name], most=LEARNING, unit=" x")
        what = f"{title} 500 tasks at 10 GETs a second, seen after, to round-robin's"
        if "crowd_best" in found:
            what += f" (best possible: {number(found['crowd_best'])} x)"
        yield Goal("B", what, found["crowd"], most=CROWD, unit=" x")
    for name, row in figures.get("batches", {}).items():
        yield Goal("B", f"a first batch, {name}: GETs, to the ladder's", row["gets"], most=LEARNING, unit=" x")
        yield Goal("B", f"a first batch, {name}: seen after, to the ladder's", row["late"], most=1.0, unit=" x")


def _callbacks(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    for row in rows[1:3]:
        yield Goal(
            "C", f"{row['kind']} CPU, to the {rows[0]['kind']}'s", row["cpu_ratio"], most=CALLBACK_CPU, unit=" x"
        )


def _cards(cards: dict[str, Any]) -> Iterator[Goal]:
    lost = cards["lost"]["ours"]
    for name, what in (("tasks", "tasks made"), ("unknown", "SubmissionUnknownError"), ("recovered", "recovered")):
        yield Goal("D", f"10 lost answers: {what}", lost[name], least=10, most=10)
    for row in cards["kills"]:
        title, keys = f"SIGKILL, callbacks {'on' if row['callbacks'] else 'off'}: ", row["keys"]
        yield Goal("D", f"{title}keys with two tasks", row["keys with two tasks then"], most=0)
        yield Goal("D", f"{title}tasks lost", row["tasks that no entry accounts for"], most=0)
        yield Goal("D", f"{title}keys made at last", row["succeeded then"], least=keys)
    for row in cards["outage"]:
        if row["peer"] in {OURS, OURS_1S}:
            yield Goal("D", f"503 throughout: {row['peer']}, waits ended well", row["finished"], least=row["asked"])
    storm = next(row for row in cards["storm"] if row["peer"] == OURS_LIMITED)
    yield Goal("D", "strict server, all at once: creates refused", storm["refused_429"], most=0)
    yield Goal("D", "strict server, all at once: finished", storm["finished"], least=storm["asked"])
    for row in cards["callbacks"]["kinds"]:
        what = f"callbacks {row['kind']}: entries that ended well, one a task"
        yield Goal("D", what, row["entries_succeeded"], least=row["tasks"], most=row["entries"])
    flood = cards["callbacks"]["flood"]
    yield Goal("D", "junk callbacks that were taken", flood["taken"], most=0)
    yield Goal("D", "memory kept of a junk callback", flood["bytes_each"], most=10, unit=" bytes")
    ours = next(row for row in cards["loops"] if row["peer"] == OURS_1S)
    clear = ours["second"].startswith("WrongLoopError") and ours["creates"] == 1
    yield Goal("D", "second event loop: a clear error before anything is sent", int(clear), least=1)


def _limits(rows: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    for title, row in rows.items():
        if "creates" in row:
            what = f"strict server, {title}: of {row['creates']:,} creates refused"
            yield Goal("D", what, row["refused creates"], most=0)


def _presence(figures: dict[str, Any]) -> Iterator[Goal]:
    for name in ("bare", "used"):
        ratio = figures["imports"][name]["cpu_ms_ratio"]
        yield Goal("E", f"CPU of `{STATEMENTS[name]}`, to `{STATEMENTS['theirs']}`", ratio, most=IMPORT, unit=" x")
    for step in ("imported", "session made"):
        if step in figures["steps"]:
            things = sum(figures["steps"][step].values())
            yield Goal("E", f"threads, asyncio tasks and sockets once {step}", things, most=0)


JUDGES = {
    "waiting": _waiting,
    "watched": _watched,
    "pacing": _pacing,
    "callbacks": _callbacks,
    "cards": _cards,
    "limits": _limits,
    "presence": _presence,
}
