"""JSON objects and rows: their members, their order, and no control characters."""

from __future__ import annotations

import time

import pytest

from sora_chars.cli import render
from sora_chars.errors import ProviderError, TaskFailedError
from sora_chars.ledger import Entry, EntryState
from sora_chars.ledger.queries import SavedCharacter
from sora_chars.models import Character, TaskSnapshot


def test_error_attributes_take_precedence() -> None:
    """The command's ids fill in what the error does not hold; empty members are left out."""
    error = TaskFailedError("failed", code="501", provider="kie", task_id="t")

    assert render.error_json(error, task_id="other", key="k") == {
        "error": {
            "type": "TaskFailedError",
            "message": "failed",
            "code": "501",
            "task_id": "t",
            "key": "k",
            "charged": "maybe",
        }
    }
    assert render.error_json(ProviderError("no", hint="Try.")) == {
        "error": {"type": "ProviderError", "message": "no", "hint": "Try."}
    }


def test_rows_hold_no_control_characters() -> None:
    """A provider's text cannot move the cursor, change colours or begin a line."""
    character = Character(id="ch_1", provider="kie", name="a\x1b[2Jb\r\nprovider: evil\u202e")

    assert ("name", "a [2Jb provider: evil") in render.character_rows(character)


@pytest.mark.parametrize(
    ("ends_at", "shown"),
    [
        (None, ""),
        (1_000_000.0 + 90 * 60, "in 1 h"),
        (1_000_000.0 - 3 * 60, "3 min ago"),
        (1_000_000.0 + 72 * 3600, time.strftime("%Y-%m-%d", time.localtime(1_000_000.0 + 72 * 3600))),
    ],
)
def test_when_a_character_may_end(ends_at: float | None, shown: str) -> None:
    """The last cell says when a character may end with its upload, and the details give the time."""
    character = Character(id="ch_1", provider="kie", expires_at=ends_at)
    saved = SavedCharacter(
        character=character, source="a.mp4", clip=None, prompt=None, key="k", credits=None, created_at=999_000.0
    )
    assert render.saved_row(saved, 1_000_000.0)[-1] == shown
    assert dict(render.character_rows(character)).get("may end", "") == (
        "" if ends_at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ends_at))
    )
    assert render.saved_json(saved)["character"]["expires_at"] == ends_at


def test_task_rows() -> None:
    """A task's progress, duration and credits are shown if they are known."""
    snapshot = TaskSnapshot(
        task_id="t", provider="kie", state="success", progress=40.0, created_at=1.0, completed_at=3.5, credits=0.5
    )

    assert render.task_rows(snapshot) == [
        ("task", "t"),
        ("provider", "kie"),
        ("state", "success"),
        ("progress", "40 %"),
        ("ran for", "2.5 s"),
        ("credits", "0.5"),
    ]


@pytest.mark.parametrize(
    ("ago", "text"), [(-5.0, "0 s"), (59.9, "59 s"), (60.0, "1 min"), (3600.0, "1 h"), (47 * 3600.0, "47 h")]
)
def test_age(ago: float, text: str) -> None:
    """An age is never negative, even if the clock was set back."""
    assert render._age(1e9, 1e9 + ago) == text


def test_age_after_two_days_is_a_date() -> None:
    """Older times are shown as a date."""
    assert render._age(86400.0 * 365, 1e9) == "1971-01-01"


def test_failed_entry() -> None:
    """A failed entry has an error and no character id, and the error holds no control characters."""
    entry = Entry(
        key="k",
        provider="kie",
        kind="character",
        state=EntryState.FAILED,
        request_json="{}",
        result_json='{"task_id": "t", "provider": "kie", "state": "fail"}',
        error_json='{"code": null, "message": "no \\u001b[31mdogs"}',
        created_at=0.0,
        updated_at=0.0,
    )
    rows = dict(render.entry_rows(entry))

    assert rows["error"] == "no [31mdogs"
    assert "id" not in rows
