"""Images of any size in pixels, as their headers declare it."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, *, size: int = 0) -> bytes:
    """Return a PNG file of these dimensions, padded to `size` bytes; it has no pixels."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IEND", b"")
    return content.ljust(size, b"\0")


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG file of these dimensions; it has no pixels."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    app0 = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
    return (
        b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + app0 + b"\xff\xc0" + struct.pack(">H", 17) + frame + b"\xff\xd9"
    )
