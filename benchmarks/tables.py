"""Writes RESULTS.md from results.json: the results, and the goals that were missed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import goals
from goals import number
from presence import STATEMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NOTES = Path(__file__).with_name("notes.md")
"""The hand-written notes on missed goals."""

HEAD = """# Results

Written by `python benchmarks/run.py` from results.json; do not edit by hand. Everything was measured on one machine,
each part in one run with its peers and a fake server on loopback. Compare the ratios: absolute times depend on the
machine.
"""

WAITING = {
    "tasks": "tasks",
    "peer": "client",
    "finished": "finished",
    "failed": "failed",
    "open": "still open at 75 s",
    "wall_s": "wall s",
    "cpu_s": "CPU s",
    "cpu_per_get_us": "CPU per GET us",
    "cpu_per_get_us_ratio": "relative to the hand-written loop",
    "cpu_per_get_waiting_us": "of which waiting us",
    "cpu_per_get_waiting_us_ratio": "relative to the hand-written loop",
    "memory_mb": "memory MB",
    "lag_p99_ms": "lag p99 ms",
    "lag_max_ms": "lag max ms",
    "sockets": "sockets",
    "gets_per_task": "GETs per task",
    "detection_mean_s": "detection delay s, mean",
    "detection_p99_s": "p99",
    "refused_429": "429s",
}
WATCHED = {
    "tasks": "tasks",
    "bytes_a_task": "bytes per task",
    "bytes_an_awaiter": "more bytes for an asyncio task that awaits it",
    "looks_a_second": "polls/s",
    "cpu_a_look_us": "CPU per poll us",
    "lag_p99_ms": "lag p99 ms",
    "lag_max_ms": "lag max ms",
    "submit_s": "submitting s",
    "close_s": "closing s",
    "told": "waiters notified",
}
CALLBACKS = {
    "kind": "",
    "callbacks_a_second": "callbacks/s",
    "cpu_us": "CPU per callback us",
    "cpu_ratio": "relative to bare",
    "p50_ms": "p50 ms at 200/s",
    "p99_ms": "p99 ms",
    "flood_p50_ms": "p50 ms at full speed",
    "flood_p99_ms": "p99 ms",
}
STRATEGIES = {
    "spread": "spread",
    "strategy": "strategy",
    "gets": "GETs per task",
    "late": "detection delay s, mean",
    "late_p99": "p99",
    "bound": "relative to the bound",
    "even": "relative to even polls",
}
LOST = {
    "peer": "client",
    "asked": "requested",
    "creates": "tasks created and paid",
    "finished": "finished",
    "errors": "errors",
}
FAULTY = {
    "peer": "client",
    "asked": "requested",
    "finished": "finished",
    "failed": "failed",
    "open": "open",
    "creates": "tasks created",
    "gets": "GETs",
    "refused_429": "429s",
    "answers_503": "503s",
    "wall_s": "wall s",
    "errors": "errors",
}
KINDS = {
    "kind": "callbacks",
    "tasks": "tasks",
    "results": "results",
    "entries_succeeded": "entries that succeeded",
    "callbacks": "posts",
    "refused": "of which rejected",
}
IMPORTS = {
    "statement": "statement",
    "wall_ms": "ms",
    "wall_ms_ratio": "relative to the first",
    "cpu_ms": "CPU ms",
    "cpu_ms_ratio": "relative to the first",
}
STEPS = {"step": "", "threads": "threads", "tasks": "asyncio tasks", "sockets": "sockets"}
LOOPS = {"peer": "client", "first": "first loop", "second": "second loop", "creates": "tasks created, of 2 requested"}


def page(results: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    parts = [HEAD, _machines(results), "![Plots](results.png)\n", _judged(results), _missed(results)]
    for name, title in TITLES.items():
        if name in results:
            render = RENDERERS.get(name, plain)
            parts.append(f"## {title}\n\n{render(results[name]['figures']).strip()}\n")
    return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return a table with these columns; numbers are right-aligned."""
    numeric = [any(isinstance(row.get(name), (int, float)) for row in rows) for name in columns]
    lines = [_line(columns.values()), _line("---:" if is_number else "---" for is_number in numeric)]
    lines += [_line(cell(row.get(name)) for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value: Any) -> str:
    """Return a value as the text of a cell."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case dict():
            return ", ".join(f"{count} {name}" for name, count in value.items())
        case _:
            return str(value).replace("|", "/")


def _machines(results: Mapping[str, Any]) -> str:
    shapes: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name, result in results.items():
        shapes.setdefault(str(result["machine"]), (result["machine"], []))[1].append(name)
    lines = []
    for shape, names in shapes.values():
        versions = ", ".join(f"{name} {found}" for name, found in shape["packages"].items())
        lines.append(
            f"**{', '.join(names)}**: {shape['day']}, {shape['cores']} cores ({shape['processor']}), "
            f"{shape['memory_gb']} GB, {shape['kernel']}, {shape['python']}; {versions}.\n"
        )
    took = ", ".join(f"{name} {result['took_s']:.0f} s" for name, result in results.items())
    return "\n".join([*lines, f"Took: {took}.\n"])


def _judged(results: Mapping[str, Any]) -> str:
    rows = [
        {
            "part": goal.part,
            "goal": goal.what,
            "bound": goal.bounds,
            "measured": f"{number(goal.measured)}{goal.unit}",
            "reached": "yes" if goal.reached else f"**missed by {goal.missed_by}**",
        }
        for goal in goals.goals(results)
    ]
    reached = sum(row["reached"] == "yes" for row in rows)
    names = ("part", "goal", "bound", "measured", "reached")
    return f"## Goals: {reached} of {len(rows)} reached\n\n{table(rows, {name: name for name in names})}"


def _missed(results: Mapping[str, Any]) -> str:
    missed = [goal for goal in goals.goals(results) if not goal.reached]
    lines = [
        f"- {goal.part}. {goal.what}: {number(goal.measured)}{goal.unit}; goal: {goal.bounds}; "
        f"missed by {goal.missed_by}."
        for goal in missed
    ]
    notes = NOTES.read_text() if NOTES.exists() else ""
    return "## Missed goals\n\n" + "\n".join(lines or ["Every goal was reached."]) + f"\n\n{notes}"


def _waiting(figures: dict[str, Any]) -> str:
    intro = (
        "Each task takes 5 to 20 s. Every client runs in a separate process for at most 75 s. Values of clients with "
        "several rounds (hand-written loop and sora_chars) are medians. CPU per GET includes the creates; `of which "
        "waiting` starts with the last create.\n\n"
    )
    return intro + table(figures["table"], WAITING) + _errors(figures["table"])


def _errors(rows: list[dict[str, Any]]) -> str:
    lines = [f"- {row['tasks']:,} tasks, {row['peer']}: {cell(row['errors'])}" for row in rows if row.get("errors")]
    return "\nErrors:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _watched(rows: list[dict[str, Any]]) -> str:
    intro = (
        "The tasks are submitted through a session with an SQLite ledger and polled every 20 s; kie.ai's responses "
        "come from memory. Then an asyncio task awaits each of them, and the session is closed.\n\n"
    )
    return intro + table(rows, WATCHED)


def _pacing(figures: dict[str, Any]) -> str:
    titles = {"learning": "Before a model has 20 durations", "learned": "Once it has"}
    intro = (
        "In virtual time, with 24 models of recorded medians. The detection delay is compared with the least possible "
        "(the bound) and with evenly spaced polls, each at the same number of GETs.\n"
    )
    parts = [intro]
    for part, title in titles.items():
        rows = [
            {"spread": spread, "strategy": strategy, **row}
            for spread, found in figures["paces"].items()
            for strategy, row in found[part].items()
        ]
        parts += [f"### {title}\n", table(rows, STRATEGIES)]
    crowd = [
        {"spread": spread, "rule": rule, **row}
        for spread, found in figures["crowd"].items()
        for rule, row in found.items()
    ]
    best = "`to_best`: relative to the least possible for any rule, even one that knows the durations (`least.py`).\n"
    parts += ["### 500 tasks, 10 GETs per second\n", best, plain(crowd)]
    parts += [
        "### All at once, learned relative to the ladder, in a first batch and again\n",
        plain(figures.get("batches", {})),
    ]
    parts += ["### A model that changes, learned relative to the ladder\n", plain(figures["drift"])]
    return "\n".join(parts)


def _callbacks(rows: list[dict[str, Any]]) -> str:
    intro = (
        "The receiver runs on one core, the sender on another. `confirmed`: the awaiter waits for the task's end, "
        "which includes a poll (answered from memory); the others wait for the callback itself.\n\n"
    )
    return intro + table(rows, CALLBACKS)


def _cards(cards: dict[str, Any]) -> str:
    ours, flood = cards["lost"]["ours"], cards["callbacks"]["flood"]
    kept = f"{flood['taken']} accepted, {number(flood['bytes_each'])} bytes retained per callback"
    kills = {name: name for name in cards["kills"][0]}
    return "\n".join(
        [
            f"### The responses of 10 creates are lost\n\nWith callbacks on, sora_chars: {cell(ours)}.\n",
            table(cards["lost"]["peers"], LOST),
            "### SIGKILL at every step, restarted until done\n",
            table(_transposed(cards["kills"], kills), {"what": "", "0": "run 1", "1": "run 2"}),
            "### HTTP 503 for every GET for four minutes\n",
            table(cards["outage"], FAULTY),
            "### A strict server: 20 creates in 2 s, as a sliding window\n",
            table(cards["storm"], FAULTY),
            "### Early, late, double, forged and junk callbacks\n",
            table(cards["callbacks"]["kinds"], KINDS),
            f"{flood['callbacks']:,} junk callbacks: {kept}.\n",
            "### Opened in one `asyncio.run`, used in another\n",
            table(cards["loops"], LOOPS),
        ]
    )


def _transposed(rows: list[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"what": title, **{str(at): row[name] for at, row in enumerate(rows)}} for name, title in names.items()]


def _presence(figures: dict[str, Any]) -> str:
    imports = [{"statement": f"`{STATEMENTS[name]}`", **row} for name, row in figures["imports"].items()]
    steps = [{"step": step, **counted} for step, counted in figures["steps"].items()]
    intro = f"Medians of {figures['turns']} interleaved imports, each in a fresh interpreter.\n\n"
    return f"{intro}{table(imports, IMPORTS)}\n{table(steps, STEPS)}"


def plain(figures: Any, depth: int = 3) -> str:
    """Render results of any shape: rows as a table, a mapping as headings."""
    match figures:
        case list() if figures and isinstance(figures[0], dict):
            return table(figures, {name: name for name in figures[0]})
        case dict() if figures and all(_is_row(value) for value in figures.values()):
            rows = [{"": name, **value} for name, value in figures.items()]
            return table(rows, {name: name for name in dict.fromkeys(name for row in rows for name in row)})
        case dict():
            return "\n".join(_entry(name, value, depth) for name, value in figures.items())
        case _:
            return f"{cell(figures)}\n"


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(inner, (dict, list)) for inner in value.values())


def _entry(name: str, value: Any, depth: int) -> str:
    if isinstance(value, (dict, list)):
        return f"{'#' * depth} {name}\n\n{plain(value, depth + 1)}"
    return f"- {name}: {cell(value)}"


TITLES = {
    "waiting": "A. Waiting for N tasks at once",
    "watched": "A. Very many at once",
    "pacing": "B. Detection delay and number of GETs",
    "callbacks": "C. Callbacks",
    "cards": "D. Fault scenarios",
    "limits": "D. Limits, counted by a strict server",
    "presence": "E. Cost of the import",
    "growth": "F. A ledger that grows (milliseconds unless the name has another unit)",
    "fleet": "G. A fleet of three workers on Procrastinate (counted at a strict server)",
    "temporal": "G. A fleet of two workers on Temporal, one of which is killed",
    "web": "G. A web application of four processes: from a callback to the awaiters in the others",
    "records": "L. Cost of a ledger record",
}
RENDERERS: dict[str, Callable[[Any], str]] = {
    "waiting": _waiting,
    "watched": _watched,
    "pacing": _pacing,
    "callbacks": _callbacks,
    "cards": _cards,
    "presence": _presence,
}
