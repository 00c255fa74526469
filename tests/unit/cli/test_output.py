"""Output on and off a terminal: panels, tables, the status line, log records."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.text import Text

from sora_chars.cli.output import Output, RecordHandler, StatusLine


def make_output(*, terminal: bool) -> tuple[Output, io.StringIO, io.StringIO]:
    """Return an output of 60 columns, and what it writes to stdout and to stderr."""
    out = io.StringIO()
    err = io.StringIO()
    consoles = [
        Console(file=file, force_terminal=terminal, width=60, _environ={"TERM": "xterm"}) for file in (out, err)
    ]
    return Output(out=consoles[0], err=consoles[1]), out, err


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_and_emoji_names_are_literal(*, terminal: bool) -> None:
    """Square brackets and colons in a provider's text are printed as they are."""
    output, out, err = make_output(terminal=terminal)
    output.show({}, [("name", "[red]x[/] :dog:")], title="[b]T")
    output.show_error({"error": {"message": "[red]bad[/] :dog:", "hint": "[b]h"}})

    written = out.getvalue() + err.getvalue()
    assert written.count("[red]") == 2
    assert "🐶" not in written


def test_first_column_is_never_truncated() -> None:
    """On a narrow terminal the other columns are truncated, because a model's name is copied."""
    output, out, _ = make_output(terminal=True)
    output.show_table({}, [("m" * 40, "[b]t[/]", "title " * 5)], columns=("model", "type", "title"))

    assert "m" * 40 in out.getvalue()
    assert "[b]" in out.getvalue()


def test_stacked_columns_are_never_truncated() -> None:
    """Stacked cells are lines of one column and are whole; without rows there is no table."""
    output, out, _ = make_output(terminal=True)
    output.show_table({}, [], columns=("mention", "key", "source"), stacked=(1, 1))
    assert out.getvalue() == ""

    cells = ("m" * 40, "k" * 40, "clip", "s" * 40)
    output.show_table({}, [cells], columns=("mention", "key", "clip", "source"), stacked=(1, 2))
    lines = out.getvalue().splitlines()
    assert any("k" * 40 + "  clip" in line for line in lines)
    assert sum("m" * 40 in line or "k" * 40 in line for line in lines) == 2
    assert "s" * 40 not in out.getvalue()


def test_only_the_flexible_column_is_wrapped() -> None:
    """On a narrow terminal the flexible column gives way, and the others stay whole."""
    output, out, _ = make_output(terminal=True)
    output.show_table(
        {}, [("k" * 36, "succeeded", "two words " * 5)], columns=("key", "state", "request"), flexible="request"
    )

    assert "k" * 36 in out.getvalue()
    assert "succeeded" in out.getvalue()
    assert "two words" not in out.getvalue()


def test_status_changes_are_printed_once() -> None:
    """Off a terminal a repeated status prints nothing, and the first one has no time."""
    output, _, err = make_output(terminal=False)
    with output.status_line() as line:
        for text in ("sending", "waiting", "waiting", "sending"):
            line.update(text)

    lines = err.getvalue().splitlines()
    assert [text.partition(" (")[0] for text in lines] == ["sending", "waiting", "sending"]
    assert lines[0] == "sending"


def test_results_are_written_above_the_live_line() -> None:
    """The console of the live line writes a result; without a live line it goes to stdout."""
    output, out, err = make_output(terminal=True)
    with output.status_line() as line:
        line.print_result({}, Text("live"))
    StatusLine(output).print_result({}, Text("plain"))

    assert "live" in err.getvalue()
    assert out.getvalue() == "plain\n"


def test_log_records_are_one_line() -> None:
    """A record is shown as its message, without control characters."""
    written = io.StringIO()
    RecordHandler(Console(file=written)).emit(logging.makeLogRecord({"msg": "It ended (status=401, reason=a\x1b[1mb)"}))
    assert written.getvalue() == "It ended (status=401, reason=a [1mb)\n"
