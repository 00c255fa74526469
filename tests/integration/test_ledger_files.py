"""Files of an SQLite ledger that are removed, replaced or overwritten while processes use it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from sora_chars import Attempt, Entry, EntryState, Ledger, LedgerError, StaleEntryError, open_ledger
from sora_chars.ledger.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MISSING = "so records may be missing. Stop every process"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a new ledger."""
    return tmp_path / "characters.db"


async def register(ledger: Ledger, key: str = "k-1") -> Entry:
    """Register a request."""
    return await ledger.register(key=key, provider="kie", kind="character", request={})


async def running(ledger: Ledger, key: str = "k-1") -> Entry:
    """Register a request and take its entry to running."""
    sending = await ledger.transition(await register(ledger, key), EntryState.SENDING, token_digest=f"d-{key}")
    return await ledger.transition(sending, EntryState.RUNNING, task_id=f"t-{key}")


def copy(path: Path, to: Path) -> None:
    """Copy a ledger that is in use."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(to),))


def checkpoint(path: Path) -> None:
    """Write the log of a ledger into its file, as any process may at any time, and empty it."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


def link_file(path: Path) -> Path:
    """Make another name for the file of a ledger."""
    link = path.with_name("other.db")
    link.symlink_to(path.name)
    return link


def link_folder(path: Path) -> Path:
    """Make another name for the folder of a ledger."""
    link = path.parent.with_name(f"{path.parent.name}-link")
    link.symlink_to(path.parent)
    return link / path.name


@pytest.mark.parametrize("make_link", [link_file, link_folder])
async def test_symbolic_links(path: Path, make_link: Callable[[Path], Path]) -> None:
    """A process that opened the ledger by another name is alive for one that did not, and the other way round."""
    async with open_ledger(path) as ledger, open_ledger(make_link(path)) as other:
        assert not await other.is_dead(ledger.owner)
        assert not await ledger.is_dead(other.owner)
        assert await ledger.get((await register(other)).key)


async def test_loop_of_symbolic_links(path: Path) -> None:
    """A link to itself cannot be opened."""
    path.symlink_to(path)
    with pytest.raises(LedgerError, match="could not be used"):
        await open_ledger(path).open()


@pytest.mark.parametrize("endings", [("-wal",), ("-shm",), ("-wal", "-shm")])
async def test_removed_log(path: Path, endings: tuple[str, ...]) -> None:
    """After a file beside the ledger's was removed, nothing is sent until the ledger is opened again."""
    async with open_ledger(path) as ledger:
        pending = await register(ledger)
        for ending in endings:
            path.with_name(path.name + ending).unlink()
        with suppress(LedgerError):  # SQLite itself may notice that one of them is missing
            async with open_ledger(path) as other:
                await register(other, "k-2")
        for _ in range(2):
            with pytest.raises(LedgerError, match=MISSING):
                await ledger.transition(pending, EntryState.SENDING)
    async with ledger:
        await running(ledger, "k-3")


async def test_overwritten_by_an_older_copy(path: Path) -> None:
    """After an older copy was written over the file, nothing is sent."""
    older = path.with_name("older.db")
    async with open_ledger(path) as ledger:
        await running(ledger, "k-0")
        copy(path, older)
        for number in range(1, 50):
            await running(ledger, f"k-{number}")
        checkpoint(path)
        shutil.copyfile(older, path)
        with pytest.raises(LedgerError, match=MISSING) as caught:
            await register(ledger, "k-1")
        assert caught.value.charged == "maybe"


async def test_checkpoint_of_another_process(path: Path) -> None:
    """A checkpoint, after which the file has changed and holds every entry, changes nothing."""
    async with open_ledger(path) as ledger:
        for number in range(3):
            await running(ledger, f"k-{number}")
            checkpoint(path)
        assert len([entry async for entry in ledger.entries()]) == 3


async def test_many_entries_are_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the entries that were written last are remembered for the check."""
    monkeypatch.setattr("sora_chars.ledger.stores.sqlite_files._MAX_REMEMBERED", 2)
    async with open_ledger(path) as ledger:
        for number in range(5):
            await running(ledger, f"k-{number}")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM entries WHERE key = 'k-0'")
            connection.commit()
        checkpoint(path)
        await register(ledger, "k-5")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM entries WHERE key = 'k-4'")
            connection.commit()
        checkpoint(path)
        with pytest.raises(LedgerError, match="lost entries"):
            await register(ledger, "k-6")


async def lose(ledger: Ledger, entry: Entry, *, version: int) -> None:
    """Remove an entry from a memory ledger, or put one of its earlier versions back."""
    store = ledger._store
    row_id = store._row_ids[entry.key]  # type: ignore[attr-defined]  # the store in memory
    if version:
        earlier = Entry(
            key=entry.key,
            provider=entry.provider,
            kind=entry.kind,
            state=EntryState.PENDING,
            request_json=entry.request_json,
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            version=version,
        )
        store._entries[row_id] = earlier  # type: ignore[attr-defined]  # the store in memory
    else:
        del store._row_ids[entry.key], store._entries[row_id]  # type: ignore[attr-defined]  # the store in memory


@pytest.mark.parametrize("version", [0, 1])
async def test_a_lost_task_is_put_back(version: int, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a task that the ledger has lost, or has as pending, is recorded all the same."""
    async with open_ledger("memory:") as ledger:
        run = await running(ledger)
        await lose(ledger, run, version=version)
        done = await ledger.transition(run, EntryState.SUCCEEDED, result={"id": "ch_1"})
        assert await ledger.get("k-1") == done
        assert (done.task_id, done.result) == ("t-k-1", {"id": "ch_1"})
    assert [vars(record)["event"] for record in caplog.records] == ["ledger.entry_restored"]


@pytest.mark.parametrize("version", [0, 1])
async def test_a_lost_key_is_not_sent_again(version: int) -> None:
    """Registering a key whose running entry was lost puts the entry back, with its task id."""
    async with open_ledger("memory:") as ledger:
        run = await running(ledger)
        await lose(ledger, run, version=version)
        assert await register(ledger) == run
        assert await ledger.by_task("kie", "t-k-1") == run


@pytest.mark.parametrize("version", [0, 1])
async def test_a_lost_entry_is_not_sent(version: int) -> None:
    """A rejected entry that the ledger has lost is not sent: another process may have sent it before."""
    async with open_ledger("memory:") as ledger:
        sending = await ledger.transition(await register(ledger), EntryState.SENDING)
        rejected = await ledger.transition(sending, EntryState.REJECTED)
        await lose(ledger, rejected, version=version)
        with pytest.raises(StaleEntryError if version else LedgerError):
            await ledger.transition(rejected, EntryState.SENDING)


class OvertakenStore(MemoryStore):
    """A store in which another process sends an entry as soon as this one has failed to replace it."""

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        stored = await super().replace(before, after, archive=archive)
        if stored and stored is not after and stored.state is EntryState.PENDING:
            await super().replace(stored, stored.transitioned(EntryState.SENDING, at=1.0, owner="other"))
        return stored


async def test_an_entry_that_was_sent_again_first() -> None:
    """If another process writes the lost entry first, its version is kept."""
    async with Ledger(OvertakenStore()) as ledger:
        run = await running(ledger)
        await lose(ledger, run, version=1)
        with pytest.raises(StaleEntryError) as caught:
            await ledger.transition(run, EntryState.SUCCEEDED, result={})
        assert (caught.value.entry.state, caught.value.entry.owner) == (EntryState.SENDING, "other")


async def test_known_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger remembers a limited number of unfinished entries, the newest."""
    monkeypatch.setattr("sora_chars.ledger.ledger._MAX_KNOWN", 2)
    async with open_ledger("memory:") as ledger:
        runs = [await running(ledger, f"k-{number}") for number in range(3)]
        for run in runs:
            await lose(ledger, run, version=0)
        states = [(await register(ledger, run.key)).state for run in runs]
        assert states == [EntryState.PENDING, EntryState.RUNNING, EntryState.RUNNING]
