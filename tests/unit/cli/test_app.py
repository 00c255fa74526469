"""The root command: lazy imports, and errors as exit statuses and JSON objects."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from sora_chars.cli import app, single_task
from sora_chars.cli.commands import tasks
from sora_chars.cli.context import CommandContext
from sora_chars.cli.ledger_location import LedgerLocation
from sora_chars.cli.output import Output
from sora_chars.errors import LedgerError, MissingCharacterError
from sora_chars.ledger import EntryState, open_ledger
from sora_chars.models import UploadProgress

REQUEST = ("create", "--from-task", "t", "--clip", "1,3", "--prompt", "A dog")
STATUS = (
    "Keep this id. This shows the task without a ledger: sora-chars status t-1 --base-url http://x. When the ledger"
)
CHARACTER = "Keep this id: it is the id of the character. When"


@pytest.fixture(autouse=True)
def _fresh_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("SORA_CHARS_LEDGER", raising=False)


def test_lists_all_commands() -> None:
    """A shell that completes command names gets all of them, and none has been imported for that."""
    assert app.cli.list_commands(click.Context(app.cli)) == list(app.COMMANDS)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_commands_match_their_summaries(name: str) -> None:
    """The summary in the list of commands is the first line of the command's help text, and fits 80 columns."""
    command = app.cli.get_command(click.Context(app.cli), name)
    assert command
    assert command.name == name
    assert str(command.help).partition("\n")[0] == app.COMMANDS[name][1]
    assert len(app.COMMANDS[name][1]) <= 64


def test_root_help_imports_no_command() -> None:
    """`sora-chars --help` lists every command, and imports neither aiohttp nor a session."""
    code = "import sys; from sora_chars.cli import app; app.main(['--help']); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    text, _, modules = ended.stdout.rstrip("\n").rpartition("\n")

    assert "sora_chars.cli.app" in modules.split()
    assert not {"aiohttp", "sora_chars.session.session", "sora_chars.cli.commands"} & set(modules.split())
    assert all(f"\n  {name} " in text for name in app.COMMANDS)


def test_unknown_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist ends with status 2."""
    assert app.main(["frob"]) == 2
    assert "No such command 'frob'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("create", "--clip", "1,3"), "InvalidRequestError", "from_task, video and images"),
        ((*REQUEST, "--key", ""), "InvalidRequestError", "key"),
        ((*REQUEST, "--base-url", "nowhere"), "ConfigurationError", "base_url"),
        ((*REQUEST, "--callback-url", "http://127.0.0.1:1/"), "UsageError", "--listen"),
        ((*REQUEST, "--listen", "127.0.0.1:1"), "UsageError", "--callback-url"),
        (
            (*REQUEST, "--provider", "kkiai", "--callback-url", "http://x", "--listen", "127.0.0.1:1"),
            "UsageError",
            "--callback-url",
        ),
        ((*REQUEST, "--timeout", "nan"), "UsageError", "--timeout"),
        (("run", "--model", "m", "--input", "[]"), "InvalidRequestError", "JSON object"),
        (("wait", "abc", "--provider", "kkiai"), "ConfigurationError", "no tasks"),
        (("credit", "--provider", "yunwu"), "ConfigurationError", "YUNWU_API_KEY"),
    ],
)
def test_rejected_before_sending(
    arguments: tuple[str, ...],
    kind: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad usage and invalid requests end with status 2, and their error has no key, since nothing was sent."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    monkeypatch.setenv("KKIAI_API_KEY", "k")

    assert app.main([*arguments, "--json"]) == 2
    written = capsys.readouterr()
    error = json.loads(written.out)["error"]
    assert (error["type"], written.err) == (kind, "")
    assert text in f"{error['message']} {error.get('hint')}"
    assert "key" not in error


def test_unexpected_exception_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug ends with status 70 and how to report it; the traceback is shown with `-v` only."""

    def broken(_: Any) -> None:
        raise LookupError("lost\x1b[1m it")

    monkeypatch.setattr(tasks, "_fetch_credit", broken)

    assert app.main(["credit"]) == 70
    quiet = capsys.readouterr()
    assert quiet.out == ""
    assert quiet.err.startswith("Error: LookupError: lost [1m it\n  hint: This is a bug in sora-chars.")
    assert "Traceback" not in quiet.err
    assert app.main(["credit", "--json", "-v"]) == 70
    verbose = capsys.readouterr()
    assert json.loads(verbose.out)["error"]["type"] == "BugError"
    assert "Traceback" in verbose.err


def test_missing_character_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """The request may have been charged, so the error has its key even if the provider has no tasks."""
    context = CommandContext(Output(as_json=True), key="dog-1")
    error = MissingCharacterError("nothing", provider="kkiai", task_id=None)

    assert app._fail(context, error) == 4
    assert json.loads(capsys.readouterr().out)["error"]["key"] == "dog-1"


@pytest.mark.parametrize(
    ("has_tasks", "begin", "resolve"),
    [(True, STATUS, ["--task-id", "t-1", "--unchecked"]), (False, CHARACTER, ["--give-up"])],
)
def test_unrecorded_task_is_named(
    capsys: pytest.CaptureFixture[str],
    has_tasks: bool,  # noqa: FBT001 # pytest gives it
    begin: str,
    resolve: list[str],
) -> None:
    """If the ledger fails after the request, the error has the task's id and how to record it later."""
    context = CommandContext(Output(as_json=True), has_tasks=has_tasks, provider_args=("--base-url", "http://x"))
    context.use_ledger(LedgerLocation("full.db", explicit=True))

    assert app._fail(context, LedgerError("full", hint="SDK", key="dog-1", task_id="t-1")) == 6
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["task_id"], error["key"]) == ("t-1", "dog-1")
    assert error["hint"].startswith(begin)
    command = " ".join(["sora-chars ledger resolve dog-1", *resolve, "--ledger full.db"])
    assert error["hint"].endswith(f"hen the ledger is writable again, run: {command}")


def test_ledger_error_without_a_ledger_option(capsys: pytest.CaptureFixture[str]) -> None:
    """A command without `--ledger`, such as the demo, does not suggest it."""
    assert app._fail(CommandContext(Output(as_json=True)), LedgerError("full", hint="Free disk space.")) == 2
    assert json.loads(capsys.readouterr().out)["error"]["hint"] == "Free disk space."


def test_interrupt_outside_the_event_loop_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C before or after the event loop shows no traceback."""

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "_fetch_credit", interrupted)

    assert app.main(["credit", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {
        "error": {"type": "CommandInterruptedError", "message": "Interrupted."}
    }


def test_stdout_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls `main` may have replaced `sys.stdout` with any text stream."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)

    assert app.main(["--help"]) == 0
    assert "create" in written.getvalue()


def test_upload_status_has_steps_of_ten_percent() -> None:
    """A file of any size has at most eleven statuses."""
    progress = UploadProgress(Path("/videos/clip.mp4"), 350_000, 1_000_000)

    assert single_task._upload_status(progress) == "uploading clip.mp4: 30 % of 1.0 MB"


def test_resolve_shows_its_alternatives(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage of `ledger resolve` shows the five options of which exactly one is required."""
    assert app.main(["ledger", "resolve", "--help"]) == 0
    assert "(--ask | --task-id ID | --never-sent | --give-up | --undo)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("charged", "note"), [("maybe", "does not prove"), (None, "Nothing was paid")])
def test_ledger_show_of_a_rejection(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, charged: str | None, note: str
) -> None:
    """`ledger show` states whether a rejection proves that nothing was paid."""
    path = tmp_path / "characters.db"

    async def record() -> None:
        async with open_ledger(path) as ledger:
            entry = await ledger.register(key="dog", provider="kie", kind="character", request={"from_task": "t"})
            error = {"type": "ServiceUnavailableError", "message": "500"} | ({"charged": charged} if charged else {})
            await ledger.transition(entry, EntryState.REJECTED, error=error)

    asyncio.run(record())
    assert app.main(["ledger", "show", "dog", "--ledger", str(path)]) == 0
    assert note in capsys.readouterr().err
