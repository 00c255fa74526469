"""Standard streams that are full or closed, and Ctrl-C while the program is being imported."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Run = Callable[..., subprocess.CompletedProcess[str]]

FROM_TASK = ("--from-task", "0123456789abcdef0123456789abcdef", "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")
CLOSED = ">&-", "2>&-", "<&-", "<&- >&- 2>&-"


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url


@pytest.fixture
def redirected(script: str, cli_environment: dict[str, str]) -> Run:
    """Return a function that runs `sora-chars` with the redirections of a shell."""

    def run(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", f'exec "$0" "$@" {redirection}', script, *arguments]
        ended = subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=50, check=False)
        assert "Traceback" not in ended.stderr
        assert "bug in sora-chars" not in ended.stderr
        return ended

    return run


def state_of(cli: Cli, key: str) -> str:
    """Return the recorded state of a key."""
    entry: dict[str, Any] = json.loads(cli("ledger", "show", key, "--json").stdout)["entry"]
    return str(entry["state"])


@pytest.mark.parametrize("form", ["--json", "-v"])
def test_full_stdout(redirected: Run, cli: Cli, at: tuple[str, ...], form: str) -> None:
    """A character that cannot be printed ends the command with status 1; the error names the key and the task."""
    ended = redirected(">/dev/full", "create", *at, *FROM_TASK, "--key", "dog", form)

    assert ended.returncode == 1
    assert "Error: stdout cannot be written: No space left on device.\n" in ended.stderr
    assert "  hint: What was paid is in the ledger.\n" in ended.stderr
    assert ended.stderr.endswith("  key: dog\n")
    assert state_of(cli, "dog") == "succeeded"


def test_error_that_stdout_cannot_hold(redirected: Run, at: tuple[str, ...], emulator: Emulator) -> None:
    """An error that cannot be written as JSON is written to stderr, and keeps its status."""
    emulator.fault("credits", on="create")
    ended = redirected(">/dev/full", "create", *at, *FROM_TASK, "--json")

    assert ended.returncode == 3
    assert ended.stderr.startswith("Error: kie.ai answered 402: Insufficient credits\n")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("emulate", "--port", "0"), ("create", "--help")])
def test_text_that_stdout_cannot_hold(redirected: Run, arguments: tuple[str, ...]) -> None:
    """Any other text that cannot be written is no bug either."""
    ended = redirected(">/dev/full", *arguments)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "Error: stdout cannot be written: No space left on device.\n"


def test_rows_that_stdout_cannot_hold(redirected: Run, cli: Cli, at: tuple[str, ...], tmp_path: Path) -> None:
    """A batch that cannot write its rows sends no more, and what was paid is recorded."""
    rows = [{"from_task": f"{n:032x}", "clip": "1,3", "prompt": "A dog", "key": f"{n}"} for n in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("batch", str(tmp_path / "in.jsonl"), "--output", "-", *at, "--poll", "0.05", "--concurrency", "1")
    ended = redirected(">/dev/full", *command)

    assert ended.returncode == 2
    assert "Error: --output -: No space left on device.\n" in ended.stderr
    assert ended.stderr.count("Error") == 1
    assert state_of(cli, "0") == "succeeded"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_stderr_is_not_needed(redirected: Run, at: tuple[str, ...], redirection: str) -> None:
    """A stderr that is full or closed changes neither the result nor the status."""
    made = redirected(redirection, "create", *at, *FROM_TASK, "-v")
    failed = redirected(redirection, "wait", "nosuch", "--base-url", "nowhere")

    assert (made.returncode, failed.returncode) == (0, 2)
    assert made.stdout.startswith("id: ch_")


def test_reader_of_stderr_goes_away(at: tuple[str, ...], script: str, cli_environment: dict[str, str]) -> None:
    """The progress of paid work may be piped into a program that ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(
            [script, "create", *at, *FROM_TASK], stdout=subprocess.PIPE, stderr=closed, env=cli_environment, check=False
        )
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"id: ch_")


@pytest.mark.parametrize("redirection", CLOSED)
def test_closed_streams_leave_the_ledger_alone(
    redirected: Run, cli: Cli, at: tuple[str, ...], redirection: str, cli_environment: dict[str, str]
) -> None:
    """No file gets the number of a closed stream, which the ledger's file would: warnings would be written into it."""
    cli_environment["PYTHONWARNINGS"] = "default"
    ended = redirected(redirection, "create", *at, *FROM_TASK, "--key", "dog", "-v")

    assert ended.returncode == 0
    assert state_of(cli, "dog") == "succeeded"
    assert redirected(redirection, "batch", "-", "--output", "-", *at).returncode == 0


@pytest.mark.parametrize("module", ["click", "rich", "aiohttp"])
def test_interrupt_during_the_imports(
    script: str, cli_environment: dict[str, str], tmp_path: Path, module: str
) -> None:
    """Ctrl-C in the first moments ends with status 130 and no traceback."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    cli_environment["PYTHONPATH"] = str(tmp_path)
    ended = subprocess.run(
        [script, "credit"], env=cli_environment, capture_output=True, text=True, timeout=15, check=False
    )

    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.strip() in {"", "Error: Interrupted."}


def test_interrupt_while_an_interrupt_is_reported(script: str, cli_environment: dict[str, str], tmp_path: Path) -> None:
    """A second Ctrl-C ends the report of the first one, with the same status."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nfrom sora_chars.cli.output import Output\n"
        "Output.show_error = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    (tmp_path / "aiohttp.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    cli_environment["PYTHONPATH"] = str(tmp_path)
    ended = subprocess.run(
        [script, "credit"], env=cli_environment, capture_output=True, text=True, timeout=15, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", "")


def test_background_process_ignores_interrupts(script: str, cli_environment: dict[str, str]) -> None:
    """A process that a shell started with SIGINT ignored keeps it so until its event loop runs."""
    command = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', script, "--version"]
    ended = subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=15, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_json_lines_of_a_reader_that_goes_away(
    cli: Cli, script: str, cli_environment: dict[str, str], at: tuple[str, ...], emulator: Emulator
) -> None:
    """`resume --json | head -1` shows no traceback, and what it waited for is recorded."""
    emulator.fault("stuck", times=3)
    for key in ("a", "b", "c"):
        assert cli("create", *at, *FROM_TASK, "--key", key, "--timeout", "0.2").returncode == 5
    polls = emulator.counts.polls
    command = [script, "resume", *at, "--poll", "0.05", "--json"]
    with subprocess.Popen(command, env=cli_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        asyncio.run(emulator.until(lambda: emulator.counts.polls > polls))
        assert process.stdout
        process.stdout.close()
        for task_id in emulator.tasks:
            emulator.finish(task_id)
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 1
