"""Fixtures that many tests share."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def pytest_configure() -> None:
    """Keep plugins from making an event loop in passing, which nobody closes: both of ours do, before Python 3.14."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def no_real_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the keys of whoever runs the tests out of them."""
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    monkeypatch.delenv("KKIAI_API_KEY", raising=False)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of mp4 files that declare so many `seconds`, padded to `size` bytes where that is given."""

    def make(seconds: float = 2.0, *, size: int = 0, name: str = "clip.mp4") -> Path:
        def box(tag: bytes, body: bytes) -> bytes:
            return struct.pack(">I4s", 8 + len(body), tag) + body

        mvhd = struct.pack(">IIIII", 0, 0, 0, 1000, round(seconds * 1000)) + bytes(80)
        head = box(b"ftyp", b"isom\0\0\2\0mp42") + box(b"moov", box(b"mvhd", mvhd))
        path = tmp_path / name
        path.write_bytes(head + box(b"mdat", bytes(max(0, size - len(head) - 8))))
        return path

    return make
