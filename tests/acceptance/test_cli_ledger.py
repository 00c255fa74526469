"""What the command line records, gives again, recovers and lets people settle, as real processes."""

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
    """The options that lead to the emulator."""
    return "--base-url", emulator.url


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The ledger in the user's data folder."""
    return tmp_path / "data" / "sora-chars" / "ledger.db"


@pytest.fixture
def keyless(cli: Cli, cli_environment: dict[str, str]) -> Cli:
    """A function that runs `sora-chars` without the keys of any provider."""
    for name in ("KIE_API_KEY", "KKIAI_API_KEY", "LAOZHANG_API_KEY"):
        del cli_environment[name]
    return cli


def read(ended: subprocess.CompletedProcess[str], status: int = 0) -> Any:
    """The one JSON value on stdout of a command that ended with this status and said nothing else."""
    assert (ended.returncode, ended.stderr) == (status, ""), ended.stdout
    return json.loads(ended.stdout)


def lines(ended: subprocess.CompletedProcess[str]) -> list[Any]:
    """The JSON lines on stdout."""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def record(path: Path, work: Callable[[Ledger], Awaitable[object]]) -> None:
    """Write into the ledger at `path` as some other program would."""

    async def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        async with open_ledger(path) as ledger:
            await work(ledger)

    asyncio.run(write())


async def ask(ledger: Ledger, key: str, *, provider: str = "kie", **fields: str) -> Entry:
    """An entry that is being sent."""
    request = {"from_task": ORIGIN, "clip": "1,3", "prompt": "A dog"} | fields
    return await ledger.transition(
        await ledger.register(key=key, provider=provider, kind="character", request=request), EntryState.SENDING
    )


def test_a_finished_key_is_answered_without_the_network(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path
) -> None:
    """The same create again gives the same object from the ledger, which only its owner may read."""
    made = read(cli("create", *at, *FROM_TASK, "--key", "dog", "--json"))

    assert read(cli("create", *NOWHERE, *FROM_TASK, "--key", "dog", "--json")) == made
    told = cli("create", *NOWHERE, *FROM_TASK, "--key", "dog")
    assert "kie: key dog was asked before, succeeded" in told.stderr
    assert "from the ledger" in told.stdout
    assert emulator.counts.creates == 1
    assert [stat.S_IMODE(path.stat().st_mode) for path in (own.parent, own)] == [0o700, 0o600]


def test_a_synchronous_provider_is_not_asked_twice_either(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """A character that one answer brought is on record like any other."""
    wish = ("--provider", "kkiai", "--video", "https://example.com/dog.mp4", "--clip", "1,3", "--key", "dog", "--json")
    made = read(cli("create", *at, *wish))

    assert read(cli("create", *NOWHERE, *wish)) == made
    assert emulator.counts.characters == 1


def test_an_unknown_outcome_asked_again_ends_with_6_and_sends_nothing(
    cli: Cli, at: tuple[str, ...], emulator: Emulator
) -> None:
    """The error says how to settle it; so does `ledger show`, and `wait` has no task to wait for."""
    emulator.fault("lost_response", on="create")
    wish = ("create", *at, *FROM_TASK, "--key", "lost 1", "--json")
    settle = f"sora-chars ledger resolve 'lost 1' {CHOICE}"
    first = read(cli(*wish), 6)["error"]
    seen = len(emulator.request_counts)
    again = read(cli(*wish), 6)["error"]

    assert again == first
    assert again["hint"].endswith(settle)
    assert cli("ledger", "show", "lost 1").stderr.endswith(f"{settle}\n")
    waited = read(cli("wait", "lost 1", *at, "--json"), 2)["error"]
    assert waited["message"] == "Key lost 1 is unknown: it has no task to wait for."
    assert waited["hint"].endswith(settle)
    assert len(emulator.request_counts) == seen
    assert emulator.counts.creates == 1


def test_a_key_names_one_wish(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Asked for something else it is refused before anything is sent."""
    emulator.fault("credits", on="create")
    refused = cli("create", *at, *FROM_TASK, "--key", "dog", "--json")
    error = read(cli("create", *at, *FROM_TASK, "--name", "Cat", "--key", "dog", "--json"), 2)["error"]

    assert refused.returncode == 3
    assert (error["type"], error["key"]) == ("KeyConflictError", "dog")
    assert emulator.counts.creates == 0
    shown = cli("ledger", "show", "dog")
    assert "state: rejected\nwhy: 402 " in shown.stdout
    assert shown.stderr == "Nothing was paid. Asked again under this key, it is sent.\n"
    assert cli("wait", "dog", *at).returncode == 2
    assert cli("create", *at, *FROM_TASK, "--key", "dog").returncode == 0


def test_a_create_that_was_killed_is_resumed(
    cli: Cli, start_cli: Start, at: tuple[str, ...], emulator: Emulator
) -> None:
    """After SIGKILL `resume` finds the task by itself: there is one on the server, and its character is saved."""
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
    assert (resumed.returncode, resumed.stdout) == (0, f"ok   dog  {saved['character']['id']}\n")
    assert resumed.stderr == f"1 running\n0 running ({resumed.stderr.partition('(')[2]}"
    assert resumed.stderr.endswith("\n1 ended well\n")
    assert list(emulator.tasks) == [task_id]
    assert emulator.counts.creates == 1


def test_resume_tells_of_each_as_it_ends_and_of_what_is_left(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path
) -> None:
    """One that failed, one of any model, one whose sender died, one of another provider: all are told."""
    emulator.fault("stuck", times=2)
    quick = ("--timeout", "0.2", "--json")
    assert cli("create", *at, *FROM_TASK, "--key", "bad", *quick).returncode == 5
    assert cli("run", *at, "--model", "wan/2-7-image", "--key", "any", *quick).returncode == 5
    bad, other = emulator.tasks

    async def interfere(ledger: Ledger) -> None:
        await ask(ledger, "killed")
        await ledger.transition(await ask(ledger, "foreign", provider="mine"), EntryState.RUNNING, task_id="t-1")

    record(own, interfere)
    emulator.fail(bad, message="no \x1b[31mdogs")
    first = cli("resume", *at, "--timeout", "0.5", "--json")
    emulator.finish(other)
    second = cli("resume", *at)

    failure, summary = lines(first)
    assert first.returncode == 6
    assert (failure["error"]["type"], failure["error"]["key"]) == ("TaskFailedError", "bad")
    left = {"running": 1, "unknown": ["killed"], "left_alone": {"mine": 1}}
    assert summary == {"summary": {"succeeded": 0, "failed": 1} | left}
    assert second.returncode == 6
    assert second.stdout == "ok   any  wan/2-7-image: success\n"
    assert "\n1 ended well\nLeft alone: 1 running at mine\n1 of unknown outcome: killed\n" in second.stderr
    assert second.stderr.endswith(f"sora-chars ledger resolve KEY {CHOICE}\n")
    assert read(cli("ledger", "resolve", "killed", "--give-up", "--json"))["entry"]["state"] == "failed"
    third = cli("resume", *at, "--json")
    assert (third.returncode, lines(third)[0]["summary"]["unknown"]) == (0, [])


def test_resume_ends_with_what_was_worst(cli: Cli, at: tuple[str, ...], emulator: Emulator) -> None:
    """Status 4 when one failed, 5 when one still runs, and then how to go on; the failure's text is harmless."""
    emulator.fault("stuck", times=2)
    for key in ("slow", "bad"):
        assert cli("create", *at, *FROM_TASK, "--key", key, "--timeout", "0.2").returncode == 5
    slow, bad = emulator.tasks
    emulator.fail(bad, message="no \x1b[31mdogs")
    early = cli("resume", *at, "--timeout", "0.5")
    emulator.fail(slow)
    late = cli("resume", *at, "--json")

    assert early.returncode == 5
    assert early.stdout == f"BAD  bad  Task {bad} failed at kie with code 501: no [31mdogs\n"
    assert early.stderr.endswith(
        f"\n1 ended badly, 1 still running\nGo on with: sora-chars resume --base-url {emulator.url}\n"
    )
    assert late.returncode == 4
    assert lines(late)[0]["error"]["task_id"] == slow


def test_an_interrupted_resume_says_how_to_go_on(
    cli: Cli, start_cli: Start, at: tuple[str, ...], emulator: Emulator, tmp_path: Path
) -> None:
    """Ctrl-C leaves the tasks alone, and the command that goes on names the same ledger."""
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
    assert error["message"] == "Interrupted. No task is disturbed by that."
    assert error["hint"] == f"Go on with: sora-chars resume --base-url {emulator.url} --ledger {ledger[1]}"


def test_the_library_is_listed_and_searched_without_a_key(keyless: Cli, own: Path) -> None:
    """`characters` shows the newest first with what each was made from; foreign text cannot act on the terminal."""

    async def fill(ledger: Ledger) -> None:
        for number, name in enumerate(("Rex", "Bello\x1b[31m")):
            character = {"id": f"ch_{number}", "provider": "kie", "username": f"user.{number}", "name": name}
            result = {"task_id": f"t-{number}", "provider": "kie", "state": "success", "character": character}
            entry = await ask(ledger, f"dog-{number}", name=name)
            await ledger.transition(entry, EntryState.SUCCEEDED, task_id=f"t-{number}", result=result, credits=1.5)

    record(own, fill)
    found = read(keyless("characters", "--json"))["characters"]
    plain = keyless("characters", "rex")
    one = keyless("characters", "--limit", "1")
    none = keyless("characters", "cat")

    assert [saved["character"]["mention"] for saved in found] == ["@user.1", "@user.0"]
    rest = {"source": ORIGIN, "prompt": "A dog", "credits": 1.5, "clip": "1,3", "key": "dog-0", "task_id": None}
    assert found[1].items() >= rest.items()
    mention, key, *cells, _age = plain.stdout.rstrip("\n").split("\t")
    assert [mention, key, *cells] == ["@user.0", "dog-0", ORIGIN, "1,3", "kie", "1.5"]
    assert (one.stdout.count("\n"), one.stderr) == (1, "The newest 1. There are more: --limit 2\n")
    assert (none.stdout, none.stderr) == ("", f"No character in {own}\n")
    assert "\x1b" not in keyless("ledger", "ls").stdout
    assert "\x1b" not in keyless("ledger", "show", "dog-1").stdout


def test_entries_are_listed_shown_and_exported_without_a_key(keyless: Cli, own: Path, tmp_path: Path) -> None:
    """`ls` filters by word and state; `export` writes every entry whole, oldest first, for its owner's eyes only."""

    async def fill(ledger: Ledger) -> None:
        await ledger.register(key="first", provider="kie", kind="task", request={"model": "wan/2-7-image", "input": {}})
        result = {"task_id": "t-2", "provider": "kie", "state": "success", "result": {"urls": []}}
        second = await ledger.register(key="second", provider="kie", kind="task", request={"model": "m", "input": {}})
        second = await ledger.transition(second, EntryState.SENDING)
        await ledger.transition(second, EntryState.SUCCEEDED, task_id="t-2", result=result)

    record(own, fill)
    entries = read(keyless("ledger", "ls", "--json"))["entries"]
    asked = keyless("ledger", "ls", "WAN/", "--state", "pending", "--state", "unknown")
    file = tmp_path / "all.jsonl"
    written = keyless("ledger", "export", "--output", str(file))

    assert [entry["key"] for entry in entries] == ["second", "first"]
    assert asked.stdout.split("\t")[:2] == ["first", "pending"]
    assert asked.stdout.endswith("\tkie\t\twan/2-7-image\n")
    assert 'result: {"urls": []}\n' in keyless("ledger", "show", "second").stdout
    assert read(keyless("ledger", "show", "second", "--json")) == {"entry": entries[0]}
    assert written.stderr == f"2 entries in {file}\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == entries[::-1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keyless("ledger", "export").stdout == file.read_text()
    again = keyless("ledger", "export", "--output", str(own))
    assert (again.returncode, again.stderr) == (2, f"Error: --output {own}: File exists.\n")
    missing = read(keyless("ledger", "show", "third", "--json"), 2)["error"]
    assert missing == {"type": "InvalidRequestError", "message": "key: the ledger has no entry 'third'."}


def test_a_person_settles_what_is_unknown(cli: Cli, at: tuple[str, ...], emulator: Emulator, own: Path) -> None:
    """With the task's id it is waited for, as never sent it is sent; a gateway has no tasks to name."""
    emulator.fault("lost_response", on="create")
    assert cli("create", *at, *FROM_TASK, "--key", "made").returncode == 6
    (task_id,) = emulator.tasks
    emulator.fault("reset", on="create")
    assert cli("create", *at, *FROM_TASK, "--key", "lost").returncode == 6

    async def interfere(ledger: Ledger) -> None:
        await ask(ledger, "once", provider="laozhang")

    record(own, interfere)
    made = cli("ledger", "resolve", "made", "--task-id", task_id)
    lost = read(cli("ledger", "resolve", "lost", "--never-sent", "--json"))["entry"]
    gateway = read(cli("ledger", "resolve", "once", "--task-id", "x", "--json"), 2)["error"]
    unclear = read(cli("ledger", "resolve", "once", "--json"), 2)["error"]
    settled = read(cli("ledger", "resolve", "made", "--never-sent", "--json"), 2)["error"]

    assert "state: running\n" in made.stdout
    assert made.stderr == "Wait for it with: sora-chars wait made\n"
    assert lost["state"] == "pending"
    assert gateway["message"] == "--task-id: laozhang has no tasks."
    assert "--give-up" in gateway["hint"]
    assert unclear["type"] == "UsageError"
    assert settled["message"] == "key: made is running, so there is nothing to resolve."
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
def test_looking_makes_no_ledger(cli: Cli, own: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Where there is none, that is said, and nothing is left behind."""
    ended = cli(*command)
    other = cli(*command, "--ledger", f"sqlite:///{tmp_path / 'other.db'}")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Error: There is no ledger at {own} yet.\n")
    assert other.stderr.startswith(f"Error: There is no ledger at {tmp_path / 'other.db'} yet.\n")
    assert not own.parent.exists()
    assert not (tmp_path / "other.db").exists()


def test_nothing_is_sent_that_cannot_be_recorded(
    cli: Cli, at: tuple[str, ...], emulator: Emulator, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    """A ledger that cannot be opened, or whose folder cannot be made, ends with status 2 and its place."""
    place = tmp_path / "nowhere" / "ledger.db"
    absent = read(cli("create", *at, *FROM_TASK, "--ledger", str(place), "--json"), 2)["error"]
    (tmp_path / "data").write_text("in the way")
    blocked = read(cli("create", *at, *FROM_TASK, "--json"), 2)["error"]
    cli_environment["SORA_CHARS_LEDGER"] = "mysql://me:secret@db/chars"
    foreign = cli("create", *at, *FROM_TASK, "--json")

    assert absent["type"] == "LedgerError"
    assert absent["hint"] == f"The ledger is {place}; --ledger names another."
    assert blocked["message"].endswith("cannot be made: Not a directory.")
    assert json.loads(foreign.stdout)["error"]["type"] == "ConfigurationError"
    assert "secret" not in foreign.stdout + foreign.stderr
    assert emulator.counts.creates == 0


def test_no_password_is_shown(cli: Cli, cli_environment: dict[str, str]) -> None:
    """A database that is out of reach is named without its URL, given by option or by environment."""
    url = "postgresql://me:secret@127.0.0.1:1/chars"
    typed = cli("ledger", "ls", "--ledger", url)
    cli_environment["SORA_CHARS_LEDGER"] = url
    named = cli("create", *NOWHERE, *FROM_TASK, "-v")

    for ended in (typed, named):
        assert ended.returncode == 2
        assert "The ledger is postgresql://...; --ledger names another." in ended.stderr
        assert "secret" not in ended.stdout + ended.stderr
