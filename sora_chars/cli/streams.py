"""The standard streams of a process, which may be closed, full, or a terminal that is gone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

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


class StdoutError(OSError):
    """Stdout cannot be written, for another reason than a reader that closed it."""


class StdoutFile(io.FileIO):
    """A file whose failed writes cannot be mistaken for those of another file."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data, and return its length.

        Raises:
            BrokenPipeError: The reader has closed the file.
            StdoutError: The file cannot be written.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StdoutError(error.errno, error.strerror) from error


def prepare() -> None:
    """Open the null device for each standard stream that is closed, and replace stdout and stderr by the above.

    Without that, the next file would get the number of the closed stream: the ledger
    would receive what is written to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    out = io.BufferedWriter(StdoutFile(1, "w", closefd=False))
    err = TolerantFile(2, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(out, _encoding(sys.stdout), line_buffering=out.isatty())
    sys.stderr = io.TextIOWrapper(err, _encoding(sys.stderr), errors="backslashreplace", write_through=True)


def discard_stdout() -> None:
    """Write what stdout still holds to the null device, or Python reports the failure again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encoding(stream: TextIO | None) -> str:
    return stream.encoding if stream else "utf-8"
