"""`sora-chars batch` as a person runs it: files and pipes in and out, again and again, with what goes wrong."""

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
AGAIN = "To go on, run the same command again: nothing is paid twice.\n"


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """The options that lead to the emulator."""
    return "--base-url", emulator.url, "--poll", "0.05"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the rows go."""
    return tmp_path / "out.jsonl"


def kie(number: int, **more: str) -> dict[str, str]:
    """A wish for kie, whose contract lets 20 be sent at once."""
    return {"from_task": f"{number:032x}", "clip": "1,3", "prompt": f"Dog {number}"} | more


def kkiai(number: int, **more: str) -> dict[str, str]:
    """A wish for kkiai, which knows no limit."""
    return {"provider": "kkiai", "from_task": f"task_{number:026d}", "clip": "1,3"} | more


@pytest.fixture
def command(tmp_path: Path, out: Path, at: tuple[str, ...]) -> Command:
    """A function that writes wishes into a file, and gives the command that makes them."""

    def write(*wishes: object) -> tuple[str, ...]:
        path = tmp_path / "wishes.jsonl"
        path.write_text("".join(f"{json.dumps(wish)}\n" for wish in wishes))
        return ("batch", str(path), "--output", str(out), *at)

    return write


@pytest.fixture
def pipe(script: str, cli_environment: dict[str, str]) -> Pipe:
    """A function that runs `sora-chars` with bytes on stdin."""

    def run(content: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [script, *arguments]
        return subprocess.run(command, input=content, env=cli_environment, capture_output=True, timeout=50, check=False)

    return run


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The last row of each key."""
    return {row["key"]: row for row in map(json.loads, out.read_text().splitlines())}


def states(out: Path) -> Counter[str]:
    """How many keys there are of each status."""
    return Counter(row["status"] for row in rows(out).values())


def test_two_hundred_rows_and_the_same_again(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """Every row has a character; the second run gives the same ones without the network, and without its own keys."""
    make = command(*[kkiai(n, key=f"cat {n}") for n in range(190)], *map(kie, range(10)))

    first = cli(*make)
    made = rows(out)
    again = cli(*make, *NOWHERE)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stdout == ""
    assert "rows: 200\nsucceeded: 200\ncredits: 0.625\ntime: 0:00:" in first.stderr
    assert (len(made), states(out)) == (200, {"succeeded": 200})
    assert len({row["character"]["id"] for row in made.values()}) == 200
    assert (emulator.counts.creates, emulator.counts.characters) == (10, 190)
    assert rows(out) == made
    assert len(out.read_text().splitlines()) == 400


def test_a_row_tells_what_became_of_a_wish(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """All that is known of it."""
    assert cli(*command(kie(1, key="dog", name="Rex"))).returncode == 0
    (task_id,) = emulator.tasks
    (row,) = rows(out).values()
    character = row.pop("character")
    assert row == {"key": "dog", "status": "succeeded", "provider": "kie", "task_id": task_id, "credits": 0.0625}
    assert (character["name"], character["id"][:3]) == ("Rex", "ch_")


def test_a_table_through_pipes(pipe: Pipe, at: tuple[str, ...]) -> None:
    """CSV on stdin, rows on stdout, everything else on stderr; a row that repeats another is made once."""
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


def test_with_json_a_summary_ends_stdout(pipe: Pipe, at: tuple[str, ...]) -> None:
    """And stderr stays empty."""
    done = pipe(json.dumps(kie(1)).encode(), "batch", "-", "--output", "-", *at, "--json")
    row, last = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr, row["status"]) == (0, b"", "succeeded")
    assert last["summary"].pop("seconds") > 0
    zeros = dict.fromkeys(("failed", "rejected", "unknown", "running", "not_sent", "repeated"), 0)
    assert last == {"summary": {"rows": 1, "succeeded": 1, "credits": 0.0625} | zeros}


def test_bad_rows_are_told_before_anything_is_sent(
    cli: Cli, emulator: Emulator, at: tuple[str, ...], tmp_path: Path, out: Path
) -> None:
    """Each with its line and all that is wrong with it, whoever finds it: the reader, the provider, another row."""
    name = tmp_path / "wishes.jsonl"
    wishes = [
        kie(1, key="dog"),
        kie(2, clip="1,9"),
        {"clip": "1,3", "promt": ""},
        kie(3, key="dog"),
        kkiai(4, prompt="x"),
    ]
    name.write_text("\n\n".join(map(json.dumps, wishes)) + '\n{"from_task"')

    bad = cli("batch", str(name), "--output", str(out), *at)

    lines = bad.stderr.splitlines()
    assert bad.returncode == 2
    assert lines[0].startswith("line 3: clip must span 1 to 4 s")
    assert lines[1].startswith("line 5: 'promt': no such column")
    assert lines[1].endswith("; exactly one of from_task and video must be given, got neither")
    assert lines[2] == "line 7: key: dog stands for something else in line 1"
    assert lines[3].startswith("line 9: prompt must ")
    assert lines[4].startswith("line 10: no JSON: ")
    assert lines[5] == "Error: 5 rows are wrong. Nothing was sent."
    assert not emulator.request_counts
    assert not out.exists()


def test_the_first_of_many_bad_rows_stand_for_all(
    pipe: Pipe,
) -> None:
    """As JSON they are a list."""
    done = pipe(b"key,clip\n" + b'x,"1,3"\n' * 5000, "batch", "-", "--output", "-", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"], len(error["problems"])) == (2, "InvalidRequestError", 21)
    assert error["problems"][0] == "line 2: exactly one of from_task and video must be given, got neither"
    assert error["problems"][-1] == "and 4980 more"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.csv", "--output", "-"), "nowhere.csv cannot be read: No such file or directory."),
        ((".", "--output", "-"), ". cannot be read: Is a directory."),
        (("{file}", "--output", "{file}"), "this is FILE itself."),
        (("{file}", "--output", "/nowhere/out.jsonl"), "--output /nowhere/out.jsonl: No such file or directory."),
        (("{file}", "--output", "-", "--budget", "-1"), "budget must be a number of credits, at least 0, got -1.0"),
        (("{file}", "--output", "-", "--provider", "yunwu"), "YUNWU_API_KEY"),
    ],
)
def test_what_cannot_begin_ends_with_2(
    cli: Cli, emulator: Emulator, command: Command, arguments: tuple[str, ...], says: str
) -> None:
    """Nothing was sent, and no file was made."""
    _, name, *_, base, url, _, _ = command(kie(1))
    ended = cli("batch", *[argument.format(file=name) for argument in arguments], base, url)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert not emulator.request_counts


def test_no_rows_are_done_at_once(pipe: Pipe) -> None:
    """An empty file is no mistake."""
    done = pipe(b"", "batch", "-", "--output", "-")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"rows: 0\ntime: ")


def test_what_went_wrong_stays_with_its_row(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """One of each bad end, and no secret: a failed and an unknown one are never sent again, a refused one is."""
    emulator.fault("lost_response", on="create")
    emulator.fault("status", on="create", status=200, code=422, message="No cats")
    emulator.fault("fail_task", times=2)  # also that of the lost answer
    make = command(*map(kie, range(6)))

    first = cli(*make, "--concurrency", "1", "-v")

    assert first.returncode == 6
    lost, refused, failed = list(rows(out).values())[:3]
    assert lost["error"]["type"] == "SubmissionUnknownError"
    assert refused["error"] == {
        "type": "RequestRejectedError",
        "message": "kie.ai answered 422: No cats",
        "code": 422,
    }
    assert (failed["error"]["type"], failed["error"]["code"]) == ("TaskFailedError", "501")
    assert (failed["task_id"] in emulator.tasks, refused["task_id"], lost["task_id"]) == (True, None, None)
    assert states(out) == {"unknown": 1, "rejected": 1, "failed": 1, "succeeded": 3}
    assert "secret-" not in first.stderr + out.read_text()
    assert f"1 of unknown outcome: {lost['key']}\n" in first.stderr
    assert "sora-chars ledger resolve KEY --task-id ID | --never-sent | --give-up\n" in first.stderr

    creates = emulator.counts.creates
    again = cli(*make)
    assert (again.returncode, emulator.counts.creates) == (6, creates + 1)
    assert states(out) == {"unknown": 1, "failed": 1, "succeeded": 4}


def test_a_row_that_runs_longer_than_the_wait(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """It is told as running; once it has ended, the same command gives its character."""
    emulator.fault("stuck")
    make = command(kie(1))

    late = cli(*make, "--timeout", "0.5")

    assert late.returncode == 5
    (row,) = rows(out).values()
    assert (row["status"], row["error"]["type"]) == ("running", "WaitTimeoutError")
    assert late.stderr.endswith(AGAIN)
    emulator.finish(row["task_id"])
    assert cli(*make).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 1}, 1)


def test_a_budget_is_kept(cli: Cli, emulator: Emulator, command: Command, out: Path) -> None:
    """What is left is told, also the second time; more credits go on."""
    make = command(*map(kie, range(8)))

    poor = cli(*make, "--budget", "0.2", "--price", "0.0625")
    same = cli(*make, "--budget", "0.2", "--price", "0.0625")

    assert (poor.returncode, same.returncode, emulator.counts.creates) == (5, 5, 3)
    assert "succeeded: 3\nnot sent: 5\ncredits: 0.1875\n" in poor.stderr
    assert poor.stderr.endswith(f"The budget of 0.2 credits allows no more rows.\n{AGAIN}")
    assert cli(*make, "--budget", "0.5").returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 8}, 8)


@pytest.mark.parametrize(
    "refusal",
    [
        ("unauthorized", "kie.ai answered 401: You do not have access permissions. Check KIE_API_KEY."),
        ("credits", "kie.ai answered 402: Insufficient credits. Top up the kie.ai account."),
    ],
)
def test_a_refused_account_ends_a_batch(
    cli: Cli, emulator: Emulator, command: Command, out: Path, refusal: tuple[str, str]
) -> None:
    """At once: what was refused is told, the rest is not sent, and the same command goes on when that is mended."""
    kind, says = refusal
    make = command(*map(kie, range(20)))  # as many as kie's limit lets the second run send at once
    fault = emulator.fault(kind, on="create", times=None)

    first = cli(*make, "--concurrency", "5")

    refused = len(rows(out))
    assert (first.returncode, states(out), refused <= 5) == (5, {"rejected": refused}, True)
    assert sum(emulator.request_counts.values()) == refused
    assert f"rejected: {refused}\nnot sent: {20 - refused}\n" in first.stderr
    assert first.stderr.endswith(f"No more rows are sent. {says}\n{AGAIN}")
    fault.remove()
    assert cli(*make).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 20}, 20)


def test_a_budget_needs_a_price_where_nobody_tells_it(
    cli: Cli, emulator: Emulator, command: Command, out: Path
) -> None:
    """After the first row it is clear that kkiai does not."""
    poor = cli(*command(*map(kkiai, range(3))), "--budget", "5")
    assert (poor.returncode, emulator.counts.characters, states(out)) == (5, 1, {"succeeded": 1})
    assert f"give --price.\n{AGAIN}" in poor.stderr


def test_callbacks_wake_a_batch(cli: Cli, emulator: Emulator, command: Command, free_port: int) -> None:
    """Those of kie, also where other rows go to kkiai."""
    where = ("--callback-url", f"http://127.0.0.1:{free_port}", "--listen", f"127.0.0.1:{free_port}")
    done = cli(*command(kie(1), kkiai(2)), "--poll", "600", *where)
    assert done.returncode == 0, done.stderr
    assert emulator.counts.callbacks_accepted == 1


def test_whoever_reads_along_may_go(
    cli: Cli, start_cli: Start, emulator: Emulator, command: Command, out: Path
) -> None:
    """As `head` does: no traceback, and what was sent is on record."""
    make = command(*map(kie, range(10)))
    process = start_cli(*make, "--output", "-", "--concurrency", "1")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(30) == 1
    assert cli(*make).returncode == 0
    assert (states(out), emulator.counts.creates) == ({"succeeded": 10}, 10)


def test_two_runs_at_once_pay_once(start_cli: Start, emulator: Emulator, command: Command, out: Path) -> None:
    """Both end with all rows, and their lines do not mix."""
    make = command(*map(kie, range(12)))
    for process in [start_cli(*make), start_cli(*make)]:
        _, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
    assert (states(out), emulator.counts.creates) == ({"succeeded": 12}, 12)
    assert len(out.read_text().splitlines()) == 24
