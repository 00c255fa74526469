"""Notices when the files of an open SQLite ledger are removed, replaced or overwritten.

SQLite notices none of this. It would go on writing to files that no other process can
see, and records that a restored copy lacks would be paid for again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING

from sora_chars.errors import LedgerError, printable
from sora_chars.ledger.entry import Entry, is_prunable

from . import sqlite_statements as statements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_REMEMBERED = 1000  # results of jobs
_BESIDE = ("-wal", "-shm")


class LedgerFiles:
    """The file of a ledger and those that SQLite keeps beside it, as this process opened them.

    Args:
        path: The ledger's file, without symbolic links.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = [path.with_name(path.name + ending) for ending in _BESIDE]
        self.opened: tuple[int, int] | None = None  # device and inode of the file, once it exists
        self._opened_beside: list[tuple[int, int] | None] = []
        self._changed_at: tuple[int, int] | None = None  # mtime and size of the file after the last commit
        self._written: deque[Sequence[object]] = deque()  # the results of the last groups, entries for the most part
        self._remembered = 0  # results in all of these groups
        self._lost = ""  # what makes this ledger unusable until it is opened again

    def record(self) -> None:
        """Record which file was opened, after the first write.

        Overlay file systems then replace a lower layer's file by a copy.
        """
        self.opened = self.opened or _identity(self._path)

    def record_beside(self) -> None:
        """Record which files SQLite has opened beside the ledger's."""
        self._opened_beside = [_identity(path) for path in self._beside]

    def check_place(self) -> os.stat_result:
        """Check that the file is the one that was opened, and return what the system knows of it.

        Raises:
            LedgerError: It is another one, or records are missing.
        """
        found = _stat(self._path)
        if found is None or self.opened != (found.st_dev, found.st_ino):
            raise LedgerError(
                f"The ledger could not be used: {printable(str(self._path))} is no longer the file that was opened.",
                hint="Put that file back, or open the ledger again.",
                charged="maybe",
            )
        if self._lost:
            raise LedgerError(
                f"The ledger could not be used: {self._lost} while it was open, so records may be missing.",
                hint="Stop every process that uses this ledger, restore its newest copy, and open it again. "
                "Check the provider's site before you send the keys of that time again.",
                charged="maybe",
            )
        return found

    def check(self) -> None:
        """Check that all files are those that were opened, with the entries that were written.

        Raises:
            LedgerError: They are not. If only the ledger's file was moved, moving it back helps.
        """
        found = self.check_place()
        for path, opened in zip(self._beside, self._opened_beside, strict=True):
            if _identity(path) != opened:
                self._lost = f"{printable(str(path))} was removed or replaced"
        if self._changed_at not in {None, (found.st_mtime_ns, found.st_size)}:
            self._check_entries()
        if self._lost:
            self.check_place()

    def committed(self, results: Sequence[object]) -> None:
        """Remember the entries that a commit has written, and what it made of the file."""
        self._written.append(results)
        self._remembered += len(results)
        while self._remembered > _MAX_REMEMBERED and len(self._written) > 1:
            self._remembered -= len(self._written.popleft())
        found = _stat(self._path)
        self._changed_at = found and (found.st_mtime_ns, found.st_size)

    def _check_entries(self) -> None:
        """Check the entries that were written last, after something else wrote to the file.

        Usually that is a checkpoint of another process. The open connections would still
        read some pages from their caches.
        """
        written = {entry.key: entry for group in self._written for entry in group if isinstance(entry, Entry)}
        with closing(sqlite3.connect(self._path)) as connection:
            text = connection.execute(statements.VERSIONS, (json.dumps([*written]),)).fetchone()[0]
            before: float = connection.execute("SELECT before FROM pruning").fetchone()[0]
        versions: dict[str, int] = json.loads(text)
        missing = (entry for key, entry in written.items() if versions.get(key, 0) < entry.version)
        if any(entry.key in versions or not is_prunable(entry, before) for entry in missing):
            self._lost = f"{printable(str(self._path))} lost entries"


def _identity(path: Path) -> tuple[int, int] | None:
    found = _stat(path)
    return found and (found.st_dev, found.st_ino)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 # on the path of every commit, where `Path.stat` takes twice as long
    except OSError:
        return None
