"""Failed keys from the command line: sent again knowingly, and resolved with what the provider shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

REQUEST = ("--from-task", "0" * 32, "--clip", "1,3", "--prompt", "A dog")


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url, "--poll", "0.05"


def read(ended: subprocess.CompletedProcess[str], status: int = 0) -> Any:
    """Return the JSON value on stdout of a command that ended with this status."""
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_retry_after_a_failure(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`--retry` sends a failed key again, also with another prompt; without it nothing is sent."""
    emulator.fault("fail_task", on="create")
    create = ("create", *at, *REQUEST, "--key", "dog", "--json")
    assert read(cli(*create), 4)["error"]["type"] == "TaskFailedError"
    assert read(cli(*create), 4)["error"]["type"] == "TaskFailedError"
    assert emulator.counts.creates == 1
    assert read(cli(*create, "--prompt", "A cat", "--retry"))["character"]["id"]
    assert emulator.counts.creates == 2
    assert read(cli("ledger", "show", "dog", "--json"))["entry"]["request"]["prompt"] == "A cat"


def test_retry_of_a_rejection_without_proof(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The error of a code 500 states that the key may have been charged, and only `--retry` sends it again."""
    emulator.fault("body_500", on="create")
    create = ("create", *at, *REQUEST, "--key", "dog", "--json")
    for _ in range(2):
        error = read(cli(*create), 3)["error"]
        assert (error["type"], error["charged"]) == ("ServiceUnavailableError", "maybe")
        assert "--retry" in error["hint"]
    assert "does not prove that nothing was paid" in cli("ledger", "show", "dog").stderr
    assert emulator.counts.creates == 0
    assert read(cli(*create, "--retry"))["character"]["id"]


def test_a_new_key_with_retry(cli: Cli, at: tuple[str, ...]) -> None:
    """`--retry` of a key that is new, or has succeeded, is an ordinary create."""
    create = ("create", *at, *REQUEST, "--key", "dog", "--json", "--retry")
    assert read(cli(*create)) == read(cli(*create))


def test_batch_retries_failed_rows(cli: Cli, at: tuple[str, ...], emulator: Emulator, tmp_path: Path) -> None:
    """`--retry-failed` sends the failed rows of an earlier run again, and no others."""
    rows = tmp_path / "rows.jsonl"
    fields = {"from_task": "0" * 32, "clip": "1,3", "prompt": "A dog"}
    rows.write_text("".join(json.dumps(fields | {"key": key}) + "\n" for key in ("a", "b", "c")))
    emulator.fault("fail_task", on="create", times=2)
    batch = ("batch", str(rows), "--output", str(tmp_path / "out.jsonl"), *at, "--json")
    assert cli(*batch).returncode == 4
    assert cli(*batch).returncode == 4
    assert emulator.counts.creates == 3
    assert cli(*batch, "--retry-failed").returncode == 0
    assert emulator.counts.creates == 5


def lose(cli: Cli, at: tuple[str, ...], emulator: Emulator, *keys: str) -> list[str]:
    """Create keys whose responses are lost, and return the ids of their tasks."""
    emulator.fault("lost_response", on="create", times=len(keys))
    for key in keys:
        assert cli("create", *at, *REQUEST, "--key", key).returncode == 6
    return list(emulator.tasks)


def test_resolve_fetches_the_task(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A mistyped id is rejected with the key as it was; the right one ends the key if its task has ended."""
    (task_id,) = lose(cli, at, emulator, "dog")
    resolve = ("ledger", "resolve", "dog", "--base-url", emulator.url, "--json")
    error = read(cli(*resolve, "--task-id", "f" * 32), 2)["error"]
    assert "has no task" in error["message"]
    assert "--unchecked" in error["hint"]
    assert read(cli("ledger", "show", "dog", "--json"))["entry"]["state"] == "unknown"
    assert read(cli(*resolve, "--task-id", task_id))["entry"]["state"] in {"running", "succeeded"}
    assert read(cli("create", *at, *REQUEST, "--key", "dog", "--json"))["character"]["id"]
    assert emulator.counts.creates == 1


def test_a_provider_that_cannot_be_reached(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Without an answer nothing is recorded; `--unchecked` records the id, and `--undo` takes it back."""
    lose(cli, at, emulator, "dog")
    resolve = ("ledger", "resolve", "dog", "--json")
    assert cli(*resolve, "--base-url", "http://127.0.0.1:1", "--task-id", "x" * 32).returncode == 3
    assert read(cli(*resolve, "--task-id", "x" * 32, "--unchecked"))["entry"]["state"] == "running"
    assert read(cli(*resolve, "--undo"))["entry"]["state"] == "unknown"
    assert read(cli(*resolve, "--undo"), 2)["error"]["type"] == "InvalidRequestError"


def test_several_keys(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Several keys are resolved at once, and the usage of one task for several is rejected."""
    lose(cli, at, emulator, "a", "b")
    ended = cli("ledger", "resolve", "a", "nosuch", "b", "--give-up")
    assert (ended.returncode, "the ledger has no entry 'nosuch'" in ended.stderr) == (2, True)
    assert ended.stdout.count("state: failed") == 2
    assert cli("ledger", "resolve", "a", "b", "--task-id", "x").returncode == 2
    assert cli("ledger", "resolve", "a", "--undo", "--unchecked").returncode == 2


def test_a_ledger_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    """A fault of the ledger ends the command at the first of several keys."""
    junk = tmp_path / "junk.db"
    junk.write_text("no database " * 400)
    ended = cli("ledger", "resolve", "a", "b", "--give-up", "--ledger", str(junk))
    assert (ended.returncode, ended.stderr.count("Error:")) == (2, 1)
