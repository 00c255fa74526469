"""A PostgreSQL ledger behind PgBouncer, and the settings of its connections."""

from __future__ import annotations

import asyncio
import getpass
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from sora_chars import EntryState, LedgerError, open_ledger
from sora_chars.ledger.stores.postgres import PostgresStore
from tests.conftest import USER, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@pytest.fixture
def pooler(
    postgres: PostgresServer, postgres_url: str, free_port: int, tmp_path: Path
) -> Iterator[Callable[[str], str]]:
    """Start PgBouncer in a pool mode, and return the URL of the test database through it."""
    del postgres_url  # the database exists
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    program = PGBOUNCER
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> str:
        settings = postgres.folder / f"pgbouncer-{mode}.ini"
        settings.write_text(
            f"[databases]\n* = host={postgres.folder} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {free_port}\nauth_type = any\nunix_socket_dir =\npool_mode = {mode}\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        settings.chmod(0o644)
        command: list[str | Path] = [program, *(["-u", USER] if USER else []), settings]
        with (tmp_path / "pgbouncer.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        url = f"postgresql://{getpass.getuser()}@127.0.0.1:{free_port}/test"
        while started[-1].poll() is None:
            try:
                psycopg.connect(url, connect_timeout=2).close()
            except psycopg.OperationalError:
                continue
            return url
        pytest.fail((tmp_path / "pgbouncer.log").read_text())

    yield start
    for process in started:
        process.terminate()
        process.wait()


async def test_transaction_pooler_is_rejected(pooler: Callable[[str], str]) -> None:
    """Behind a pooler in transaction mode a ledger does not open, and creates no tables."""
    url = await asyncio.to_thread(pooler, "transaction")
    for _ in range(3):
        with pytest.raises(LedgerError, match="pooler in transaction mode") as caught:
            await open_ledger(url).open()
        assert "session mode" in str(caught.value)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("SELECT to_regclass('sora_chars_entries')")).fetchone()
    assert row == (None,)


async def test_session_pooler_is_accepted(pooler: Callable[[str], str]) -> None:
    """Behind a pooler in session mode a ledger works, and one process sees that another lives."""
    url = await asyncio.to_thread(pooler, "session")
    async with open_ledger(url) as first, open_ledger(url) as second:
        entry = await first.register(key="k-1", provider="kie", kind="character", request={})
        sending = await first.transition(entry, EntryState.SENDING)
        assert await second.get("k-1") == sending
        assert sending.owner is not None
        assert not await second.is_dead(sending.owner)


async def test_commits_are_synchronous(postgres: PostgresServer, postgres_url: str) -> None:
    """A database whose default loses confirmed commits in a crash is used with synchronous commits."""
    await asyncio.to_thread(postgres.sql, "ALTER DATABASE test SET synchronous_commit = off")
    store = PostgresStore(postgres_url, lock_timeout=7.0)
    async with open_ledger(postgres_url):
        pass
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await store._configure(connection)
        names = ("synchronous_commit", "lock_timeout", "statement_timeout")
        values = [await (await connection.execute(f"SHOW {name}".encode())).fetchone() for name in names]
    assert values == [("on",), ("7s",), ("22s",)]


async def test_stronger_commits_are_kept(postgres: PostgresServer, postgres_url: str) -> None:
    """A database that waits for its replicas keeps waiting for them."""
    await asyncio.to_thread(postgres.sql, "ALTER DATABASE test SET synchronous_commit = remote_apply")
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await PostgresStore(postgres_url)._configure(connection)
        row = await (await connection.execute("SHOW synchronous_commit")).fetchone()
    assert row == ("remote_apply",)
