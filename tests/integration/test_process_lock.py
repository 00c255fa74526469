"""The lock files of SQLite ledgers: processes that make, check and remove them at the same time."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.ledger.stores import process_lock
from sora_chars.ledger.stores.process_lock import ProcessLock, is_dead

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The path of a ledger."""
    return tmp_path / "characters.db"


def locks(ledger: Path) -> list[str]:
    """Return the owners that have a lock file."""
    return [path.stem.rpartition("-")[2] for path in ledger.parent.glob("*.lock")]


def test_a_living_process(ledger: Path) -> None:
    """A process is alive as long as it holds its lock; then its file is gone. No file lies beside the lock's."""
    lock = ProcessLock(ledger)
    assert [path.name for path in ledger.parent.iterdir()] == [f"characters.db-{lock.owner}.lock"]
    assert not is_dead(ledger, lock.owner)
    other = ProcessLock(ledger)
    assert not is_dead(ledger, lock.owner)
    lock.release()
    assert is_dead(ledger, lock.owner)
    assert locks(ledger) == [other.owner]
    other.release()


def test_a_lock_that_was_closed(ledger: Path) -> None:
    """A file that is left behind unlocked is that of a dead process, and is removed."""
    lock = ProcessLock(ledger)
    lock.close()
    assert locks(ledger) == [lock.owner]
    assert is_dead(ledger, lock.owner)
    assert locks(ledger) == []
    assert is_dead(ledger, "../victim")


def test_a_file_that_is_removed_before_it_is_locked(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file that another process has found unlocked and removed is made again, under another name."""
    connect = process_lock._connect
    removed: list[Path] = []

    def remove_after(path: Path, *, timeout: float) -> sqlite3.Connection:
        connection = connect(path, timeout=timeout)
        if not removed:
            removed.append(path)
            path.unlink()
        return connection

    def remove_before(path: Path, *, timeout: float) -> sqlite3.Connection:
        if len(removed) < 2:
            removed.append(path)
            path.unlink()
        return connect(path, timeout=timeout)

    for interfere in (remove_after, remove_before):
        monkeypatch.setattr(process_lock, "_connect", interfere)
        lock = ProcessLock(ledger)
        assert locks(ledger) == [lock.owner]
        assert lock.owner not in str(removed)
        monkeypatch.setattr(process_lock, "_connect", connect)
        assert not is_dead(ledger, lock.owner)
        lock.release()
    assert len(removed) == 2


def test_a_file_that_is_locked_for_too_long(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file that cannot be locked is an error, and no connection stays open."""
    connect = process_lock._connect

    def held(path: Path, *, timeout: float) -> sqlite3.Connection:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        others.append(other)
        return connect(path, timeout=0.0 * timeout)

    others: list[sqlite3.Connection] = []
    monkeypatch.setattr(process_lock, "_connect", held)
    with pytest.raises(OSError, match="cannot be locked: database is locked"):
        ProcessLock(ledger)
    others[0].close()


def test_files_of_other_programs(ledger: Path) -> None:
    """A file that is no lock of ours counts as that of a dead process; what cannot be opened is an error."""
    (ledger.parent / "characters.db-notes.lock").write_text("no database " * 100)
    assert is_dead(ledger, "notes")
    assert locks(ledger) == []
    (ledger.parent / "characters.db-folder.lock").mkdir()
    with pytest.raises(OSError, match="cannot be opened"):
        is_dead(ledger, "folder")


def test_a_file_that_vanishes(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process removes during the check is that of a dead process."""
    lock = ProcessLock(ledger)
    lock.close()

    def vanish(*_: Any, **__: Any) -> Callable[[], None]:
        (ledger.parent / f"characters.db-{lock.owner}.lock").unlink()
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", vanish)
    assert is_dead(ledger, lock.owner)


def test_a_disk_that_fails(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another error of SQLite says nothing about the process, and is raised."""
    lock = ProcessLock(ledger)

    class Broken(sqlite3.Connection):
        def execute(self, *_: Any) -> sqlite3.Cursor:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *values, **options: connect(*values, **options, factory=Broken))
    with pytest.raises(OSError, match="cannot be read: disk I/O error"):
        is_dead(ledger, lock.owner)
    monkeypatch.undo()
    lock.release()
