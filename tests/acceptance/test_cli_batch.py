"""`sora-chars batch` with files and pipes: repeated runs, invalid rows, failures, budgets."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Start = Callable[..., subprocess.Popen[str]]
    Command = Callable[..., tuple[str, ...]]
    Pipe = Callable[..., subprocess.CompletedProcess[bytes]]

NOWHERE = ("--base-url", "http://127.0.0.1:1")
AGAIN = "To continue, {}. Nothing is paid twice.\n"


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url, "--poll", "0.05"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the path of the output file."""
    return tmp_path / "out.jsonl"


def kie(number: int, **more: str) -> dict[str, str]:
    """Return a request for kie, whose limits allow 20 at once."""
    return {"from_task": f"{number:032x}", "clip": "1,3", "prompt": f"Dog {number}"} | more


def kkiai(number: int, **more: str) -> dict[str, str]:
    """Return a request for kkiai, which has no limits."""
    return {"provider": "kkiai", "from_task": f"task_{number:026d}", "clip": "1,3"} | more


@pytest.fixture
def command(tmp_path: Path, out: Path, at: tuple[str, ...]) -> Command:
    """Return a function that writes requests to a file, and returns the command for it."""

    def write(*requests: object) -> tuple[str, ...]:
        path = tmp_path / "requests.jsonl"
        path.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
        return ("batch", str(path), "--output", str(out), *at)

    return write


@pytest.fixture
def pipe(script: str, cli_environment: dict[str, str]) -> Pipe:
    """Return a function that runs `sora-chars` with bytes on stdin."""

    def run(content: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [script, *arguments]
        return subprocess.run(command, input=content, env=cli_environment, capture_output=True, timeout=50, check=False)

    return run


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last row of each key."""
    return {row["key"]: row for row in map(json.loads, out.read_text().splitlines())}


def states(out: Path) -> Counter[str]:
    """Return how many keys have each status."""
    return Counter(row["status"] for row in rows(out).values())


def test_second_run_needs_no_network(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """Each of 200 rows has a character; a second run writes the same rows from the ledger."""
    batch = command(*[kkiai(n, key=f"cat {n}") for n in range(190)], *map(kie, range(10)))

    first = cli(*batch)
    made = rows(out)
    again = cli(*batch, *NOWHERE)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stdout == ""
    assert "rows: 200\nsucceeded: 200\ncredits: 0.625\ntime: 0:00:" in first.stderr
    assert (len(made), states(out)) == (200, {"succeeded": 200})
    assert len({row["character"]["id"] for row in made.values()}) == 200
    assert (emulator.counts.creates, emulator.counts.characters) == (10, 190)
    assert rows(out) == made
    assert len(out.read_text().splitlines()) == 400


def test_row(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """A row has the key, the status, the provider, the task, the character and the cost."""
    assert cli(*command(kie(1, key="dog", name="Rex"))).returncode == 0
    (task_id,) = emulator.tasks
    (row,) = rows(out).values()
    character = row.pop("character")
    assert row == {"key": "dog", "status": "succeeded", "provider": "kie", "task_id": task_id, "credits": 0.0625}
    assert (character["name"], character["id"][:3]) == ("Rex", "ch_")


def test_csv_through_pipes(pipe: Pipe, at: tuple[str, ...]) -> None:
    """CSV is read from stdin, and rows are written to stdout; a repeated row is sent once."""
    table = io.StringIO()
    writer = csv.DictWriter(table, ["from_task", "clip", "prompt", "provider"])
    writer.writeheader()
    writer.writerows([kie(1, prompt="A dog,\nfriendly"), kie(2), kkiai(3), kie(2)])

    done = pipe(b"\xef\xbb\xbf" + table.getvalue().encode(), "batch", "-", "--output", "-", *at)

    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert Counter((row["status"], row["provider"]) for row in made) == {
        ("succeeded", "kie"): 2,
        ("succeeded", "kkiai"): 1,
    }
    assert b"rows: 3\nsucceeded: 3\nrepeated: 1\n" in done.stderr


def test_json_summary(pipe: Pipe, at: tuple[str, ...]) -> None:
    """With `--json` the summary is the last line of stdout, and stderr is empty."""
    done = pipe(json.dumps(kie(1)).encode(), "batch", "-", "--output", "-", *at, "--json")
    row, last = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr, row["status"]) == (0, b"", "succeeded")
    assert last["summary"].pop("seconds") > 0
    zeros = dict.fromkeys(("failed", "rejected", "unknown", "pending", "running", "not_sent", "repeated"), 0)
    assert last == {"summary": {"rows": 1, "succeeded": 1, "credits": 0.0625} | zeros}


def test_invalid_rows_are_listed_before_sending(
    cli: Cli, emulator: Emulator, at: tuple[str, ...], tmp_path: Path, out: Path
) -> None:
    """Each invalid row is listed with its line and its problems: of the reader, the provider and other rows."""
    name = tmp_path / "requests.jsonl"
    requests = [
        kie(1, key="dog"),
        kie(2, clip="1,9"),
        {"clip": "1,3", "promt": ""},
        kie(3, key="dog"),
        kkiai(4, prompt="x"),
    ]
    name.write_text("\n\n".join(map(json.dumps, requests)) + '\n{"from_task"')

    bad = cli("batch", str(name), "--output", str(out), *at)

    lines = bad.stderr.splitlines()
    assert bad.returncode == 2
    assert lines[0].startswith("line 3: clip must span 1 to 4 seconds, got 8.0")
    assert lines[1].startswith("line 5: 'promt': unknown column, expected one of key,")
    assert lines[1].endswith("; exactly one of from_task, video and images must be given, got none")
    assert lines[2] == "line 7: key dog is used for a different request in line 1"
    assert lines[3].startswith("line 9: prompt ")
    assert lines[4].startswith("line 10: invalid JSON: ")
    assert lines[5] == "Error: 5 rows are invalid. Nothing was sent."
    assert not emulator.request_counts
    assert not out.exists()


def test_first_problems_as_json(pipe: Pipe) -> None:
    """With `--json` the first problems are a list, which ends with the number of the others."""
    done = pipe(b"key,clip\n" + b'x,"1,3"\n' * 5000, "batch", "-", "--output", "-", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"], len(error["problems"])) == (2, "InvalidRequestError", 21)
    assert error["problems"][0] == "line 2: exactly one of from_task, video and images must be given, got none"
    assert error["problems"][-1] == "and 4980 more"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere.csv", "--output", "-"), "nowhere.csv cannot be read: No such file or directory."),
        ((".", "--output", "-"), ". cannot be read: Is a directory."),
        (("{file}", "--output", "{file}"), "this is FILE itself."),
        (("{file}", "--output", "/nowhere/out.jsonl"), "--output /nowhere/out.jsonl: No such file or directory."),
        (("{file}", "--output", "-", "--budget", "-1"), "budget must be a number of credits, at least 0, got -1.0"),
        (("{file}", "--output", "-", "--provider", "yunwu"), "YUNWU_API_KEY"),
    ],
)
def test_invalid_arguments_end_with_2(
    cli: Cli, emulator: Emulator, command: Command, arguments: tuple[str, ...], text: str
) -> None:
    """Unusable files and options end the command before anything is sent."""
    _, name, *_, base, url, _, _ = command(kie(1))
    ended = cli("batch", *[argument.format(file=name) for argument in arguments], base, url)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert text in ended.stderr
    assert not emulator.request_counts


def test_empty_file(pipe: Pipe) -> None:
    """A file without rows ends with status 0."""
    done = pipe(b"", "batch", "-", "--output", "-")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"rows: 0\ntime: ")


def test_errors_are_in_their_rows(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """Failed and unknown requests are not sent again, a rejected one is; no row holds a secret."""
    emulator.fault("lost_response", on="create")
    emulator.fault("status", on="create", status=200, code=422, message="No cats")
    emulator.fault("fail_task", times=2)  # also the task of the lost response
    batch = command(*map(kie, range(6)))

    first = cli(*batch, "--concurrency", "1", "-v")

    assert first.returncode == 6
    lost, rejected, failed = list(rows(out).values())[:3]
    assert lost["error"]["type"] == "SubmissionUnknownError"
    assert rejected["error"] == {
        "type": "RequestRejectedError",
        "message": "kie.ai answered 422: No cats",
        "code": 422,
    }
    assert (failed["error"]["type"], failed["error"]["code"]) == ("TaskFailedError", "501")
    assert (failed["task_id"] in emulator.tasks, rejected["task_id"], lost["task_id"]) == (True, None, None)
    assert states(out) == {"unknown": 1, "rejected": 1, "failed": 1, "succeeded": 3}
    assert "secret-" not in first.stderr + out.read_text()
    assert f"Outcome unknown: 1 ({lost['key']})\n" in first.stderr
    assert "sora-chars ledger resolve KEY --task-id ID | --never-sent | --give-up\n" in first.stderr

    creates = emulator.counts.creates
    again = cli(*batch)
    assert (again.returncode, emulator.counts.creates) == (6, creates + 1)
    assert states(out) == {"unknown": 1, "failed": 1, "succeeded": 4}


def test_timeout_leaves_a_row_running(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """The row is written as running; after the task ends, the same command writes its character."""
    emulator.fault("stuck")
    batch = command(kie(1))

    late = cli(*batch, "--timeout", "0.5")

    assert late.returncode == 5
    (row,) = rows(out).values()
    assert (row["status"], row["error"]["type"]) == ("running", "WaitTimeoutError")
    assert late.stderr.endswith(AGAIN.format("run the same command again"))
    emulator.finish(row["task_id"])
    assert cli(*batch).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 1}, 1)


def test_budget_is_kept(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """Rows beyond the budget are not sent, also by a second run; a larger budget sends them."""
    batch = command(*map(kie, range(8)))

    poor = cli(*batch, "--budget", "0.2", "--price", "0.0625")
    same = cli(*batch, "--budget", "0.2", "--price", "0.0625")

    assert (poor.returncode, same.returncode, emulator.counts.creates) == (5, 5, 3)
    assert "succeeded: 3\nnot sent: 5\ncredits: 0.1875\n" in poor.stderr
    assert poor.stderr.endswith(f"allows no more rows.\n{AGAIN.format('run the command again with a larger --budget')}")
    assert cli(*batch, "--budget", "0.5").returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 8}, 8)


@pytest.mark.parametrize(
    "fault_and_text",
    [
        ("unauthorized", "kie.ai answered 401: You do not have access permissions. Check KIE_API_KEY."),
        ("credits", "kie.ai answered 402: Insufficient credits. Top up the kie.ai account."),
    ],
)
def test_account_error_stops_the_batch(
    cli: Cli, emulator: Emulator, command: Command, out: Path, fault_and_text: tuple[str, str]
) -> None:
    """After an error of the account no more rows are sent; the same command continues once it is fixed."""
    fault_kind, text = fault_and_text
    batch = command(*map(kie, range(20)))  # as many as kie's limits allow at once
    fault = emulator.fault(fault_kind, on="create", times=None)

    first = cli(*batch, "--concurrency", "5")

    rejected = len(rows(out))
    assert (first.returncode, states(out), rejected <= 5) == (5, {"rejected": rejected}, True)
    assert sum(emulator.request_counts.values()) == rejected
    assert f"rejected: {rejected}\nnot sent: {20 - rejected}\n" in first.stderr
    assert first.stderr.endswith(
        f"No more rows are sent. {text}\n{AGAIN.format('correct that and run the same command again')}"
    )
    fault.remove()
    assert cli(*batch).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 20}, 20)


def test_budget_needs_a_price(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """The cost of a kkiai row is not reported, so the batch stops after the first row and asks for `--price`."""
    poor = cli(*command(*map(kkiai, range(3))), "--budget", "5")
    assert (poor.returncode, emulator.counts.characters, states(out)) == (5, 1, {"succeeded": 1})
    assert f"a row is unknown.\n{AGAIN.format('run the command again with --price')}" in poor.stderr


def test_callbacks_end_waits(cli: Cli, emulator: Emulator, command: Command, free_port: int) -> None:
    """Callbacks of kie are received, even if other rows go to kkiai."""
    where = ("--callback-url", f"http://127.0.0.1:{free_port}", "--listen", f"127.0.0.1:{free_port}")
    done = cli(*command(kie(1), kkiai(2)), "--poll", "600", *where)
    assert done.returncode == 0, done.stderr
    assert emulator.counts.callbacks_accepted == 1


def test_job_rows(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """Rows with a model are tasks of kie's job API, whose result is in the row; a second run reads the ledger."""
    job = {"model": "wan/2-7-image", "input": {"prompt": "A dog"}}
    requests = command(job | {"key": "job"}, kie(1, key="dog"))
    for _ in range(2):
        assert cli(*requests).returncode == 0
        found = rows(out)
        assert found["job"]["status"] == found["dog"]["status"] == "succeeded"
        assert list(found["job"]["result"]) == ["resultUrls"]
        assert "character" in found["dog"]
        out.unlink()
    assert emulator.counts.creates == 2
    refused = cli(*command(job | {"provider": "kkiai"}))
    assert (refused.returncode, "request must be a CharacterRequest, got TaskRequest" in refused.stderr) == (2, True)


def test_reader_closes_the_pipe(cli: Cli, start_cli: Start, emulator: Emulator, command: Command, out: Path) -> None:
    """A reader such as `head` may close stdout: no traceback is shown, and sent requests are recorded."""
    batch = command(*map(kie, range(10)))
    process = start_cli(*batch, "--output", "-", "--concurrency", "1")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(30) == 1
    assert cli(*batch).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 10}, 10)


def test_concurrent_runs_pay_once(start_cli: Start, emulator: Emulator, command: Command, out: Path) -> None:
    """Two runs of one file both write all rows, as whole lines, and each request is sent once."""
    batch = command(*map(kie, range(12)))
    for process in [start_cli(*batch), start_cli(*batch)]:
        _, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
    assert (states(out), emulator.counts.creates) == ({"succeeded": 12}, 12)
    assert len(out.read_text().splitlines()) == 24
