"""Ctrl-C, SIGTERM and SIGKILL during a batch, and the same command afterwards."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Start = Callable[..., subprocess.Popen[str]]

COUNT = 12


@pytest.fixture
def command(tmp_path: Path, sora_emulator: Emulator) -> tuple[str, ...]:
    """Return the command for a batch of twelve rows, four at a time."""
    requests = ({"from_task": f"{n:032x}", "clip": "1,3", "prompt": f"Dog {n}", "key": str(n)} for n in range(COUNT))
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    files = (str(tmp_path / "requests.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    return ("batch", *files, "--base-url", sora_emulator.url, "--poll", "0.05", "--concurrency", "4")


@pytest.fixture
def states(tmp_path: Path) -> Callable[[], Counter[str]]:
    """Return a function that counts the keys of each status."""

    def count() -> Counter[str]:
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        last: dict[str, Any] = {row["key"]: row["status"] for row in map(json.loads, lines)}
        return Counter(last.values())

    return count


def wait_for(emulator: Emulator, predicate: Callable[[], object]) -> None:
    """Wait until a predicate holds."""
    asyncio.run(emulator.until(predicate, timeout=30))


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Wait until a line of stderr contains a text."""
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(text)


def finish_all(emulator: Emulator) -> None:
    """Finish every task."""
    for task_id in emulator.tasks:
        emulator.finish(task_id)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end, and return the status and the rest of stderr."""
    _, err = process.communicate(timeout=50)
    assert "Traceback" not in err
    return process.returncode, err


def test_interrupt_waits_for_running_tasks(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """After Ctrl-C the running tasks end, the other rows are not sent, and the same command sends them."""
    sora_emulator.fault("stuck", times=4)
    process = start_cli(*command)
    wait_for(sora_emulator, lambda: len(sora_emulator.counts.polls_by_task) == 4)

    process.send_signal(signal.SIGINT)
    wait_for_line(
        process, "Interrupted. Nothing more is sent; waiting for 4 running. Press Ctrl-C again to leave them running."
    )
    finish_all(sora_emulator)
    status, err = end(process)

    assert status == 130
    assert "rows: 12\nsucceeded: 4\nnot sent: 8\n" in err
    assert err.endswith("To continue, run the same command again. Nothing is paid twice.\n")
    assert (states(), sora_emulator.counts.creates) == ({"succeeded": 4}, 4)
    assert end(start_cli(*command))[0] == 0
    assert (states(), sora_emulator.counts.creates) == ({"succeeded": COUNT}, COUNT)


@pytest.mark.parametrize(
    ("option", "numbers"),
    [
        ("--on-interrupt=wait", (signal.SIGINT, signal.SIGINT)),
        ("--on-interrupt=leave", (signal.SIGINT,)),
        ("--on-interrupt=wait", (signal.SIGTERM,)),
    ],
    ids=["twice", "leave", "term"],
)
def test_leaving_writes_running_rows(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], option: str, numbers: tuple[int, ...]
) -> None:
    """The batch ends at once with a row for each running task; the same command waits for them."""
    sora_emulator.fault("stuck", times=4)
    process = start_cli(*command, option)
    wait_for(sora_emulator, lambda: len(sora_emulator.counts.polls_by_task) == 4)

    for number, text in zip(numbers, ("waiting for 4 running", "")[-len(numbers) :], strict=True):
        process.send_signal(number)
        wait_for_line(process, text or "Stopping. Nothing more is sent. Tasks that run keep running.")
    status, err = end(process)

    assert status == 128 + numbers[0]
    assert "running: 4\nnot sent: 8\n" in err
    assert Path(command[3]).read_text().count('"status": "running"') == 4
    finish_all(sora_emulator)
    last, err = end(start_cli(*command))
    assert (last, sora_emulator.counts.creates) == (0, COUNT)
    assert "rows: 12\nsucceeded: 12\n" in err


def test_second_signal_leaves_an_unknown_row(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """The first signal waits for a response; after the second one, the status of the row is unknown."""
    sora_emulator.fault("delay", on="create", seconds=25.0)
    process = start_cli(*command, "--concurrency", "1")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)

    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "Waiting up to 60 s for the response to 1 request; Ctrl-C ends that wait, and the outcome")
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "Stopping now. The outcome of 1 request is unknown.")
    status, err = end(process)

    assert (status, states()) == (143, {"unknown": 1})
    assert "Outcome unknown: 1 (0)\n" in err


def test_interrupted_upload(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    """After Ctrl-C the batch does not wait for an upload, which is free."""
    sora_emulator.fault("delay", on="upload", seconds=25.0)
    make_clip()
    (tmp_path / "requests.jsonl").write_text(json.dumps({"video": str(tmp_path / "clip.mp4")}))
    process = start_cli(*command, "--upload-url", sora_emulator.url)
    wait_for(sora_emulator, lambda: sora_emulator.counts.uploads)

    process.send_signal(signal.SIGINT)
    status, err = end(process)

    assert status == 130
    assert "Interrupted. Nothing more is sent, and nothing is running." in err
    assert "rows: 1\nnot sent: 1\n" in err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_killed_batch_continues(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """After SIGKILL each key has one task; a request that was being sent is unknown, and not sent again."""
    sora_emulator.fault("delay", on="create", seconds=0.05, times=None)
    for creates in (3, 8):
        process = start_cli(*command)
        wait_for(sora_emulator, lambda creates=creates: sora_emulator.counts.creates >= creates)  # type: ignore[misc] # of a loop
        process.kill()
        process.wait()

    status, _ = end(start_cli(*command))

    ends = states()
    assert status == (6 if ends["unknown"] else 0)
    assert ends["succeeded"] + ends["unknown"] == COUNT
    sent = Counter(task.param for task in sora_emulator.tasks.values())
    assert max(sent.values()) == 1
    assert len(sent) >= ends["succeeded"]
