"""Decodes the input of `sora-chars batch` into lines of text."""

from __future__ import annotations

import codecs
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_MAX_LINE_LENGTH = 1 << 20  # characters
_BOM = "\ufeff"
_UTF_16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


_DOCUMENTS = {
    b"PK\x03\x04": "the file is a ZIP archive, such as an Excel workbook; save it as CSV with UTF-8 encoding",
    b"\xd0\xcf\x11\xe0": "the file is an old Office document; save it as CSV with UTF-8 encoding",
    b"\x1f\x8b": "the file is compressed by gzip; decompress it first",
}


class UnreadableInputError(Exception):
    """The input cannot be read from a line on; the message states why.

    Attributes:
        line: The line, from 1.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def peek_text(stream: BinaryIO, encoding: str | None) -> str:
    """Return the beginning of the text without a byte order mark; nothing is read from the stream."""
    head = _peek(stream)
    return head.decode(encoding or _encoding(head), errors="ignore").removeprefix(_BOM)


def text_lines(stream: BinaryIO, encoding: str | None) -> Iterator[str]:
    """Yield each line with its end: a line feed, a carriage return or both.

    Args:
        stream: The file.
        encoding: Its encoding. None selects UTF-16 if the file begins with that byte
            order mark, and UTF-8 otherwise.

    Raises:
        UnreadableInputError: A line is too long, or is not text in this encoding.
    """
    name = encoding or _encoding(_peek(stream))
    with _text(stream, name) as reader:
        number = 1
        while line := _read_line(reader, number, name):
            if number == 1 and encoding is None and "\0" in line:
                raise UnreadableInputError(
                    1, "the file is UTF-16 without a byte order mark, or no text; try --encoding utf-16-le"
                )
            yield line.removeprefix(_BOM) if number == 1 else line
            number += 1


def whole_text(stream: BinaryIO, encoding: str | None) -> str:
    """Return the whole text without a byte order mark.

    Raises:
        UnreadableInputError: The file is not text in this encoding.
    """
    name = encoding or _encoding(_peek(stream))
    with _text(stream, name) as reader:
        try:
            text = reader.read()
            text.encode()
        except UnicodeError as error:
            raise _undecodable(1, name) from error
    return text.removeprefix(_BOM)


def _peek(stream: BinaryIO) -> bytes:
    """Return some of the first bytes, which stay unread."""
    peek = getattr(stream, "peek", bytes)
    head: bytes = peek()
    return head


def check_is_text(stream: BinaryIO) -> None:
    """Check by its first bytes that the file is no document that people export rows from.

    Raises:
        UnreadableInputError: It is one.
    """
    head = _peek(stream)
    for magic, reason in _DOCUMENTS.items():
        if head.startswith(magic):
            raise UnreadableInputError(1, reason)


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith(_UTF_16_BOMS) else "utf-8"


@contextmanager
def _text(stream: BinaryIO, encoding: str) -> Generator[io.TextIOWrapper]:
    reader = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
    try:
        yield reader
    finally:
        reader.detach()  # the stream stays open


def _read_line(reader: io.TextIOWrapper, number: int, encoding: str) -> str:
    try:
        line = reader.readline(_MAX_LINE_LENGTH + 1)
        line.encode()  # undecodable bytes have become surrogates
    except UnicodeError as error:
        raise _undecodable(number, encoding) from error
    if len(line) > _MAX_LINE_LENGTH:
        reason = f"the line is longer than {_MAX_LINE_LENGTH} characters; the rest of the file was not read"
        raise UnreadableInputError(number, reason)
    return line


def _undecodable(line: int, encoding: str) -> UnreadableInputError:
    reason = f"the file is not valid {encoding.upper()}; select its encoding, such as --encoding cp1252"
    return UnreadableInputError(line, reason)
