"""Local recordings of voices, before they are hosted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sora_chars import Kling
from sora_chars.models import VoiceRequest

if TYPE_CHECKING:
    from pathlib import Path


async def host(path: Path) -> str:
    """Stand for a storage."""
    return f"https://files.example/{path.name}"


@pytest.mark.parametrize("name", ["rex.mp3", "rex.wav", "rex.mp4", "rex.mov"])
def test_an_empty_recording(tmp_path: Path, name: str) -> None:
    """A file without content is refused before it is hosted and paid for."""
    (path := tmp_path / name).touch()
    request = VoiceRequest(source=path, name="Rex")
    assert Kling("key", hosting=host).check(request) == [f"source must not be an empty file, got {path}"]
