"""What Ctrl-C, SIGTERM and SIGKILL do to a batch, and that the same command goes on afterwards."""

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
    """A batch of a dozen rows, four at a time."""
    wishes = ({"from_task": f"{n:032x}", "clip": "1,3", "prompt": f"Dog {n}", "key": str(n)} for n in range(COUNT))
    (tmp_path / "wishes.jsonl").write_text("\n".join(map(json.dumps, wishes)))
    files = (str(tmp_path / "wishes.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    return ("batch", *files, "--base-url", sora_emulator.url, "--poll", "0.05", "--concurrency", "4")


@pytest.fixture
def states(tmp_path: Path) -> Callable[[], Counter[str]]:
    """A function that counts the keys of each status."""

    def count() -> Counter[str]:
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        last: dict[str, Any] = {row["key"]: row["status"] for row in map(json.loads, lines)}
        return Counter(last.values())

    return count


def wait_for(emulator: Emulator, predicate: Callable[[], object]) -> None:
    """Wait until something holds at the emulator."""
    asyncio.run(emulator.until(predicate, timeout=30))


def wait_until_said(process: subprocess.Popen[str], text: str) -> None:
    """Wait until a line of stderr holds a text."""
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(text)


def finish_all(emulator: Emulator) -> None:
    """End what runs."""
    for task_id in emulator.tasks:
        emulator.finish(task_id)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end: status and the rest of stderr."""
    _, err = process.communicate(timeout=50)
    assert "Traceback" not in err
    return process.returncode, err


def test_ctrl_c_sends_nothing_more_and_waits_for_what_runs(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """What ran has ended then, the rest is not sent, and the same command makes it."""
    sora_emulator.fault("stuck", times=4)
    process = start_cli(*command)
    wait_for(sora_emulator, lambda: len(sora_emulator.counts.polls_by_task) == 4)

    process.send_signal(signal.SIGINT)
    wait_until_said(process, "Interrupted: nothing more is sent; 4 are waited for. Ctrl-C again leaves them running.")
    finish_all(sora_emulator)
    status, err = end(process)

    assert status == 130
    assert "rows: 12\nsucceeded: 4\nnot sent: 8\n" in err
    assert err.endswith("To go on, run the same command again: nothing is paid twice.\n")
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
def test_whoever_leaves_is_told_what_runs(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], option: str, numbers: tuple[int, ...]
) -> None:
    """It ends at once, what runs is a row each, and the same command waits for it without paying again."""
    sora_emulator.fault("stuck", times=4)
    process = start_cli(*command, option)
    wait_for(sora_emulator, lambda: len(sora_emulator.counts.polls_by_task) == 4)

    for number, answer in zip(numbers, ("4 are waited for", "")[-len(numbers) :], strict=True):
        process.send_signal(number)
        wait_until_said(process, answer or "Leaving. What runs goes on;")
    status, err = end(process)

    assert status == 128 + numbers[0]
    assert "running: 4\nnot sent: 8\n" in err
    assert Path(command[3]).read_text().count('"status": "running"') == 4
    finish_all(sora_emulator)
    last, err = end(start_cli(*command))
    assert (last, sora_emulator.counts.creates) == (0, COUNT)
    assert "rows: 12\nsucceeded: 12\n" in err


def test_an_answer_under_way_is_waited_for_and_a_second_signal_gives_it_up(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """Nobody knows then whether it was received, and its row says so."""
    sora_emulator.fault("delay", on="create", seconds=25.0)
    process = start_cli(*command, "--concurrency", "1")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)

    for number in (signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        wait_until_said(process, "Leaving.")
    status, err = end(process)

    assert (status, states()) == (143, {"unknown": 1})
    assert "1 of unknown outcome: 0\n" in err


def test_ctrl_c_before_anything_was_sent(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    """An upload is not waited for: it costs nothing."""
    sora_emulator.fault("delay", on="upload", seconds=25.0)
    make_clip()
    (tmp_path / "wishes.jsonl").write_text(json.dumps({"video": str(tmp_path / "clip.mp4")}))
    process = start_cli(*command, "--upload-url", sora_emulator.url)
    wait_for(sora_emulator, lambda: sora_emulator.counts.uploads)

    process.send_signal(signal.SIGINT)
    status, err = end(process)

    assert status == 130
    assert "Interrupted: nothing more is sent; 0 are waited for." in err
    assert "rows: 1\nnot sent: 1\n" in err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_batch_that_was_killed_goes_on(
    start_cli: Start, sora_emulator: Emulator, command: tuple[str, ...], states: Callable[[], Counter[str]]
) -> None:
    """Each key has one task; what was just being sent is unknown, and not sent again."""
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
