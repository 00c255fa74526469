"""Plots results.json: results.png with all panels, and polls.png with the panel of the README."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import goals
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SHADES = ("#9ecae1", "#4292c6", "#08306b")  # few, more, most tasks
MARKERS = "osD^vP*X<>hp"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind text that a line crosses
OURS, THEIRS, LIMIT = "#d94801", "#6b7785", "#a50f15"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw every panel that has results."""
    panels = [(name, panel) for name, panel in PANELS if name in results]
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(17, 5 * rows), layout="constrained", squeeze=False)
    for ax, (name, panel) in zip(axes.flat, panels, strict=False):
        panel(ax, results[name]["figures"])
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    shape = next(iter(results.values()))["machine"]
    figure.suptitle(
        f"sora_chars and its peers, with one fake server on loopback ({shape['cores']} cores, {shape['python']})",
        fontsize=15,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_polls(results: Mapping[str, Any], path: Path) -> None:
    """Draw the panel that the README shows."""
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    cpu(ax, results["waiting"]["figures"])
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title("CPU time of one poll of a waiting task")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _clients(figures: dict[str, Any]) -> tuple[list[str], list[int]]:
    peers = list(dict.fromkeys(row["peer"] for row in figures["table"]))
    return peers, sorted({int(row["tasks"]) for row in figures["table"]})


def _by_client(ax: Axes, figures: dict[str, Any], value: Callable[[dict[str, Any]], float | None]) -> None:
    """Draw a group of bars for each client, one bar for each size; mark missing values."""
    peers, sizes = _clients(figures)
    rows = {(row["peer"], row["tasks"]): row for row in figures["table"]}
    height = 0.8 / len(sizes)
    for at, (size, shade) in enumerate(zip(sizes, SHADES[-len(sizes) :], strict=True)):
        values = [value(rows.get((peer, size), {})) for peer in peers]
        rows_at = [row + (at - (len(sizes) - 1) / 2) * height for row in range(len(peers))]
        ax.barh(rows_at, [one or 0 for one in values], height, color=shade, label=f"{size:,} tasks")
        for row_at, one in zip(rows_at, values, strict=True):
            if one is None:
                ax.annotate(
                    "none", (0, row_at), (4, 0), ("axes fraction", "data"), "offset points", va="center", size=6
                )
    ax.set_yticks(range(len(peers)), peers)
    ax.invert_yaxis()
    for label in ax.get_yticklabels():
        label.set_color(OURS if label.get_text().startswith("sora_chars") else "black")
    ax.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, -0.1), ncols=len(sizes), frameon=False)


def cpu(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the CPU time of a poll."""
    _by_client(ax, figures, lambda row: row.get("cpu_per_get_us"))
    ax.set(
        xscale="log",
        xlim=(100, None),
        xlabel="CPU microseconds per GET, including creates (log)",
        title="A. CPU time of a poll",
    )
    _plain_numbers(ax)


def lag(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the worst lag of the event loop."""
    _by_client(ax, figures, lambda row: row.get("lag_max_ms"))
    ax.axvline(goals.LAG_MS, color=LIMIT, linewidth=1, linestyle="--")
    ax.set(
        xscale="log",
        xlim=(5, None),
        xlabel="milliseconds (log); dashed: the goal with rare GC",
        title="A. Worst event-loop lag",
    )
    _plain_numbers(ax)


def finished(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the share of tasks finished in time."""
    _by_client(ax, figures, lambda row: 100 * row["finished"] / row["tasks"] if row else None)
    ax.set(xlim=(0, 103), xlabel="% of the tasks, each of 5 to 20 s", title="A. Finished within 75 s")


def seen(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the detection delay over the number of polls."""
    _, sizes = _clients(figures)
    size = 1000 if 1000 in sizes else sizes[-1]
    rows = [row for row in figures["table"] if row["tasks"] == size and row.get("detection_mean_s") is not None]
    for at, row in enumerate(rows):
        ours = row["peer"].startswith("sora_chars")
        color = OURS if ours else mpl.colormaps["tab10"](at % 10)
        marker = MARKERS[at % len(MARKERS)]
        place = (row["gets_per_task"], row["detection_mean_s"])
        ax.plot(*place, marker, color=color, label=row["peer"], zorder=3 + ours, markersize=7)
    ax.set(xscale="log", yscale="log", xlabel="GETs per task (log)", ylabel="mean detection delay in seconds (log)")
    ax.set_title(f"A. Polls and detection delay, {size:,} tasks")
    ax.margins(0.25)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    _plain_numbers(ax, ax.yaxis)


def watched(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the memory of a waiting task."""
    names = [f"{row['tasks']:,}" for row in rows]
    ax.bar(names, [row["bytes_a_task"] for row in rows], 0.5, color=OURS, label="a waiting task")
    extra = [row["bytes_an_awaiter"] for row in rows]
    base = [row["bytes_a_task"] for row in rows]
    ax.bar(names, extra, 0.5, bottom=base, color=THEIRS, label="an asyncio task that awaits it")
    ax.axhline(goals.TASK_BYTES, color=LIMIT, linewidth=1, linestyle="--", label="the goal for a waiting task")
    for at, row in enumerate(rows):
        text = f"worst lag {row['lag_max_ms']:.0f} ms\nclosing {row['close_s']:.2f} s"
        ax.annotate(text, (at, base[at] + extra[at]), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    ax.set(xlabel="tasks waiting at once", ylabel="bytes each", title="A. Memory of a waiting task")
    ax.margins(y=0.2)
    ax.legend(fontsize=8, loc="lower center")


def pacing(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the detection delay of each polling strategy over its polls."""
    spread = "0.25"
    rows = figures["paces"][spread]["learned"]
    best = next(row["gets"] * row["late"] / row["bound"] for row in rows.values())
    polls = [5 * 1.1**step for step in range(30)]
    ax.plot(polls, [best / number for number in polls], color=LIMIT, linewidth=1, linestyle="--", label="the bound")
    for name, row in rows.items():
        ax.scatter(row["gets"], row["late"], color=OURS if name == "learned" else THEIRS, zorder=3)
        ax.annotate(name, (row["gets"], row["late"]), (6, 3), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="GETs per task (log)", ylabel="mean detection delay in seconds (log)")
    ax.set_title(f"B. Polling strategies, model known, spread {spread}")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower left")
    _plain_numbers(ax, ax.yaxis)


def callbacks(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the CPU time of a callback."""
    names = [re.sub(", ", ",\n", row["kind"]) for row in rows]
    ax.bar(names, [row["cpu_ratio"] for row in rows], 0.6, color=[THEIRS] + [OURS] * (len(rows) - 1))
    ax.axhline(goals.CALLBACK_CPU_RATIO, color=LIMIT, linewidth=1, linestyle="--")
    for at, row in enumerate(rows):
        text = f"{row['cpu_ratio']:.2f} x\np99 {row['p99_ms']:.1f} ms"
        place = (at, row["cpu_ratio"])
        ax.annotate(text, place, (0, 4), textcoords="offset points", ha="center", fontsize=8, bbox=PAPER)
    ax.tick_params(axis="x", labelsize=8)
    ax.set(
        ylabel="CPU relative to the bare handler's; dashed: the goal", title="C. CPU time of a callback, on one core"
    )
    ax.margins(y=0.15)


def lost(ax: Axes, cards: dict[str, Any]) -> None:
    """Draw the paid tasks when responses are lost."""
    rows = cards["lost"]["peers"]
    names = [row["peer"] for row in rows]
    made = [row["creates"] for row in rows]
    ax.barh(names, made, color=[OURS if name.startswith("sora_chars") else THEIRS for name in names])
    ax.axvline(10, color=LIMIT, linewidth=1, linestyle="--")
    for at, row in enumerate(rows):
        text = f"{row['creates']} paid, {row['finished']} known to the caller"
        if row["peer"].startswith("sora_chars"):
            text = f"{row['creates']} paid, {cards['lost']['ours']['recovered']} recovered by callbacks"
        short = row["creates"] <= 10
        place = (row["creates"] + 0.3 if short else 0.3, at)
        ax.annotate(text, place, va="center", fontsize=8, color="black" if short else "white")
    ax.invert_yaxis()
    ax.set(
        xticks=range(0, 21, 5),
        xlabel="tasks on the server; dashed: tasks requested",
        title="D. The responses of 10 creates are lost",
    )


def presence(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw the time of an import."""
    rows = figures["imports"]
    names = ["aiohttp, attrs,\ncattrs, backoff", "import\nsora_chars", "from sora_chars import\nCharacterSession, Kie"]
    values = [row["wall_ms"] for row in rows.values()]
    ax.bar(names, values, 0.5, color=[THEIRS, OURS, OURS])
    ax.axhline(goals.IMPORT_RATIO * values[0], color=LIMIT, linewidth=1, linestyle="--")
    for at, value in enumerate(values):
        text = f"{value:.0f} ms, {value / values[0]:.2f} x"
        ax.annotate(text, (at, value), (0, 4), textcoords="offset points", ha="center", bbox=PAPER)
    ax.tick_params(axis="x", labelsize=8)
    ax.set(ylabel="milliseconds, median; dashed: the goal", title="E. Time of the import")
    ax.margins(y=0.15)


def _plain_numbers(ax: Axes, *others: Axis) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, or with powers of ten if it is long."""
    for axis in (ax.xaxis, *others):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: goals.number(value)))
        axis.set_minor_formatter("")


PANELS: list[tuple[str, Callable[[Axes, Any], None]]] = [
    ("waiting", cpu),
    ("waiting", lag),
    ("waiting", finished),
    ("waiting", seen),
    ("watched", watched),
    ("pacing", pacing),
    ("callbacks", callbacks),
    ("cards", lost),
    ("presence", presence),
]
