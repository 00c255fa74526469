"""Reads the rows of `sora-chars batch` from JSONL, a JSON array or CSV, and checks each of them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from sora_chars.errors import InvalidRequestError, printable
from sora_chars.ledger.entry import to_json
from sora_chars.ledger.serialize import to_record
from sora_chars.models import Request, of_row, raise_if_invalid
from sora_chars.responses import parse_json

from .csv_rows import read_csv
from .decoding import UnreadableInputError, check_is_text, peek_text, text_lines, whole_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

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
    "model",
    "input",
)
FORMATS = ("jsonl", "csv")

_MAX_REASON_LENGTH = 200  # characters
_MAX_NAME_LENGTH = 60  # characters
_MAX_DEPTH = 100  # lists and objects in each other
_LONG_INTEGER = re.compile(r"\d{19}")  # orjson reads integers beyond 64 bits as floats
_BETWEEN_ROWS = re.compile(r"[\s\[,]*")  # of a JSON array that was decoded already
_DECODER = json.JSONDecoder()


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
    request: Request
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


def guess_format(stream: BinaryIO, encoding: str | None) -> str:
    """Return the format by the first bytes: JSON if a bracket comes first, otherwise CSV."""
    return "jsonl" if peek_text(stream, encoding).lstrip().startswith(("{", "[")) else "csv"


def read_rows(
    stream: BinaryIO,
    file_format: str,
    *,
    provider: str,
    providers: Collection[str],
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Iterator[Row | Problem]:
    """Read one row at a time. Invalid content is yielded as a `Problem` and never raises.

    Args:
        stream: The file.
        file_format: One of `FORMATS`.
        provider: The provider of rows that name none.
        providers: The names that a row may use.
        encoding: The encoding of the file; None selects UTF-16 or UTF-8 by its first bytes.
        delimiter: What separates two cells of CSV; None selects it by the first line.
    """
    try:
        check_is_text(stream)
        for line, fields in _read_fields(stream, file_format, encoding, delimiter):
            yield Problem(line, (fields,)) if isinstance(fields, str) else _to_row(line, fields, provider, providers)
    except UnreadableInputError as error:
        yield Problem(error.line, (str(error),))


def _read_fields(
    stream: BinaryIO, file_format: str, encoding: str | None, delimiter: str | None
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Yield the line number of each row, and its fields or a description of its problem."""
    if file_format == "csv":
        return read_csv(text_lines(stream, encoding), COLUMNS, delimiter)
    if peek_text(stream, encoding).lstrip().startswith("["):
        return _read_array(whole_text(stream, encoding))
    return _read_jsonl(text_lines(stream, encoding))


def _read_jsonl(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield line, _fields(_exactly(text))
            except ValueError as error:
                yield line, _invalid_json(error)


def _read_array(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the objects of an array, each with the line at which it begins."""
    try:
        rows = _exactly(text)
    except ValueError as error:
        yield getattr(error, "lineno", 1), _invalid_json(error)
        return
    line_end = "\n" if "\n" in text else "\r"
    line = 1
    position = 0
    for row in rows:
        start = _BETWEEN_ROWS.match(text, position).end()  # type: ignore[union-attr] # it matches an empty text too
        line += text.count(line_end, position, start)
        yield line, _fields(row)
        position = _DECODER.raw_decode(text, start)[1]
        line += text.count(line_end, start, position)


def _exactly(text: str) -> Any:
    """Return the value of JSON with every integer as it is written: the input of a job is sent as it is."""
    return parse_json(text, exact_integers=_LONG_INTEGER.search(text) is not None)


def _fields(value: object) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else "row must be a JSON object"


def _invalid_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} at column {error.colno}"
    return f"invalid JSON: {printable(error, limit=_MAX_REASON_LENGTH)}"


def _to_row(line: int, fields: Mapping[str, Any], provider: str, providers: Collection[str]) -> Row | Problem:
    given = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    given = {name: value for name, value in given.items() if value is not None}
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
        if isinstance(text := given.get("input"), str):
            given["input"] = _json_of(text)
        request = of_row({name: value for name, value in given.items() if name in COLUMNS})
    except InvalidRequestError as error:
        return Problem(line, (*problems, *error.problems))
    if problems:
        return Problem(line, tuple(problems))
    return Row(line, name, request)


def _json_of(text: str) -> Any:
    """Return the value of the JSON in a cell.

    Raises:
        InvalidRequestError: It is no JSON.
    """
    try:
        return _exactly(text)
    except ValueError as error:
        raise_if_invalid([f"input has {_invalid_json(error)}"], what="The row")


def _text_problem(value: object, depth: int = 0) -> str:
    """Return why a text, or one within a list or an object, can be neither recorded nor sent; else an empty text."""
    if depth > _MAX_DEPTH:
        return f"must not be nested more than {_MAX_DEPTH} levels deep"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next(filter(None, (_text_problem(one, depth + 1) for one in value)), "")
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode, without unpaired surrogates"
    return "must not contain a NUL character" if "\0" in value else ""
