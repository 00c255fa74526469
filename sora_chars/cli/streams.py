"""The standard streams of a process, which may be closed, full, or a terminal that is gone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class TolerantFile(io.FileIO):
    """A file whose failed writes are ignored: progress that nothing can show must not end paid work."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as much as possible, and return the length of all."""
        rest = memoryview(data)
        with suppress(OSError):
            while rest and (written := super().write(rest)):
                rest = rest[written:]
        return len(memoryview(data))


def prepare() -> None:
    """Open the null device for each standard stream that is closed, and make stderr tolerant.

    Without that, the next file would get the number of the closed stream: the ledger
    would receive what is written to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    file = TolerantFile(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(file, encoding, errors="backslashreplace", write_through=True)


def stdout_error() -> OSError | None:
    """Return why stdout cannot be written, if it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def discard_stdout() -> None:
    """Write what stdout still holds to the null device, or Python reports the failure again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
