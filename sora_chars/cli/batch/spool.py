"""The rows of a batch on their way from the check to the run: on disk, so that a million take no memory."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import ConfigurationError

from .reader import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from sora_chars.protocols import Provider

    from .reader import Row

_TOLD = 20

_TABLE = "CREATE TABLE rows (number INTEGER PRIMARY KEY, key TEXT UNIQUE, line INTEGER, record TEXT)"


@attrs.define(eq=False)
class Spool:
    """Rows that may be sent, each key once, in the order in which they came; `repeated` counts those left out.

    Nothing that happens to the file that they came from meanwhile can get an unchecked row sent.
    """

    _database: sqlite3.Connection
    count: int = 0
    repeated: int = 0

    def add(self, row: Row) -> Problem | None:
        """Keep a row, or say which one has its key for something else."""
        key, insert = row.key, "INSERT OR IGNORE INTO rows (key, line, record) VALUES (?, ?, ?)"
        if self._database.execute(insert, (key, row.line, row.record)).rowcount:
            self.count += 1
            return None
        line, record = self._database.execute("SELECT line, record FROM rows WHERE key = ?", (key,)).fetchone()
        if record != row.record:
            return Problem(row.line, (f"key: {key} stands for something else in line {line}",))
        self.repeated += 1
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The columns of each row."""
        for key, record in self._database.execute("SELECT key, record FROM rows ORDER BY number"):
            provider, fields = json.loads(record)
            yield {"key": key, "provider": provider} | fields


@contextmanager
def open_spool() -> Generator[Spool]:
    """An empty spool in a temporary file, which is gone afterwards.

    Raises:
        ConfigurationError: the temporary file cannot be written.
    """
    try:
        with closing(sqlite3.connect("", isolation_level=None)) as database:  # "": a file that SQLite makes if need be
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("BEGIN")  # never committed: it lives as long as this connection
            database.execute(_TABLE)
            yield Spool(database)
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"The rows cannot be kept in a temporary file: {error}.",
            hint="Make room, or name another folder in the variable SQLITE_TMPDIR.",
        ) from error


@attrs.define(eq=False)
class Problems:
    """What is wrong with a batch: how much, and the first of it."""

    first: list[Problem] = attrs.field(factory=list[Problem])
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Take one more."""
        self.count += 1
        if len(self.first) < _TOLD:
            self.first.append(problem)

    @property
    def lines(self) -> list[str]:
        """A line for each of the first, and how many more there are."""
        more = self.count - len(self.first)
        return [*map(str, self.first), *([f"and {more} more"] if more else [])]


def fill(spool: Spool, found: Iterable[Row | Problem], provider: Callable[[str], Provider]) -> Problems:
    """Keep the rows that their `provider` can serve, and tell what is wrong with the others."""
    problems = Problems()
    for row in found:
        if problem := row if isinstance(row, Problem) else _problem(row, provider(row.provider)) or spool.add(row):
            problems.add(problem)
    return problems


def _problem(row: Row, provider: Provider) -> Problem | None:
    texts = tuple(provider.check(row.request))
    return Problem(row.line, texts) if texts else None
