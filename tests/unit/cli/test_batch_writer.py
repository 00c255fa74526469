"""The rows of a batch, and its output file, which has whole lines even after a crash."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.batch.outcome import Outcome
from sora_chars.cli.batch.writer import entry_row, open_output, outcome_row
from sora_chars.errors import (
    ConfigurationError,
    KeyConflictError,
    LedgerError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    SessionClosedError,
    SoraCharsError,
)
from sora_chars.ledger import Entry, EntryState

if TYPE_CHECKING:
    from pathlib import Path

ROW = {"key": "döner", "status": "succeeded", "credits": 0.1}
LINE = json.dumps(ROW).encode() + b"\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (LINE, LINE),
        (LINE[:-1], LINE),
        (LINE + LINE[:-2], LINE),
        (LINE + LINE[:4], LINE),
        (LINE[:20], b""),
        (b"mine", b"mine\n"),
        (b'{"key": 1}', b'{"key": 1}\n'),
        (b"x" * (3 << 20), b"x" * (3 << 20) + b"\n"),
        (b"x\n" * (1 << 20) + LINE[:20], b"x\n" * (1 << 20)),
    ],
)
def test_partial_row_is_removed(tmp_path: Path, before: bytes, after: bytes) -> None:
    """A partial last row is removed; any other text is kept, and its line is ended."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(before)
    with open_output(str(path)) as write:
        write(ROW)
        assert path.read_bytes() == after + LINE
        write(ROW)
    assert path.read_bytes() == after + LINE + LINE


def test_file_is_created(tmp_path: Path) -> None:
    """The output file need not exist."""
    with open_output(str(tmp_path / "out.jsonl")) as write:
        write(ROW)
    assert (tmp_path / "out.jsonl").read_bytes() == LINE


@pytest.mark.parametrize("name", [".", "nowhere/out.jsonl", ""])
def test_file_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A folder, a missing folder and an empty path are configuration errors."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"--output {name}: "), open_output(name):
        pass


def test_disk_is_full() -> None:
    """A failed write is a configuration error with a hint."""
    with open_output("/dev/full") as write, pytest.raises(ConfigurationError, match="No space left") as caught:
        write(ROW)
    assert "run the same command again" in caught.value.hint


def test_dash_is_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each row is flushed at once to stdout."""
    with open_output("-") as write:
        write(ROW)
        assert capfdbinary.readouterr().out == LINE


def entry(state: EntryState, **more: Any) -> Entry:
    """Return an entry of the ledger."""
    facts: dict[str, Any] = {"kind": "character", "request_json": "{}", "created_at": 0.0, "updated_at": 0.0}
    facts |= {name: json.dumps(value) for name, value in more.items()}
    return Entry(key="k", provider="kie", state=state, **facts)


@pytest.mark.parametrize("unsent", [None, entry(EntryState.PENDING), entry(EntryState.SENDING)])
def test_unsent_requests_have_no_row(unsent: Entry | None) -> None:
    """The next run sends them."""
    assert entry_row(unsent) is None


@pytest.mark.parametrize(
    ("ended", "more"),
    [
        (entry(EntryState.RUNNING), {"status": "running"}),
        (
            entry(EntryState.FAILED, error_json={"code": "501", "message": "no"}),
            {"status": "failed", "error": {"type": "TaskFailedError", "message": "no", "code": "501"}},
        ),
        (
            entry(EntryState.UNKNOWN, error_json={"message": "lost"}),
            {"status": "unknown", "error": {"type": "SubmissionUnknownError", "message": "lost"}},
        ),
        (
            entry(
                EntryState.REJECTED,
                error_json={"type": "UsageCapError", "message": "cap", "code": 433, "provider": "kie"},
            ),
            {"status": "rejected", "error": {"type": "UsageCapError", "message": "cap", "code": 433}},
        ),
    ],
)
def test_row_of_an_entry(ended: Entry, more: dict[str, Any]) -> None:
    """The row of an entry has the same members as that of an outcome."""
    assert entry_row(ended) == {"key": "k", "provider": "kie", "task_id": None} | more


def test_row_of_a_succeeded_entry() -> None:
    """The row of a succeeded entry has its character."""
    character = {"id": "ch_1", "provider": "kie"}
    result = {"task_id": "t", "provider": "kie", "state": "success", "character": character}
    row = entry_row(entry(EntryState.SUCCEEDED, result_json=result))
    assert row
    assert (row["status"], row["character"]["id"]) == ("succeeded", "ch_1")


def test_row_of_an_unexpected_error() -> None:
    """An exception of any type becomes its type and one line of text."""
    row = outcome_row(Outcome(index=0, request=None, state=EntryState.UNKNOWN, key="k", error=KeyError("a\nb")))
    assert row["error"] == {"type": "KeyError", "message": "'a\\nb'"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoAnswerError("unreachable", harmless=True), "pending"),
        (RateLimitedError("busy"), "pending"),
        (LedgerError("full"), "pending"),
        (SessionClosedError("closed"), "pending"),
        (RequestRejectedError("bad"), "rejected"),
        (KeyConflictError("used", key="k"), "rejected"),
    ],
)
def test_only_a_rejection_is_rejected(error: SoraCharsError, status: str) -> None:
    """A row whose provider could not be reached, or did nothing for now, is pending, as in the ledger."""
    row = outcome_row(Outcome(index=0, request=None, state=EntryState.REJECTED, key="k", error=error))
    assert row["status"] == status


def test_deleted_file_is_an_error(tmp_path: Path) -> None:
    """The next row, and the end of the batch, report that the rows are lost."""
    path = tmp_path / "out.jsonl"
    opened = open_output(str(path))
    write = opened.__enter__()
    write(ROW)
    path.unlink()
    with pytest.raises(ConfigurationError, match="was deleted while the rows were written"):
        write(ROW)
    with pytest.raises(ConfigurationError, match="was deleted while the rows were written"):
        opened.__exit__(None, None, None)


def test_file_may_be_renamed(tmp_path: Path) -> None:
    """A renamed file still has its rows."""
    path = tmp_path / "out.jsonl"
    with open_output(str(path)) as write:
        path.rename(tmp_path / "other.jsonl")
        write(ROW)
    assert (tmp_path / "other.jsonl").read_bytes() == LINE
