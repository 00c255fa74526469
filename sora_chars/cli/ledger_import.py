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
from sora_chars.ledger.entry import to_json
from sora_chars.ledger.serialize import to_request, to_snapshot
from sora_chars.redaction import mask
from sora_chars.responses import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sora_chars.ledger import Ledger

_FIELDS = {field.name.removesuffix("_json"): field for field in attrs.fields(Entry)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is attrs.NOTHING]
_JSON = {"request", "result", "error"}
_NUMBERS = {"credits", "created_at", "updated_at", "version"}
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
            read_entry(line)
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
    while entries := [read_entry(line) for line in islice(rest, _CHUNK_SIZE)]:
        for entry, stored in zip(entries, await asyncio.gather(*map(ledger.insert, entries)), strict=True):
            counts.add(entry, stored)
    return counts


def read_entry(line: bytes) -> Entry:
    """Return the entry in a line of an export.

    Raises:
        ValueError: The line is not an entry; the message states why.
    """
    try:
        facts = parse_json(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(facts, dict):
        raise ValueError("the line must be a JSON object")  # noqa: TRY004 # all problems of a line are ValueErrors
    if unknown := sorted(facts.keys() - _FIELDS.keys()):
        raise ValueError(f"unknown field {printable(repr(unknown[0]))}; was it exported by a later version?")
    if missing := [name for name in _REQUIRED if facts.get(name) is None]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in facts.items():
        if problem := _problem(name, value):
            raise ValueError(f"{name} must be {problem}, got {printable(repr(value), limit=60)}")
    entry = Entry(**{_FIELDS[name].name: _stored(name, value) for name, value in facts.items()})
    _check_content(entry)
    return entry


def _problem(name: str, value: Any) -> str:
    """Return what a value of this field must be, if it is not that."""
    if name == "state":
        return "" if value in list(EntryState) else f"one of {', '.join(EntryState)}"
    if name == "request":
        return "" if isinstance(value, dict) else "a JSON object"
    if value is None or name in _JSON:
        return ""
    if name == "version":
        return "" if type(value) is int and value > 0 else "a whole number above 0"
    if name in _NUMBERS:
        return "" if type(value) in {int, float} and math.isfinite(value) else "a number"
    return "" if isinstance(value, str) and value and value.isprintable() else "printable text"


def _stored(name: str, value: Any) -> Any:
    if name == "state":
        return EntryState(value)
    return to_json(value) if name in _JSON and value is not None else value


def _check_content(entry: Entry) -> None:
    """Raise `ValueError` if a session could not use the entry."""
    if entry.state is EntryState.RUNNING and entry.task_id is None:
        raise ValueError("task_id is missing, although the state is running")
    try:
        to_request(entry)
        if entry.state is EntryState.SUCCEEDED or entry.result is not None:
            to_snapshot(entry)
    except (SoraCharsError, KeyError, TypeError, ValueError) as error:
        reason = printable(error.__cause__ or error, limit=200)
        raise ValueError(f"request or result is not one of kind {entry.kind}: {reason}") from error
