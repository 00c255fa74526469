"""Lock files that show which processes are alive.

Each is a small SQLite file, of which its process holds SQLite's exclusive lock. The
operating system releases it when the process ends, however it ends, and on every system
that SQLite runs on. A forked child has no part in the lock.
"""

from __future__ import annotations

import glob
import os
import sqlite3
import uuid
from contextlib import closing, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CREATE_SECONDS = 15.0  # to wait for a process that checks the file before it is locked


class ProcessLock:
    """A locked file beside the ledger's, until this process ends or releases it.

    The file has mode 0600 and is named after `owner`, a random name that no other process
    has. Making a lock removes the files of processes that have ended.

    Raises:
        OSError: The file could not be created.
    """

    def __init__(self, ledger: Path) -> None:
        for lock_file in ledger.parent.glob(f"{glob.escape(ledger.name)}-*.lock"):
            is_dead(ledger, lock_file.stem.rpartition("-")[2])
        connection: sqlite3.Connection | None = None
        while connection is None:
            self.owner = uuid.uuid4().hex
            self._path = _path(ledger, self.owner)
            connection = _locked(self._path)
        self._connection = connection

    def release(self) -> None:
        """Remove the file: this process no longer owns any entry."""
        with suppress(PermissionError):  # Windows removes no open file
            self._path.unlink(missing_ok=True)
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock and keep the file on disk."""
        self._connection.close()


def is_dead(ledger: Path, owner: str) -> bool:
    """True if the process named `owner` has ended; its file is then removed.

    A name that is not alphanumeric cannot come from `ProcessLock`, and is not made into a
    path: someone may have edited the ledger.

    Raises:
        OSError: The file could not be opened.
    """
    if not owner.isalnum():
        return True
    path = _path(ledger, owner)
    try:
        with closing(_connect(path, timeout=0.0)) as connection:
            connection.execute("BEGIN")
            # A shared lock: two processes that check at once must not take each other for the owner.
            connection.execute("SELECT count(*) FROM sqlite_master")
            with suppress(PermissionError):
                path.unlink(missing_ok=True)  # while it is locked: a process that creates it notices
    except FileNotFoundError:
        return True
    except sqlite3.Error as error:
        code = error.sqlite_errorcode & 0xFF  # the higher bits say where in SQLite it failed
        if code == sqlite3.SQLITE_BUSY:
            return False
        if code != sqlite3.SQLITE_NOTADB:  # a file of another program is locked by no process of ours
            raise OSError(f"the lock file {path.name} cannot be read: {error}") from error
    with suppress(PermissionError):  # on Windows, of a process that checks it too
        path.unlink(missing_ok=True)
    return True


def _locked(path: Path) -> sqlite3.Connection | None:
    """Create and lock a file; None if another process has found it unlocked and removed it."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        connection = _connect(path, timeout=_CREATE_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode = MEMORY")  # no journal beside the file; nothing is written
            connection.execute("BEGIN EXCLUSIVE")
            if path.exists():
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
    except FileNotFoundError:
        return None
    except sqlite3.Error as error:
        raise OSError(f"the lock file {path.name} cannot be locked: {error}") from error
    return None


def _connect(path: Path, *, timeout: float) -> sqlite3.Connection:
    """Open an existing file.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be opened.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    url = f"{path.absolute().as_uri()}?mode=rw"
    try:
        return sqlite3.connect(url, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise OSError(f"the lock file {path.name} cannot be opened: {error}") from error


def _path(ledger: Path, owner: str) -> Path:
    return ledger.with_name(f"{ledger.name}-{owner}.lock")
