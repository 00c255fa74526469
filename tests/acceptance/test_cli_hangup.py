"""A closed terminal, `nohup`, and how long answers under way are waited for."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Start = Callable[..., subprocess.Popen[str]]

CLIP = ("--provider", "kkiai", "--from-task", f"task_{'0' * 26}", "--clip", "1,3")


@pytest.fixture
def slow(sora_emulator_factory: Callable[..., Emulator]) -> Emulator:
    """Return an emulator whose kkiai answers after a second."""
    return sora_emulator_factory(durations=(1.0, 1.0))


def wait_for(emulator: Emulator, predicate: Callable[[], object]) -> None:
    """Wait until a predicate holds."""
    asyncio.run(emulator.until(predicate, timeout=30))


def entry_of(cli: Cli, key: str) -> dict[str, Any]:
    """Return the entry of a key."""
    entry: dict[str, Any] = json.loads(cli("ledger", "show", key, "--json").stdout)["entry"]
    return entry


def test_hangup_saves_the_answer_under_way(start_cli: Start, cli: Cli, slow: Emulator) -> None:
    """SIGHUP ends the command like SIGTERM: the character that is paid for is recorded. More SIGHUPs do nothing."""
    process = start_cli("create", "--base-url", slow.url, *CLIP, "--key", "dog", "--json")
    wait_for(slow, lambda: slow.counts.characters)

    for _ in range(3):
        process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=30)

    error = json.loads(out)["error"]
    assert (process.returncode, err) == (129, "")
    assert error["message"] == f"Interrupted. The character was created; its id is {error['task_id']}."
    assert entry_of(cli, "dog")["state"] == "succeeded"


def test_batch_is_saved_when_its_terminal_closes(
    script: str, cli: Cli, cli_environment: dict[str, str], slow: Emulator, tmp_path: Path
) -> None:
    """A terminal that is gone can neither be written to nor lose answers: all rows are recorded and written."""
    rows = [{"from_task": f"task_{n:026d}", "clip": "1,3", "key": str(n)} for n in range(5)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.jsonl"
    command = [script, "batch", str(tmp_path / "in.jsonl"), "--output", str(out), "--provider", "kkiai"]
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*command, "--base-url", slow.url],
        env=cli_environment | {"TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 # it is its controlling terminal
    ) as process:
        os.close(terminal)
        wait_for(slow, lambda: slow.counts.characters == len(rows))
        os.close(controller)  # the kernel sends SIGHUP
        process.wait(30)

    written = {row["key"]: row["status"] for row in map(json.loads, out.read_text().splitlines())}
    assert written == dict.fromkeys("01234", "succeeded")
    assert process.returncode == 0
    assert {entry_of(cli, str(n))["state"] for n in range(5)} == {"succeeded"}


def test_hangup_leaves_the_rows_of_a_batch_that_waits(
    start_cli: Start, sora_emulator: Emulator, tmp_path: Path
) -> None:
    """After Ctrl-C a batch waits for its tasks; SIGHUP then leaves them running."""
    sora_emulator.fault("stuck")
    request = {"from_task": "0" * 32, "clip": "1,3", "prompt": "A dog", "key": "dog"}
    (tmp_path / "in.jsonl").write_text(json.dumps(request))
    out = tmp_path / "out.jsonl"
    files = (str(tmp_path / "in.jsonl"), "--output", str(out))
    process = start_cli("batch", *files, "--base-url", sora_emulator.url, "--poll", "0.05")
    wait_for(sora_emulator, lambda: sora_emulator.counts.polls)

    process.send_signal(signal.SIGINT)
    assert process.stderr
    while "waiting for 1 running" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Stopping. Nothing more is sent. Tasks that run keep running.\n" in err
    assert json.loads(out.read_text())["status"] == "running"


def test_nohup_is_respected(cli_environment: dict[str, str], script: str, slow: Emulator) -> None:
    """A process that ignores SIGHUP from its start goes on, as `nohup` promises."""
    command = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', script, "create", "--base-url", slow.url, *CLIP, "--json"]
    with subprocess.Popen(command, env=cli_environment, text=True, stdout=subprocess.PIPE) as process:
        wait_for(slow, lambda: slow.counts.characters)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert json.loads(out)["character"]["id"]


def test_shutdown_timeout_is_an_option(start_cli: Start, cli: Cli, sora_emulator: Emulator) -> None:
    """After that time the answer is given up: the outcome is unknown, and the error says what to do."""
    sora_emulator.fault("delay", on="character", seconds=25.0)
    limit = ("--shutdown-timeout", "0.3")
    process = start_cli("create", "--base-url", sora_emulator.url, *CLIP, *limit, "--key", "dog")
    wait_for(sora_emulator, lambda: sora_emulator.counts.characters)

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)

    assert process.returncode == 143
    assert "The request was sent; waiting up to 0.3 s for its response. Ctrl-C ends that wait" in err
    assert "Error: Interrupted. No response arrived, so the outcome of the request is unknown.\n" in err
    assert "sora-chars ledger resolve dog --never-sent | --give-up\n" in err
    assert entry_of(cli, "dog")["state"] == "unknown"


def test_response_that_never_comes(start_cli: Start, sora_emulator: Emulator) -> None:
    """If the provider's own time-out ends during that wait, the outcome is unknown too."""
    sora_emulator.fault("delay", on="character", seconds=25.0)
    process = start_cli("create", "--base-url", sora_emulator.url, *CLIP, "--timeout", "1.5", "--key", "dog", "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.characters)

    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=15)

    error = json.loads(out)["error"]
    assert process.returncode == 130
    assert error["message"] == "Interrupted. No response arrived, so the outcome of the request is unknown."
    assert error["key"] == "dog"
