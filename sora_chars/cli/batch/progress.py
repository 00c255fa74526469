"""How a batch goes, as a person sees it: a live display on a terminal, else a plain line now and then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sora_chars.cli.render import shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.batch.batch import Batch
    from sora_chars.batch.progress import Progress
    from sora_chars.cli.output import Screen

STATES = ("succeeded", "failed", "rejected", "unknown", "running")

_STYLES = {"succeeded": "green", "failed": "red", "rejected": "red", "unknown": "yellow", "running": "cyan"}
_QUIET = 10.0  # seconds between two plain lines, unless another tenth has ended
_REFRESH, _LOOK = 0.2, 1.0  # seconds: of the live display, and of plain lines
_ERRORS = 3  # of the last are in sight
_NAMED = 5  # keys of unknown outcome


@attrs.define(eq=False)
class Tally:
    """What has become of `total` rows. `ends` counts the rows told, `taken` holds the columns of those under way."""

    total: int
    ends: Counter[str] = attrs.field(factory=Counter[str])
    taken: dict[str, dict[str, Any]] = attrs.field(factory=dict[str, "dict[str, Any]"])
    credits: float = 0.0
    unknown: list[str] = attrs.field(factory=list[str])  # the first of these keys

    def put(self, row: dict[str, Any]) -> None:
        """Count a row that is told."""
        self.taken.pop(row["key"], None)
        self.ends[row["status"]] += 1
        self.credits += row.get("credits", 0.0)
        if row["status"] == "unknown" and len(self.unknown) < _NAMED:
            self.unknown.append(row["key"])

    @property
    def ended(self) -> int:
        """How many were told."""
        return self.ends.total()

    @property
    def counts(self) -> dict[str, int]:
        """All rows by what has become of them."""
        counts = {state: self.ends[state] for state in STATES}
        counts["running"] += len(self.taken)
        return counts | {"not sent": self.total - sum(counts.values())}


@attrs.define(eq=False)
class Display:
    """Shows how far a batch is. `budget`: credits; `to_stdout`: where its rows go."""

    screen: Screen
    tally: Tally
    budget: float | None = None
    to_stdout: bool = False
    _errors: deque[Text] = attrs.field(factory=lambda: deque[Text](maxlen=_ERRORS))
    _live: Live | None = None
    _said: float = attrs.field(factory=time.monotonic)
    _tenths: int = 0

    @asynccontextmanager
    async def follow(self, outcomes: Batch) -> AsyncGenerator[None]:
        """Show it until the block ends; nothing with JSON."""
        if self.screen.as_json:
            yield
            return
        if self._on_terminal:
            self._live = Live(console=self.screen.err, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        ticker = asyncio.create_task(self._tick(outcomes))
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            if self._live:
                self.show(outcomes.progress)
                self._live.stop()

    @property
    def _on_terminal(self) -> bool:
        """Whether a live display can be read there: not between rows."""
        err, out = self.screen.err, self.screen.out
        return err.is_terminal and not err.is_dumb_terminal and not (self.to_stdout and out.is_terminal)

    async def _tick(self, outcomes: Batch) -> None:
        while True:
            self.show(outcomes.progress)
            await asyncio.sleep(_REFRESH if self._live else _LOOK)

    def show(self, progress: Progress) -> None:
        """Show where things stand; `progress` tells how fast they move."""
        if self._live:
            self._live.update(self.render(progress), refresh=True)
            return
        now, tenths = time.monotonic(), self.tally.ended * 10 // self.tally.total
        if tenths > self._tenths or now - self._said >= _QUIET:
            self._said, self._tenths = now, tenths
            facts = ", ".join([*self._counts(), *_pace(progress)])
            self.screen.note(f"{self.tally.ended} of {self.tally.total} ended: {facts}")

    def tell(self, key: str | None, problem: str) -> None:
        """Keep the last of what went wrong in sight."""
        line = Text.assemble(("! ", "bold red"), f"{shown(key)}  {shown(problem)}", no_wrap=True, overflow="ellipsis")
        self._errors.append(line)

    def render(self, progress: Progress) -> Group:
        """The live display."""
        ended, total = self.tally.ended, self.tally.total
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=total, completed=ended, width=32),
            f"{ended}/{total}",
            f"{ended * 100 // total} %",
            Text("  ".join(_pace(progress)), style="dim", no_wrap=True, overflow="ellipsis"),
        )
        counts = Text("  ").join(Text(text, style=_STYLES.get(text.split()[1], "")) for text in self._counts())
        return Group(head, counts, *self._errors)

    def _counts(self) -> list[str]:
        of = "" if self.budget is None else f" of {self.budget:g}"
        credits_ = [f"{self.tally.credits:.10g}{of} credits"] if self.tally.credits or of else []
        return [f"{count} {name}" for name, count in self.tally.counts.items() if count] + credits_


def _pace(progress: Progress) -> list[str]:
    """How fast it goes, and how long it still takes, where that is known."""
    rate = f"{progress.rate:.1f} a second" if progress.rate >= 1 else f"{progress.rate * 60:.1f} a minute"
    left = [f"{duration(progress.eta)} left"] if progress.eta else []
    return [rate, *left] if progress.rate else left


def duration(seconds: float) -> str:
    """As 0:03:20."""
    return str(timedelta(seconds=round(seconds)))
