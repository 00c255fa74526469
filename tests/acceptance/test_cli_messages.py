"""What the command line states is true: statuses, counts, hints and advice."""

from __future__ import annotations

import asyncio
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
    Batch = Callable[..., tuple[str, ...]]

FROM_TASK = ("--from-task", "0123456789abcdef0123456789abcdef", "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")
NOWHERE = ("--base-url", "http://127.0.0.1:1")


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Return a function that writes rows to a file, and returns the command for them."""

    def write(count: int) -> tuple[str, ...]:
        rows = ({"from_task": f"{n:032x}", "clip": "1,3", "prompt": "A dog", "key": str(n)} for n in range(count))
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return "batch", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--poll", "0.05"

    return write


def wait_for(emulator: Emulator, predicate: Callable[[], object]) -> None:
    """Wait until a predicate holds."""
    asyncio.run(emulator.until(predicate, timeout=30))


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the written rows."""
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def error_of(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """Return the error in the JSON object of a command that ended with this status."""
    assert ended.returncode == status, ended.stdout
    error: dict[str, Any] = json.loads(ended.stdout)["error"]
    return error


def test_task_that_was_never_shown_is_not_found(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`wait` of an unknown id ends with "not found", also after the time in which a new task may be invisible."""
    missing = error_of(cli("wait", "nosuch", *at, "--timeout", "0.5", "--json"), 3)
    emulator.fault("unauthorized", on="poll")
    refused = error_of(cli("wait", "nosuch", *at, "--json"), 3)

    assert (missing["type"], missing["message"]) == ("TaskNotFoundError", "kie showed no task nosuch within 0.5 s.")
    assert missing["hint"] == "Check the id. A task that was created just now may take 90 s to be shown."
    assert refused["hint"].endswith(f"The task may still be running: sora-chars wait nosuch --base-url {emulator.url}")


def test_task_that_could_not_be_polled(cli: Cli) -> None:
    """If no poll has succeeded, the error does not claim that the task runs."""
    error = error_of(cli("wait", "t-1", *NOWHERE, "--timeout", "0.5", "--json"), 5)

    assert error["message"] == "Task t-1 at kie could not be polled before the wait for it timed out."


def test_recorded_task_that_is_not_shown(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The provider returned the id of a recorded task, so the wait for it can be continued."""
    emulator.fault("not_visible", times=None)
    assert cli("create", *at, *FROM_TASK, "--key", "dog", "--timeout", "0.3").returncode == 5
    error = error_of(cli("wait", "dog", *at, "--timeout", "0.5", "--json"), 5)

    assert " at kie was not found before the wait for it timed out." in error["message"]
    assert error["hint"].startswith("Continue with: sora-chars wait ")


def test_empty_searches_name_the_query(cli: Cli, at: tuple[str, ...], tmp_path: Path) -> None:
    """A search without matches does not claim that there are no characters at all."""
    assert cli("create", *at, *FROM_TASK).returncode == 0
    path = tmp_path / "data" / "sora-chars" / "ledger.db"

    assert cli("characters", "nosuch").stderr == f"No characters in {path} match 'nosuch'\n"
    assert cli("ledger", "ls", "nosuch").stderr == f"No entries in {path} match 'nosuch'\n"
    only = cli("ledger", "ls", "--state", "failed", "--state", "unknown")
    assert only.stderr == f"No failed or unknown entries in {path}\n"


def test_no_hint_names_a_ledger_in_memory(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """No other command can open it: a task is found by its id, and an unknown outcome cannot be resolved."""
    memory = ("--ledger", "memory:")
    emulator.fault("stuck")
    slow = error_of(cli("create", *at, *FROM_TASK, *memory, "--timeout", "0.3", "--json"), 5)
    emulator.fault("lost_response", on="create")
    lost = error_of(cli("create", *at, *FROM_TASK, *memory, "--json"), 6)

    assert slow["hint"] == f"Continue with: sora-chars wait {slow['task_id']} --base-url {emulator.url}"
    assert "Its record ends with this command" in lost["hint"]
    assert "ledger resolve" not in lost["hint"]


def test_batch_with_a_ledger_in_memory(cli: Cli, at: tuple[str, ...], emulator: Emulator, batch: Batch) -> None:
    """The same command would pay every row again, so it is not suggested."""
    emulator.fault("stuck", times=2)
    ended = cli(*batch(2), *at, "--ledger", "memory:", "--timeout", "0.3")

    assert ended.returncode == 5
    assert ended.stderr.endswith("The ledger was in memory: the same command would send and pay every row again.\n")


def test_rejected_rows_alone_need_no_second_run(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, batch: Batch
) -> None:
    """The same command is suggested only where it helps."""
    emulator.fault("fail_task", times=None)
    ended = cli(*batch(1), *at)

    assert ended.returncode == 4
    assert "same command" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_batch_counts_its_failed_rows(
    start_cli: Start, sora_emulator: Emulator, batch: Batch, tmp_path: Path, number: int
) -> None:
    """Rows that end while the batch is stopped count in the exit status, which is not 0."""
    sora_emulator.fault("delay", on="create", seconds=25.0)
    process = start_cli(*batch(1), "--base-url", sora_emulator.url, "--on-interrupt=leave", "--shutdown-timeout", "0.3")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)

    assert (process.returncode, [row["status"] for row in rows_of(tmp_path)]) == (6, ["unknown"])
    assert "Waiting up to 0.3 s for the response to 1 request; Ctrl-C ends that wait" in err


def test_rows_that_wait_for_limits_do_not_run(start_cli: Start, sora_emulator: Emulator, batch: Batch) -> None:
    """Of thirty rows in flight, kie's limits allow twenty: the others are not sent."""
    sora_emulator.fault("stuck", times=None)
    process = start_cli(*batch(30), "--base-url", sora_emulator.url, "--on-interrupt=leave")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates == 20)
    assert process.stderr
    line = process.stderr.readline()
    while "20 running" not in line:
        line = process.stderr.readline()
    assert line.startswith("0 of 30 ended: 20 running, 10 not sent")


def test_deleted_output_is_an_error(start_cli: Start, sora_emulator: Emulator, batch: Batch, tmp_path: Path) -> None:
    """Rows that were written to a deleted file are lost: the batch stops, and does not end with status 0."""
    sora_emulator.fault("stuck")
    process = start_cli(*batch(1), "--base-url", sora_emulator.url)
    wait_for(sora_emulator, lambda: sora_emulator.counts.polls)
    (tmp_path / "out.jsonl").unlink()
    sora_emulator.finish(next(iter(sora_emulator.tasks)))
    _, err = process.communicate(timeout=20)

    assert process.returncode == 2
    assert f"--output {tmp_path / 'out.jsonl'}: the file was deleted while the rows were written." in err
    assert "run the same command again" in err


def test_resume_counts_only_failed_tasks_as_failed(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A poll that the provider rejects fails no task: it is still recorded as running."""
    emulator.fault("stuck")
    assert cli("create", *at, *FROM_TASK, "--key", "dog", "--timeout", "0.2").returncode == 5
    emulator.fault("unauthorized", on="poll")
    ended = cli("resume", *at)

    assert ended.returncode == 3
    assert ended.stdout.startswith("FAIL  dog  kie.ai answered 401")
    assert "\n1 still running\n" in ended.stderr
