"""The parts of the command line's ledger commands that need no process: places, hints, shapes, screens."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.text import Text

from sora_chars.cli import app, keeping, output
from sora_chars.cli import render as shapes
from sora_chars.cli import runner as running
from sora_chars.cli.commands import resume as recovering
from sora_chars.cli.context import Job
from sora_chars.errors import InvalidTransitionError, KeyConflictError, LedgerError, StaleEntryError
from sora_chars.ledger import Entry, EntryState

if TYPE_CHECKING:
    from sora_chars.errors import SoraCharsError

DATABASE = "postgresql://me:secret@db/chars"


@pytest.mark.parametrize(
    ("place", "options"),
    [
        (keeping.Place(), ()),
        (keeping.Place("a.db"), ()),
        (keeping.Place("a.db", typed=True), ("--ledger", "a.db")),
        (keeping.Place(DATABASE, typed=True), ("--ledger", "postgresql://...")),
    ],
)
def test_only_what_was_typed_is_repeated_and_no_password(place: keeping.Place, options: tuple[str, ...]) -> None:
    """The environment and the data folder lead other commands to the same ledger anyway."""
    assert place.options == options
    assert "secret" not in repr(place) + str(place)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyConflictError("x", key="k"), 2),
        (StaleEntryError("x"), 2),
        (LedgerError("x", key="k"), 2),
        (LedgerError("x", key="k", task_id="t"), 6),
        (InvalidTransitionError("x", key="k", state="pending", to="failed"), 70),
    ],
)
def test_errors_of_the_ledger_have_their_exit_status(error: SoraCharsError, status: int) -> None:
    """2 where nothing was sent, 6 where something was made that is not on record."""
    assert running.exit_status(error) == status


WAIT = "Keep this id. Go on with: sora-chars wait t-1 --base-url http://x --ledger memory:"
CHARACTER = "This is the id of the character"


@pytest.mark.parametrize(
    ("has_tasks", "said", "settle"), [(True, WAIT, ["--task-id", "t-1"]), (False, CHARACTER, ["--give-up"])]
)
def test_what_was_made_and_not_recorded_is_named(
    capsys: pytest.CaptureFixture[str],
    has_tasks: bool,  # noqa: FBT001 # pytest gives it
    said: str,
    settle: list[str],
) -> None:
    """The error holds the id, how to go on without the ledger, and how to mend it later."""
    job = Job(output.Screen(as_json=True), has_tasks=has_tasks, address=("--base-url", "http://x"))
    job.place = keeping.Place("full.db", typed=True)

    assert app._fail(job, LedgerError("full", hint="SDK", key="wish", task_id="t-1")) == 6
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["task_id"], error["key"]) == ("t-1", "wish")
    assert error["hint"].startswith(said)
    command = " ".join(["sora-chars ledger resolve wish", *settle, "--ledger full.db"])
    assert error["hint"].endswith(f"nce the ledger can be written again: {command}")


@pytest.mark.parametrize(
    ("ago", "shown"), [(-5.0, "0 s"), (59.9, "59 s"), (60.0, "1 min"), (3600.0, "1 h"), (47 * 3600.0, "47 h")]
)
def test_a_short_time_ago_is_an_age(ago: float, shown: str) -> None:
    """A clock that was set back makes nothing older than now."""
    assert shapes._age(1e9, 1e9 + ago) == shown


def test_long_ago_is_a_date() -> None:
    """After two days the date says more."""
    assert shapes._age(86400.0 * 365, 1e9) == "1971-01-01"


def test_an_entry_that_holds_no_character_is_shown() -> None:
    """What failed has no id to show, and its reason cannot act on the terminal."""
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
    rows = dict(shapes.entry_rows(entry))

    assert rows["why"] == "no [31mdogs"
    assert "id" not in rows


def screen(*, terminal: bool) -> tuple[output.Screen, io.StringIO, io.StringIO]:
    """A screen, and what was written to its two sides."""
    out, err = io.StringIO(), io.StringIO()
    consoles = [
        Console(file=file, force_terminal=terminal, width=60, _environ={"TERM": "xterm"}) for file in (out, err)
    ]
    return output.Screen(out=consoles[0], err=consoles[1]), out, err


def test_what_has_to_be_copied_is_never_cut() -> None:
    """On a narrow terminal the first cells stand below each other and whole; without rows there is no table."""
    shown, out, _ = screen(terminal=True)
    shown.show_table({}, [], head=("mention", "key", "source"), stacked=2)
    assert out.getvalue() == ""

    shown.show_table({}, [("m" * 40, "k" * 40, "s" * 40)], head=("mention", "key", "source"), stacked=2)
    lines = out.getvalue().splitlines()
    assert sum("m" * 40 in line or "k" * 40 in line for line in lines) == 2
    assert "s" * 40 not in out.getvalue()


def test_a_result_on_the_terminal_is_written_above_the_live_line() -> None:
    """The live line's own console writes it; where stdout goes elsewhere, or nothing is live, it goes to stdout."""
    shown, out, err = screen(terminal=True)
    with shown.line() as line:
        line.tell({}, Text("alive"))
    output.Line(shown).tell({}, Text("quiet"))

    assert "alive" in err.getvalue()
    assert out.getvalue() == "quiet\n"


def test_only_a_few_keys_are_named() -> None:
    """Thousands of unknown outcomes do not flood the screen."""
    shown, _, err = screen(terminal=False)
    recovery = recovering.Recovery(Job(shown))
    recovery.unknown = [f"k{number}" for number in range(7)]
    recovery.sum_up()

    assert recovery.status == 6
    assert err.getvalue().startswith("No task was running\n7 of unknown outcome: k0, k1, k2, k3, k4, ...\n")


def test_only_submissions_are_orphans() -> None:
    """Other events of a session say nothing about an interrupted request."""
    orphan = running.OrphanHandler()
    orphan.emit(logging.makeLogRecord({"msg": "submission.failed", "error": "no"}))
    orphan.emit(logging.makeLogRecord({"msg": "ledger.write_failed", "error": "disk full"}))

    assert orphan.facts["error"] == "no"
