"""Fixtures with an emulator in the test's event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from sora_chars.testing import Emulator
from sora_chars.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator whose tasks take 5 to 20 ms. Both providers have a video with the id "aaa..." (32 times)."""
    async with Emulator(durations=(0.005, 0.02)) as running:
        running.add_origin("a" * 32)
        yield running


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the emulator, with an API key."""
    async with aiohttp.ClientSession(emulator.url, headers={"Authorization": "Bearer key"}) as session:
        yield session


@pytest.fixture
async def proxy(emulator: Emulator) -> AsyncIterator[FaultProxy]:
    """A fault proxy in front of the emulator."""
    async with FaultProxy(emulator.url) as proxy:
        yield proxy
