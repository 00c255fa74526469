"""What Ctrl-C and SIGTERM do to a command, at each stage of a paid request."""

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

    Start = Callable[..., subprocess.Popen[str]]

FROM_TASK = ("--from-task", "0123456789abcdef0123456789abcdef", "--clip", "1,3", "--prompt", "A dog")
CREATE = ("POST", "/api/v1/jobs/createTask")


def wait_for(emulator: Emulator, predicate: Callable[[], object]) -> None:
    """Wait until something holds at the emulator."""
    asyncio.run(emulator.until(predicate))


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Send a signal, and wait for the end: status, stdout, stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def error_in(out: str) -> dict[str, Any]:
    """The error in the one JSON object."""
    value: dict[str, dict[str, Any]] = json.loads(out)
    return value["error"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_wait_that_is_interrupted_names_the_task(
    start_cli: Start, sora_emulator: Emulator, number: int, status: int
) -> None:
    """The task goes on, and the error says how to wait for it again."""
    sora_emulator.fault("stuck")
    at = ("--base-url", sora_emulator.url)
    process = start_cli("create", *at, *FROM_TASK, "--poll", "0.05", "--key", "wish", "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.polls)

    ended, out, err = end(process, number)

    (task_id,) = sora_emulator.tasks
    assert (ended, err) == (status, "")
    assert error_in(out) == {
        "type": "CommandInterruptedError",
        "message": f"Interrupted. Task {task_id} is not disturbed by that.",
        "task_id": task_id,
        "key": "wish",
        "hint": f"Go on with: sora-chars wait {task_id} --base-url {sora_emulator.url}",
    }


def test_the_answer_to_a_request_under_way_is_waited_for(start_cli: Start, sora_emulator: Emulator) -> None:
    """Ctrl-C after the request was sent does not lose the id of the task that it made."""
    sora_emulator.fault("delay", on="create", seconds=1.0)
    process = start_cli("create", "--base-url", sora_emulator.url, *FROM_TASK)
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)

    ended, out, err = end(process)

    (task_id,) = sora_emulator.tasks
    assert (ended, out) == (130, "")
    assert "its answer is waited for" in err
    assert f"Go on with: sora-chars wait {task_id}" in err
    assert "Traceback" not in err


def test_a_second_signal_leaves_at_once_and_names_the_key(start_cli: Start, sora_emulator: Emulator) -> None:
    """Nobody knows then whether the request was received, and the error says so."""
    sora_emulator.fault("delay", on="create", seconds=25.0)
    process = start_cli("create", "--base-url", sora_emulator.url, *FROM_TASK, "--key", "wish")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    said = ""
    while "its answer is waited for" not in said:
        said = process.stderr.readline()

    ended, out, err = end(process)

    assert (ended, out) == (130, "")
    assert "Interrupted while the request was being sent" in err
    assert "sora-chars ledger resolve wish --task-id ID | --never-sent | --give-up\n" in err
    assert err.endswith("  key: wish\n")
    assert "Traceback" not in err


def test_before_the_request_is_sent_nothing_is_lost(
    start_cli: Start, sora_emulator: Emulator, make_clip: Callable[..., Path]
) -> None:
    """Ctrl-C during the upload ends at once: that costs nothing."""
    sora_emulator.fault("delay", on="upload", seconds=25.0)
    at = ("--base-url", sora_emulator.url, "--upload-url", sora_emulator.url)
    process = start_cli("create", *at, "--video", str(make_clip()), "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.uploads)

    ended, out, _ = end(process)

    assert ended == 130
    assert error_in(out)["message"] == "Interrupted. Nothing was sent that costs money."
    assert CREATE not in sora_emulator.request_counts


def test_a_refusal_that_comes_after_the_signal_is_told(
    start_cli: Start, sora_emulator_factory: Callable[..., Emulator]
) -> None:
    """Whoever interrupts a request still hears that it made nothing."""
    emulator = sora_emulator_factory(kie_key="another")
    emulator.fault("delay", on="create", seconds=1.0)
    process = start_cli("create", "--base-url", emulator.url, *FROM_TASK, "--json")
    wait_for(emulator, lambda: emulator.counts.rejected)

    ended, out, _ = end(process)

    assert ended == 130
    assert error_in(out)["message"].startswith("Interrupted. The request had no success: kie.ai answered 401")


def test_a_character_that_was_made_after_the_signal_is_named(
    start_cli: Start, sora_emulator_factory: Callable[..., Emulator]
) -> None:
    """A synchronous provider has no task to wait for: the character's id is what there is."""
    emulator = sora_emulator_factory(durations=(1.0, 1.0))
    source = ("--provider", "kkiai", "--from-task", f"task_{'0' * 26}", "--clip", "1,3")
    process = start_cli("create", "--base-url", emulator.url, *source, "--json")
    wait_for(emulator, lambda: emulator.counts.characters)

    ended, out, _ = end(process)

    assert ended == 130
    error = error_in(out)
    assert error["task_id"].startswith("ch_")
    assert error["message"] == f"Interrupted. The character was made, its id is {error['task_id']}."


def test_a_free_question_is_just_interrupted(start_cli: Start, sora_emulator: Emulator) -> None:
    """There is nothing to say about a task."""
    sora_emulator.fault("delay", on="other", seconds=25.0)
    process = start_cli("credit", "--base-url", sora_emulator.url, "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.other)

    ended, out, _ = end(process)

    assert (ended, error_in(out)) == (130, {"type": "CommandInterruptedError", "message": "Interrupted."})
