"""`sora-chars worker`: real worker processes on Procrastinate, and what remains when they are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import psycopg
import pytest

from sora_chars import EntryState, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

KEYS = 40
JOBS = """
import asyncio, os, sys
from procrastinate import App, PsycopgConnector
from sora_chars import CharacterSession, Kie, Limits
from sora_chars.contrib.procrastinate import Characters
from sora_chars.ledger.stores import postgres

postgres.OWNER_GRACE = 1.0
URL = os.environ["DATABASE_URL"]


def make_session():
    return CharacterSession(Kie("key", base_url=os.environ["PROVIDER_URL"], limits=Limits(creates=(10, 1))), ledger=URL)


app = App(connector=PsycopgConnector(conninfo=URL))
characters = Characters(make_session, stalled_after=4.0)
app.add_tasks_from(characters.blueprint, namespace="sora_chars")


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
    async with characters:
        for number in range(int(sys.argv[1])):
            await characters.register(from_task="a" * 32, clip="1,3", prompt="a dog", key=f"k-{number}")


if __name__ == "__main__":
    from jobs import app, characters
    asyncio.run(main())
"""


@pytest.fixture
def shop(tmp_path: Path, emulator: Emulator, postgres_url: str, cli_environment: dict[str, str]) -> dict[str, str]:
    """Write the application, register its requests, and return its environment."""
    emulator.add_origin("a" * 32)
    (tmp_path / "jobs.py").write_text(JOBS)
    environment = cli_environment | {"DATABASE_URL": postgres_url, "PROVIDER_URL": emulator.url}
    subprocess.run([sys.executable, "jobs.py", str(KEYS)], cwd=tmp_path, env=environment, check=True)
    return environment


@contextmanager
def worker(
    script: str, folder: Path, environment: dict[str, str], log: IO[bytes] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Run a worker, and kill it at the end of the block if it still runs."""
    command = [script, "worker", "--app", "jobs:characters"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=log) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ended(url: str) -> int:
    """Count the requests that have ended or are unknown."""
    with psycopg.connect(url) as database:
        row = database.execute(
            "SELECT count(*) FROM sora_chars_entries WHERE state NOT IN ('pending', 'sending', 'running')"
        ).fetchone()
    assert row
    return int(row[0])


def wait_until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def states(url: str) -> dict[EntryState, int]:
    """Count the entries by their states."""
    async with open_ledger(url) as ledger:
        found = [entry.state async for entry in ledger.entries()]
    return {state: found.count(state) for state in found}


SYNC_SHOP = """
from procrastinate import App, SyncPsycopgConnector
from sora_chars import CharacterSession, Kie
from sora_chars.contrib.procrastinate import Characters

app = App(connector=SyncPsycopgConnector(conninfo="postgresql://127.0.0.1:1/shop"))
characters = Characters(lambda: CharacterSession(Kie("key")))
app.add_tasks_from(characters.blueprint, namespace="sora_chars")
"""


def test_a_killed_worker_loses_nothing(
    shop: dict[str, str], tmp_path: Path, script: str, emulator: Emulator, postgres_url: str
) -> None:
    """After a SIGKILL in the middle, every key has at most one task, and those that were not in flight succeed."""
    log = tmp_path / "worker.log"
    logging = shop | {"SORA_CHARS_LOG": "info"}
    with (
        worker(script, tmp_path, shop) as first,
        log.open("wb") as out,
        worker(script, tmp_path, logging, out) as second,
    ):
        wait_until(lambda: emulator.counts.creates >= 5)
        first.send_signal(signal.SIGKILL)
        wait_until(lambda: ended(postgres_url) == KEYS)
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0
    counts = asyncio.run(states(postgres_url))
    unknown = counts.get(EntryState.UNKNOWN, 0)
    assert counts[EntryState.SUCCEEDED] + unknown == KEYS
    assert unknown <= 20  # the jobs of one worker
    assert counts[EntryState.SUCCEEDED] <= emulator.counts.creates <= KEYS
    lines = log.read_text().splitlines()
    assert "INFO sora_chars.contrib: The worker runs jobs (queues=send, poll, concurrency=20)" in lines[0]
    assert "INFO sora_chars.contrib: The worker has stopped" in lines[-1]
    assert sum("A request has ended (key=k-" in line for line in lines) > 0
    assert sum("WARNING sora_chars.session: The outcome of a request is unknown" in line for line in lines) == unknown
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("jobs", "must be MODULE:NAME, got 'jobs'"),
        ("no_such_module:characters", "No module named 'no_such_module'"),
        ("os:nothing", "has no attribute 'nothing'"),
        ("os:path.sep", "must be a Characters, got str"),
        (".jobs:characters", "must be MODULE:NAME, got '.jobs:characters'"),
        ("broken_shop:characters", "the module raised KeyError: 'DATABASE'"),
        ("procrastinate.testing:InMemoryConnector", "must be a Characters, got the class InMemoryConnector"),
        ("sync_shop:app", "must be a Characters, got App"),
        ("sync_shop:characters", "the database of the Procrastinate app could not be used"),
    ],
)
def test_names_what_is_wrong_with_the_app(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """The error says what of MODULE:NAME is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_shop.py").write_text('{}["DATABASE"]\n')
    (tmp_path / "sync_shop.py").write_text(SYNC_SHOP)
    done = cli("worker", "--app", place)
    assert done.returncode == 2
    assert message in done.stderr
    assert os.sep not in done.stdout
