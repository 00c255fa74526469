"""The SQLite ledger under faults: every fault raises a readable error, and is over when its cause is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import resource
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

import pytest

from sora_chars import EntryState, Ledger, LedgerError, open_ledger
from sora_chars.ledger.stores import sqlite
from sora_chars.ledger.stores import sqlite_statements as statements
from sora_chars.ledger.stores.sqlite import SqliteStore
from sora_chars.ledger.stores.sqlite_changes import changes
from tests.support.log_events import events
from tests.support.sqlite_ledger import connect, register, run_in

if TYPE_CHECKING:
    from collections.abc import Generator

NOBODY = 65534


def no_pragma(action: int, *_: str | None) -> int:
    """Deny a connection the statement that shows commits of other connections."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_PRAGMA else sqlite3.SQLITE_OK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger that does not exist yet."""
    return tmp_path / "characters.db"


@contextmanager
def no_superuser(*files: Path) -> Generator[None]:
    """Run as a user whom file modes bind and who owns `files`. Imports may fail inside."""
    if os.geteuid() != 0:
        yield
        return
    for file in files:
        os.chown(file, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def full_disk(size: int) -> Generator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_files_have_mode_0600(path: Path) -> None:
    """The file and the files beside it have mode 0600; closing removes the files beside it."""
    async with open_ledger(path) as ledger:
        await register(ledger)
        files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        beside = ("", "-wal", "-shm", f"-{ledger.owner}.lock")
        assert files == {f"characters.db{ending}": 0o600 for ending in beside}
    assert [file.name for file in path.parent.iterdir()] == ["characters.db"]


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
async def test_rejects_writes_to_a_missing_file(path: Path, how: str) -> None:
    """While the opened file is not at its path, writes raise and make no new file."""
    aside = path.with_name("aside")
    async with open_ledger(path) as ledger:
        pending = await register(ledger)
        path.rename(aside)
        if how == "deleted":
            aside.unlink()
        if how == "replaced":
            path.touch()
        for _ in range(2):
            with pytest.raises(
                LedgerError, match=r"is no longer the file that was opened\. Put that file back"
            ) as caught:
                await ledger.transition(pending, EntryState.SENDING)
            assert caught.value.charged == "maybe"  # what it held is not known any more
            assert path.exists() == (how == "replaced")
        if how == "moved":
            aside.rename(path)
            await ledger.transition(pending, EntryState.SENDING)
            assert await ledger.get("k-1") != pending


async def test_writes_wait_for_a_lock(path: Path) -> None:
    """Writes wait while another process has locked the file; reads do not."""
    async with open_ledger(path) as ledger:
        await register(ledger)
        with connect(path) as other:
            other.execute("BEGIN IMMEDIATE")
            waits = asyncio.create_task(register(ledger, "k-2"))
            assert await ledger.get("k-1") is not None
            assert not waits.done()
            other.execute("COMMIT")
            assert (await waits).key == "k-2"


async def test_lock_timeout(path: Path) -> None:
    """After the lock timeout every waiting write raises its own error; the next one works once the lock is free."""
    async with Ledger(SqliteStore(path, lock_timeout=0.05)) as ledger:
        with connect(path) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(register(ledger), register(ledger, "k-2"), return_exceptions=True)
            for outcome in outcomes:
                assert isinstance(outcome, LedgerError)
                assert "another process has locked it" in str(outcome)
                assert isinstance(outcome.__cause__, sqlite3.OperationalError)
            assert outcomes[0] is not outcomes[1]
            other.execute("COMMIT")
        assert await ledger.get("k-1") is None
        assert (await register(ledger)).version == 1


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_lock_timeout_while_opening(path: Path, lock: str) -> None:
    """A locked file cannot be opened after the lock timeout, and can be once it is free."""
    with connect(path) as other:
        other.execute(f"BEGIN {lock}")
        with pytest.raises(LedgerError, match="another process has locked it"):
            await Ledger(SqliteStore(path, lock_timeout=0.05)).open()
        other.execute("COMMIT")
    async with open_ledger(path) as ledger:
        await register(ledger)


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_opening_waits_for_a_lock(path: Path, lock: str) -> None:
    """Opening waits while another process creates the same file."""
    ledger = open_ledger(path)
    with connect(path) as other:
        other.execute(f"BEGIN {lock}")
        opening = asyncio.create_task(ledger.open())
        done, _ = await asyncio.wait((opening,), timeout=0.1)
        assert not done
        other.execute("COMMIT")
        await opening
    await ledger.aclose()


async def test_closing_waits_for_writes(path: Path) -> None:
    """Writes that wait for a lock when the ledger is closed succeed, and closing waits for them."""
    ledger = open_ledger(path)
    await ledger.open()
    with connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = [asyncio.create_task(register(ledger, "k-0"))]
        await asyncio.wait(waits, timeout=0.05)  # the writer has started on this one and gets the others together
        waits += [asyncio.create_task(register(ledger, f"k-{number}")) for number in (1, 2)]
        closing_ = asyncio.create_task(ledger.aclose())
        done, _ = await asyncio.wait((*waits, closing_), timeout=0.1)
        assert not done
        other.execute("COMMIT")
        await closing_
    assert [wait.result().version for wait in waits] == [1] * 3


async def test_concurrent_liveness_checks(path: Path) -> None:
    """A process that checks a lock file is not taken for its owner by another that checks it."""
    async with open_ledger(path) as ledger:
        dead = path.with_name(f"{path.name}-dead.lock")
        with closing(sqlite3.connect(dead)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM sqlite_master")
            assert await ledger.is_dead("dead")
        assert not dead.exists()


async def test_full_disk(path: Path) -> None:
    """On a full disk a group is rolled back and every caller gets an error; with space again writes succeed."""
    async with open_ledger(path) as ledger:
        first = await register(ledger)
        with full_disk(100_000):
            outcomes = await asyncio.gather(
                register(ledger, "k-2"),
                register(ledger, "k-3", size=300_000),
                register(ledger, "k-4"),
                return_exceptions=True,
            )
        assert all(isinstance(outcome, LedgerError) for outcome in outcomes)
        assert "could not be used: the disk" in str(outcomes[0])
        assert [entry async for entry in ledger.entries()] == [first]
        await asyncio.gather(register(ledger, "k-2"), register(ledger, "k-3", size=300_000))
        assert [entry.key async for entry in ledger.entries()] == ["k-1", "k-2", "k-3"]


async def test_errors_keep_no_connection_open(path: Path) -> None:
    """References to old errors keep no file open: closing still removes the files beside the database."""
    async with open_ledger(path) as ledger:
        first = await register(ledger)
        assert await ledger.get("k-1") == first
        with full_disk(100_000):
            outcomes = [
                await asyncio.gather(register(ledger, "k-2", size=300_000), return_exceptions=True) for _ in range(3)
            ]
        await register(ledger, "k-3")
    assert [type(outcome) for [outcome] in outcomes] == [LedgerError] * 3
    assert [file.name for file in path.parent.iterdir()] == ["characters.db"]


async def test_read_only_file() -> None:
    """A read-only file cannot be opened until it is writable again."""
    with TemporaryDirectory() as folder:  # pytest's own folders are accessible to its user only
        path = Path(folder) / "characters.db"
        async with open_ledger(path) as ledger:
            await register(ledger)
        with no_superuser(path.parent, path):
            path.chmod(0o400)
            with pytest.raises(LedgerError, match="it is read-only"):
                await open_ledger(path).open()
            path.chmod(0o600)
            async with open_ledger(path) as ledger:
                assert (await register(ledger)).version == 1


async def test_rejects_another_kind_of_file(path: Path) -> None:
    """Opening a file that is not a database raises and does not change it."""
    path.write_text("my diary" * 500)
    with pytest.raises(LedgerError, match="the file is not an SQLite database"):
        await open_ledger(path).open()
    assert path.read_text() == "my diary" * 500


async def test_damaged_file(path: Path) -> None:
    """Reading a damaged page raises an error that names the damage."""
    async with open_ledger(path) as ledger:
        for number in range(100):
            await register(ledger, f"k-{number}", size=500)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="the file is damaged"):
            await ledger.get("k-50")


async def test_rejects_a_newer_schema(path: Path) -> None:
    """Opening a file of a newer schema version raises and does not change it."""
    with connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99, but this package supports"):
        await open_ledger(path).open()
    with connect(path) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_upgrades_an_older_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening runs the missing upgrade scripts once and keeps the entries; if one fails, none takes effect."""
    async with open_ledger(path) as ledger:
        first = await register(ledger)
    scripts = (*statements.UPGRADES, "CREATE TABLE more (a); INSERT INTO more VALUES (1)")
    monkeypatch.setattr(statements, "UPGRADES", (*scripts, "CREATE TABLE last (a); NONSENSE"))
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(path).open()
    monkeypatch.setattr(statements, "UPGRADES", scripts)
    for _ in range(2):
        async with open_ledger(path) as ledger:
            assert await ledger.get("k-1") == first
    with connect(path) as other:
        assert other.execute("SELECT a FROM more").fetchall() == [(1,)]
        assert other.execute("PRAGMA user_version").fetchone() == (len(scripts),)


async def test_lock_file_fault(path: Path) -> None:
    """If the lock file's name is too long, opening raises, and so does a liveness check."""
    with pytest.raises(LedgerError, match="name too long"):
        await open_ledger(path.with_name("x" * 240)).open()
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="name too long"):
            await ledger.is_dead("h" * 300)


async def test_followers_survive_a_fault(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After changes could not be read, a follower of all keys still sees another process's change."""

    def broken(cursor: sqlite3.Cursor, lasts: object) -> NoReturn:
        cursor.execute("SELECT nothing")
        raise AssertionError(lasts)

    monkeypatch.setattr(sqlite, "changes", broken)
    seen = asyncio.Event()
    async with (
        Ledger(SqliteStore(path, poll_interval=0.001)) as ledger,
        open_ledger(path) as other,
        asyncio.timeout(30),
    ):
        unfollow = ledger.notifier.follow(lambda *_: seen.set())
        while "ledger.poll_failed" not in events(caplog.records):  # noqa: ASYNC110 # a log line is no event
            await asyncio.sleep(0.001)
        monkeypatch.setattr(sqlite, "changes", changes)
        keys = itertools.count()
        while not seen.is_set():  # the first changes are those that later ones are compared with
            pending = await register(other, f"new-{next(keys)}")
            await other.transition(pending, EntryState.SENDING)
        unfollow()


async def test_polling_survives_a_fault(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a failed poll, a waiter is still woken by another process's change."""
    store = SqliteStore(path, poll_interval=0.001)
    async with Ledger(store) as ledger, open_ledger(path) as other, asyncio.timeout(30):
        pending = await register(ledger)
        with ledger.notifier.waiting(pending.key) as woken:
            with suppress(LedgerError):  # a poll in the same group fails with it
                await run_in(store._reader, lambda cursor: cursor.connection.set_authorizer(no_pragma))
            while "ledger.poll_failed" not in events(caplog.records):  # noqa: ASYNC110 # a log line is no event
                await asyncio.sleep(0.001)
            await woken.wait()  # a new waiter is woken once, for changes before it
            woken.clear()
            await other.transition(pending, EntryState.SENDING)
            await woken.wait()
    assert {record.levelno for record in caplog.records if record.name == "sora_chars.ledger"} == {logging.WARNING}


async def test_a_slow_poll_delays_no_notice(path: Path) -> None:
    """After a poll that waited long for the file, the next change of another process is noticed within seconds."""
    store = SqliteStore(path)
    async with Ledger(store) as ledger, open_ledger(path) as other:
        pending = await register(ledger)
        with ledger.notifier.waiting(pending.key) as woken:
            await woken.wait()  # a new waiter is woken once, for changes before it
            woken.clear()
            await run_in(store._reader, lambda _: time.sleep(0.7))  # a poll waits behind it
            await other.transition(pending, EntryState.SENDING)
            async with asyncio.timeout(5):
                await woken.wait()


async def test_cancelled_opening(path: Path) -> None:
    """Cancelling an opening that waits for a lock ends its thread; the ledger can be opened afterwards."""
    ledger = open_ledger(path)
    with connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        opening = asyncio.create_task(ledger.open())
        await asyncio.sleep(0.02)
        opening.cancel()
        other.execute("COMMIT")
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with ledger:
        await register(ledger)


def test_loop_closed_before_the_ledger(path: Path) -> None:
    """A thread whose event loop was closed runs its remaining jobs and ends with a warning only."""
    earlier = threading.enumerate()
    ledger = open_ledger(path)
    runner = asyncio.Runner()
    runner.run(ledger.open())
    store = ledger._store
    assert isinstance(store, SqliteStore)
    with connect(path) as other, pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031 # in any of these
        other.execute("BEGIN IMMEDIATE")
        runner.get_loop().call_soon(run_in, store._writer, lambda cursor: cursor.execute("DELETE FROM entries"))
        runner.run(asyncio.sleep(0))
        runner.close()
        other.execute("COMMIT")
        for thread in set(threading.enumerate()) - set(earlier):
            thread.join(10)
            assert not thread.is_alive()
