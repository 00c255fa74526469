"""A create whose answer is lost, settled by its callback while the command waits."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Start = Callable[..., subprocess.Popen[str]]

FROM_TASK = ("--from-task", "0123456789abcdef0123456789abcdef", "--clip", "1,3", "--prompt", "A dog")


@pytest.fixture
def at(sora_emulator: Emulator, free_port: int) -> tuple[str, ...]:
    """Return the options that select the emulator, and receive its callbacks."""
    address = f"127.0.0.1:{free_port}"
    callbacks = ("--callback-url", f"http://{address}/hooks", "--listen", address)
    return "--base-url", sora_emulator.url, "--poll", "0.05", *callbacks


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Wait until a line of stderr contains a text."""
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(text)


def statuses(out: Path) -> dict[str, list[str]]:
    """Return the statuses that were written for each key."""
    found: dict[str, list[str]] = {}
    for row in map(json.loads, out.read_text().splitlines()):
        found.setdefault(row["key"], []).append(row["status"])
    return found


def batch(tmp_path: Path, count: int) -> tuple[str, ...]:
    """Return the command for a batch of rows."""
    rows: list[dict[str, Any]] = [
        {"from_task": f"{n:032x}", "clip": "1,3", "prompt": "A dog", "key": str(n)} for n in range(count)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "batch", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")


def test_callback_settles_a_lost_answer(start_cli: Start, at: tuple[str, ...], sora_emulator: Emulator) -> None:
    """The command states what it waits for, and ends with the character once the callback has named its task."""
    sora_emulator.fault("lost_response", on="create")
    sora_emulator.fault("stuck")
    process = start_cli("create", *at, *FROM_TASK, "--key", "dog", "--timeout", "60")
    wait_for_line(process, "outcome unknown: waiting for its callback, up to ")
    (task_id,) = sora_emulator.tasks
    sora_emulator.finish(task_id)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, sora_emulator.counts.creates) == (0, 1), err
    assert f"task: {task_id}\n" in out


def test_lost_answer_without_a_callback(cli: Cli, at: tuple[str, ...], sora_emulator: Emulator) -> None:
    """At its time-out the command ends with status 6; the same command waits again, and sends nothing."""
    sora_emulator.fault("lost_response", on="create")
    sora_emulator.fault("stuck")
    for _ in range(2):
        ended = cli("create", *at, *FROM_TASK, "--key", "dog", "--timeout", "1.5")
        assert ended.returncode == 6
        assert "outcome unknown: waiting for its callback, up to 1 s" in ended.stderr
        assert "sora-chars ledger resolve dog --task-id ID | --never-sent | --give-up\n" in ended.stderr
    assert sora_emulator.counts.creates == 1


def test_interrupted_while_waiting_for_the_callback(
    start_cli: Start, at: tuple[str, ...], sora_emulator: Emulator
) -> None:
    """Ctrl-C reports that the outcome is unknown, not that nothing was sent."""
    sora_emulator.fault("lost_response", on="create")
    sora_emulator.fault("stuck")
    process = start_cli("create", *at, *FROM_TASK, "--key", "dog")
    wait_for_line(process, "outcome unknown: waiting for its callback, up to ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Error: Interrupted. No response arrived, so the outcome of the request is unknown.\n" in err
    assert err.endswith("  key: dog\n")


def test_unknown_rows_wait_for_callbacks(
    start_cli: Start, at: tuple[str, ...], sora_emulator: Emulator, tmp_path: Path
) -> None:
    """Rows whose answers are lost are written as unknown, and again once their callbacks have arrived."""
    sora_emulator.fault("lost_response", on="create", times=2)
    sora_emulator.fault("stuck", times=2)
    process = start_cli(*batch(tmp_path, 3), *at, "--timeout", "60")
    wait_for_line(process, "The outcome of 2 rows is unknown; waiting for callbacks")
    for task in list(sora_emulator.tasks.values()):
        if not task.finished:
            sora_emulator.finish(task.task_id)
    _, err = process.communicate(timeout=40)

    assert process.returncode == 0, err
    assert "rows: 3\nsucceeded: 3\n" in err
    written = statuses(tmp_path / "out.jsonl").values()
    assert sorted(map(tuple, written)) == [("succeeded",), ("unknown", "succeeded"), ("unknown", "succeeded")]
    assert sora_emulator.counts.creates == 3


def test_unknown_rows_without_callbacks(cli: Cli, at: tuple[str, ...], sora_emulator: Emulator, tmp_path: Path) -> None:
    """The batch states how long it waits, and ends with status 6."""
    sora_emulator.fault("lost_response", on="create")
    sora_emulator.fault("stuck")
    ended = cli(*batch(tmp_path, 1), *at, "--timeout", "1.5")

    assert ended.returncode == 6
    assert "The outcome of 1 row is unknown; waiting for callbacks, up to 1.5 s after each request." in ended.stderr
    assert "Outcome unknown: 1 (0)\n" in ended.stderr
    assert statuses(tmp_path / "out.jsonl") == {"0": ["unknown"]}


def test_interrupted_batch_with_unknown_rows(
    start_cli: Start, at: tuple[str, ...], sora_emulator: Emulator, tmp_path: Path
) -> None:
    """Ctrl-C while only callbacks are waited for ends the batch with status 6: every row was sent."""
    sora_emulator.fault("lost_response", on="create")
    sora_emulator.fault("stuck")
    process = start_cli(*batch(tmp_path, 1), *at)
    wait_for_line(process, "waiting for callbacks")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 6
    assert "Interrupted. Nothing more is sent, and nothing is running.\n" in err


def test_receiver_without_a_key_is_noted_once(cli: Cli, at: tuple[str, ...], cli_environment: dict[str, str]) -> None:
    """Without a key, one line states how callbacks are verified; an empty key is an error before anything is sent."""
    ended = cli("create", *at, *FROM_TASK)
    cli_environment["KIE_WEBHOOK_HMAC_KEY"] = " "
    empty = cli("create", *at, *FROM_TASK)
    unused = cli("create", *at[:4], *FROM_TASK)
    cli_environment["KIE_WEBHOOK_HMAC_KEY"] = "secret"
    signed = cli("create", *at, *FROM_TASK, "--timeout", "5")

    assert ended.returncode == 0
    assert ended.stderr.count("Callbacks are verified by their token only") == 1
    assert empty.returncode == 2
    assert "--webhook-key and KIE_WEBHOOK_HMAC_KEY must not be empty." in empty.stderr
    assert unused.returncode == 0
    assert "by their token only" not in signed.stderr
