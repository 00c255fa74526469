"""Every exit status and every JSON shape of the command line, as real processes against the emulator."""

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
    """The options that lead to the emulator."""
    return "--base-url", emulator.url


def read(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """The one JSON object on stdout of a command that ended with this status and said nothing else."""
    assert (ended.returncode, ended.stderr) == (status, ""), ended.stdout
    assert ended.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(ended.stdout)
    return value


def error_of(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """The error in the one JSON object, which holds nothing else."""
    value = read(ended, status)
    assert list(value) == ["error"]
    error: dict[str, Any] = value["error"]
    return error


def test_a_character_of_kie_is_the_documented_object(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`create` prints the character with its task and its key, `wait` prints it again, and `status` without the key."""
    emulator.fault("result_shape", shape="resultObject")
    made = read(cli("create", *at, *FROM_TASK, "--name", "Dog", "--key", "wish-1", "--json"), 0)

    (task_id,) = emulator.tasks
    id_ = made["character"]["id"]
    character = {
        "id": id_,
        "username": f"user.{id_[-8:]}",
        "mention": f"@user.{id_[-8:]}",
        "name": "Dog",
        "permalink": None,
        "picture_url": None,
    }
    assert made == {"provider": "kie", "task_id": task_id, "key": "wish-1", "character": character}
    assert read(cli("wait", task_id, *at, "--json"), 0) == made
    assert read(cli("wait", "wish-1", *at, "--json"), 0) == made
    assert read(cli("status", task_id, *at, "--json"), 0) == made | {"key": None}


def test_a_character_of_kkiai_is_the_same_object_without_a_task(cli: Cli, at: tuple[str, ...]) -> None:
    """The synchronous provider fills the same members; there is no task to name."""
    clip = ("--video", "https://example.com/dog.mp4", "--clip", "1,3")
    made = read(cli("create", "--provider", "kkiai", *at, *clip, "--json"), 0)

    assert (made["provider"], made["task_id"]) == ("kkiai", None)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", made["key"])
    assert made["character"]["mention"] == f"@{made['character']['username']}"
    assert made["character"]["permalink"].startswith("https://")


def test_a_gateway_is_a_provider_by_its_name(cli: Cli, sora_emulator_factory: Callable[..., Emulator]) -> None:
    """`--provider laozhang` sends the model which that gateway demands, under its own key."""
    emulator = sora_emulator_factory(**QUICK, kkiai_model="sora-2-character", kkiai_key="secret-laozhang_api_key")
    source = ("--from-task", f"task_{'0' * 26}", "--clip", "1,3")
    made = read(cli("create", "--provider", "laozhang", "--base-url", emulator.url, *source, "--json"), 0)

    assert made["provider"] == "laozhang"


def test_a_local_video_is_uploaded_and_its_progress_shown(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, make_clip: Callable[..., Path]
) -> None:
    """Off a terminal everything is plain lines: what goes on to stderr, what came of it to stdout."""
    path = make_clip(2.0, size=600_000)
    ended = cli("create", *at, "--upload-url", emulator.url, "--video", str(path), "--poll", "0.05")

    assert ended.returncode == 0
    assert f"uploading {path.name}: 100 % of 0.6 MB" in ended.stderr
    (task_id,) = emulator.tasks
    assert f"kie task {task_id}: success, seen by poll" in ended.stderr
    assert f"\ntask: {task_id}\n" in ended.stdout
    assert ended.stdout.startswith("id: ch_")
    assert "\x1b" not in ended.stdout + ended.stderr


def test_any_job_model_runs_with_an_input_from_a_file(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, tmp_path: Path
) -> None:
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


def test_a_task_that_runs_on_is_left_with_the_command_that_goes_on(
    cli: Cli, at: tuple[str, ...], emulator: Emulator
) -> None:
    """Status 5 names the `wait` command, `status` shows the unfinished task, and that command then gets the result."""
    emulator.fault("stuck")
    error = error_of(cli("create", *at, *FROM_TASK, "--key", "wish-5", "--timeout", "0.3", "--json"), 5)

    (task_id,) = emulator.tasks
    assert (error["type"], error["task_id"], error["key"]) == ("WaitTimeoutError", task_id, "wish-5")
    state = read(cli("status", task_id, *at, "--json"), 0)
    assert state == {
        "provider": "kie",
        "task_id": task_id,
        "model": "sora-2-characters-pro",
        "state": "waiting",
        "result": None,
    }
    script, *going_on = shlex.split(error["hint"].removeprefix("Go on with: "))
    assert script == "sora-chars"
    emulator.finish(task_id)
    assert read(cli(*going_on, "--json"), 0)["character"]["id"].startswith("ch_")


def test_credit_is_shown(cli: Cli, at: tuple[str, ...]) -> None:
    """`credit` prints the number, for programs and for people."""
    assert read(cli("credit", *at, "--json"), 0) == {"provider": "kie", "credit": 1000.0}
    assert cli("credit", *at).stdout == "provider: kie\ncredits: 1000\n"


def test_models_are_listed_and_searched(cli: Cli, at: tuple[str, ...]) -> None:
    """`models WORD` gives those that the word occurs in, in any case."""
    found = read(cli("models", "WAN/", *at, "--json"), 0)
    model = {"model": "wan/2-7-image", "title": "wan/2-7-image", "provider": "Emulator", "task_type": "text-to-image"}
    assert found == {"provider": "kie", "models": [model]}

    plain = cli("models", "wan/", *at)
    assert plain.stdout == "wan/2-7-image\ttext-to-image\twan/2-7-image\n"
    assert re.fullmatch(r"1 of \d+ models\n", plain.stderr)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("create", "--frob"), "UsageError", "--frob"),
        (("create", *FROM_TASK[:2], "--clip", "1,9"), "InvalidRequestError", "clip must span 1 to 4 s"),
    ],
)
def test_what_is_refused_before_sending_ends_with_2(cli: Cli, arguments: tuple[str, ...], kind: str, said: str) -> None:
    """Bad usage and broken limits are errors of status 2, as one JSON object too."""
    error = error_of(cli(*arguments, "--json"), 2)

    assert error["type"] == kind
    assert said in error["message"]
    assert "key" not in error


def test_bad_usage_is_shown_to_people_with_the_way_to_help(cli: Cli) -> None:
    """Without `--json` stdout stays empty."""
    ended = cli("create", "--frob")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Try 'sora-chars create -" in ended.stderr


def test_a_missing_key_is_named(cli: Cli, cli_environment: dict[str, str]) -> None:
    """The error names the variable to set."""
    del cli_environment["KIE_API_KEY"]

    assert "KIE_API_KEY" in error_of(cli("credit", "--json"), 2)["hint"]


def test_a_port_that_is_taken_stops_a_create_before_it_is_sent(
    cli: Cli, at: tuple[str, ...], emulator: Emulator
) -> None:
    """A callback that nobody could receive is not asked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        callback = ("--callback-url", f"http://{address}", "--listen", address)
        error = error_of(cli("create", *at, *FROM_TASK, *callback, "--json"), 2)

    assert error == {"type": "ConfigurationError", "message": f"--listen {address}: Address already in use."}
    assert emulator.counts.creates == 0


def test_the_providers_refusal_ends_with_3_and_its_code(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The provider's own code and what to do about it are members of the error."""
    emulator.fault("credits", on="create")
    error = error_of(cli("create", *at, *FROM_TASK, "--json"), 3)

    assert (error["type"], error["code"]) == ("InsufficientCreditsError", 402)
    assert error["hint"]
    assert "key" not in error


def test_a_refusal_while_waiting_names_the_task_that_was_paid_for(
    cli: Cli, at: tuple[str, ...], emulator: Emulator
) -> None:
    """An error after the create never hides the task's id."""
    emulator.fault("unauthorized", on="poll")
    ended = cli("create", *at, *FROM_TASK, "--key", "wish-3")

    (task_id,) = emulator.tasks
    assert (ended.returncode, ended.stdout) == (3, "")
    assert f"The task may go on: sora-chars wait {task_id} --base-url {emulator.url}\n" in ended.stderr
    assert ended.stderr.endswith(f"  task: {task_id}\n  key: wish-3\n")


def test_a_question_ends_when_its_time_is_over(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`--timeout` limits the free questions too: nobody answered, status 3."""
    emulator.fault("delay", on="other", seconds=30.0)
    error = error_of(cli("credit", *at, "--timeout", "0.2", "--json"), 3)

    assert error == {"type": "NoAnswerError", "message": "kie gave no answer within 0.2 s."}


def test_a_failed_task_ends_with_4(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """`create` and `status` of a failed task give its code and its id; its text cannot act on the terminal."""
    emulator.fault("fail_task", code="SENSITIVE", message="no [bold]\x1b[31m\u202edogs[/] :dog:")
    ended = cli("create", *at, *FROM_TASK)

    (task_id,) = emulator.tasks
    assert ended.returncode == 4
    assert "no [bold] [31m dogs[/] :dog:" in ended.stderr
    assert "\x1b" not in ended.stderr
    error = error_of(cli("status", task_id, *at, "--json"), 4)
    assert (error["type"], error["code"], error["task_id"]) == ("TaskFailedError", "SENSITIVE", task_id)


def test_success_without_a_character_ends_with_4(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A task that made nothing is no success."""
    emulator.fault("result_shape", shape="none")
    error = error_of(cli("create", *at, *FROM_TASK, "--json"), 4)

    assert error["type"] == "MissingCharacterError"
    assert [error["task_id"]] == list(emulator.tasks)


@pytest.mark.parametrize("provider", ["kie", "kkiai"])
def test_an_unknown_outcome_ends_with_6_and_the_key(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, provider: str
) -> None:
    """A lost answer, and a synchronous provider that outlasts `--timeout`, are never asked again by themselves."""
    if provider == "kie":
        emulator.fault("lost_response", on="create")
        wish = FROM_TASK
    else:
        emulator.fault("delay", on="character", seconds=30.0)
        wish = ("--provider", "kkiai", "--from-task", f"task_{'0' * 26}", "--clip", "1,3", "--timeout", "0.6")
    error = error_of(cli("create", *at, *wish, "--key", "wish-6", "--json"), 6)

    assert (error["type"], error["key"]) == ("SubmissionUnknownError", "wish-6")
    assert error["hint"]
    assert (emulator.counts.creates, emulator.counts.characters) in {(1, 0), (0, 1)}


def test_verbose_shows_the_exchange_without_secrets(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, cli_environment: dict[str, str], free_port: int
) -> None:
    """`-v` shows requests and answers; the key, the callback's token and its address' last part stay hidden."""
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


def test_a_signed_callback_wakes_the_command_that_waits(
    cli: Cli, cli_environment: dict[str, str], sora_emulator_factory: Callable[..., Emulator], free_port: int
) -> None:
    """With `--listen` the end is seen by the callback, long before the next look was due; a forged one is refused."""
    cli_environment["KIE_WEBHOOK_HMAC_KEY"] = "hook-secret"
    emulator = sora_emulator_factory(**QUICK, hmac_key="hook-secret")
    emulator.fault("forged_callback")
    address = f"127.0.0.1:{free_port}"
    callback = ("--callback-url", f"http://{address}/hooks", "--listen", address, "--poll", "600")
    ended = cli("create", "--base-url", emulator.url, *FROM_TASK, *callback)

    assert ended.returncode == 0
    assert "seen by callback" in ended.stdout
    assert "callback.rejected status=401" in ended.stderr
    assert "hook-secret" not in ended.stderr
    assert emulator.counts.polls == 1


@pytest.mark.parametrize("missing", ["click", "platformdirs", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    """Neither a traceback nor a half-working command line."""
    ended = run_without(missing)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == 'The command line needs click, platformdirs and rich: pip install "sora-chars[cli]"\n'


def test_another_missing_package_is_not_taken_for_the_extra() -> None:
    """A broken installation is shown as what it is."""
    ended = run_without("sora_chars.testing")

    assert ended.returncode == 1
    assert ended.stderr.endswith("No module named 'sora_chars.testing'\n")


def run_without(package: str) -> subprocess.CompletedProcess[str]:
    """Run `sora-chars` where a package cannot be imported."""
    program = f"""
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if f"{{name}}.".startswith({package + "."!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
sys.argv = ["sora-chars", "credit"]
import runpy
runpy.run_module("sora_chars", run_name="__main__", alter_sys=True)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_reader_that_goes_away_is_no_crash(at: tuple[str, ...], cli_environment: dict[str, str]) -> None:
    """Errors written to a closed pipe end quietly."""
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
