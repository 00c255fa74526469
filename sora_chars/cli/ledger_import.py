"""Reads an export of a ledger back: checks every line, then inserts the entries that are missing."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import attrs

from sora_chars.errors import SoraCharsError, printable
from sora_chars.ledger import Entry, EntryState
from sora_chars.ledger.entry import Attempt, to_json
from sora_chars.ledger.serialize import to_request, to_snapshot
from sora_chars.redaction import mask
from sora_chars.responses import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sora_chars.ledger import Ledger

_FIELDS = {field.name.removesuffix("_json"): field for field in attrs.fields(Entry)}
_ATTEMPT_FIELDS = {field.name.removesuffix("_json"): field for field in attrs.fields(Attempt)}
_PLACE = {"key", "number"}  # what an attempt has by its place in the export
_JSON = {"request", "result", "error", "meta"}
_MAX_TIME = 253_402_300_800  # the year 10000
_CHUNK_SIZE = 200  # entries that are inserted at the same time, so that they share commits
_MAX_SHOWN = 20  # keys that differ


@attrs.define(eq=False)
class ImportCounts:
    """What an import did.

    Attributes:
        inserted: How many entries were missing.
        skipped: How many entries were recorded already.
        different: How many keys are recorded with other content, which was kept.
        examples: A sentence on each of the first of them.
    """

    inserted: int = 0
    skipped: int = 0
    different: int = 0
    examples: list[str] = attrs.field(factory=list)

    def add(self, entry: Entry, stored: Entry) -> None:
        """Count an entry, of whose key `stored` is recorded now."""
        if stored is entry:
            self.inserted += 1
        elif stored == entry:
            self.skipped += 1
        else:
            self.different += 1
            if len(self.examples) < _MAX_SHOWN:
                versions = f"{stored.state}, version {stored.version}; imported: {entry.state}, version {entry.version}"
                self.examples.append(f"key {entry.key} differs, and was kept: recorded as {versions}")


def copy_checked(lines: Iterable[bytes], copy: IO[bytes]) -> list[tuple[int, str]]:
    """Copy the lines that are not blank, and return the number of each broken one with its problem."""
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            read_line(line)
        except ValueError as error:
            problems.append((number, mask(printable(error))))
        copy.write(line.rstrip(b"\r\n") + b"\n")
    return problems


async def insert_entries(ledger: Ledger, lines: Iterable[bytes]) -> ImportCounts:
    """Insert the entries whose keys are missing. Entries that are recorded are never changed.

    Raises:
        LedgerError: The ledger could not be written. What was inserted before stays.
    """
    counts = ImportCounts()
    rest = iter(lines)
    while pairs := [read_line(line) for line in islice(rest, _CHUNK_SIZE)]:
        inserts = [ledger.insert(entry, attempts) for entry, attempts in pairs]
        for (entry, _), stored in zip(pairs, await asyncio.gather(*inserts), strict=True):
            counts.add(entry, stored)
    return counts


def read_line(line: bytes) -> tuple[Entry, list[Attempt]]:
    """Return the entry in a line of an export, and its earlier attempts.

    Raises:
        ValueError: The line is not an entry; the message states why.
    """
    try:
        facts = parse_json(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(facts, dict):
        raise ValueError("the line must be a JSON object")  # noqa: TRY004 # all problems of a line are ValueErrors
    earlier = facts.pop("attempts", [])
    if not isinstance(earlier, list):
        raise ValueError(f"attempts must be a list, got {printable(repr(earlier), limit=60)}")  # noqa: TRY004 # as above
    entry = Entry(**_checked(facts, _FIELDS))
    _check_content(entry)
    return entry, [_read_attempt(entry.key, number, attempt) for number, attempt in enumerate(earlier, 1)]


def _read_attempt(key: str, number: int, facts: Any) -> Attempt:
    if not isinstance(facts, dict):
        raise ValueError(f"attempt {number} must be a JSON object, got {printable(repr(facts), limit=60)}")  # noqa: TRY004 # as above
    fields = {name: field for name, field in _ATTEMPT_FIELDS.items() if name not in _PLACE}
    try:
        return Attempt(key=key, number=number, **_checked(facts, fields))
    except ValueError as error:
        raise ValueError(f"attempt {number}: {error}") from error


def _checked(facts: Mapping[str, Any], fields: Mapping[str, attrs.Attribute[Any]]) -> dict[str, Any]:
    """Return the values of an entry or an attempt, or raise `ValueError` about the first that is wrong."""
    if unknown := sorted(facts.keys() - fields.keys()):
        raise ValueError(f"unknown field {printable(repr(unknown[0]))}; was it exported by a later version?")
    required = [name for name, field in fields.items() if field.default is attrs.NOTHING]
    if missing := [name for name in required if facts.get(name) is None]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in facts.items():
        if problem := _problem(name, value):
            raise ValueError(f"{name} must be {problem}, got {printable(repr(value), limit=60)}")
    return {fields[name].name: _stored(name, value) for name, value in facts.items()}


def _problem(name: str, value: Any) -> str:
    """Return what a value of this field must be, if it is not that."""
    if name == "state":
        return "" if value in list(EntryState) else f"one of {', '.join(EntryState)}"
    if name == "request":
        return "" if isinstance(value, dict) else "a JSON object"
    if value is None or name == "result":
        return ""
    is_valid, what = _RULES.get(name, _TEXT)
    return "" if is_valid(value) else what


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_TIME


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TEXT = (_is_text, "printable text")
_TIME = (_is_time, "epoch seconds")
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "key": (lambda value: _is_text(value) and value == value.strip(), "printable text without blanks at its ends"),
    "error": (lambda value: isinstance(value, dict), "a JSON object"),
    "meta": (lambda value: isinstance(value, dict), "a JSON object"),
    "version": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "credits": (_is_number, "a number"),
    "created_at": _TIME,
    "updated_at": _TIME,
    "ended_at": _TIME,
}


def _stored(name: str, value: Any) -> Any:
    if name == "state":
        return EntryState(value)
    if name == "meta" and not value:
        return None
    return to_json(value) if name in _JSON and value is not None else value


def _check_content(entry: Entry) -> None:
    """Raise `ValueError` if a session could not use the entry."""
    if entry.state is EntryState.RUNNING and entry.task_id is None:
        raise ValueError("task_id is missing, although the state is running")
    try:
        to_request(entry)
        if entry.state in {EntryState.SUCCEEDED, EntryState.FAILED} or entry.result is not None:
            to_snapshot(entry)
    except (SoraCharsError, KeyError, TypeError, ValueError) as error:
        reason = printable(error.__cause__ or error, limit=200)
        raise ValueError(f"request or result is not one of kind {entry.kind}: {reason}") from error
