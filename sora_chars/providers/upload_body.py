"""The body of an upload, which reports its progress."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from sora_chars.models import UploadProgress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def upload_name(path: Path) -> str:
    """Return the name of a local file as a header can hold it: without line breaks and undecodable bytes."""
    return "".join(filter(str.isprintable, path.name)) or "file"


class UploadBody(io.BytesIO):
    """The content of a file, which reports its progress while aiohttp reads it."""

    def __init__(self, content: bytes, path: Path, report: Callable[[UploadProgress], None] | None) -> None:
        super().__init__(content)
        self._path = path
        self._total = len(content)
        self._report = report

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, and report how many were read so far."""
        chunk = super().read(size)
        if self._report and chunk:
            self._report(UploadProgress(self._path, self.tell(), self._total))
        return chunk
