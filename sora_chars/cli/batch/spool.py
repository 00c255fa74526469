"""Keeps the rows of a batch on disk from the check to the run, so a million rows need no memory."""

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

_MAX_PROBLEMS = 20  # that are kept and shown

_TABLE = "CREATE TABLE rows (number INTEGER PRIMARY KEY, key TEXT UNIQUE, line INTEGER, record TEXT)"


@attrs.define(eq=False)
class Spool:
    """Checked rows in their order, each key once.

    A change of the input file after the check cannot add an unchecked row.

    Attributes:
        count: How many rows the spool holds.
        repeated: How many rows were left out because they repeat another one.
    """

    _database: sqlite3.Connection
    count: int = 0
    repeated: int = 0

    def add(self, row: Row) -> Problem | None:
        """Add a row, or return a problem if another row uses its key for a different request."""
        key = row.key
        insert = "INSERT OR IGNORE INTO rows (key, line, record) VALUES (?, ?, ?)"
        if self._database.execute(insert, (key, row.line, row.record)).rowcount:
            self.count += 1
            return None
        line, record = self._database.execute("SELECT line, record FROM rows WHERE key = ?", (key,)).fetchone()
        if record != row.record:
            return Problem(row.line, (f"key {key} is used for a different request in line {line}",))
        self.repeated += 1
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the columns of each row."""
        for key, record in self._database.execute("SELECT key, record FROM rows ORDER BY number"):
            provider, fields = json.loads(record)
            yield {"key": key, "provider": provider} | fields


@contextmanager
def open_spool() -> Generator[Spool]:
    """Give an empty spool in a temporary file, which is deleted afterwards.

    Raises:
        ConfigurationError: The temporary file cannot be written.
    """
    try:
        with closing(sqlite3.connect("", isolation_level=None)) as database:  # "": SQLite creates a file if needed
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("BEGIN")  # never committed: the file ends with this connection
            database.execute(_TABLE)
            yield Spool(database)
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"The rows cannot be stored in a temporary file: {error}.",
            hint="Free disk space, or set SQLITE_TMPDIR to another folder.",
        ) from error


@attrs.define(eq=False)
class Problems:
    """The problems of a batch: their number, and the first of them."""

    first: list[Problem] = attrs.field(factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Add a problem."""
        self.count += 1
        if len(self.first) < _MAX_PROBLEMS:
            self.first.append(problem)

    @property
    def lines(self) -> list[str]:
        """A line for each of the first problems, and the number of the others."""
        more = self.count - len(self.first)
        return [*map(str, self.first), *([f"and {more} more"] if more else [])]


def fill(spool: Spool, rows: Iterable[Row | Problem], provider: Callable[[str], Provider]) -> Problems:
    """Add the valid rows to the spool, and return the problems of the others.

    Args:
        spool: The spool.
        rows: Rows, and problems that the reader found.
        provider: Returns the provider of a name; it checks the row against its limits.
    """
    problems = Problems()
    for row in rows:
        problem = row if isinstance(row, Problem) else _check(row, provider(row.provider)) or spool.add(row)
        if problem:
            problems.add(problem)
    return problems


def _check(row: Row, provider: Provider) -> Problem | None:
    texts = tuple(provider.check(row.request))
    return Problem(row.line, texts) if texts else None
