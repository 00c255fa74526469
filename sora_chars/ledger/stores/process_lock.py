"""Lock files that show which processes are alive.

The operating system releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import glob
import os
import uuid
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from pathlib import Path


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
        self.owner = uuid.uuid4().hex
        self._path = _path(ledger, self.owner)
        unlocked = self._path.with_suffix(".new")  # renamed once it is locked: a .lock file is never unlocked
        self._file = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unlocked.rename(self._path)
        _open_locks.add(self)

    def release(self) -> None:
        """Remove the file: this process no longer owns any entry."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file and keep it on disk.

        A lock lasts until the last process closes the file, so a forked child must close it.
        """
        os.close(self._file)
        _open_locks.discard(self)


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
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        # Shared: two processes that check at once must not take each other for the owner.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def _path(ledger: Path, owner: str) -> Path:
    return ledger.with_name(f"{ledger.name}-{owner}.lock")


def _close_all() -> None:
    for lock in list(_open_locks):
        lock.close()


_open_locks: WeakSet[ProcessLock] = WeakSet()
os.register_at_fork(after_in_child=_close_all)
