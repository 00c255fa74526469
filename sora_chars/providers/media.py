"""What the headers of a local video file say, read without decoding it.

MP4 boxes, EBML elements and RIFF chunks are one thing, nested spans of bytes with a tag, and differ only in
how a header is written. So one bounded walk serves all three; a parser per format reads the header.
"""

from __future__ import annotations

import errno
import math
import struct
from typing import TYPE_CHECKING, BinaryIO, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_SIBLINGS = 256  # headers read per level; real files have a dozen, a hostile one has millions
_MAX_HEADER = 16  # bytes
_MAX_PAYLOAD = 256  # bytes; the longest payload of interest is a list of brands

_ISO_BRANDS = frozenset(
    (b"mp41", b"mp42", b"avc1", b"dash", b"M4V ", b"MSNV", b"isom", *(b"iso%x" % n for n in range(1, 13)))
)

# ISO/IEC 14496-12 wants `ftyp` "as early as possible", and writers put padding or media before it.
_FIRST_BOXES = frozenset((b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat", b"moov", b"pnot"))

_EBML = b"\x1a\x45\xdf\xa3"
_DOC_TYPE = b"\x42\x82"
_SEGMENT = b"\x18\x53\x80\x67"
_INFO = b"\x15\x49\xa9\x66"
_TIMECODE_SCALE = b"\x2a\xd7\xb1"
_DURATION = b"\x44\x89"
_DEFAULT_TIMECODE_SCALE = 1_000_000  # nanoseconds per unit of Duration
_MAX_ID_LENGTH = 4  # bytes; the default of EBMLMaxIDLength
_MAX_SIZE_LENGTH = 8  # bytes; the default of EBMLMaxSizeLength


@attrs.frozen(kw_only=True)
class MediaFacts:
    """What the headers of a video file declare.

    Attributes:
        container: Container format; None for any other. Plain Matroska (.mkv) is None
            despite its close relation to WebM: providers do not list it.
        duration: Seconds of the longest track; None when the headers do not say.
        size: Size of the file in bytes.
    """

    container: Literal["mp4", "mov", "webm", "avi"] | None
    duration: float | None
    size: int


def probe(path: Path) -> MediaFacts:
    """Read the facts of the file at `path`, with at most about two thousand small reads, whatever it holds.

    Raises:
        OSError: The file cannot be read or is not a regular file, such as a directory or a pipe.
    """
    if not path.is_file():
        raise OSError(errno.ENOENT, "No such regular file", str(path))
    with path.open("rb") as file:
        return read_facts(file, path.stat().st_size)


def read_facts(file: BinaryIO, size: int) -> MediaFacts:
    """Read the facts of a seekable file of `size` bytes; junk and truncated files give facts too."""
    head = _read(file, 0, 12)
    if head[4:8] in _FIRST_BOXES:
        boxes = _Tree(file, size, _box_header)
        if container := _movie_container(boxes):
            return MediaFacts(container=container, duration=_mp4_duration(boxes), size=size)
    elif head.startswith(_EBML):
        elements = _Tree(file, size, _element_header)
        if elements.find(_EBML, _DOC_TYPE).rstrip(b"\0") == b"webm":
            return MediaFacts(container="webm", duration=_webm_duration(elements), size=size)
    elif head[:4] + head[8:] == b"RIFFAVI ":
        chunks = _Tree(file, size, _chunk_header)
        return MediaFacts(container="avi", duration=_avi_duration(chunks), size=size)
    return MediaFacts(container=None, duration=None, size=size)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


@attrs.frozen
class _Header:
    tag: bytes
    length: int  # of the header itself
    body: int | None  # bytes that follow it; None: all that is left of the parent


@attrs.frozen
class _Tree:
    """A file of nested spans; `parse` gets 16 bytes, zeros past the end, and returns None for no header."""

    _file: BinaryIO
    _size: int
    _parse: Callable[[bytes], _Header | None]

    def find(self, *path: bytes) -> bytes:
        """Return the first bytes of the span that `path` leads to, by the first span of each tag.

        Empty when there is none, or when the file ends inside it: half a number is not a number.
        """
        start = 0
        end = self._size
        for tag in path:
            start, end = self._child(tag, start, min(end, self._size))
        return b"" if end > self._size else _read(self._file, start, min(end, start + _MAX_PAYLOAD))

    def _child(self, tag: bytes, at: int, end: int) -> tuple[int, int]:
        """Return where the body of the first `tag` starts and says it ends; an empty span for none."""
        for _ in range(_MAX_SIBLINGS):
            head = _read(self._file, at, min(end, at + _MAX_HEADER))
            header = self._parse(head.ljust(_MAX_HEADER, b"\0"))
            if header is None:
                break
            start = at + header.length
            stop = end if header.body is None else start + header.body
            if start > min(stop, end):
                break
            if header.tag == tag:
                return start, stop
            at = min(stop, end)
        return end, end


def _box_header(head: bytes) -> _Header | None:
    """ISO/IEC 14496-12, section 4.2. The size counts the header; a size below it cannot be."""
    tag = head[4:8]
    match int.from_bytes(head[:4]):
        case 0:
            return _Header(tag, 8, None)
        case 1:
            return _Header(tag, 16, int.from_bytes(head[8:16]) - 16)
        case size:
            return _Header(tag, 8, size - 8)


def _element_header(head: bytes) -> _Header | None:
    """RFC 8794, sections 4 to 6: leading zero bits give the length of id and of size; all ones is unknown."""
    id_length = 9 - head[0].bit_length()
    if id_length > _MAX_ID_LENGTH:
        return None
    size_length = 9 - head[id_length].bit_length()
    if size_length > _MAX_SIZE_LENGTH:
        return None
    length = id_length + size_length
    unknown = (1 << 7 * size_length) - 1
    size = int.from_bytes(head[id_length:length]) & unknown
    return _Header(head[:id_length], length, None if size == unknown else size)


def _chunk_header(head: bytes) -> _Header | None:
    """RIFF: little-endian, padded to even; a list's type, the first four bytes of its body, joins the tag."""
    tag = head[:4]
    size = int.from_bytes(head[4:8], "little")
    size += size % 2
    if tag in {b"RIFF", b"LIST"}:
        return _Header(tag + head[8:12], 12, size - 4)
    return _Header(tag, 8, size)


def _movie_container(boxes: _Tree) -> Literal["mp4", "mov"] | None:
    """Tell the two families by the major brand. QuickTime files from before ISO/IEC 14496-12 have no brands."""
    ftyp = boxes.find(b"ftyp")
    brands = [ftyp[at : at + 4] for at in (0, *range(8, len(ftyp), 4))]  # bytes 4 to 8 are the minor version
    if brands[0] == b"qt  " or (not ftyp and boxes.find(b"moov")):
        return "mov"
    return None if _ISO_BRANDS.isdisjoint(brands) else "mp4"


def _mp4_duration(boxes: _Tree) -> float | None:
    scale, ticks = _mvhd(boxes.find(b"moov", b"mvhd"))
    if boxes.find(b"moov", b"mvex"):  # fragmented: mvhd leaves the fragments out, and mehd is optional
        ticks = _mehd(boxes.find(b"moov", b"mvex", b"mehd"))
    return ticks / scale if scale and ticks else None


def _mvhd(payload: bytes) -> tuple[int, int]:
    """Return ticks per second, and ticks; 0 for what is not known."""
    match payload[:1]:
        case b"\0":
            return _known(payload, 12, 4), _known(payload, 16, 4)
        case b"\1":
            return _known(payload, 20, 4), _known(payload, 24, 8)
        case _:
            return 0, 0


def _mehd(payload: bytes) -> int:
    return _known(payload, 4, 8 if payload[:1] == b"\1" else 4)


def _known(payload: bytes, at: int, width: int) -> int:
    """Return the number at `at`; 0 when it is all ones, which means unknown, or not there in full."""
    raw = payload[at : at + width]
    return 0 if len(raw) < width or raw == b"\xff" * width else int.from_bytes(raw)


def _webm_duration(elements: _Tree) -> float | None:
    raw = elements.find(_SEGMENT, _INFO, _DURATION)
    layout = {4: ">f", 8: ">d"}.get(len(raw))
    if layout is None:
        return None
    scale = int.from_bytes(elements.find(_SEGMENT, _INFO, _TIMECODE_SCALE)[:8]) or _DEFAULT_TIMECODE_SCALE
    (units,) = struct.unpack(layout, raw)
    seconds = float(units) * scale / 1e9
    return seconds if 0 < seconds < math.inf else None


def _avi_duration(chunks: _Tree) -> float | None:
    avih = chunks.find(b"RIFFAVI ", b"LISThdrl", b"avih")
    microseconds = int.from_bytes(avih[:4], "little")
    frames = int.from_bytes(avih[16:20], "little")
    # A frame's time is in whole microseconds, so 30 frames at 30 a second add up to 0.99999 s.
    return round(microseconds * frames / 1e6, 3) or None
