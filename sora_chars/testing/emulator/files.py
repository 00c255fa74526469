"""The files that the emulator serves: uploads, and samples as the results of its tasks."""

from __future__ import annotations

from urllib.parse import quote, unquote

import attrs

SAMPLE_VIDEO = bytes.fromhex("0000001866747970") + b"isom\x00\x00\x02\x00isommp41" + bytes.fromhex("000000086d646174")
"""An MP4 header and an empty box."""
SAMPLE_PICTURE = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")
"""A GIF of one pixel."""


@attrs.frozen
class File:
    """A stored file."""

    mime: str
    content: bytes = attrs.field(repr=False)


VIDEO = File("video/mp4", SAMPLE_VIDEO)
PICTURE = File("image/gif", SAMPLE_PICTURE)


@attrs.define(eq=False)
class FileStore:
    """Files by path.

    Attributes:
        root: The URL under which the paths are served.
    """

    root: str = ""
    _files: dict[str, File] = attrs.field(factory=dict, init=False)

    def add(self, path: str, file: File) -> str:
        """Store a file, replacing one with the same path as kie.ai does, and return its URL."""
        self._files[path] = file
        return self.root + quote(path)

    def find(self, url: object) -> File | None:
        """Return the file that is served at the URL, if there is one."""
        return self._files.get(unquote(url.removeprefix(self.root))) if isinstance(url, str) else None
