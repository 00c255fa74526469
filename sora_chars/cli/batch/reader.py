"""Reads the rows of `sora-chars batch` from JSONL or CSV, and checks each of them."""

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
from sora_chars.responses import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

COLUMNS: tuple[str, ...] = (
    "key",
    "provider",
    "from_task",
    "video",
    "images",
    "clip",
    "name",
    "prompt",
    "safety",
    "voice",
)
FORMATS = ("jsonl", "csv")

_MAX_LINE_BYTES = 1 << 20
_MAX_REASON_LENGTH = 200  # characters
_MAX_NAME_LENGTH = 60  # characters
_BOM = b"\xef\xbb\xbf"


def _record(row: Row) -> str:
    return to_json([row.provider, to_record(row.request)[1]])


@attrs.frozen
class Row:
    """One request.

    Attributes:
        line: The line at which the row begins; the first line is 1.
        provider: The provider's name.
        request: The request.
        record: The provider and the request without its key, as JSON.
    """

    line: int
    provider: str
    request: CharacterRequest
    record: str = attrs.field(init=False, repr=False, default=attrs.Factory(_record, takes_self=True))

    @property
    def key(self) -> str:
        """The key in the row, or else a hash of `record`."""
        return self.request.key or f"row-{hashlib.sha256(self.record.encode()).hexdigest()[:32]}"


@attrs.frozen
class Problem:
    """What is wrong with the row that begins at `line`."""

    line: int
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"line {self.line}: {'; '.join(self.texts)}"


def guess_format(head: bytes) -> str:
    """Return the format of a file that begins with `head`: JSONL if a bracket comes first, otherwise CSV."""
    return "jsonl" if head.removeprefix(_BOM).lstrip().startswith((b"{", b"[")) else "csv"


def read_rows(
    stream: BinaryIO, file_format: str, *, provider: str, providers: Collection[str]
) -> Iterator[Row | Problem]:
    """Read one row at a time. Invalid content is yielded as a `Problem` and never raises.

    Args:
        stream: The file.
        file_format: One of `FORMATS`.
        provider: The provider of rows that name none.
        providers: The names that a row may use.
    """
    for line, fields in _read_csv(stream) if file_format == "csv" else _read_jsonl(stream):
        if isinstance(fields, str):
            yield Problem(line, (fields,))
        else:
            yield _to_row(line, fields, provider, providers)


def _read_jsonl(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the line number of each row, and its fields or a description of its problem."""
    for line, content in enumerate(_lines(stream), 1):
        if len(content) > _MAX_LINE_BYTES:
            yield line, f"the line is longer than {_MAX_LINE_BYTES} bytes; the rest of the file was not read"
            return
        if content.strip():
            yield line, _from_json(content)


def _from_json(content: bytes) -> dict[str, Any] | str:
    try:
        fields = parse_json(content.decode())
    except UnicodeDecodeError as error:
        return f"invalid UTF-8: {error.reason} at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"invalid JSON: {error.msg} at column {error.colno}"
    except ValueError as error:
        return f"invalid JSON: {printable(error, limit=_MAX_REASON_LENGTH)}"
    return fields if isinstance(fields, dict) else "row must be a JSON object"


def _read_csv(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield what `_read_jsonl` does. Empty cells are left out, and so are rows of empty cells."""
    head: list[str] = []
    for line, cells in _csv_cells(stream):
        if isinstance(cells, str):
            yield line, cells
            if not head:
                return
        elif not any(cells):
            continue
        elif head and len(cells) != len(head):
            yield line, f"the row has {len(cells)} cells, but the first line names {len(head)} columns"
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
            yield line, f"invalid CSV: {printable(error, limit=_MAX_REASON_LENGTH)}"
            continue
        if cells is None:
            return
        yield line, cells


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines as text. Invalid UTF-8 becomes surrogates, which `_text_problem` rejects."""
    for content in _lines(stream):
        if len(content) > _MAX_LINE_BYTES:
            raise csv.Error(f"the line is longer than {_MAX_LINE_BYTES} bytes; the rest of the file was not read")
        yield content.decode(errors="surrogateescape")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each line, or its beginning if it is longer than the limit."""
    first = stream.readline(_MAX_LINE_BYTES + 1)
    if first:
        yield first.removeprefix(_BOM)
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        yield line


def _head_problems(head: list[str]) -> str:
    wrong = sorted({name for name in head if name not in COLUMNS or head.count(name) > 1})
    if not wrong:
        return ""
    names = ", ".join(printable(repr(name), limit=_MAX_NAME_LENGTH) for name in wrong)
    return f"the first line must name different columns out of {', '.join(COLUMNS)}, got {names}"


def _to_row(line: int, fields: dict[str, Any], provider: str, providers: Collection[str]) -> Row | Problem:
    given = {name: value for name, value in fields.items() if value is not None}
    problems = [f"{name} {problem}" for name, value in given.items() if (problem := _text_problem(value))]
    if unknown := [printable(repr(name), limit=_MAX_NAME_LENGTH) for name in given.keys() - set(COLUMNS)]:
        problems.append(f"{', '.join(sorted(unknown))}: unknown column, expected one of {', '.join(COLUMNS)}")
    name = given.pop("provider", provider)
    if not (isinstance(name, str) and name in providers):
        problems.append(
            f"provider must be one of {', '.join(providers)}, got {printable(repr(name), limit=_MAX_NAME_LENGTH)}"
        )
    if isinstance(images := given.get("images"), str):
        given["images"] = [image.strip() for image in images.split(";") if image.strip()]
    try:
        request = CharacterRequest(**{name: value for name, value in given.items() if name in COLUMNS})
    except InvalidRequestError as error:
        return Problem(line, (*problems, *error.problems))
    if problems:
        return Problem(line, tuple(problems))
    return Row(line, name, request)


def _text_problem(value: object) -> str:
    """Return why a text, or one of a list of texts, can be neither recorded nor sent; else an empty text."""
    if isinstance(value, list):
        return next(filter(None, map(_text_problem, value)), "")
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode, encoded as UTF-8"
    return "must not contain a NUL character" if "\0" in value else ""
