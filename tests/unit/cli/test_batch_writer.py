"""The rows that a batch gives, and the file it writes: whole lines, also after a crash."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.batch.outcome import Outcome
from sora_chars.cli.batch.writer import entry_row, open_output, outcome_row
from sora_chars.errors import ConfigurationError
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
def test_a_row_begins_a_line(tmp_path: Path, before: bytes, after: bytes) -> None:
    """What a crash left of a row is cut off; any other text is kept, and its line ended."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(before)
    with open_output(str(path)) as write:
        write(ROW)
        assert path.read_bytes() == after + LINE
        write(ROW)
    assert path.read_bytes() == after + LINE + LINE


def test_the_file_is_made(tmp_path: Path) -> None:
    """It need not exist."""
    with open_output(str(tmp_path / "out.jsonl")) as write:
        write(ROW)
    assert (tmp_path / "out.jsonl").read_bytes() == LINE


@pytest.mark.parametrize("name", [".", "nowhere/out.jsonl", ""])
def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Before anything is sent."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"--output {name}: "), open_output(name):
        pass


def test_a_full_disk_is_told() -> None:
    """As it happens, with what to do about it."""
    with open_output("/dev/full") as write, pytest.raises(ConfigurationError, match="No space left") as caught:
        write(ROW)
    assert "Run the same command again" in caught.value.hint


def test_a_dash_is_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Rows come out at once, so that another program may read along."""
    with open_output("-") as write:
        write(ROW)
        assert capfdbinary.readouterr().out == LINE


def entry(state: EntryState, **more: Any) -> Entry:
    """An entry of the ledger."""
    facts: dict[str, Any] = {"kind": "character", "request_json": "{}", "created_at": 0.0, "updated_at": 0.0}
    facts |= {name: json.dumps(value) for name, value in more.items()}
    return Entry(key="k", provider="kie", state=state, **facts)


@pytest.mark.parametrize("nothing", [None, entry(EntryState.PENDING), entry(EntryState.SENDING)])
def test_what_was_not_sent_is_no_row(nothing: Entry | None) -> None:
    """It will be sent by the next run."""
    assert entry_row(nothing) is None


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
def test_the_row_of_an_entry(ended: Entry, more: dict[str, Any]) -> None:
    """As the row of an outcome."""
    assert entry_row(ended) == {"key": "k", "provider": "kie", "task_id": None} | more


def test_the_row_of_an_entry_that_ended_well() -> None:
    """With its character."""
    character = {"id": "ch_1", "provider": "kie"}
    result = {"task_id": "t", "provider": "kie", "state": "success", "character": character}
    row = entry_row(entry(EntryState.SUCCEEDED, result_json=result))
    assert row
    assert (row["status"], row["character"]["id"]) == ("succeeded", "ch_1")


def test_an_error_that_nobody_foresaw_has_a_row() -> None:
    """It is one line, and named by its type."""
    row = outcome_row(Outcome(index=0, request=None, state=EntryState.UNKNOWN, key="k", error=KeyError("a\nb")))
    assert row["error"] == {"type": "KeyError", "message": "'a\\nb'"}
