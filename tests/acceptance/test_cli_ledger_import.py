"""`sora-chars ledger import`: an export is read back, from a file and from stdin."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

FROM_TASK = ("--from-task", "0123456789abcdef0123456789abcdef", "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")


def counts_of(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """Return the counts of an import that ended with this status."""
    assert ended.returncode == status, ended.stderr
    counts: dict[str, Any] = json.loads(ended.stdout)["import"]
    return counts


def test_export_is_read_back(
    cli: Cli, emulator: Emulator, tmp_path: Path, script: str, cli_environment: dict[str, str]
) -> None:
    """A new ledger gets every entry as it was; a key that is recorded is never paid again, nor changed."""
    at = ("--base-url", emulator.url)
    for key in ("dog", "cat"):
        assert cli("create", *at, *FROM_TASK, "--key", key).returncode == 0
    text = cli("ledger", "export").stdout
    file = tmp_path / "all.jsonl"
    file.write_text(text)
    other = ("--ledger", str(tmp_path / "other.db"))

    first = counts_of(cli("ledger", "import", str(file), *other, "--json"), 0)
    piped = subprocess.run(
        [script, "ledger", "import", "-", *other, "--json"],
        input=text,
        env=cli_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    again = cli("create", *at, *FROM_TASK, "--key", "dog", *other)

    assert first == {"inserted": 2, "skipped": 0, "different": 0}
    assert counts_of(piped, 0) == {"inserted": 0, "skipped": 2, "different": 0}
    assert cli("ledger", "export", *other).stdout == text
    assert (again.returncode, emulator.counts.creates) == (0, 2)
    changed = [entry | {"version": 99} for entry in map(json.loads, text.splitlines())]
    file.write_text("\n".join(map(json.dumps, changed)))
    differs = cli("ledger", "import", str(file), *other)
    assert differs.returncode == 1
    assert "key dog differs, and was kept: recorded as succeeded" in differs.stderr
    assert "inserted: 0\nskipped: 0\ndifferent: 2\n" in differs.stdout


def test_broken_lines_write_nothing(cli: Cli, tmp_path: Path) -> None:
    """Every broken line is named with its number, and the ledger is not even created."""
    file = tmp_path / "all.jsonl"
    file.write_text("{}\n" * 22)
    other = tmp_path / "other.db"
    many = cli("ledger", "import", str(file), "--ledger", str(other))
    file.write_text("\n7\n")
    one = cli("ledger", "import", str(file), "--ledger", str(other), "--json")
    absent = cli("ledger", "import", str(tmp_path / "nowhere"), "--ledger", str(other))

    assert many.returncode == 2
    assert many.stderr.startswith("line 1: key is missing\nline 2: key is missing\n")
    assert many.stderr.endswith("and 2 more\nError: 22 lines are broken. Nothing was written.\n")
    error = json.loads(one.stdout)["error"]
    assert error["message"] == "1 line is broken. Nothing was written."
    assert error["problems"] == ["line 2: the line must be a JSON object"]
    assert "nowhere cannot be read: No such file or directory." in absent.stderr
    assert not other.exists()


def test_earlier_attempts_are_read_back(cli: Cli, emulator: Emulator, tmp_path: Path) -> None:
    """An export has every attempt of a key with its task, and an import restores them."""
    create = ("create", "--base-url", emulator.url, *FROM_TASK, "--key", "dog")
    emulator.fault("fail_task", on="create", times=1)
    assert cli(*create).returncode == 4
    assert cli(*create, "--retry").returncode == 0
    file = tmp_path / "all.jsonl"
    assert cli("ledger", "export", "--output", str(file)).returncode == 0
    other = ("--ledger", str(tmp_path / "other.db"))
    assert counts_of(cli("ledger", "import", str(file), *other, "--json"), 0)["inserted"] == 1

    [attempt] = json.loads(file.read_text())["attempts"]
    assert (attempt["task_id"], attempt["state"]) == (next(iter(emulator.tasks)), "failed")
    assert cli("ledger", "export", *other).stdout == file.read_text()


def test_an_unreadable_entry_is_left_out(cli: Cli, emulator: Emulator, tmp_path: Path) -> None:
    """An export names the entry that another program has broken, and has all others."""
    path = tmp_path / "mine.db"
    at = ("--base-url", emulator.url, "--ledger", str(path))
    for key in ("dog", "cat", "rex"):
        assert cli("create", *at, *FROM_TASK, "--key", key).returncode == 0
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE entries SET request_json = '{' WHERE key = 'cat'")
        database.commit()
    ended = cli("ledger", "export", "--ledger", str(path))
    assert [json.loads(line)["key"] for line in ended.stdout.splitlines()] == ["dog", "rex"]
    file = tmp_path / "all.jsonl"
    ended = cli("ledger", "export", "--ledger", str(path), "--output", str(file))
    assert (ended.returncode, len(file.read_text().splitlines())) == (1, 2)
    assert "2 entries written" in ended.stderr
    assert "left out: The ledger's entry of key cat cannot be read" in " ".join(ended.stderr.split())
