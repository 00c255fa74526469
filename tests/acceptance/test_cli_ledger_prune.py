"""`sora-chars ledger prune`, and facts of the user's own in an export."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, EntryState, Kie, open_ledger

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

DAY = 86_400.0


async def record(path: Path, age: float) -> None:
    """Record a failed and a pending request of an age in seconds."""
    async with open_ledger(path, clock=lambda: time.time() - age) as ledger:
        async with CharacterSession(Kie(api_key="key"), ledger=ledger) as session:
            request: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
            await session.register(key=f"pending {age:g}", meta={"order": 17, "tenant": "zoo"}, **request)
            entry = await session.register(key=f"failed {age:g}", **request)
        entry = await ledger.transition(entry, EntryState.SENDING)
        await ledger.transition(entry, EntryState.FAILED, task_id=f"task {age:g}", result={"task_id": "t"})


def test_old_entries_are_removed(cli: Cli, tmp_path: Path) -> None:
    """Finished entries older than the age are removed; the rest stays."""
    path = tmp_path / "ledger.db"
    for age in (100 * DAY, 50 * DAY, 0.0):
        asyncio.run(record(path, age))
    at = ("--ledger", str(path), "--json")
    dry_run = cli("ledger", "prune", "--older-than", "6w", "--dry-run", *at)
    assert json.loads(dry_run.stdout) == {"would_remove": 2}
    assert json.loads(cli("ledger", "prune", "--older-than", "90d", *at).stdout) == {"removed": 1}
    assert json.loads(cli("ledger", "prune", "--older-than", "6w", *at).stdout) == {"removed": 1}
    assert json.loads(cli("ledger", "prune", "--older-than", "24h", *at).stdout) == {"removed": 0}
    left = json.loads(cli("ledger", "ls", *at).stdout)["entries"]
    assert sorted(entry["state"] for entry in left) == ["failed", "pending", "pending", "pending"]


@pytest.mark.parametrize("age", ["90", "d", "-1d", "1y", ""])
def test_an_age_has_a_unit(cli: Cli, tmp_path: Path, age: str) -> None:
    """Any other age is an error of usage, before the ledger is opened."""
    ended = cli("ledger", "prune", f"--older-than={age}", "--ledger", str(tmp_path / "ledger.db"))
    assert ended.returncode == 2
    assert "such as 12h, 90d or 8w" in ended.stderr


def test_own_facts_survive_an_export(cli: Cli, tmp_path: Path) -> None:
    """The facts that were registered with a request are exported, imported and found."""
    path = tmp_path / "ledger.db"
    asyncio.run(record(path, 0.0))
    file = tmp_path / "all.jsonl"
    file.write_text(cli("ledger", "export", "--ledger", str(path)).stdout.splitlines()[0] + "\n")
    other = ("--ledger", str(tmp_path / "other.db"), "--json")
    assert json.loads(cli("ledger", "import", str(file), *other).stdout)["import"]["inserted"] == 1
    (entry,) = json.loads(cli("ledger", "ls", "ZOO", *other).stdout)["entries"]
    assert entry["meta"] == {"order": 17, "tenant": "zoo"}
    broken = json.loads(file.read_text()) | {"key": "other", "meta": ["no object"]}
    file.write_text(json.dumps(broken))
    assert "meta must be a JSON object" in cli("ledger", "import", str(file), *other).stdout
