"""The SQLite ledger under faults: each is said in words, and over when its cause is."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import Entry, EntryState, Ledger, LedgerError, StaleEntryError, open_ledger
from sora_chars.ledger.stores import sqlite_statements as statements
from sora_chars.ledger.stores.sqlite import SqliteStore
from sora_chars.ledger.stores.sqlite_thread import CommitThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

NOBODY = 65534


def ask(ledger: Ledger, key: str = "k-1", size: int = 1) -> Coroutine[Any, Any, Entry]:
    """Ask for something of so many characters."""
    return ledger.register(key=key, provider="kie", kind="character", request={"prompt": "x" * size})


def run(worker: CommitThread, job: Callable[[sqlite3.Cursor], object]) -> asyncio.Future[object]:
    """Run something on a worker's connection, in its thread."""
    return worker.call(lambda cursor, _: [job(cursor)], None)


def raw(path: Path) -> closing[sqlite3.Connection]:
    """Open the file as another program would."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=0))


def no_pragma(action: int, *_: str | None) -> int:
    """Let a connection do all but ask for what other processes did."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_PRAGMA else sqlite3.SQLITE_OK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a place for a ledger."""
    return tmp_path / "characters.db"


@contextmanager
def no_superuser(*files: Path) -> Generator[None]:
    """Be somebody whom file modes bind, and who owns `files`. What Python imports meanwhile it may fail to read."""
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
    """Let no file grow over `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_every_file_is_for_its_owner_only(path: Path) -> None:
    """The file and all those beside it are of mode 0600, and those beside it go when it is closed."""
    async with open_ledger(path) as ledger:
        await ask(ledger)
        files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        beside = ("", "-wal", "-shm", f"-{ledger.owner}.lock")
        assert files == {f"characters.db{ending}": 0o600 for ending in beside}
    assert [file.name for file in path.parent.iterdir()] == ["characters.db"]


async def test_a_commit_survives_power_loss(path: Path) -> None:
    """The writer's connection syncs every commit of the write-ahead log."""
    async with open_ledger(path) as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        journal = await run(store._writer, lambda cursor: cursor.execute("PRAGMA journal_mode").fetchone())
        synchronous = await run(store._writer, lambda cursor: cursor.execute("PRAGMA synchronous").fetchone())
        assert (journal, synchronous) == (("wal",), (2,))


async def traced(ledger: Ledger) -> list[str]:
    """What SQLite's writer runs from now on."""
    store = ledger._store
    assert isinstance(store, SqliteStore)
    seen: list[str] = []
    await run(store._writer, lambda cursor: cursor.connection.set_trace_callback(seen.append))
    return seen


async def test_writes_that_wait_together_share_a_commit(path: Path) -> None:
    """A thousand writes at once take a few transactions and statements, not a thousand."""
    async with open_ledger(path) as ledger:
        seen = await traced(ledger)
        await asyncio.gather(*(ask(ledger, f"k-{number}") for number in range(1000)))
        assert seen.count("COMMIT") < 50
        assert sum(statement.startswith("INSERT") for statement in seen) < 100
        assert len([entry async for entry in ledger.entries()]) == 1000


async def test_one_statement_is_a_commit_by_itself(path: Path) -> None:
    """Where a group needs one statement, nothing begins or ends a transaction around it."""
    async with open_ledger(path) as ledger:
        seen = await traced(ledger)
        await asyncio.gather(*(running(ledger, f"k-{number}") for number in range(16)))
        assert [statement.split()[0] for statement in seen] == ["INSERT", "UPDATE", "UPDATE"]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each group has, of all workers."""
    sizes: list[int] = []
    answers = CommitThread._run_jobs

    def counted(self: CommitThread, jobs: Any) -> list[Any]:
        sizes.append(len(jobs))
        return answers(self, jobs)

    monkeypatch.setattr(CommitThread, "_run_jobs", counted)
    return sizes


async def running(ledger: Ledger, key: str) -> Entry:
    """Ask for something that runs at once."""
    sending = await ledger.transition(await ask(ledger, key), EntryState.SENDING)
    return await ledger.transition(sending, EntryState.RUNNING, task_id=f"t-{key}")


async def test_ends_go_with_what_is_in_a_hurry(path: Path, groups: list[int]) -> None:
    """Ends wait for others to be written with: for any other record, or until they are enough."""
    async with Ledger(SqliteStore(path, spacing=3600)) as ledger:
        entries = [await running(ledger, f"k-{number}") for number in range(33)]
        groups.clear()
        ended = asyncio.gather(*(ledger.transition(entry, EntryState.SUCCEEDED) for entry in entries[:30]))
        for _ in range(10):
            await ledger.get("k-0")
        assert groups == [1] * 10  # nothing but these
        await ask(ledger, "k-hurry")
        assert groups[10:] == [31]
        assert {entry.state for entry in await ended} == {EntryState.SUCCEEDED}
        many = [await running(ledger, f"m-{number}") for number in range(32)]
        groups.clear()
        await asyncio.gather(*(ledger.transition(entry, EntryState.FAILED) for entry in many))
        assert groups == [32]
        last = asyncio.gather(*(ledger.transition(entry, EntryState.FAILED) for entry in entries[30:]))
        await asyncio.sleep(0)
    assert groups == [32, 3]  # closing loses none
    assert {entry.state for entry in await last} == {EntryState.FAILED}


@pytest.mark.parametrize(("count", "rows"), [(12, 16), (40, 16), (40, 1)])
async def test_each_of_many_moves_at_once_learns_its_own_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int, rows: int
) -> None:
    """Of many moves in one group, those that came too late say so, those of lost entries too, and all others are made.

    All in one statement, in several, and one by one, as an old SQLite needs it.
    """
    monkeypatch.setattr(statements, "ROWS_PER_STATEMENT", rows)
    async with open_ledger(path) as ledger:
        entries = [await running(ledger, f"k-{number}") for number in range(count)]
        with raw(path) as other:
            other.execute("DELETE FROM entries WHERE key = 'k-7'")
        ahead = await ledger.transition(entries[3], EntryState.FAILED, error={"message": "first"})
        twice = [(entries[9], EntryState.SUCCEEDED, [1]), (entries[9], EntryState.SUCCEEDED, [2])]
        moves = [*((entry, EntryState.SUCCEEDED, [entry.key]) for entry in entries if entry is not entries[9]), *twice]
        ends = await asyncio.gather(
            *(ledger.transition(entry, to, result=result) for entry, to, result in moves), return_exceptions=True
        )
        for (entry, _, result), end in zip(moves[:-2], ends[:-2], strict=True):
            if entry is entries[3]:
                assert isinstance(end, StaleEntryError)
                assert end.entry == ahead
            elif entry is entries[7]:
                assert isinstance(end, LedgerError)
                assert "no longer has the entry of key k-7" in str(end)
            else:
                assert isinstance(end, Entry)
                assert end == await ledger.get(entry.key)
                assert end.result == result
        assert {type(end) for end in ends[-2:]} == {Entry, StaleEntryError}


async def test_what_one_turn_of_the_loop_asks_is_one_group(path: Path, groups: list[int]) -> None:
    """The thread does not begin with the first of many, even where it could."""
    async with open_ledger(path) as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        groups.clear()
        asked: list[asyncio.Future[object]] = []
        for _ in range(3):
            asked.append(run(store._writer, lambda _: None))
            time.sleep(0.01)  # noqa: ASYNC251 # other threads may run meanwhile, and the loop may not
        await asyncio.gather(*asked)
    assert groups == [3]


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
async def test_nothing_is_written_to_a_file_that_is_not_there_any_more(path: Path, how: str) -> None:
    """What nobody would find later is an error, for as long as the file is not in its place, and makes no new file."""
    aside = path.with_name("aside")
    async with open_ledger(path) as ledger:
        asked = await ask(ledger)
        path.rename(aside)
        if how == "deleted":
            aside.unlink()
        if how == "replaced":
            path.touch()
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"is no longer the file that was opened\. Put that file back"):
                await ledger.transition(asked, EntryState.SENDING)
            assert path.exists() == (how == "replaced")
        if how == "moved":
            aside.rename(path)
            await ledger.transition(asked, EntryState.SENDING)
            assert await ledger.get("k-1") != asked


async def test_a_lock_of_another_process_is_waited_for(path: Path) -> None:
    """LedgerWriter wait while another process locks the file; reads do not."""
    async with open_ledger(path) as ledger:
        await ask(ledger)
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            waits = asyncio.create_task(ask(ledger, "k-2"))
            assert await ledger.get("k-1") is not None
            assert not waits.done()
            other.execute("COMMIT")
            assert (await waits).key == "k-2"


async def test_a_lock_that_stays_is_said(path: Path) -> None:
    """When patience ends, every write that waited fails and says so, and the next works once the lock is free."""
    async with Ledger(SqliteStore(path, lock_timeout=0.05)) as ledger:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            ends = await asyncio.gather(ask(ledger), ask(ledger, "k-2"), return_exceptions=True)
            for end in ends:
                assert isinstance(end, LedgerError)
                assert "another process has locked it" in str(end)
                assert isinstance(end.__cause__, sqlite3.OperationalError)
            assert ends[0] is not ends[1]
            other.execute("COMMIT")
        assert await ledger.get("k-1") is None
        assert (await ask(ledger)).version == 1


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_lock_while_opening_is_said(path: Path, lock: str) -> None:
    """A file that another process keeps for itself cannot be opened, and can be once it is free."""
    with raw(path) as other:
        other.execute(f"BEGIN {lock}")
        with pytest.raises(LedgerError, match="another process has locked it"):
            await Ledger(SqliteStore(path, lock_timeout=0.05)).open()
        other.execute("COMMIT")
    async with open_ledger(path) as ledger:
        await ask(ledger)


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_lock_while_opening_is_waited_for(path: Path, lock: str) -> None:
    """Opening waits while another process makes the same new file."""
    ledger = open_ledger(path)
    with raw(path) as other:
        other.execute(f"BEGIN {lock}")
        opening = asyncio.create_task(ledger.open())
        done, _ = await asyncio.wait((opening,), timeout=0.1)
        assert not done
        other.execute("COMMIT")
        await opening
    await ledger.aclose()


async def test_closing_finishes_what_waits(path: Path) -> None:
    """LedgerWriter that wait for a lock when the ledger is closed are kept, and closing waits for them."""
    ledger = open_ledger(path)
    await ledger.open()
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = [asyncio.create_task(ask(ledger, "k-0"))]
        await asyncio.wait(waits, timeout=0.05)  # the writer has begun with this one, and finds the others together
        waits += [asyncio.create_task(ask(ledger, f"k-{number}")) for number in (1, 2)]
        closing_ = asyncio.create_task(ledger.aclose())
        done, _ = await asyncio.wait((*waits, closing_), timeout=0.1)
        assert not done
        other.execute("COMMIT")
        await closing_
    assert [wait.result().version for wait in waits] == [1] * 3


async def test_two_may_look_for_a_holder_at_once(path: Path) -> None:
    """Whoever looks whether a owner is gone is not taken for the owner by another who looks."""
    async with open_ledger(path) as ledger:
        dead = path.with_name(f"{path.name}-dead.lock")
        with dead.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            assert await ledger.is_dead("dead")
        assert not dead.exists()


async def test_a_full_disk_is_said(path: Path) -> None:
    """On a full disk nothing of a group is kept and each caller is told; with room again it goes on."""
    async with open_ledger(path) as ledger:
        first = await ask(ledger)
        with full_disk(100_000):
            ends = await asyncio.gather(
                ask(ledger, "k-2"), ask(ledger, "k-3", size=300_000), ask(ledger, "k-4"), return_exceptions=True
            )
        assert all(isinstance(end, LedgerError) for end in ends)
        assert "could not be used: the disk" in str(ends[0])
        assert [entry async for entry in ledger.entries()] == [first]
        await asyncio.gather(ask(ledger, "k-2"), ask(ledger, "k-3", size=300_000))
        assert [entry.key async for entry in ledger.entries()] == ["k-1", "k-2", "k-3"]


async def test_an_error_that_is_kept_keeps_no_connection(path: Path) -> None:
    """Whoever holds the errors of a fault holds no file open: nothing is left beside the database after closing."""
    async with open_ledger(path) as ledger:
        first = await ask(ledger)
        assert await ledger.get("k-1") == first
        with full_disk(100_000):
            ends = [await asyncio.gather(ask(ledger, "k-2", size=300_000), return_exceptions=True) for _ in range(3)]
        await ask(ledger, "k-3")
    assert [type(end) for [end] in ends] == [LedgerError] * 3
    assert [file.name for file in path.parent.iterdir()] == ["characters.db"]


async def test_a_read_only_file_is_said() -> None:
    """A file that may not be written cannot be opened, and can be once it may."""
    with TemporaryDirectory() as folder:  # pytest's own are for its user only, and made so again by every other run
        path = Path(folder) / "characters.db"
        async with open_ledger(path) as ledger:
            await ask(ledger)
        with no_superuser(path.parent, path):
            path.chmod(0o400)
            with pytest.raises(LedgerError, match="it is read-only"):
                await open_ledger(path).open()
            path.chmod(0o600)
            async with open_ledger(path) as ledger:
                assert (await ask(ledger)).version == 1


async def test_a_file_of_another_kind_is_said(path: Path) -> None:
    """A file that is no database is left as it is."""
    path.write_text("my diary" * 500)
    with pytest.raises(LedgerError, match="the file is not an SQLite database"):
        await open_ledger(path).open()
    assert path.read_text() == "my diary" * 500


async def test_a_damaged_file_is_said(path: Path) -> None:
    """Reading a damaged page is an error in words."""
    async with open_ledger(path) as ledger:
        for number in range(100):
            await ask(ledger, f"k-{number}", size=500)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="the file is damaged"):
            await ledger.get("k-50")


async def test_a_newer_file_is_left_alone(path: Path) -> None:
    """A file of a later version of this package is refused and not touched."""
    with raw(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99, but this package supports"):
        await open_ledger(path).open()
    with raw(path) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_an_older_file_is_upgraded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an earlier version gets the steps it lacks, once, and keeps its entries; a step that fails, none."""
    async with open_ledger(path) as ledger:
        first = await ask(ledger)
    steps = (*statements.UPGRADES, "CREATE TABLE more (a); INSERT INTO more VALUES (1)")
    monkeypatch.setattr(statements, "UPGRADES", (*steps, "CREATE TABLE last (a); NONSENSE"))
    with pytest.raises(LedgerError, match="NONSENSE"):
        await open_ledger(path).open()
    monkeypatch.setattr(statements, "UPGRADES", steps)
    for _ in range(2):
        async with open_ledger(path) as ledger:
            assert await ledger.get("k-1") == first
    with raw(path) as other:
        assert other.execute("SELECT a FROM more").fetchall() == [(1,)]
        assert other.execute("PRAGMA user_version").fetchone() == (3,)


async def test_a_lock_file_that_cannot_be_made_is_said(path: Path) -> None:
    """Where the database fits and the lock file beside it does not, opening fails; asking for a owner too."""
    with pytest.raises(LedgerError, match="name too long"):
        await open_ledger(path.with_name("x" * 240)).open()
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="name too long"):
            await ledger.is_dead("h" * 300)


async def test_a_wait_outlives_a_fault(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits for another process's move is woken by it, also when looking failed meanwhile."""
    store = SqliteStore(path, poll_interval=0.001)
    async with Ledger(store) as ledger, open_ledger(path) as other, asyncio.timeout(30):
        asked = await ask(ledger)
        with ledger._notifier.waiting(asked.key) as woken:
            with suppress(LedgerError):  # a look in the same group fails with it
                await run(store._reader, lambda cursor: cursor.connection.set_authorizer(no_pragma))
            while "ledger.poll_failed" not in caplog.messages:  # noqa: ASYNC110 # a log line is no event
                await asyncio.sleep(0.001)
            await woken.wait()  # whoever is new is woken once, for what happened before
            woken.clear()
            await other.transition(asked, EntryState.SENDING)
            await woken.wait()
    assert {record.levelno for record in caplog.records if record.name == "sora_chars.ledger"} == {logging.WARNING}


async def test_waiting_costs_no_look_up_while_nobody_writes(path: Path) -> None:
    """While nothing is committed, a look asks only whether anything was."""
    store = SqliteStore(path, poll_interval=0.001)
    async with Ledger(store) as ledger:
        asked = await ask(ledger)
        looks: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(statement: str) -> None:
            loop.call_soon_threadsafe(looks.put_nowait, statement)

        await run(store._reader, lambda cursor: cursor.connection.set_trace_callback(tell))
        waits = asyncio.create_task(ledger.changed(asked, timeout=30))
        seen = [await looks.get() for _ in range(60)]
        assert sum("json_each" in statement for statement in seen) == 1
        assert seen.count("PRAGMA data_version") > 10
        moved = await ledger.transition(asked, EntryState.SENDING)
        assert await waits == moved


async def test_a_cancelled_opening_leaves_no_thread(path: Path) -> None:
    """Opening given up while the file is locked ends its thread, and it can be opened afterwards."""
    ledger = open_ledger(path)
    with raw(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        opening = asyncio.create_task(ledger.open())
        await asyncio.sleep(0.02)
        opening.cancel()
        other.execute("COMMIT")
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with ledger:
        await ask(ledger)


def test_a_loop_that_ended_first_ends_the_thread_quietly(path: Path) -> None:
    """A ledger that nobody closed keeps no thread that complains, and what it was given is kept."""
    ledger = open_ledger(path)
    runner = asyncio.Runner()
    runner.run(ledger.open())
    store = ledger._store
    assert isinstance(store, SqliteStore)
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        runner.get_loop().call_soon(run, store._writer, lambda cursor: cursor.execute("DELETE FROM entries"))
        runner.run(asyncio.sleep(0))
        runner.close()
        other.execute("COMMIT")
    for worker in (store._writer, store._reader):
        worker._groups.put([])
        worker.join(10)
        assert not worker.is_alive()
    store._lock.release()
