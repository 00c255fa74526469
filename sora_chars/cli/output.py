"""What a command writes: results to stdout, everything else to stderr, as JSON, panels or plain lines."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich import box
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from sora_chars.errors import printable

from .render import Rows, one_line
from .streams import StdoutError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

_FIXED_WIDTH = 52  # characters of a terminal that the other columns of a table take
_MIN_FLEXIBLE_LENGTH = 40  # characters


def _stdout() -> Console:
    return Console(highlight=False)


def _stderr() -> Console:
    return Console(highlight=False, stderr=True)


@attrs.define(eq=False)
class Output:
    """The output of a command.

    With `as_json`, stdout receives JSON only and stderr receives only what `-v` shows.
    """

    as_json: bool = False
    out: Console = attrs.field(factory=_stdout)
    err: Console = attrs.field(factory=_stderr)

    def show(self, payload: Mapping[str, Any], rows: Rows, *, title: str, to_stderr: bool = False) -> None:
        """Show one result: as a panel on a terminal, otherwise as one line for each row.

        Args:
            payload: The JSON object that is written with `as_json`.
            rows: Labels and texts.
            title: The title of the panel.
            to_stderr: Write panels and lines to stderr; JSON still goes to stdout.
        """
        console = self.err if to_stderr else self.out
        if self.as_json:
            self.show_json(payload)
        elif console.is_terminal:
            console.print(panel(title, rows))
        else:
            for label, text in rows:
                print_line(console, f"{label}: {text}")

    def show_table(
        self,
        payload: Mapping[str, Any],
        rows: Sequence[Sequence[str]],
        *,
        columns: Sequence[str],
        stacked: Sequence[int] = (1,),
        flexible: str = "",
    ) -> None:
        """Show many results: as a table on a terminal, otherwise as tab-separated lines.

        Args:
            payload: The JSON object that is written with `as_json`.
            rows: The cells of each row.
            columns: The column names, which are shown on a terminal only.
            stacked: On a terminal, show the first columns as lines of one column that
                is never truncated: their texts are copied. The numbers are the columns
                of each line.
            flexible: The column that is wrapped first if the terminal is narrow, and shortened after two lines.
        """
        if self.as_json:
            self.show_json(payload)
        elif rows and self.out.is_terminal:
            count = sum(stacked)
            first = Column(_stack(columns, stacked), no_wrap=True)
            others = [Column(name, no_wrap=bool(flexible) and name != flexible) for name in columns[count:]]
            table = Table(first, *others, box=box.SIMPLE_HEAD)
            limit = max(_MIN_FLEXIBLE_LENGTH, 2 * (self.out.width - _FIXED_WIDTH))
            for row in rows:
                cells = [
                    Text(printable(cell, limit=limit)) if name == flexible else Text(cell)
                    for name, cell in zip(columns[count:], row[count:], strict=True)
                ]
                table.add_row(Text(_stack(row, stacked)), *cells)
            self.out.print(table)
        else:
            for row in rows:
                click.echo("\t".join(row))

    def show_json(self, payload: Mapping[str, Any]) -> None:
        """Write a JSON object as one line of ASCII, which every locale and terminal can show."""
        click.echo(json.dumps(payload))

    def show_error(self, payload: Mapping[str, Any]) -> None:
        """Show an error object: as JSON on stdout, otherwise as a few lines on stderr.

        If stdout is full, the lines are written to stderr with JSON too.

        Raises:
            BrokenPipeError: The reader of stdout has closed it.
        """
        if self.as_json:
            try:
                self.show_json(payload)
            except StdoutError:
                self.as_json = False
            else:
                return
        facts = payload["error"]
        self.err.print(Text.assemble(("Error: ", "bold red"), one_line(facts["message"])), soft_wrap=True)
        for name in ("hint", "task_id", "key"):
            if name in facts:
                print_line(self.err, f"  {name.removesuffix('_id')}: {one_line(facts[name])}")

    def note(self, text: str) -> None:
        """Write a line to stderr, unless the output is JSON."""
        if not self.as_json:
            print_line(self.err, text)

    @contextmanager
    def status_line(self) -> Generator[StatusLine]:
        """Show a status while the block runs: a live line on a terminal, otherwise a line for each change."""
        line = StatusLine(self)
        if self.as_json or not self.err.is_terminal or self.err.is_dumb_terminal:
            yield line
            return
        with Live(get_renderable=line.render, console=self.err, transient=True, refresh_per_second=10):
            line.is_live = True
            yield line


@attrs.define(eq=False)
class StatusLine:
    """What a command is waiting for.

    Attributes:
        output: The output of the command.
        is_live: Whether a terminal shows the line at this moment.
        text: The current status.
        began: The monotonic time at which the command began to wait, in seconds.
    """

    output: Output
    is_live: bool = False
    text: str = ""
    began: float = attrs.field(factory=time.monotonic)
    _spinner: Spinner = attrs.field(factory=lambda: Spinner("dots", style="cyan"))

    @property
    def elapsed(self) -> str:
        """The time since the command began to wait."""
        return f"{time.monotonic() - self.began:.1f} s"

    def update(self, text: str) -> None:
        """Change the status. Without a live line, a status that differs is printed."""
        if text != self.text and not self.is_live:
            self.output.note(f"{one_line(text)} ({self.elapsed})" if self.text else one_line(text))
        self.text = text

    def print_result(self, payload: Mapping[str, Any], text: Text) -> None:
        """Show a result while the line stays live."""
        if self.output.as_json:
            self.output.show_json(payload)
            return
        # If stdout is the same terminal, only the console of the live line can write above that line.
        console = self.output.err if self.is_live and self.output.out.is_terminal else self.output.out
        console.print(text, soft_wrap=True)

    def render(self) -> Table:
        """Return the line as it is shown now."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(no_wrap=True, style="dim")
        grid.add_row(self._spinner, Text(one_line(self.text)), self.elapsed)
        return grid


def _stack(cells: Iterable[str], lines: Sequence[int]) -> str:
    """Join the first cells to lines of so many cells each."""
    rest = iter(cells)
    return "\n".join("  ".join(filter(None, islice(rest, count))) for count in lines)


def print_line(console: Console, text: str) -> None:
    """Print a line without markup, emoji names or wrapping."""
    console.print(Text(text), soft_wrap=True)


def panel(title: str, rows: Rows) -> Panel:
    """Return rows in a frame."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, Text(text))
    return Panel(grid, title=Text(title, style="bold green"), title_align="left", expand=False, padding=(0, 1))


class RecordHandler(logging.Handler):
    """Shows log records on stderr: an exchange as two lines, any other record as one.

    The transport has already masked keys, tokens and signatures.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if getattr(record, "event", "") == "exchange":
            print_line(self._console, one_line("> {method} {url} {sent}".format(**facts)))
            print_line(self._console, one_line("< {status} in {milliseconds} ms {answer}".format(**facts)))
        else:
            print_line(self._console, one_line(record.getMessage()))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
