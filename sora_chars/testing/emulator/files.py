"""The files that the emulator holds: uploaded ones, and samples for what its tasks are said to have made."""

from __future__ import annotations

from urllib.parse import quote, unquote

import attrs

SAMPLE_VIDEO = bytes.fromhex("0000001866747970") + b"isom\x00\x00\x02\x00isommp41" + bytes.fromhex("000000086d646174")
"""An MP4 header and an empty box."""
SAMPLE_PICTURE = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")
"""A GIF of one pixel."""


@attrs.frozen
class File:
    """What was stored under one path."""

    mime: str
    content: bytes = attrs.field(repr=False)


VIDEO = File("video/mp4", SAMPLE_VIDEO)
PICTURE = File("image/gif", SAMPLE_PICTURE)


@attrs.define(eq=False)
class FileStore:
    """Files by path, each served at `root` + path; the same path overwrites, as at kie.ai."""

    root: str = ""
    _files: dict[str, File] = attrs.field(factory=dict, init=False)

    def keep(self, path: str, file: File) -> str:
        """LedgerStore it, and say at which URL it is served."""
        self._files[path] = file
        return self.root + quote(path)

    def at(self, url: object) -> File | None:
        """The file behind a URL, if it is one of these."""
        return self._files.get(unquote(url.removeprefix(self.root))) if isinstance(url, str) else None
