"""Which processes are alive, known by lock files that the operating system frees when their owner dies."""

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
    """A locked file beside the ledger's, for as long as this process lives or until it is released.

    It is of mode 0600 and named after a random `owner`, which no other process ever bears. Files that the dead left
    are removed.

    Raises:
        OSError: the file could not be made.
    """

    def __init__(self, ledger: Path) -> None:
        for left in ledger.parent.glob(f"{glob.escape(ledger.name)}-*.lock"):
            is_dead(ledger, left.stem.rpartition("-")[2])
        self.owner = uuid.uuid4().hex
        self._path = _path(ledger, self.owner)
        unlocked = self._path.with_suffix(".new")  # nobody may meet the file by its name before it is locked
        self._file = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unlocked.rename(self._path)
        _held.add(self)

    def release(self) -> None:
        """Say that this process holds nothing any more."""
        self._path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the file. A lock ends with the last process that has it open, so a forked child must not keep it."""
        os.close(self._file)
        _held.discard(self)


def is_dead(ledger: Path, owner: str) -> bool:
    """Whether the process that named itself `owner` has ended. Once it has, its file is removed.

    A name that none of ours has, as in a ledger that somebody has tampered with, leads to no file.

    Raises:
        OSError: the file could not be looked at.
    """
    if not owner.isalnum():
        return True
    path = _path(ledger, owner)
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look must not take each other for the owner
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def _path(ledger: Path, owner: str) -> Path:
    return ledger.with_name(f"{ledger.name}-{owner}.lock")


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


_held: WeakSet[ProcessLock] = WeakSet()
os.register_at_fork(after_in_child=_forget_all)
