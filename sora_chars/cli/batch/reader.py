"""The rows of `sora-chars batch`: read from JSONL or CSV, and checked one by one. Nothing is sent or written here."""

from __future__ import annotations

import csv
import hashlib
import json
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from sora_chars.errors import InvalidRequestError, printable
from sora_chars.ledger.entry import to_json
from sora_chars.ledger.serialize import to_record
from sora_chars.models import CharacterRequest
from sora_chars.transport import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

COLUMNS: tuple[str, ...] = ("key", "provider", "from_task", "video", "clip", "name", "prompt", "safety")
FORMS = ("jsonl", "csv")

_LONGEST = 1 << 20  # bytes of a line
_SHOWN = 200
_BOM = b"\xef\xbb\xbf"


def _record(row: Row) -> str:
    return to_json([row.provider, to_record(row.request)[1]])


@attrs.frozen
class Row:
    """A character to make, as it stands from `line` on (1 is the first). `record`: all it asks for, as one text."""

    line: int
    provider: str
    request: CharacterRequest
    record: str = attrs.field(init=False, repr=False, default=attrs.Factory(_record, takes_self=True))

    @property
    def key(self) -> str:
        """The column's, else one made of the row's content."""
        return self.request.key or f"row-{hashlib.sha256(self.record.encode()).hexdigest()[:32]}"


@attrs.frozen
class Problem:
    """What is wrong with the row that begins at `line`."""

    line: int
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"line {self.line}: {'; '.join(self.texts)}"


def guess_form(head: bytes) -> str:
    """The form of rows that begin with `head`: JSONL if that looks like JSON."""
    return "jsonl" if head.removeprefix(_BOM).lstrip().startswith((b"{", b"[")) else "csv"


def read_rows(stream: BinaryIO, form: str, *, provider: str, providers: Collection[str]) -> Iterator[Row | Problem]:
    """Each row, or what is wrong with it, one at a time. No bytes make it raise.

    `provider`: that of a row that names none; `providers`: those that may be named.
    """
    for line, fields in _read_csv(stream) if form == "csv" else _read_jsonl(stream):
        if isinstance(fields, str):
            yield Problem(line, (fields,))
        else:
            yield _to_row(line, fields, provider, providers)


def _read_jsonl(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The line number of each row, and its fields or what is wrong with it."""
    for line, content in enumerate(_lines(stream), 1):
        if len(content) > _LONGEST:
            yield line, f"longer than {_LONGEST} bytes; the rest was not read"
            return
        if content.strip():
            yield line, _from_json(content)


def _from_json(content: bytes) -> dict[str, Any] | str:
    try:
        fields = parse_json(content.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} at column {error.colno}"
    except ValueError as error:
        return f"no JSON: {printable(error, limit=_SHOWN)}"
    return fields if isinstance(fields, dict) else "must be a JSON object"


def _read_csv(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """As `_read_jsonl`. An empty cell is a field that is not given; a row of empty cells is none."""
    head: list[str] = []
    for line, cells in _csv_cells(stream):
        if isinstance(cells, str):
            yield line, cells
            if not head:
                return
        elif not any(cells):
            continue
        elif head and len(cells) != len(head):
            yield line, f"{len(cells)} cells, but the first line names {len(head)} columns"
        elif head:
            yield line, {name: cell for name, cell in zip(head, cells, strict=True) if cell}
        else:
            head = [cell.strip() for cell in cells]
            if problems := _head_problems(head):
                yield line, f"{problems}; the rows were not read"
                return


def _csv_cells(stream: BinaryIO) -> Iterator[tuple[int, list[str] | str]]:
    reader = csv.reader(_csv_lines(stream), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, f"no CSV: {printable(error, limit=_SHOWN)}"
            continue
        if cells is None:
            return
        yield line, cells


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines as text. What is not UTF-8 becomes surrogates, which no row may hold."""
    for content in _lines(stream):
        if len(content) > _LONGEST:
            raise csv.Error(f"a line longer than {_LONGEST} bytes; the rest was not read")
        yield content.decode(errors="surrogateescape")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Each line, or as much of it as shows that it is too long."""
    first = stream.readline(_LONGEST + 1)
    if first:
        yield first.removeprefix(_BOM)
    while line := stream.readline(_LONGEST + 1):
        yield line


def _head_problems(head: list[str]) -> str:
    wrong = sorted({name for name in head if name not in COLUMNS or head.count(name) > 1})
    if not wrong:
        return ""
    names = ", ".join(printable(repr(name), limit=60) for name in wrong)
    return f"the columns must be different ones of {', '.join(COLUMNS)}, got {names}"


def _to_row(line: int, fields: dict[str, Any], provider: str, providers: Collection[str]) -> Row | Problem:
    given = {name: value for name, value in fields.items() if value is not None}
    problems = [f"{name}: {problem}" for name, value in given.items() if (problem := _text_problem(value))]
    if unknown := [printable(repr(name), limit=60) for name in given.keys() - set(COLUMNS)]:
        problems.append(f"{', '.join(sorted(unknown))}: no such column, there are {', '.join(COLUMNS)}")
    name = given.pop("provider", provider)
    if not (isinstance(name, str) and name in providers):
        problems.append(f"provider: must be one of {', '.join(providers)}, got {printable(repr(name), limit=60)}")
    try:
        request = CharacterRequest(**{name: value for name, value in given.items() if name in COLUMNS})
    except InvalidRequestError as error:
        return Problem(line, (*problems, *error.problems))
    if problems:
        return Problem(line, tuple(problems))
    return Row(line, name, request)


def _text_problem(value: object) -> str:
    """Why a text could be neither kept nor sent."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be whole Unicode characters, in UTF-8"
    return "must not hold a NUL character" if "\0" in value else ""
