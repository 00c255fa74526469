"""The two screens: results on stdout, everything else on stderr; JSON, panels or plain lines."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
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

from .render import Rows, shown

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence


def _stdout() -> Console:
    return Console(highlight=False)


def _stderr() -> Console:
    return Console(highlight=False, stderr=True)


@attrs.define(eq=False)
class Screen:
    """Where a command speaks. With `as_json`, stdout gets one JSON object and stderr only what `-v` shows."""

    as_json: bool = False
    out: Console = attrs.field(factory=_stdout)
    err: Console = attrs.field(factory=_stderr)

    def show(self, payload: Mapping[str, Any], rows: Rows, *, title: str, aside: bool = False) -> None:
        """Show a result: a panel on a terminal, else a line for each row. `aside`: on stderr, unless as JSON."""
        console = self.err if aside else self.out
        if self.as_json:
            self.show_json(payload)
        elif console.is_terminal:
            console.print(panel(title, rows))
        else:
            for label, text in rows:
                plain(console, f"{label}: {text}")

    def show_table(
        self, payload: Mapping[str, Any], rows: Sequence[Sequence[str]], *, head: Sequence[str], stacked: int = 1
    ) -> None:
        """Show many results: a table on a terminal, else a line of tab-separated cells for each.

        On a terminal the first columns, as many as `stacked`, stand below each other. They are never cut, since they
        have to be copied.
        """
        if self.as_json:
            self.show_json(payload)
        elif rows and self.out.is_terminal:
            table = Table(Column("\n".join(head[:stacked]), no_wrap=True), *head[stacked:], box=box.SIMPLE_HEAD)
            for row in rows:
                table.add_row(Text("\n".join(row[:stacked])), *map(Text, row[stacked:]))
            self.out.print(table)
        else:
            for row in rows:
                click.echo("\t".join(row))

    def show_json(self, payload: Mapping[str, Any]) -> None:
        """Write one JSON object in one line, in ASCII: right in every locale, harmless in every terminal."""
        click.echo(json.dumps(payload))

    def fail(self, payload: Mapping[str, Any]) -> None:
        """Show an error object: on stdout as JSON, else on stderr as a few lines."""
        if self.as_json:
            self.show_json(payload)
            return
        facts = payload["error"]
        self.err.print(Text.assemble(("Error: ", "bold red"), shown(facts["message"])), soft_wrap=True)
        for name in ("hint", "task_id", "key"):
            if name in facts:
                plain(self.err, f"  {name.removesuffix('_id')}: {shown(facts[name])}")

    def note(self, text: str) -> None:
        """Say on stderr what goes on; nothing with JSON."""
        if not self.as_json:
            plain(self.err, text)

    @contextmanager
    def line(self) -> Generator[Line]:
        """A live line while a command waits; off a terminal a plain line for each change."""
        line = Line(self)
        if self.as_json or not self.err.is_terminal or self.err.is_dumb_terminal:
            yield line
            return
        with Live(get_renderable=line.render, console=self.err, transient=True, refresh_per_second=10):
            line.alive = True
            yield line


@attrs.define(eq=False)
class Line:
    """What a command waits for, and since when."""

    screen: Screen
    alive: bool = False
    text: str = ""
    began: float = attrs.field(factory=time.monotonic)
    _spinner: Spinner = attrs.field(factory=lambda: Spinner("dots", style="cyan"))

    @property
    def elapsed(self) -> str:
        """The time since the command began to wait."""
        return f"{time.monotonic() - self.began:.1f} s"

    def say(self, text: str) -> None:
        """Change the line, or print it where nothing is live; the same text twice is said once."""
        if text != self.text and not self.alive:
            self.screen.note(f"{shown(text)} ({self.elapsed})" if self.text else shown(text))
        self.text = text

    def tell(self, payload: Mapping[str, Any], text: Text) -> None:
        """Show a result while the line lives on."""
        if self.screen.as_json:
            self.screen.show_json(payload)
            return
        # Where both are one terminal, only the console of the live line can write above it.
        console = self.screen.err if self.alive and self.screen.out.is_terminal else self.screen.out
        console.print(text, soft_wrap=True)

    def render(self) -> Table:
        """The line as it is now."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(no_wrap=True, style="dim")
        grid.add_row(self._spinner, Text(shown(self.text)), self.elapsed)
        return grid


def plain(console: Console, text: str) -> None:
    """One line as it is: no markup, no emoji names, no wrapping."""
    console.print(Text(text), soft_wrap=True)


def panel(title: str, rows: Rows) -> Panel:
    """Rows in a frame."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, Text(text))
    return Panel(grid, title=Text(title, style="bold green"), title_align="left", expand=False, padding=(0, 1))


class RecordHandler(logging.Handler):
    """Shows log records on stderr: an exchange as two lines, any other as its name and facts.

    The transport has masked keys, tokens and signatures already.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.msg == "exchange":
            plain(self._console, shown("> {method} {url} {sent}".format(**facts)))
            plain(self._console, shown("< {status} in {milliseconds} ms {answer}".format(**facts)))
        else:
            plain(self._console, shown(" ".join([record.msg, *(f"{name}={facts[name]}" for name in facts)])))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
