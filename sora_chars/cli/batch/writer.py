"""The rows that `sora-chars batch` gives: one JSON object a line, each written as a whole as soon as its task ends."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sora_chars.cli.render import character_json, error_json
from sora_chars.errors import ConfigurationError, SoraCharsError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import to_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from sora_chars.batch.outcome import Outcome
    from sora_chars.ledger import Entry
    from sora_chars.models import Character

    Write = Callable[[Mapping[str, Any]], None]

_BEGIN = b'{"key": '  # of every row here
_LONGEST = 1 << 20  # bytes of a row
_ERRORS = {EntryState.FAILED: "TaskFailedError", EntryState.UNKNOWN: "SubmissionUnknownError"}


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """The row of an outcome."""
    error = outcome.error
    if isinstance(error, SoraCharsError):
        facts = error_json(error)["error"]
    else:
        facts = {"type": type(error).__name__, "message": printable(error)} if error else {}
    return _row(outcome, outcome.character, facts)


def entry_row(entry: Entry | None) -> dict[str, Any] | None:
    """The row of an entry, from the ledger; None if nothing was sent for it."""
    if entry is None or entry.state in {EntryState.PENDING, EntryState.SENDING}:
        return None
    character = to_snapshot(entry).character if entry.state is EntryState.SUCCEEDED else None
    facts = {"type": _ERRORS[entry.state]} if entry.state in _ERRORS else {}
    return _row(entry, character, facts | (entry.error or {}))


def _row(of: Outcome | Entry, character: Character | None, error: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"key": of.key, "status": str(of.state), "provider": of.provider, "task_id": of.task_id}
    if character:
        row["character"] = character_json(character, key=of.key)["character"]
    if error:
        row["error"] = {name: error[name] for name in ("type", "message", "code") if error.get(name) is not None}
    return row if of.credits is None else row | {"credits": of.credits}


@contextmanager
def open_output(path: str) -> Generator[Write]:
    """A function that appends a row to the file at `path`, or writes it to stdout for "-".

    Raises:
        ConfigurationError: the file cannot be written; also from the function.
        BrokenPipeError: from the function: whoever read has gone.
    """
    if path == "-":
        yield lambda row: _write(path, row, sys.stdout.buffer)
        return
    with _told(path):
        if Path(path).is_file():
            _mend(Path(path))
        file = Path(path).open("ab", buffering=0)  # noqa: SIM115 # closed below, where the caller's own errors pass
    with file:
        yield lambda row: _write(path, row, file)


def _write(path: str, row: Mapping[str, Any], file: BinaryIO) -> None:
    with _told(path):
        line = json.dumps(row).encode() + b"\n"
        while line:
            line = line[file.write(line) :]
        file.flush()


@contextmanager
def _told(path: str) -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"--output {path}: {os.strerror(error.errno or 0)}.",
            hint="What was paid, if anything, is on record. Run the same command again once it can be written.",
        ) from error


def _mend(path: Path) -> None:
    """Let the next row begin a line: cut off what a crash has left of the last row, else end the last line."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LONGEST))
        *_, last = file.read().split(b"\n")
        if _is_broken(last):
            file.truncate(end - len(last))
        elif last:
            file.write(b"\n")


def _is_broken(line: bytes) -> bool:
    """Whether this is the beginning of a row."""
    if not line or line[: len(_BEGIN)] != _BEGIN[: len(line)]:
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
