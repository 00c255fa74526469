"""The parts of the command line that need no process: option readers, shapes, screens, the borders."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import pytest
from rich.console import Console

from sora_chars.cli import app, options, output, waiting
from sora_chars.cli import render as shapes
from sora_chars.cli import runner as running
from sora_chars.cli.commands import demo
from sora_chars.cli.commands import emulate as emulating
from sora_chars.cli.context import Job
from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    MissingCharacterError,
    NoAnswerError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
    WatcherStoppedError,
)
from sora_chars.models import Character, TaskSnapshot, UploadProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.testing import Emulator

TASK = {"provider": "kie", "task_id": "t"}


@pytest.fixture(autouse=True)
def _fresh_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("SORA_CHARS_LEDGER", raising=False)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("30", 30.0), ("1e3", 1000.0)])
def test_seconds_are_read(text: str, value: float) -> None:
    """Any finite number above 0 is a number of seconds."""
    assert options.seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "soon"])
def test_what_is_no_number_of_seconds_is_bad_usage(text: str) -> None:
    """Neither "no end" nor "at once" can be asked for."""
    with pytest.raises(click.BadParameter, match="seconds above 0"):
        options.seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:65535", ("::1", 65535)), ("localhost:1", ("localhost", 1))],
)
def test_an_address_is_read(text: str, value: tuple[str, int]) -> None:
    """A host and a port, an IPv6 host in brackets."""
    assert options.address(text) == value


@pytest.mark.parametrize("text", ["", "8090", ":8090", "host:", "host:0", "host:65536", "host:x", "host:²"])
def test_what_is_no_address_is_bad_usage(text: str) -> None:
    """The port is needed, and one that can be listened on."""
    with pytest.raises(click.BadParameter, match="HOST:PORT"):
        options.address(text)


def test_an_ipv6_address_can_be_listened_on(free_port: int) -> None:
    """The brackets choose the family."""
    settings = options.Settings(
        provider="kie", base_url=None, timeout=None, callback_url="http://x", listen=("::1", free_port)
    )
    server = settings.open_port()
    assert server
    with server:
        assert server.getsockname()[0] == "::1"


@pytest.mark.parametrize("text", ["{", "NaN", "@/nowhere/input.json"])
def test_an_input_that_cannot_be_read_is_bad_usage(text: str) -> None:
    """Neither broken JSON nor a missing file reaches the provider."""
    with pytest.raises(click.BadParameter, match=r"no JSON|cannot be read"):
        options.json_input(text)


@pytest.mark.parametrize(("text", "value"), [("5,20", (5.0, 20.0)), ("0,0", (0.0, 0.0)), ("1.5,2", (1.5, 2.0))])
def test_a_span_is_read(text: str, value: tuple[float, float]) -> None:
    """Two bounds in order."""
    assert emulating.span(text) == value


@pytest.mark.parametrize("text", ["", "5", "20,5", "-1,2", "1,inf", "nan,2", "a,b"])
def test_what_is_no_span_is_bad_usage(text: str) -> None:
    """Both bounds are needed, finite and in order."""
    with pytest.raises(click.BadParameter, match="LO,HI"):
        emulating.span(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("stuck", ("stuck", {})),
        (
            "delay:on=poll,seconds=0.5,rate=0.1,times=null",
            ("delay", {"on": "poll", "seconds": 0.5, "rate": 0.1, "times": None}),
        ),
        ("fail_task:code=500", ("fail_task", {"code": "500"})),
        ("unknown:a=1", ("unknown", {"a": 1})),
    ],
)
def test_a_fault_is_read(text: str, value: tuple[str, dict[str, Any]]) -> None:
    """Numbers are numbers, except where the fault's setting is text."""
    assert emulating.fault(text) == value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError("x"), 2),
        (ConfigurationError("x"), 2),
        (ProviderError("x"), 3),
        (NoAnswerError("x"), 3),
        (TaskFailedError("x", **TASK), 4),
        (MissingCharacterError("x", **TASK), 4),
        (WaitTimeoutError("x"), 5),
        (SubmissionUnknownError("x", provider="kie", key="k"), 6),
        (WatcherStoppedError("x", task_id="t"), 70),
        (SessionClosedError("x"), 70),
    ],
)
def test_every_error_has_its_exit_status(error: SoraCharsError, status: int) -> None:
    """Scripts tell by the status what happened; what no user can cause is a fault of ours."""
    assert running.exit_status(error) == status


def test_an_errors_own_facts_come_first() -> None:
    """What is known of the command fills in only what the error does not say; empty members are left out."""
    error = TaskFailedError("failed", code="501", **TASK)

    assert shapes.error_json(error, task_id="other", key="k") == {
        "error": {"type": "TaskFailedError", "message": "failed", "code": "501", "task_id": "t", "key": "k"}
    }
    assert shapes.error_json(ProviderError("no", hint="Try.")) == {
        "error": {"type": "ProviderError", "message": "no", "hint": "Try."}
    }


def test_rows_hold_no_control_characters() -> None:
    """A provider's text cannot move the cursor, change colours or begin a line of its own."""
    character = Character(id="ch_1", provider="kie", name="a\x1b[2Jb\r\nprovider: evil\u202e")

    assert ("name", "a [2Jb provider: evil") in shapes.character_rows(character)


def test_the_rows_of_a_task_say_what_is_known() -> None:
    """Progress, time and credits appear once the provider tells them."""
    snapshot = TaskSnapshot(
        task_id="t", provider="kie", state="success", progress=40.0, created_at=1.0, completed_at=3.5, credits=0.5
    )

    assert shapes.task_rows(snapshot) == [
        ("task", "t"),
        ("provider", "kie"),
        ("state", "success"),
        ("progress", "40 %"),
        ("ran for", "2.5 s"),
        ("credits", "0.5"),
    ]


def screen(*, terminal: bool) -> tuple[output.Screen, io.StringIO]:
    """A screen whose both sides write to one text."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=60, _environ={"TERM": "xterm"})
    return output.Screen(out=console, err=console), written


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_and_emoji_names_are_shown_as_they_are(*, terminal: bool) -> None:
    """Square brackets and colons of a provider mean nothing to the screen."""
    shown, written = screen(terminal=terminal)
    shown.show({}, [("name", "[red]x[/] :dog:")], title="[b]T")
    shown.fail({"error": {"message": "[red]bad[/] :dog:", "hint": "[b]h"}})

    assert written.getvalue().count("[red]") == 2
    assert "🐶" not in written.getvalue()


def test_a_table_shows_model_names_whole() -> None:
    """On a narrow terminal other columns give way, for the name is what has to be copied."""
    shown, written = screen(terminal=True)
    shown.show_table({}, [("m" * 40, "[b]t[/]", "title " * 5)], head=("model", "makes", "title"))

    assert "m" * 40 in written.getvalue()
    assert "[b]" in written.getvalue()


def test_a_line_off_the_terminal_is_said_once_for_each_change() -> None:
    """The same text twice is no news, and the first needs no time."""
    shown, written = screen(terminal=False)
    with shown.line() as line:
        for text in ("sending", "waiting", "waiting", "sending"):
            line.say(text)

    lines = written.getvalue().splitlines()
    assert [text.partition(" (")[0] for text in lines] == ["sending", "waiting", "sending"]
    assert lines[0] == "sending"


def test_an_upload_is_told_in_tenths() -> None:
    """A file of any size makes at most eleven lines."""
    progress = UploadProgress(Path("/videos/clip.mp4"), 350_000, 1_000_000)

    assert waiting._upload(progress) == "uploading clip.mp4: 30 % of 1.0 MB"


def test_other_log_records_are_shown_with_their_facts() -> None:
    """A warning of the package is one line, safe on a terminal."""
    written = io.StringIO()
    record = logging.makeLogRecord({"msg": "callback.rejected", "status": 401, "reason": "a\x1b[1mb"})
    output.RecordHandler(Console(file=written)).emit(record)

    assert written.getvalue() == "callback.rejected status=401 reason=a [1mb\n"


WISH = ("create", "--from-task", "t", "--clip", "1,3", "--prompt", "A dog")


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("create", "--clip", "1,3"), "InvalidRequestError", "exactly one of from_task and video"),
        ((*WISH, "--key", ""), "InvalidRequestError", "key"),
        ((*WISH, "--base-url", "nowhere"), "ConfigurationError", "base_url"),
        ((*WISH, "--callback-url", "http://127.0.0.1:1/"), "UsageError", "--listen"),
        ((*WISH, "--listen", "127.0.0.1:1"), "UsageError", "--callback-url"),
        (
            (*WISH, "--provider", "kkiai", "--callback-url", "http://x", "--listen", "127.0.0.1:1"),
            "UsageError",
            "--callback-url",
        ),
        ((*WISH, "--timeout", "nan"), "UsageError", "--timeout"),
        (("run", "--model", "m", "--input", "[]"), "InvalidRequestError", "JSON object"),
        pytest.param(
            *(("wait", "abc", "--provider", "kkiai"), "ConfigurationError", "no tasks"),
            marks=pytest.mark.skipif(not find_spec("fcntl"), reason="a ledger in a SQLite file needs fcntl"),
        ),
        (("credit", "--provider", "yunwu"), "ConfigurationError", "YUNWU_API_KEY"),
    ],
)
def test_what_is_refused_before_sending_is_one_object(
    arguments: tuple[str, ...],
    kind: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad usage and broken limits end with status 2, and name no key: there is nothing to look for."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    monkeypatch.setenv("KKIAI_API_KEY", "k")

    assert app.main([*arguments, "--json"]) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["type"], shown.err) == (kind, "")
    assert said in f"{error['message']} {error.get('hint')}"
    assert "key" not in error


def test_an_exception_that_nobody_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 70, how to report it, and a traceback only with `-v`."""

    def broken(_: options.Settings) -> None:
        raise LookupError("lost\x1b[1m it")

    monkeypatch.setattr(waiting, "ask_credit", broken)

    assert app.main(["credit"]) == 70
    quiet = capsys.readouterr()
    assert quiet.out == ""
    assert quiet.err.startswith("Error: LookupError: lost [1m it\n  hint: This is a fault of sora-chars")
    assert "Traceback" not in quiet.err
    assert app.main(["credit", "--json", "-v"]) == 70
    verbose = capsys.readouterr()
    assert json.loads(verbose.out)["error"]["type"] == "BugError"
    assert "Traceback" in verbose.err


def test_success_without_a_character_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """It may have been charged, also where the provider has no tasks to name."""
    job = Job(output.Screen(as_json=True), key="wish")
    error = MissingCharacterError("nothing", provider="kkiai", task_id=None)

    assert app._fail(job, error) == 4
    assert json.loads(capsys.readouterr().out)["error"]["key"] == "wish"


def test_ctrl_c_outside_of_the_event_loop_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An early or a late Ctrl-C shows no traceback either."""

    def interrupted(_: options.Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "ask_credit", interrupted)

    assert app.main(["credit", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {
        "error": {"type": "CommandInterruptedError", "message": "Interrupted."}
    }


def test_help_ends_well_on_any_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the command line inside a program may have replaced stdout."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)

    assert app.main(["--help"]) == 0
    assert "create" in written.getvalue()


async def test_a_way_that_goes_wrong_is_told(sora_emulator_factory: Callable[..., Emulator]) -> None:
    """The demo holds each way against what must lead to its end and what it may cost, and tells what failed."""
    emulator = sora_emulator_factory(durations=(0.0, 0.0), hmac_key="k")
    stage = demo.Stage(url=emulator.url, hmac_key="k")
    (way,) = (way for way in demo.WAYS if way.name.startswith("kkiai"))

    good = await demo._go(way, stage)
    late = await demo._go(attrs.evolve(way, woken_by="callback"), stage)
    dear = await demo._go(attrs.evolve(way, cost={"characters": 2}), stage)
    emulator.fault("quota")
    refused = await demo._go(way, stage)

    assert good.problem is None
    assert good.row().plain.startswith("ok ")
    assert late.problem == "its end was seen by poll, not by callback"
    assert dear.problem == "it must cost {'characters': 2}"
    assert "HTTP 429" in str(refused.problem)
    assert refused.row().plain.startswith("BAD ")


@pytest.mark.parametrize("said", [b"", b"{}\n", b"Traceback\n"])
async def test_an_emulator_that_does_not_start_is_told(said: bytes) -> None:
    """The demo does not go on without an address."""
    stdout = asyncio.StreamReader()
    stdout.feed_data(said)
    stdout.feed_eof()

    with pytest.raises(ConfigurationError, match="did not start"):
        await demo._url(stdout)


@pytest.mark.parametrize(
    ("arguments", "said"), [(["demo"], "Not all of them are right."), (["demo", "--json"], '"problem": "lost"')]
)
def test_a_demo_in_which_anything_is_wrong_ends_with_1(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only three right ways are a success."""

    async def play(_: Job) -> list[demo.Result]:
        return [demo.Result(name="kie", seconds=1.0, requests={}, problem="lost")]

    monkeypatch.setattr(demo, "_play", play)

    assert app.main(arguments) == 1
    assert said in capsys.readouterr().out
