"""The ledger from the command line: repeated keys, `resume`, `ledger` and `characters`, as real processes."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.ledger import Entry, EntryState, Ledger, open_ledger

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Start = Callable[..., subprocess.Popen[str]]

ORIGIN = "0123456789abcdef0123456789abcdef"
FROM_TASK = ("--from-task", ORIGIN, "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")
NOWHERE = ("--base-url", "http://127.0.0.1:1")
CHOICE = "--task-id ID | --never-sent | --give-up"


@pytest.fixture
def at(emulator: Emulator) -> tuple[str, ...]:
    """Return the options that select the emulator."""
    return "--base-url", emulator.url


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return the path of the ledger in the user's data folder."""
    return tmp_path / "data" / "sora-chars" / "ledger.db"


@pytest.fixture
def keyless(cli: Cli, cli_environment: dict[str, str]) -> Cli:
    """Return a function that runs `sora-chars` without an API key."""
    for name in ("KIE_API_KEY", "KKIAI_API_KEY", "LAOZHANG_API_KEY"):
        del cli_environment[name]
    return cli


def read(ended: subprocess.CompletedProcess[str], status: int = 0) -> Any:
    """Return the JSON value on stdout of a command that ended with this status and an empty stderr."""
    assert (ended.returncode, ended.stderr) == (status, ""), ended.stdout
    return json.loads(ended.stdout)


def lines(ended: subprocess.CompletedProcess[str]) -> list[Any]:
    """Return the JSON lines on stdout."""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def record(path: Path, work: Callable[[Ledger], Awaitable[object]]) -> None:
    """Write to the ledger at `path`, as another program does."""

    async def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        async with open_ledger(path) as ledger:
            await work(ledger)

    asyncio.run(write())


async def start_sending(ledger: Ledger, key: str, *, provider: str = "kie", **fields: str) -> Entry:
    """Record an entry that is being sent."""
    request = {"from_task": ORIGIN, "clip": "1,3", "prompt": "A dog"} | fields
    return await ledger.transition(
        await ledger.register(key=key, provider=provider, kind="character", request=request), EntryState.SENDING
    )


def test_finished_key_needs_no_network(cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path) -> None:
    """The same create again prints the same object from the ledger, whose file is private."""
    made = read(cli("create", *at, *FROM_TASK, "--key", "dog", "--json"))

    assert read(cli("create", *NOWHERE, *FROM_TASK, "--key", "dog", "--json")) == made
    again = cli("create", *NOWHERE, *FROM_TASK, "--key", "dog")
    assert "kie: key dog is already recorded as succeeded" in again.stderr
    assert "read from the ledger" in again.stdout
    assert emulator.counts.creates == 1
    assert [stat.S_IMODE(path.stat().st_mode) for path in (own.parent, own)] == [0o700, 0o600]


def test_finished_key_of_a_synchronous_provider(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A character from a synchronous provider is recorded, too, and is not requested twice."""
    request = (
        "--provider",
        "kkiai",
        "--video",
        "https://example.com/dog.mp4",
        "--clip",
        "1,3",
        "--key",
        "dog",
        "--json",
    )
    made = read(cli("create", *at, *request))

    assert read(cli("create", *NOWHERE, *request)) == made
    assert emulator.counts.characters == 1


def test_unknown_outcome_is_not_sent_again(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The same key again ends with status 6; the error, `ledger show` and `wait` name the `resolve` command."""
    emulator.fault("lost_response", on="create")
    command = ("create", *at, *FROM_TASK, "--key", "lost 1", "--json")
    resolve = f"sora-chars ledger resolve 'lost 1' {CHOICE}"
    first = read(cli(*command), 6)["error"]
    seen = len(emulator.request_counts)
    again = read(cli(*command), 6)["error"]

    assert again == first
    assert again["hint"].endswith(resolve)
    assert cli("ledger", "show", "lost 1").stderr.endswith(f"{resolve}\n")
    waited = read(cli("wait", "lost 1", *at, "--json"), 2)["error"]
    assert waited["message"] == "Key lost 1 has no task to wait for: its state is unknown."
    assert waited["hint"].endswith(resolve)
    assert len(emulator.request_counts) == seen
    assert emulator.counts.creates == 1


def test_key_conflict(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A key of another request is rejected before anything is sent; a rejected request can be sent again."""
    emulator.fault("credits", on="create")
    rejected = cli("create", *at, *FROM_TASK, "--key", "dog", "--json")
    error = read(cli("create", *at, *FROM_TASK, "--name", "Cat", "--key", "dog", "--json"), 2)["error"]

    assert rejected.returncode == 3
    assert (error["type"], error["key"]) == ("KeyConflictError", "dog")
    assert emulator.counts.creates == 0
    shown = cli("ledger", "show", "dog")
    assert "state: rejected\nerror: 402 " in shown.stdout
    assert shown.stderr == "Nothing was paid. The same request with this key will be sent.\n"
    assert cli("wait", "dog", *at).returncode == 2
    assert cli("create", *at, *FROM_TASK, "--key", "dog").returncode == 0


def test_resume_after_sigkill(cli: Cli, start_cli: Start, at: tuple[str, ...], emulator: Emulator) -> None:
    """After SIGKILL `resume` waits for the task, which is created once, and saves its character."""
    emulator.fault("stuck")
    process = start_cli("create", *at, *FROM_TASK, "--key", "dog")
    asyncio.run(emulator.until(lambda: emulator.counts.polls))
    process.kill()
    process.wait()
    (task_id,) = emulator.tasks
    error = read(cli("create", *at, *FROM_TASK, "--key", "dog", "--timeout", "0.3", "--json"), 5)["error"]
    shown = cli("ledger", "show", "dog")
    emulator.finish(task_id)
    resumed = cli("resume", *at)

    assert error["task_id"] == task_id
    assert f"task: {task_id}\n" in shown.stdout
    assert shown.stderr == "Wait for it with: sora-chars wait dog\n"
    (saved,) = read(cli("characters", "--json"))["characters"]
    assert (resumed.returncode, resumed.stdout) == (0, f"ok    dog  {saved['character']['id']}\n")
    assert resumed.stderr == f"1 running\n0 running ({resumed.stderr.partition('(')[2]}"
    assert resumed.stderr.endswith("\n1 succeeded\n")
    assert list(emulator.tasks) == [task_id]
    assert emulator.counts.creates == 1


def test_resume_reports_every_task(cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path) -> None:
    """A failed task, a task of any model, an orphaned request and a task of another provider are all reported."""
    emulator.fault("stuck", times=2)
    quick = ("--timeout", "0.2", "--json")
    assert cli("create", *at, *FROM_TASK, "--key", "bad", *quick).returncode == 5
    assert cli("run", *at, "--model", "wan/2-7-image", "--key", "any", *quick).returncode == 5
    bad, other = emulator.tasks

    async def add_entries(ledger: Ledger) -> None:
        await start_sending(ledger, "killed")
        await ledger.transition(
            await start_sending(ledger, "foreign", provider="mine"), EntryState.RUNNING, task_id="t-1"
        )

    record(own, add_entries)
    emulator.fail(bad, message="no \x1b[31mdogs")
    first = cli("resume", *at, "--timeout", "0.5", "--json")
    emulator.finish(other)
    second = cli("resume", *at)

    failure, summary = lines(first)
    assert first.returncode == 6
    assert (failure["error"]["type"], failure["error"]["key"]) == ("TaskFailedError", "bad")
    others = {"running": 1, "unknown": ["killed"], "skipped": {"mine": 1}}
    assert summary == {"summary": {"succeeded": 0, "failed": 1} | others}
    assert second.returncode == 6
    assert second.stdout == "ok    any  wan/2-7-image: success\n"
    assert "\n1 succeeded\nSkipped: 1 running at mine\nOutcome unknown: 1 (killed)\n" in second.stderr
    assert second.stderr.endswith(f"sora-chars ledger resolve KEY {CHOICE}\n")
    assert read(cli("ledger", "resolve", "killed", "--give-up", "--json"))["entry"]["state"] == "failed"
    third = cli("resume", *at, "--json")
    assert (third.returncode, lines(third)[0]["summary"]["unknown"]) == (0, [])


def test_resume_ends_with_the_highest_status(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """The status is 4 if a task failed and 5 if one is running; the failure has no control characters."""
    emulator.fault("stuck", times=2)
    for key in ("slow", "bad"):
        assert cli("create", *at, *FROM_TASK, "--key", key, "--timeout", "0.2").returncode == 5
    slow, bad = emulator.tasks
    emulator.fail(bad, message="no \x1b[31mdogs")
    early = cli("resume", *at, "--timeout", "0.5")
    emulator.fail(slow)
    late = cli("resume", *at, "--json")

    assert early.returncode == 5
    assert early.stdout == f"FAIL  bad  Task {bad} failed at kie with code 501: no [31mdogs\n"
    assert early.stderr.endswith(
        f"\n1 failed, 1 still running\nContinue with: sora-chars resume --base-url {emulator.url}\n"
    )
    assert late.returncode == 4
    assert lines(late)[0]["error"]["task_id"] == slow


def test_interrupted_resume_suggests_a_command(
    cli: Cli, start_cli: Start, at: tuple[str, ...], emulator: Emulator, tmp_path: Path
) -> None:
    """After Ctrl-C the tasks keep running, and the suggested command names the same ledger."""
    emulator.fault("stuck")
    ledger = ("--ledger", str(tmp_path / "other.db"))
    assert cli("create", *at, *FROM_TASK, *ledger, "--key", "dog", "--timeout", "0.2").returncode == 5
    polls = emulator.counts.polls
    process = start_cli("resume", *at, *ledger, "--poll", "0.05", "--json")
    asyncio.run(emulator.until(lambda: emulator.counts.polls > polls))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)

    assert process.returncode == 130
    error = json.loads(out)["error"]
    assert error["message"] == "Interrupted. The tasks that have not ended keep running."
    assert error["hint"] == f"Continue with: sora-chars resume --base-url {emulator.url} --ledger {ledger[1]}"


def test_characters_are_listed_and_searched(keyless: Cli, own: Path) -> None:
    """`characters` needs no API key; it shows the newest first, and no control characters."""

    async def fill(ledger: Ledger) -> None:
        for number, name in enumerate(("Rex", "Bello\x1b[31m")):
            character = {"id": f"ch_{number}", "provider": "kie", "username": f"user.{number}", "name": name}
            result = {"task_id": f"t-{number}", "provider": "kie", "state": "success", "character": character}
            entry = await start_sending(ledger, f"dog-{number}", name=name)
            await ledger.transition(entry, EntryState.SUCCEEDED, task_id=f"t-{number}", result=result, credits=1.5)

    record(own, fill)
    found = read(keyless("characters", "--json"))["characters"]
    plain = keyless("characters", "rex")
    one = keyless("characters", "--limit", "1")
    none = keyless("characters", "cat")

    assert [saved["character"]["mention"] for saved in found] == ["@user.1", "@user.0"]
    rest = {"source": ORIGIN, "prompt": "A dog", "credits": 1.5, "clip": "1,3", "key": "dog-0", "task_id": None}
    assert found[1].items() >= rest.items()
    mention, key, *cells, _age, end = plain.stdout.rstrip("\n").split("\t")
    assert [mention, key, *cells, end] == ["@user.0", "dog-0", ORIGIN, "1,3", "kie", "1.5", ""]
    assert (one.stdout.count("\n"), one.stderr) == (1, "Showing the newest 1. For more, use --limit 2\n")
    assert (none.stdout, none.stderr) == ("", f"No characters in {own} match 'cat'\n")
    assert "\x1b" not in keyless("ledger", "ls").stdout
    assert "\x1b" not in keyless("ledger", "show", "dog-1").stdout


def test_entries_are_listed_shown_and_exported(keyless: Cli, own: Path, tmp_path: Path) -> None:
    """`ls` filters by text and state; `export` writes every entry, oldest first, to a private file."""

    async def fill(ledger: Ledger) -> None:
        await ledger.register(key="first", provider="kie", kind="task", request={"model": "wan/2-7-image", "input": {}})
        result = {"task_id": "t-2", "provider": "kie", "state": "success", "result": {"urls": []}}
        second = await ledger.register(key="second", provider="kie", kind="task", request={"model": "m", "input": {}})
        second = await ledger.transition(second, EntryState.SENDING)
        await ledger.transition(second, EntryState.SUCCEEDED, task_id="t-2", result=result)

    record(own, fill)
    entries = read(keyless("ledger", "ls", "--json"))["entries"]
    filtered = keyless("ledger", "ls", "WAN/", "--state", "pending", "--state", "unknown")
    file = tmp_path / "all.jsonl"
    written = keyless("ledger", "export", "--output", str(file))

    assert [entry["key"] for entry in entries] == ["second", "first"]
    assert filtered.stdout.split("\t")[:2] == ["first", "pending"]
    assert filtered.stdout.endswith("\tkie\t\twan/2-7-image\n")
    assert 'result: {"urls": []}\n' in keyless("ledger", "show", "second").stdout
    assert read(keyless("ledger", "show", "second", "--json")) == {"entry": entries[0]}
    assert written.stderr == f"2 entries written to {file}\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == entries[::-1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keyless("ledger", "export").stdout == file.read_text()
    again = keyless("ledger", "export", "--output", str(own))
    assert (again.returncode, again.stderr) == (2, f"Error: --output {own}: File exists.\n")
    missing = read(keyless("ledger", "show", "third", "--json"), 2)["error"]
    message = "key: the ledger has no entry 'third'."
    assert missing == {"type": "InvalidRequestError", "message": message, "key": "third"}


def test_resolve(cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path) -> None:
    """With a task id the task is waited for, and with `--never-sent` it is sent; a gateway has no tasks."""
    emulator.fault("lost_response", on="create")
    assert cli("create", *at, *FROM_TASK, "--key", "made").returncode == 6
    (task_id,) = emulator.tasks
    emulator.fault("reset", on="create")
    assert cli("create", *at, *FROM_TASK, "--key", "lost").returncode == 6

    async def add_entries(ledger: Ledger) -> None:
        await start_sending(ledger, "once", provider="laozhang")

    record(own, add_entries)
    made = cli("ledger", "resolve", "made", "--task-id", task_id, "--unchecked")
    lost = read(cli("ledger", "resolve", "lost", "--never-sent", "--json"))["entry"]
    gateway = read(cli("ledger", "resolve", "once", "--task-id", "x", "--json"), 2)["error"]
    unclear = read(cli("ledger", "resolve", "once", "--json"), 2)["error"]
    resolved = read(cli("ledger", "resolve", "made", "--never-sent", "--json"), 2)["error"]

    assert "state: running\n" in made.stdout
    assert made.stderr == "Wait for it with: sora-chars wait made\n"
    assert lost["state"] == "pending"
    assert gateway["message"] == "--task-id: laozhang has no tasks."
    assert "--give-up" in gateway["hint"]
    assert unclear["type"] == "UsageError"
    assert resolved["message"] == "key: made is running, so there is nothing to resolve."
    assert read(cli("wait", "made", *at, "--json"))["task_id"] == task_id
    assert read(cli("ledger", "show", "made", "--json"))["entry"]["state"] == "succeeded"
    assert read(cli("create", *at, *FROM_TASK, "--key", "lost", "--json"))["character"]["id"]
    assert "--never-sent | --give-up" in cli("resume", *at).stderr
    show = cli("ledger", "show", "once")
    assert show.stderr.endswith("sora-chars ledger resolve once --never-sent | --give-up\n")


@pytest.mark.parametrize(
    "command",
    [("characters",), ("ledger", "ls"), ("ledger", "show", "k"), ("ledger", "export"), ("resume",)],
    ids=lambda command: command[-1],
)
def test_reading_creates_no_ledger(cli: Cli, own: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A command that only reads reports that no ledger exists, and creates no file or folder."""
    ended = cli(*command)
    other = cli(*command, "--ledger", f"sqlite:///{tmp_path / 'other.db'}")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Error: No ledger exists at {own}.\n")
    assert other.stderr.startswith(f"Error: No ledger exists at {tmp_path / 'other.db'}.\n")
    assert not own.parent.exists()
    assert not (tmp_path / "other.db").exists()


def test_nothing_is_sent_without_a_ledger(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    """A ledger that cannot be opened or created ends the command with status 2 and the location."""
    path = tmp_path / "nowhere" / "ledger.db"
    absent = read(cli("create", *at, *FROM_TASK, "--ledger", str(path), "--json"), 2)["error"]
    (tmp_path / "data").write_text("in the way")
    blocked = read(cli("create", *at, *FROM_TASK, "--json"), 2)["error"]
    cli_environment["SORA_CHARS_LEDGER"] = "mysql://me:secret@db/chars"
    foreign = cli("create", *at, *FROM_TASK, "--json")

    assert absent["type"] == "LedgerError"
    assert absent["hint"] == f"The ledger is {path}; --ledger selects another one, which knows no key of this one."
    assert blocked["message"].endswith("cannot be created: Not a directory.")
    assert json.loads(foreign.stdout)["error"]["type"] == "ConfigurationError"
    assert "secret" not in foreign.stdout + foreign.stderr
    assert emulator.counts.creates == 0


def test_password_is_not_shown(cli: Cli, cli_environment: dict[str, str]) -> None:
    """The URL of an unreachable database is shown without its password."""
    url = "postgresql://me:secret@127.0.0.1:1/chars"
    typed = cli("ledger", "ls", "--ledger", url)
    cli_environment["SORA_CHARS_LEDGER"] = url
    named = cli("create", *NOWHERE, *FROM_TASK, "-v")

    for ended in (typed, named):
        assert ended.returncode == 2
        assert (
            "The ledger is postgresql://...; --ledger selects another one, which knows no key of this one."
            in ended.stderr
        )
        assert "secret" not in ended.stdout + ended.stderr
