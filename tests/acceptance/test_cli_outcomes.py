"""Every exit status and every JSON object of the command line, as real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

ORIGIN = "0123456789abcdef0123456789abcdef"
FROM_TASK = ("--from-task", ORIGIN, "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")
QUICK = {"durations": (0.05, 0.1)}


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url


def read(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """Return the JSON object on stdout of a command that ended with this status and an empty stderr."""
    assert (ended.returncode, ended.stderr) == (status, ""), ended.stdout
    assert ended.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(ended.stdout)
    return value


def error_of(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """Return the error in the JSON object, which has no other member."""
    value = read(ended, status)
    assert list(value) == ["error"]
    error: dict[str, Any] = value["error"]
    return error


def test_character_of_kie(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`create` and `wait` print the character with its task and its key, `status` without the key."""
    emulator.fault("result_shape", shape="resultObject")
    made = read(cli("create", *at, *FROM_TASK, "--name", "Dog", "--key", "dog-1", "--json"), 0)

    (task_id,) = emulator.tasks
    id_ = made["character"]["id"]
    character = {
        "id": id_,
        "username": f"user.{id_[-8:]}",
        "mention": f"@user.{id_[-8:]}",
        "name": "Dog",
        "permalink": None,
        "picture_url": None,
        "usage": {"prompt": f"@user.{id_[-8:]}", "character_id_list": [id_]},
        "expires_at": None,
    }
    assert made == {"provider": "kie", "task_id": task_id, "key": "dog-1", "character": character}
    assert read(cli("wait", task_id, *at, "--json"), 0) == made
    assert read(cli("wait", "dog-1", *at, "--json"), 0) == made
    assert read(cli("status", task_id, *at, "--json"), 0) == made | {"key": None}


def test_character_of_kkiai(cli: Cli, at: tuple[str, ...]) -> None:
    """A synchronous provider has the same members, and no task."""
    clip = ("--video", "https://example.com/dog.mp4", "--clip", "1,3")
    made = read(cli("create", "--provider", "kkiai", *at, *clip, "--json"), 0)

    assert (made["provider"], made["task_id"]) == ("kkiai", None)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", made["key"])
    assert made["character"]["mention"] == f"@{made['character']['username']}"
    assert made["character"]["permalink"].startswith("https://")


def test_gateway_is_a_provider(cli: Cli, sora_emulator_factory: Callable[..., Emulator]) -> None:
    """`--provider laozhang` sends that gateway's model, with its own API key."""
    emulator = sora_emulator_factory(**QUICK, kkiai_model="sora-2-character", kkiai_key="secret-laozhang_api_key")
    source = ("--from-task", f"task_{'0' * 26}", "--clip", "1,3")
    made = read(cli("create", "--provider", "laozhang", "--base-url", emulator.url, *source, "--json"), 0)

    assert made["provider"] == "laozhang"


def test_upload_progress(cli: Cli, at: tuple[str, ...], emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """Off a terminal the progress is lines on stderr, and the result is lines on stdout."""
    path = make_clip(2.0, size=600_000)
    ended = cli("create", *at, "--upload-url", emulator.url, "--video", str(path), "--poll", "0.05")

    assert ended.returncode == 0
    assert f"uploading {path.name}: 100 % of 0.6 MB" in ended.stderr
    (task_id,) = emulator.tasks
    assert f"kie task {task_id}: success, via poll" in ended.stderr
    assert f"\ntask: {task_id}\n" in ended.stdout
    assert ended.stdout.startswith("id: ch_")
    assert "\x1b" not in ended.stdout + ended.stderr


def test_run_with_an_input_file(cli: Cli, at: tuple[str, ...], emulator: Emulator, tmp_path: Path) -> None:
    """`run` prints the task with its decoded result."""
    (tmp_path / "input.json").write_text('{"prompt": "a dog"}')
    command = ("run", *at, "--model", "wan/2-7-image", "--input", f"@{tmp_path / 'input.json'}", "--poll", "0.05")
    ran = read(cli(*command, "--json"), 0)

    (task,) = emulator.tasks.values()
    assert task.input == {"prompt": "a dog"}
    url = ran["result"]["resultUrls"][0]
    facts = {"provider": "kie", "task_id": task.task_id, "model": "wan/2-7-image", "state": "success"}
    assert ran == facts | {"result": {"resultUrls": [url]}}
    plain = cli("status", task.task_id, *at)
    assert f'result: {{"resultUrls": ["{url}"]}}' in plain.stdout


def test_timeout_suggests_wait(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Status 5 suggests a `wait` command, which then prints the result; `status` shows the running task."""
    emulator.fault("stuck")
    error = error_of(cli("create", *at, *FROM_TASK, "--key", "dog-5", "--timeout", "0.3", "--json"), 5)

    (task_id,) = emulator.tasks
    assert (error["type"], error["task_id"], error["key"]) == ("WaitTimeoutError", task_id, "dog-5")
    state = read(cli("status", task_id, *at, "--json"), 0)
    assert state == {
        "provider": "kie",
        "task_id": task_id,
        "model": "sora-2-characters-pro",
        "state": "waiting",
        "result": None,
    }
    script, *arguments = shlex.split(error["hint"].removeprefix("Continue with: "))
    assert script == "sora-chars"
    emulator.finish(task_id)
    assert read(cli(*arguments, "--json"), 0)["character"]["id"].startswith("ch_")


def test_credit(cli: Cli, at: tuple[str, ...]) -> None:
    """`credit` prints the number as JSON and as text."""
    assert read(cli("credit", *at, "--json"), 0) == {"provider": "kie", "credit": 1000.0}
    assert cli("credit", *at).stdout == "provider: kie\ncredits: 1000\n"


def test_models(cli: Cli, at: tuple[str, ...]) -> None:
    """`models QUERY` lists the models that contain the text, in upper or lower case."""
    found = read(cli("models", "WAN/", *at, "--json"), 0)
    model = {"model": "wan/2-7-image", "title": "wan/2-7-image", "provider": "Emulator", "task_type": "text-to-image"}
    assert found == {"provider": "kie", "models": [model]}

    plain = cli("models", "wan/", *at)
    assert plain.stdout == "wan/2-7-image\ttext-to-image\twan/2-7-image\n"
    assert re.fullmatch(r"1 of \d+ models\n", plain.stderr)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("create", "--frob"), "UsageError", "--frob"),
        (("create", *FROM_TASK[:2], "--clip", "1,9"), "InvalidRequestError", "clip must span 1 to 4 seconds"),
    ],
)
def test_rejected_before_sending_ends_with_2(cli: Cli, arguments: tuple[str, ...], kind: str, text: str) -> None:
    """Bad usage and invalid requests end with status 2 and one JSON object."""
    error = error_of(cli(*arguments, "--json"), 2)

    assert error["type"] == kind
    assert text in error["message"]
    assert "key" not in error


def test_bad_usage_suggests_help(cli: Cli) -> None:
    """Without `--json`, bad usage is reported on stderr only."""
    ended = cli("create", "--frob")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Try 'sora-chars create -" in ended.stderr


def test_missing_api_key(cli: Cli, cli_environment: dict[str, str]) -> None:
    """The hint names the environment variable, and no argument of Python."""
    del cli_environment["KIE_API_KEY"]

    assert error_of(cli("credit", "--json"), 2)["hint"] == "Set KIE_API_KEY."


def test_listen_port_in_use(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Nothing is sent if callbacks cannot be received."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        callback = ("--callback-url", f"http://{address}", "--listen", address)
        error = error_of(cli("create", *at, *FROM_TASK, *callback, "--json"), 2)

    assert error == {"type": "ConfigurationError", "message": f"--listen {address}: Address already in use."}
    assert emulator.counts.creates == 0


def test_rejection_ends_with_3(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The error has the provider's code and a hint."""
    emulator.fault("credits", on="create")
    error = error_of(cli("create", *at, *FROM_TASK, "--json"), 3)

    assert (error["type"], error["code"]) == ("InsufficientCreditsError", 402)
    assert error["hint"]
    assert error["key"]
    assert "charged" not in error  # nothing was charged


def test_error_while_waiting_names_the_task(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """An error after the create has the task's id and suggests a `wait` command."""
    emulator.fault("unauthorized", on="poll")
    ended = cli("create", *at, *FROM_TASK, "--key", "dog-3")

    (task_id,) = emulator.tasks
    assert (ended.returncode, ended.stdout) == (3, "")
    assert f"The task may still be running: sora-chars wait {task_id} --base-url {emulator.url}\n" in ended.stderr
    assert ended.stderr.endswith(f"  task: {task_id}\n  key: dog-3\n")


def test_timeout_of_a_free_request(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`--timeout` limits free requests, too, which then end with status 3."""
    emulator.fault("delay", on="other", seconds=30.0)
    error = error_of(cli("credit", *at, "--timeout", "0.2", "--json"), 3)

    assert error == {"type": "NoAnswerError", "message": "kie did not respond within 0.2 seconds."}


def test_failed_task_ends_with_4(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`create` and `status` of a failed task print its code and its id, without control characters."""
    emulator.fault("fail_task", code="SENSITIVE", message="no [bold]\x1b[31m\u202edogs[/] :dog:")
    ended = cli("create", *at, *FROM_TASK)

    (task_id,) = emulator.tasks
    assert ended.returncode == 4
    assert "no [bold] [31m dogs[/] :dog:" in ended.stderr
    assert "\x1b" not in ended.stderr
    error = error_of(cli("status", task_id, *at, "--json"), 4)
    assert (error["type"], error["code"], error["task_id"]) == ("TaskFailedError", "SENSITIVE", task_id)


def test_missing_character_ends_with_4(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A task that succeeds without a character is an error."""
    emulator.fault("result_shape", shape="none")
    error = error_of(cli("create", *at, *FROM_TASK, "--json"), 4)

    assert error["type"] == "MissingCharacterError"
    assert [error["task_id"]] == list(emulator.tasks)


@pytest.mark.parametrize("provider", ["kie", "kkiai"])
def test_unknown_outcome_ends_with_6(cli: Cli, at: tuple[str, ...], emulator: Emulator, provider: str) -> None:
    """A lost response, and a synchronous provider slower than `--timeout`, are not sent again."""
    if provider == "kie":
        emulator.fault("lost_response", on="create")
        request = FROM_TASK
    else:
        emulator.fault("delay", on="character", seconds=30.0)
        request = ("--provider", "kkiai", "--from-task", f"task_{'0' * 26}", "--clip", "1,3", "--timeout", "0.6")
    error = error_of(cli("create", *at, *request, "--key", "dog-6", "--json"), 6)

    assert (error["type"], error["key"]) == ("SubmissionUnknownError", "dog-6")
    assert error["hint"]
    assert (emulator.counts.creates, emulator.counts.characters) in {(1, 0), (0, 1)}


def test_verbose_masks_secrets(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, cli_environment: dict[str, str], free_port: int
) -> None:
    """`-v` shows requests and responses; the API key and the callback token are masked."""
    address = f"127.0.0.1:{free_port}"
    callback = ("--callback-url", f"http://{address}/hooks", "--listen", address)
    ended = cli("create", *at, *FROM_TASK, *callback, "-v", "--json")

    assert ended.returncode == 0
    assert json.loads(ended.stdout)["character"]
    assert f"> POST {emulator.url}/api/v1/jobs/createTask" in ended.stderr
    assert re.search(r"< 200 in \d+ ms \{\"code\":200", ended.stderr)
    (task,) = emulator.tasks.values()
    token = str(task.callback_url).rpartition("/")[2]
    assert len(token) > 20
    assert token not in ended.stderr
    assert cli_environment["KIE_API_KEY"] not in ended.stderr


def test_signed_callback_ends_the_wait(
    cli: Cli, cli_environment: dict[str, str], sora_emulator_factory: Callable[..., Emulator], free_port: int
) -> None:
    """With `--listen` a callback ends the wait before the next poll is due; a forged one is rejected."""
    cli_environment["KIE_WEBHOOK_HMAC_KEY"] = "hook-secret"
    emulator = sora_emulator_factory(**QUICK, hmac_key="hook-secret")
    emulator.fault("forged_callback")
    address = f"127.0.0.1:{free_port}"
    callback = ("--callback-url", f"http://{address}/hooks", "--listen", address, "--poll", "600")
    ended = cli("create", "--base-url", emulator.url, *FROM_TASK, *callback)

    assert ended.returncode == 0
    assert ", via callback" in ended.stdout
    assert "A callback was rejected (status=401" in ended.stderr
    assert "hook-secret" not in ended.stderr
    assert emulator.counts.polls == 1


@pytest.mark.parametrize("missing", ["click", "platformdirs", "rich"])
def test_missing_extra(missing: str) -> None:
    """If a package of the extra `cli` is missing, one line names the extra."""
    ended = run_without(missing)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == 'The command line needs click, platformdirs and rich: pip install "sora-chars[cli]"\n'


def test_other_missing_module_is_a_bug() -> None:
    """A broken installation ends with status 70 and the name of the module."""
    ended = run_without("sora_chars.session.session")

    assert ended.returncode == 70
    assert "sora_chars.session.session" in ended.stderr
    assert "sora-chars[cli]" not in ended.stderr


def run_without(module: str) -> subprocess.CompletedProcess[str]:
    """Run `sora-chars credit` in an interpreter that cannot import a module."""
    program = f"""
import runpy, sys
sys.modules[{module!r}] = None
sys.argv = ["sora-chars", "credit"]
runpy.run_module("sora_chars", run_name="__main__", alter_sys=True)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_closed_stdout(at: tuple[str, ...], cli_environment: dict[str, str]) -> None:
    """An error written to a closed pipe shows no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "sora_chars", "status", "unknown", *at, "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=cli_environment,
            check=False,
        )

    assert (ended.returncode, ended.stderr) == (1, b"")


def test_voice_of_kling(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`voice` prints the id of a voice; `wait`, `ledger show` and the same key print it from the ledger."""
    made = read(cli("voice", "https://a.example/rex.wav", "--name", "Rex", "--key", "v-1", *at, "--json"), 0)
    (task,) = emulator.kling.tasks.values()
    voice = {"id": str(task.element_id), "name": "Rex"}
    assert made == {"provider": "kling", "task_id": task.task_id, "key": "v-1", "voice": voice}
    again = cli("voice", "https://a.example/rex.wav", "--name", "Rex", "--key", "v-1", *at)
    assert f"id: {voice['id']}" in again.stdout.splitlines()
    assert f"id: {voice['id']}" in cli("ledger", "show", "v-1").stdout.splitlines()
    assert read(cli("wait", "v-1", "--provider", "kling", *at, "--json"), 0) == made
    refused = cli("voice", "https://a.example/rex.wav", "--name", "Rex", "--provider", "kie", *at)
    assert (refused.returncode, "no route that creates voices" in refused.stderr) == (2, True)
    assert emulator.counts.voices == 1
