"""An emulator in the loop of the test, and two ways to it."""

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
    """An emulator whose tasks take a few milliseconds. Both its providers know a video named "aaa...", 32 in all."""
    async with Emulator(durations=(0.005, 0.02)) as running:
        running.add_origin("a" * 32)
        yield running


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a key, bound to the emulator."""
    async with aiohttp.ClientSession(emulator.url, headers={"Authorization": "Bearer key"}) as session:
        yield session


@pytest.fixture
async def proxy(emulator: Emulator) -> AsyncIterator[FaultProxy]:
    """A proxy before the emulator."""
    async with FaultProxy(emulator.url) as proxy:
        yield proxy
