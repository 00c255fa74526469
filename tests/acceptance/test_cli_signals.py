"""Ctrl-C and SIGTERM at each stage of a paid request."""

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
    """Wait until a predicate holds."""
    asyncio.run(emulator.until(predicate))


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Send a signal, wait for the end, and return the status, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def error_in(out: str) -> dict[str, Any]:
    """Return the error in the JSON object."""
    value: dict[str, dict[str, Any]] = json.loads(out)
    return value["error"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_wait_names_the_task(start_cli: Start, sora_emulator: Emulator, number: int, status: int) -> None:
    """The task keeps running, and the error suggests a `wait` command."""
    sora_emulator.fault("stuck")
    at = ("--base-url", sora_emulator.url)
    process = start_cli("create", *at, *FROM_TASK, "--poll", "0.05", "--key", "dog-1", "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.polls)

    ended, out, err = end(process, number)

    (task_id,) = sora_emulator.tasks
    assert (ended, err) == (status, "")
    assert error_in(out) == {
        "type": "CommandInterruptedError",
        "message": f"Interrupted before the end of task {task_id} was known.",
        "task_id": task_id,
        "key": "dog-1",
        "hint": f"Continue with: sora-chars wait {task_id} --base-url {sora_emulator.url}",
    }


def test_interrupt_waits_for_the_response(start_cli: Start, sora_emulator: Emulator) -> None:
    """Ctrl-C after the request was sent does not lose the id of its task."""
    sora_emulator.fault("delay", on="create", seconds=1.0)
    process = start_cli("create", "--base-url", sora_emulator.url, *FROM_TASK)
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)

    ended, out, err = end(process)

    (task_id,) = sora_emulator.tasks
    assert (ended, out) == (130, "")
    assert "Interrupted. The request was sent; waiting up to 60 s for its response. Ctrl-C ends that wait" in err
    assert f"Continue with: sora-chars wait {task_id}" in err
    assert "Traceback" not in err


def test_second_interrupt_names_the_key(start_cli: Start, sora_emulator: Emulator) -> None:
    """A second Ctrl-C does not wait for the response; the outcome is unknown, and the error has the key."""
    sora_emulator.fault("delay", on="create", seconds=25.0)
    process = start_cli("create", "--base-url", sora_emulator.url, *FROM_TASK, "--key", "dog-1")
    wait_for(sora_emulator, lambda: sora_emulator.counts.creates)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    line = ""
    while "for its response" not in line:
        line = process.stderr.readline()

    ended, out, err = end(process)

    assert (ended, out) == (130, "")
    assert "Interrupted. No response arrived, so the outcome of the request is unknown." in err
    assert "sora-chars ledger resolve dog-1 --task-id ID | --never-sent | --give-up\n" in err
    assert err.endswith("  key: dog-1\n")
    assert "Traceback" not in err


def test_interrupted_upload(start_cli: Start, sora_emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """Ctrl-C during an upload, which is free, ends the command at once."""
    sora_emulator.fault("delay", on="upload", seconds=25.0)
    at = ("--base-url", sora_emulator.url, "--upload-url", sora_emulator.url)
    process = start_cli("create", *at, "--video", str(make_clip()), "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.uploads)

    ended, out, _ = end(process)

    assert ended == 130
    assert error_in(out)["message"] == "Interrupted. This command sent no paid request."
    assert CREATE not in sora_emulator.request_counts


def test_rejection_after_an_interrupt(start_cli: Start, sora_emulator_factory: Callable[..., Emulator]) -> None:
    """A rejection that arrives after Ctrl-C is in the error."""
    emulator = sora_emulator_factory(kie_key="another")
    emulator.fault("delay", on="create", seconds=1.0)
    process = start_cli("create", "--base-url", emulator.url, *FROM_TASK, "--json")
    wait_for(emulator, lambda: emulator.counts.rejected)

    ended, out, _ = end(process)

    assert ended == 130
    assert error_in(out)["message"].startswith("Interrupted. The request failed: kie.ai answered 401")


def test_character_after_an_interrupt(start_cli: Start, sora_emulator_factory: Callable[..., Emulator]) -> None:
    """The character that a synchronous provider returns after Ctrl-C is in the error."""
    emulator = sora_emulator_factory(durations=(1.0, 1.0))
    source = ("--provider", "kkiai", "--from-task", f"task_{'0' * 26}", "--clip", "1,3")
    process = start_cli("create", "--base-url", emulator.url, *source, "--json")
    wait_for(emulator, lambda: emulator.counts.characters)

    ended, out, _ = end(process)

    assert ended == 130
    error = error_in(out)
    assert error["task_id"].startswith("ch_")
    assert error["message"] == f"Interrupted. The character was created; its id is {error['task_id']}."


def test_interrupted_free_request(start_cli: Start, sora_emulator: Emulator) -> None:
    """The error of a free request names no task."""
    sora_emulator.fault("delay", on="other", seconds=25.0)
    process = start_cli("credit", "--base-url", sora_emulator.url, "--json")
    wait_for(sora_emulator, lambda: sora_emulator.counts.other)

    ended, out, _ = end(process)

    assert (ended, error_in(out)) == (130, {"type": "CommandInterruptedError", "message": "Interrupted."})
