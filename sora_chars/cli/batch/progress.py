"""Shows the progress of a batch: a live display on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sora_chars.cli.render import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sora_chars.batch.batch import Batch
    from sora_chars.batch.progress import Progress
    from sora_chars.cli.output import Output

STATUSES = ("succeeded", "failed", "rejected", "unknown", "pending", "running")

_STYLES = {"succeeded": "green", "failed": "red", "rejected": "red", "unknown": "yellow", "running": "cyan"}
_LINE_INTERVAL = 10.0  # seconds between two lines, unless another 10 % of the rows have ended
_LIVE_REFRESH = 0.2  # seconds
_LINE_REFRESH = 1.0  # seconds
_MAX_ERRORS = 3  # that the live display shows
_MAX_UNKNOWN_KEYS = 5  # that the summary names


@attrs.define(eq=False)
class Tally:
    """Counts the rows of a batch.

    Attributes:
        total: The number of rows.
        statuses: How many rows have each status, by their last written row.
        in_flight: The columns of the rows that have been started and not written, by key.
        sent: How many of the rows in flight were sent. The others wait, for example for
            the rate limits.
        credits: What the written rows cost.
        unknown: The columns of the rows whose outcome is unknown, by key.
        keeps_columns: Whether `unknown` keeps the columns, not only the keys.
    """

    total: int
    statuses: Counter[str] = attrs.field(factory=Counter)
    in_flight: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    sent: int = 0
    credits: float = 0.0
    unknown: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    keeps_columns: bool = False

    def add(self, row: dict[str, Any]) -> None:
        """Count a row that was written."""
        key = row["key"]
        columns = self.in_flight.pop(key, {})
        self.forget_unknown(key)
        self.statuses[row["status"]] += 1
        self.credits += row.get("credits", 0.0)
        if row["status"] == "unknown":
            self.unknown[key] = columns if self.keeps_columns else {}

    def forget_unknown(self, key: str) -> None:
        """Count a row no longer, if its outcome was unknown."""
        if self.unknown.pop(key, None) is not None:
            self.statuses["unknown"] -= 1

    @property
    def unknown_keys(self) -> list[str]:
        """The first keys whose outcome is unknown."""
        return list(islice(self.unknown, _MAX_UNKNOWN_KEYS))

    @property
    def ended(self) -> int:
        """The number of rows that were written."""
        return self.statuses.total()

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows with each status. Rows in flight that were sent count as running."""
        counts = {status: self.statuses[status] for status in STATUSES}
        counts["running"] += min(self.sent, len(self.in_flight))
        return counts | {"not sent": self.total - sum(counts.values())}


@attrs.define(eq=False)
class BatchDisplay:
    """Shows the progress of a batch on stderr.

    Attributes:
        output: The output of the command.
        tally: The counts to show.
        budget: The budget in credits, if any.
        rows_to_stdout: Whether the rows of the batch are written to stdout.
        responses_awaited: Returns how many requests were sent and not answered yet.
    """

    output: Output
    tally: Tally
    budget: float | None = None
    rows_to_stdout: bool = False
    responses_awaited: Callable[[], int] = int
    _errors: deque[Text] = attrs.field(factory=lambda: deque[Text](maxlen=_MAX_ERRORS))
    _live: Live | None = None
    _printed_at: float = attrs.field(factory=time.monotonic)
    _printed_tenths: int = 0

    @asynccontextmanager
    async def showing(self, batch: Batch) -> AsyncGenerator[None]:
        """Show the progress until the block ends; with JSON, show nothing."""
        if self.output.as_json:
            yield
            return
        if self._can_be_live:
            self._live = Live(console=self.output.err, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        ticker = asyncio.create_task(self._tick(batch))
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            if self._live:
                self._show_now(batch)
                self._live.stop()

    @property
    def _can_be_live(self) -> bool:
        """Whether stderr is a terminal to which no rows are written."""
        err = self.output.err
        return (
            err.is_terminal and not err.is_dumb_terminal and not (self.rows_to_stdout and self.output.out.is_terminal)
        )

    async def _tick(self, batch: Batch) -> None:
        while True:
            self._show_now(batch)
            await asyncio.sleep(_LIVE_REFRESH if self._live else _LINE_REFRESH)

    def _show_now(self, batch: Batch) -> None:
        self.tally.sent = batch.tasks_running + self.responses_awaited()
        self.show(batch.progress)

    def show(self, progress: Progress) -> None:
        """Refresh the live display, or print a line if it is due."""
        if self._live:
            self._live.update(self.render(progress), refresh=True)
            return
        now = time.monotonic()
        tenths = self.tally.ended * 10 // self.tally.total
        if tenths > self._printed_tenths or now - self._printed_at >= _LINE_INTERVAL:
            self._printed_at = now
            self._printed_tenths = tenths
            facts = ", ".join([*self._counts(), *_speed(progress)])
            self.output.note(f"{self.tally.ended} of {self.tally.total} ended: {facts}")

    def add_error(self, key: str | None, message: str) -> None:
        """Show an error in the live display until later errors replace it."""
        text = f"{one_line(key)}  {one_line(message)}"
        self._errors.append(Text.assemble(("! ", "bold red"), text, no_wrap=True, overflow="ellipsis"))

    def render(self, progress: Progress) -> Group:
        """Return the live display."""
        ended = self.tally.ended
        total = self.tally.total
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=total, completed=ended, width=32),
            f"{ended}/{total}",
            f"{ended * 100 // total} %",
            Text("  ".join(_speed(progress)), style="dim", no_wrap=True, overflow="ellipsis"),
        )
        counts = Text("  ").join(Text(text, style=_STYLES.get(text.split()[1], "")) for text in self._counts())
        return Group(head, counts, *self._errors)

    def _counts(self) -> list[str]:
        limit = "" if self.budget is None else f" of {self.budget:g}"
        counts = [f"{count} {status}" for status, count in self.tally.counts.items() if count]
        if self.tally.credits or limit:
            counts.append(f"{self.tally.credits:.10g}{limit} credits")
        return counts


def _speed(progress: Progress) -> list[str]:
    """Return the rate and the remaining time, as far as they are known."""
    rate = f"{progress.rate:.1f} per second" if progress.rate >= 1 else f"{progress.rate * 60:.1f} per minute"
    remaining = [f"{duration(progress.eta)} left"] if progress.eta else []
    return [rate, *remaining] if progress.rate else remaining


def duration(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))
