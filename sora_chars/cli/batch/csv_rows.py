"""Reads CSV as spreadsheets and pandas write it."""

from __future__ import annotations

import csv
import re
from itertools import chain
from typing import TYPE_CHECKING

from sora_chars.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_DELIMITERS = (",", ";", "\t", "|")
_MAX_REASON_LENGTH = 200  # characters
_MAX_SHOWN_LENGTH = 60  # characters
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\1*\s*', re.IGNORECASE)  # Excel reads and writes it as the first line
_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # pandas names a column without a name like this


def read_csv(
    lines: Iterator[str], columns: Collection[str], delimiter: str | None
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line number of each row, and its cells by column or a description of its problem.

    Empty cells are left out, and so are rows of empty cells. A missing cell at the end
    of a row is empty. Columns without a name must be empty too, except the first one if
    it numbers the rows.

    Args:
        lines: The lines of the file.
        columns: The names that the first line may use.
        delimiter: What separates two cells. None selects the delimiter that makes the
            most column names of the first line.
    """
    for skipped, line in enumerate(lines):
        if separator := _SEPARATOR_LINE.fullmatch(line):
            delimiter = delimiter or separator[1]
        elif line.strip("".join(_DELIMITERS) + '" \r\n'):
            chosen = delimiter or _guess_delimiter(line, columns)
            yield from _read_table(chain([line], lines), columns, chosen, skipped)
            return


def _guess_delimiter(head: str, columns: Collection[str]) -> str:
    def count(delimiter: str) -> int:
        return sum(cell.strip() in columns for cell in next(csv.reader([head], delimiter=delimiter)))

    return max(_DELIMITERS, key=count)


def _read_table(
    lines: Iterator[str], columns: Collection[str], delimiter: str, skipped: int
) -> Iterator[tuple[int, dict[str, str] | str]]:
    head: list[str] = []
    for line, cells in _read_cells(lines, delimiter):
        if not head:
            if isinstance(cells, list):
                head = _without_empty_end([_name(cell) for cell in cells])
            problem = cells if isinstance(cells, str) else _head_problem(head, columns)
            if problem:
                yield skipped + line, problem
                return
        elif fields := cells if isinstance(cells, str) else _by_column(head, cells):
            yield skipped + line, fields


def _read_cells(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, f"invalid CSV: {printable(error, limit=_MAX_REASON_LENGTH)}"
            continue
        if cells is None:
            return
        yield line, cells


def _name(cell: str) -> str:
    name = cell.strip()
    return "" if _UNNAMED.fullmatch(name) else name


def _without_empty_end(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names = names[:-1]
    return names


def _head_problem(head: list[str], columns: Collection[str]) -> str:
    wrong = sorted({name for name in head if name and (name not in columns or head.count(name) > 1)})
    if not wrong:
        return ""
    names = ", ".join(_shown(name) for name in wrong)
    return (
        f"the first line must name different columns out of {', '.join(columns)}, got {names}; the rows were not read"
    )


def _by_column(head: list[str], cells: list[str]) -> dict[str, str] | str:
    """Return the cells that are not empty, or a problem."""
    fields: dict[str, str] = {}
    for number, text in enumerate(map(str.strip, cells)):
        name = head[number] if number < len(head) else ""
        if text and name:
            fields[name] = text
        elif text and number >= len(head):
            return f"the row has {len(cells)} cells, but the first line names {len(head)} columns"
        elif text and not (number == 0 and text.isdecimal()):  # pandas writes its index into an unnamed first column
            return f"column {number + 1} has no name in the first line, but this row has {_shown(text)} in it"
    return fields


def _shown(text: str) -> str:
    return printable(repr(text), limit=_MAX_SHOWN_LENGTH)
