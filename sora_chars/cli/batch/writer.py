"""Writes the rows of `sora-chars batch`: one JSON object a line, each as soon as its task ends."""

from __future__ import annotations

import json
import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sora_chars.cli.render import character_json, error_json
from sora_chars.errors import (
    ConfigurationError,
    LedgerError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    WaitTimeoutError,
    printable,
)
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import to_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from sora_chars.batch.outcome import Outcome
    from sora_chars.ledger import Entry
    from sora_chars.models import Character, TaskSnapshot

    Write = Callable[[Mapping[str, Any]], None]

_HINT = (
    "Nothing more is sent. What was paid is in the ledger: correct --output and run the same command again. "
    "With a ledger in memory that would pay again."
)
_ROW_START = b'{"key": '
_MAX_ROW_BYTES = 1 << 20
_PENDING = (LedgerError, SessionClosedError, WaitTimeoutError)  # nothing was sent
_ERROR_TYPES = {EntryState.FAILED: "TaskFailedError", EntryState.UNKNOWN: "SubmissionUnknownError"}


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """Return the row of an outcome."""
    error = outcome.error
    facts: Mapping[str, Any] = {}
    if isinstance(error, SoraCharsError):
        facts = error_json(error)["error"]
    elif error:
        facts = {"type": type(error).__name__, "message": printable(error)}
    is_pending = outcome.state is EntryState.REJECTED and (isinstance(error, _PENDING) or _is_transient(error))
    state = EntryState.PENDING if is_pending else outcome.state
    return _row(outcome, outcome.character, facts, status=state, snapshot=outcome.snapshot)


def entry_row(entry: Entry | None) -> dict[str, Any] | None:
    """Return the row of an entry of the ledger, or None if its request was not sent."""
    if entry is None or entry.state in {EntryState.PENDING, EntryState.SENDING}:
        return None
    snapshot = to_snapshot(entry) if entry.state is EntryState.SUCCEEDED else None
    character = snapshot.character if snapshot else None
    facts = {"type": _ERROR_TYPES[entry.state]} if entry.state in _ERROR_TYPES else {}
    return _row(entry, character, facts | (entry.error or {}), status=entry.state, snapshot=snapshot)


def _is_transient(error: Exception | None) -> bool:
    """Return whether the provider was not reached, or did nothing for now."""
    return isinstance(error, ProviderError) and error.transient


def _row(
    source: Outcome | Entry,
    character: Character | None,
    error: Mapping[str, Any],
    *,
    status: EntryState,
    snapshot: TaskSnapshot | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": source.key,
        "status": str(status),
        "provider": source.provider,
        "task_id": source.task_id,
    }
    if character:
        row["character"] = character_json(character, key=source.key)["character"]
    elif snapshot and status is EntryState.SUCCEEDED:
        row["result"] = snapshot.result
    if error:
        row["error"] = {name: error[name] for name in ("type", "message", "code") if error.get(name) is not None}
    return row if source.credits is None else row | {"credits": source.credits}


@contextmanager
def open_output(path: str) -> Generator[Write]:
    """Give a function that appends a row to a file, or writes it to stdout if `path` is "-".

    Raises:
        ConfigurationError: The file cannot be written. The function raises it too.
        BrokenPipeError: Raised by the function if the reader of stdout has closed it.
    """
    if path == "-":
        yield lambda row: _write(path, row, sys.stdout.buffer)
        return
    with _os_errors(path):
        if Path(path).is_file():
            _repair_end(Path(path))
        file = Path(path).open("ab", buffering=0)  # noqa: SIM115 # closed below, outside of `_os_errors`
    with file:
        yield lambda row: _write(path, row, file)
        _check_not_deleted(path, file)


def _write(path: str, row: Mapping[str, Any], file: BinaryIO) -> None:
    with _os_errors(path):
        line = json.dumps(row).encode() + b"\n"
        while line:
            line = line[file.write(line) :]
        file.flush()
    if path != "-":
        _check_not_deleted(path, file)


def _check_not_deleted(path: str, file: BinaryIO) -> None:
    """Raise `ConfigurationError` if the file has no name any more: its rows end with the command."""
    facts = os.fstat(file.fileno())
    if stat.S_ISREG(facts.st_mode) and not facts.st_nlink:
        raise ConfigurationError(f"--output {path}: the file was deleted while the rows were written.", hint=_HINT)


@contextmanager
def _os_errors(path: str) -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"--output {path}: {os.strerror(error.errno or 0)}.",
            hint=_HINT,
        ) from error


def _repair_end(path: Path) -> None:
    """Remove a partial last row, which a crash can leave, and end any other last line."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _MAX_ROW_BYTES))
        *_, last = file.read().split(b"\n")
        if _is_partial_row(last):
            file.truncate(end - len(last))
        elif last:
            file.write(b"\n")


def _is_partial_row(line: bytes) -> bool:
    """Return whether a line is the beginning of a row, but not a whole one."""
    if not line or line[: len(_ROW_START)] != _ROW_START[: len(line)]:
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
