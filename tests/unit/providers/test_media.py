"""What the headers of video files declare: complete, truncated, hostile and foreign ones."""

from __future__ import annotations

import math
import os
import struct
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars.providers.media import MediaFacts, probe, read_facts

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN_32, UNKNOWN_64 = 2**32 - 1, 2**64 - 1
MEDIA = bytes(range(256))

EBML, DOC_TYPE = b"\x1a\x45\xdf\xa3", b"\x42\x82"
SEGMENT, INFO, CLUSTER, VOID = b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x1f\x43\xb6\x75", b"\xec"
SCALE, DURATION = b"\x2a\xd7\xb1", b"\x44\x89"


class CountingFile(BytesIO):
    """A file that counts the bytes that were read."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and count."""
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def facts(data: bytes) -> MediaFacts:
    """Read the facts of a file that holds `data`."""
    return read_facts(BytesIO(data), len(data))


def box(tag: bytes, *content: bytes) -> bytes:
    """Build an MP4 box."""
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + tag + body


def large_box(tag: bytes, body: bytes) -> bytes:
    """Build an MP4 box with a size of 64 bits."""
    return struct.pack(">I4sQ", 1, tag, 16 + len(body)) + body


def open_box(tag: bytes, body: bytes) -> bytes:
    """Build an MP4 box that runs to the end of the file."""
    return struct.pack(">I4s", 0, tag) + body


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """Build the box of brands, which has a version between the major and the compatible ones."""
    return box(b"ftyp", major, b"\0\0\2\0", *compatible)


def mvhd(ticks: int, *, scale: int = 1000, version: int = 0) -> bytes:
    """Build a movie header that declares a length of `ticks`."""
    layout = ">IIIII" if version == 0 else ">IQQIQ"
    return box(b"mvhd", struct.pack(layout, version << 24, 7, 7, scale, ticks), b"\1" * 80)


def mehd(ticks: int, *, version: int = 0) -> bytes:
    """Build the header with the length of a fragmented movie."""
    return box(b"mehd", struct.pack(">II" if version == 0 else ">IQ", version << 24, ticks))


def mvex(*content: bytes) -> bytes:
    """Build the box that makes a movie a fragmented one."""
    return box(b"mvex", *content, box(b"trex", bytes(24)))


def mp4(*moov: bytes) -> bytes:
    """Build a movie from the boxes of its header."""
    return ftyp(b"isom") + box(b"moov", *moov)


def element(tag: bytes, *content: bytes) -> bytes:
    """Build an EBML element, its size in one byte where that will do."""
    body = b"".join(content)
    size = bytes([0x80 | len(body)]) if len(body) < 0x7F else (1 << 56 | len(body)).to_bytes(8)
    return tag + size + body


def open_element(tag: bytes, *content: bytes, size: bytes = b"\xff") -> bytes:
    """Build an EBML element whose size is unknown."""
    return tag + size + b"".join(content)


def duration(units: float, layout: str = ">d") -> bytes:
    """Build a WebM duration, by default of 8 bytes."""
    return element(DURATION, struct.pack(layout, units))


def webm_head(doc_type: bytes = b"webm") -> bytes:
    """Build the EBML header."""
    return element(EBML, element(b"\x42\x86", b"\1"), element(DOC_TYPE, doc_type))


def webm(*info: bytes) -> bytes:
    """Build a WebM file from the elements of its Info."""
    return webm_head() + element(SEGMENT, element(VOID, bytes(9)), element(INFO, *info), element(CLUSTER, MEDIA))


def chunk(tag: bytes, *content: bytes) -> bytes:
    """Build a RIFF chunk, padded to an even length."""
    body = b"".join(content)
    return tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def avih(microseconds: int, frames: int) -> bytes:
    """Build an AVI header."""
    return chunk(b"avih", struct.pack("<IIIII", microseconds, 9, 9, 9, frames), bytes(36))


def avi(*hdrl: bytes) -> bytes:
    """Build an AVI file from the chunks of its header list."""
    lists = chunk(b"LIST", b"hdrl", *hdrl), chunk(b"LIST", b"movi", MEDIA)
    return chunk(b"RIFF", b"AVI ", *lists)


# Each of these lasts 2.5 seconds, and is named after its container.
COMPLETE = {
    "mp4": mp4(mvhd(2500), box(b"trak", MEDIA)) + box(b"mdat", MEDIA),
    "mp4, moov last": ftyp(b"isom") + box(b"mdat", MEDIA) + box(b"moov", mvhd(2500)),
    "mp4, size of 64 bits": ftyp(b"isom") + large_box(b"mdat", MEDIA) + box(b"moov", mvhd(2500)),
    "mp4, size to the end": ftyp(b"isom") + box(b"free") + open_box(b"moov", box(b"udta") + mvhd(2500)),
    "mp4, times of 64 bits": mp4(mvhd(UNKNOWN_32, scale=1_717_986_918, version=1)),
    "mp4, fragmented": mp4(mvhd(0), mvex(mehd(2500))) + box(b"moof") + box(b"mdat", MEDIA),
    "mp4, fragmented, 64 bits": mp4(mvhd(0), mvex(mehd(2500, version=1))),
    "mp4, padding first": box(b"free", bytes(8)) + mp4(mvhd(2500)),
    "mp4, several boxes first": box(b"uuid", bytes(16)) + box(b"skip") + mp4(mvhd(2500)),
    "mp4, media first": box(b"mdat", MEDIA) + mp4(mvhd(2500)),
    "mov": ftyp(b"qt  ", b"qt  ") + box(b"wide") + box(b"mdat", MEDIA) + box(b"moov", mvhd(2500)),
    "mov, also an iso brand": ftyp(b"qt  ", b"qt  ", b"isom") + box(b"moov", mvhd(2500)),
    "mov, padding first": box(b"wide") + ftyp(b"qt  ") + box(b"moov", mvhd(2500)),
    "mov, no brands": box(b"moov", mvhd(2500)) + box(b"mdat", MEDIA),
    "mov, no brands and moov last": box(b"wide") + box(b"mdat", MEDIA) + box(b"moov", mvhd(2500)) + box(b"free"),
    "mov, no brands and a preview": box(b"pnot", bytes(12)) + box(b"moov", mvhd(2500)) + box(b"free"),
    "webm": webm(element(SCALE, b"\x0f\x42\x40"), duration(2500)),
    "webm, own scale": webm(element(SCALE, b"\x03\xe8"), duration(2_500_000)),
    "webm, default scale": webm(duration(2500)),
    "webm, zero scale": webm(element(SCALE, b"\0"), duration(2500)),
    "webm, short float": webm(duration(2500, ">f")),
    "webm, padded type": webm_head(b"webm\0\0") + element(SEGMENT, element(INFO, duration(2500))),
    "webm, open segment": webm_head() + open_element(SEGMENT, element(VOID, bytes(200)), element(INFO, duration(2500))),
    "webm, open in 8 bytes": webm_head()
    + open_element(SEGMENT, open_element(INFO, duration(2500)), size=b"\1" + b"\xff" * 7),
    "avi": avi(avih(50_000, 50), chunk(b"LIST", b"strl", MEDIA)),
    "avi, odd chunk first": avi(chunk(b"JUNK", b"odd"), avih(50_000, 50)),
    "avi, list first": chunk(b"RIFF", b"AVI ", chunk(b"LIST", b"INFO"), avi(avih(50_000, 50))[12:]),
    "avi, size never filled in": b"RIFF\xff\xff\xff\xff" + avi(avih(50_000, 50))[8:],
}
complete = pytest.mark.parametrize(("name", "data"), COMPLETE.items(), ids=COMPLETE.keys())

UNKNOWN = {
    "mp4": ftyp(b"isom"),
    "mp4, no mvhd": mp4(box(b"udta")),
    "mp4, no length": mp4(mvhd(0)),
    "mp4, no scale": mp4(mvhd(2500, scale=0)),
    "mp4, all ones": mp4(mvhd(UNKNOWN_32)),
    "mp4, all 64 ones": mp4(mvhd(UNKNOWN_64, version=1)),
    "mp4, other version": mp4(mvhd(2500, version=2)),
    "mp4, empty mvhd": mp4(box(b"mvhd")),
    "mp4, short mvhd": mp4(box(b"mvhd", mvhd(2500)[8:27])),
    "mp4, fragments of unknown length": mp4(mvhd(500), mvex()),
    "mp4, fragments all ones": mp4(mvhd(500), mvex(mehd(UNKNOWN_32))),
    "mp4, fragments all 64 ones": mp4(mvhd(500), mvex(mehd(UNKNOWN_64, version=1))),
    "mp4, impossible size": mp4(b"\0\0\0\7" + mvhd(2500)[4:]),
    "mp4, impossible size of 64 bits": mp4(struct.pack(">I4sQ", 1, b"mvhd", 15) + mvhd(2500)[8:]),
    "mp4, size beyond the file": ftyp(b"isom") + struct.pack(">I4sQ", 1, b"moov", UNKNOWN_64),
    "webm": webm_head(),
    "webm, live": webm(),
    "webm, zero": webm(duration(0)),
    "webm, negative": webm(duration(-1)),
    "webm, not a number": webm(duration(math.nan)),
    "webm, infinite": webm(duration(math.inf)),
    "webm, too much": webm(element(SCALE, b"\xff" * 200), duration(1e308)),
    "webm, no such float": webm(element(DURATION, b"\0\0\0")),
    "webm, impossible id": webm_head() + element(SEGMENT, b"\x08\0\0\0\0\x80", element(INFO, duration(2500))),
    "webm, impossible size": webm_head() + element(SEGMENT, VOID + bytes(9), element(INFO, duration(2500))),
    "avi": chunk(b"RIFF", b"AVI "),
    "avi, no frames": avi(avih(50_000, 0)),
    "avi, no time": avi(avih(0, 50)),
    "avi, impossible list": chunk(b"RIFF", b"AVI ", b"LIST\2\0\0\0hdrl", avih(50_000, 50)),
}

FOREIGN = {
    "empty": b"",
    "text": b"this is no video, but it is text",
    "padding": box(b"free", bytes(100)),
    "photo behind padding": box(b"free", bytes(8)) + ftyp(b"heic", b"mif1", b"heic"),
    "photo": ftyp(b"heic", b"mif1", b"heic"),
    "no brand": box(b"ftyp"),
    "minor version is no brand": box(b"ftyp", b"heic", b"isom"),
    "matroska": webm_head(b"matroska") + element(SEGMENT, element(INFO, duration(2500))),
    "untyped ebml": element(EBML) + element(SEGMENT, element(INFO, duration(2500))),
    "wave": chunk(b"RIFF", b"WAVE", chunk(b"LIST", b"hdrl", avih(50_000, 50))),
    "list before avi": chunk(b"LIST", b"AVI ", chunk(b"LIST", b"hdrl", avih(50_000, 50))),
}


@complete
def test_complete_files(name: str, data: bytes) -> None:
    """A file that declares 2.5 seconds is read as 2.5 seconds, however its headers are laid out."""
    found = facts(data)
    assert (found.container, found.duration, found.size) == (name.partition(",")[0], 2.5, len(data))


@complete
def test_truncated_files(name: str, data: bytes) -> None:
    """Cut anywhere, a file gives its own container and duration or None, and never another number."""
    cut = [facts(data[:end]) for end in range(len(data))]
    assert {fact.container for fact in cut} == {None, name.split(",", maxsplit=1)[0]}
    assert {fact.duration for fact in cut} <= {None, 2.5}
    assert [fact.size for fact in cut] == list(range(len(data)))


@pytest.mark.parametrize(("name", "data"), UNKNOWN.items(), ids=UNKNOWN.keys())
def test_unknown_duration(name: str, data: bytes) -> None:
    """A duration that is missing, marked unknown or impossible is None; the container stands."""
    assert (facts(data).container, facts(data).duration) == (name.split(",", maxsplit=1)[0], None)


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_formats(data: bytes) -> None:
    """A file that is not MP4, MOV, WebM or AVI has no container, however closely related its format is."""
    assert facts(data) == MediaFacts(container=None, duration=None, size=len(data))


@pytest.mark.parametrize("brand", [b"isom", b"iso6", b"isoc", b"mp41", b"mp42", b"avc1", b"dash", b"M4V "])
def test_mp4_brands(brand: bytes) -> None:
    """The brand of an MP4 may be the major one or any compatible one."""
    assert facts(ftyp(brand)).container == "mp4"
    assert facts(ftyp(b"XAVC", b"abcd", brand)).container == "mp4"
    assert facts(ftyp(b"XAVC", b"abcd")).container is None


@pytest.mark.parametrize(("microseconds", "frames", "seconds"), [(33_333, 30, 1.0), (41_667, 96, 4.0)])
def test_avi_rounding(microseconds: int, frames: int, seconds: float) -> None:
    """A second at 30 frames and four at 24 are that long, though no frame lasts whole microseconds."""
    assert facts(avi(avih(microseconds, frames))).duration == seconds


@pytest.mark.parametrize(
    ("boxes", "seconds"),
    [
        ([box(b"mdat", bytes(1_000_000)), box(b"moov", mvhd(2500))], 2.5),
        ([box(b"moov", mvhd(2500)), box(b"mdat", bytes(1_000_000))], 2.5),
        ([box(b"moov", b"\0\0\1\0free"), box(b"mdat", bytes(1_000_000))], None),
    ],
    ids=["before", "behind", "overrun"],
)
def test_media_is_skipped(boxes: list[bytes], seconds: float | None) -> None:
    """Only headers are read, so the size of the media costs nothing, even when a box declares a false size."""
    data = ftyp(b"isom") + b"".join(boxes)
    file = CountingFile(data)
    assert read_facts(file, len(data)).duration == seconds
    assert file.bytes_read < 1000


def test_bounded_walk() -> None:
    """A header is found as the 256th of its level and not beyond; a hostile file costs no more than that."""
    moov = box(b"moov", mvhd(2500))
    assert facts(ftyp(b"isom") + box(b"free") * 254 + moov).duration == 2.5
    hostile = ftyp(b"isom") + box(b"free") * 100_000 + moov
    file = CountingFile(hostile)
    assert read_facts(file, len(hostile)).duration is None
    assert file.bytes_read < 20_000
    assert facts(ftyp(b"isom") + box(b"free") * 255 + moov).duration is None


def test_shrinking_file() -> None:
    """A file that shrinks while it is read is read as if the rest were zeros."""
    for data in COMPLETE.values():
        assert read_facts(BytesIO(data[:40]), len(data)).size == len(data)


@given(st.sampled_from([b"", *(data[:12] for data in COMPLETE.values()), ftyp(b"isom"), webm_head()]), st.binary())
def test_any_bytes(start: bytes, rest: bytes) -> None:
    """Any bytes, after the start of any container, give facts with a usable duration or None."""
    found = facts(start + rest)
    assert found.duration is None or 0 < found.duration < math.inf


@given(st.sampled_from(list(COMPLETE.values())), st.data())
def test_damaged_files(data: bytes, draw: st.DataObject) -> None:
    """A complete file with some bytes overwritten gives facts with a usable duration or None."""
    at = draw.draw(st.integers(0, min(len(data), 200)))
    damage = draw.draw(st.binary(min_size=1, max_size=8))
    found = facts(data[:at] + damage + data[at + len(damage) :])
    assert found.duration is None or 0 < found.duration < math.inf


def test_probe(tmp_path: Path) -> None:
    """The facts of a path are those of its bytes; its name does not matter."""
    path = tmp_path / "clip.avi"
    path.write_bytes(COMPLETE["mp4"])
    assert probe(path) == MediaFacts(container="mp4", duration=2.5, size=len(COMPLETE["mp4"]))


def test_probe_of_no_file(tmp_path: Path) -> None:
    """A missing file, a directory, an impossible name and a pipe are rejected, and the pipe does not block."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "missing.mp4", tmp_path, tmp_path / "nul\0.mp4", pipe):
        with pytest.raises(FileNotFoundError, match="No such regular file"):
            probe(path)
