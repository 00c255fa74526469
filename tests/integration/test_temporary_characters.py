"""Characters of kie.ai that may end with the upload that they were made from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sora_chars import CharacterRequest, CharacterSession, FixedInterval, Kie
from sora_chars.testing import Emulator
from tests.support.images import png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY = 24 * 3600


def session_at(emulator: Emulator, ledger: Path) -> CharacterSession:
    """Return a session with kie.ai that polls every 5 ms."""
    provider = Kie("key", base_url=emulator.url, upload_url=emulator.url)
    return CharacterSession(provider, ledger=str(ledger), polling=FixedInterval(0.005))


@pytest.mark.parametrize("source", ["video", "images"])
async def test_the_ledger_keeps_when_they_may_end(make_clip: Callable[..., Path], tmp_path: Path, source: str) -> None:
    """A character of a local file may end a day later; the ledger keeps that, also for another session."""
    (image := tmp_path / "front.png").write_bytes(png(300, 300))
    request = CharacterRequest(
        video=make_clip(2.0) if source == "video" else None,
        images=[image] if source == "images" else None,
        prompt="A friendly dog",
        key="order-17",
    )
    async with Emulator(durations=(0.02, 0.04)) as emulator:
        async with session_at(emulator, tmp_path / "ledger.db") as session:
            before = time.time()
            made = await session.create(request)
            assert made.expires_at == pytest.approx(before + DAY, abs=5)
            await session.create(video="https://clips.example/rex.mp4", prompt="A friendly dog", key="order-18")
        async with session_at(emulator, tmp_path / "ledger.db") as session:
            saved = {one.key: one.character async for one in session.characters()}
            again = await session.create(request)
    assert saved["order-17"].expires_at == made.expires_at
    assert saved["order-18"].expires_at is None
    assert again.expires_at == made.expires_at
