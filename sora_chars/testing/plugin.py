"""Pytest fixtures: `sora_emulator`, and `sora_emulator_factory` for custom settings.

Each emulator runs on its own event loop in its own thread. The fixtures are therefore
plain pytest fixtures: synchronous and asynchronous tests use them alike, with any asyncio
plugin or none, and a test that blocks its own event loop does not block the server. The
server is imported when a test first uses a fixture.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .emulator.server import Emulator


@pytest.fixture
def sora_emulator(sora_emulator_factory: Callable[..., Emulator]) -> Emulator:
    """A running emulator whose tasks take 0.05 to 0.2 seconds; closed after the test.

    async def test_creates_a_character(sora_emulator):
        kie = Kie("any-key", base_url=sora_emulator.url, upload_url=sora_emulator.url)
        async with CharacterSession(kie) as session:
            await session.create(video="rex.mp4", prompt="A friendly dog")
        assert sora_emulator.counts.creates == 1
    """
    return sora_emulator_factory(durations=(0.05, 0.2))


@pytest.fixture
def sora_emulator_factory(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[..., Emulator]]:
    """A function that starts an emulator and takes the options of `Emulator`.

    All emulators that it started are closed after the test. During the test, NO_PROXY contains
    127.0.0.1, since a proxy of the environment could not reach them, and SORA_CHARS_EMULATOR is
    unset, since it would send every request to another emulator.

        def test_reports_missing_credits(sora_emulator_factory):
            emulator = sora_emulator_factory(credits=0.0)
    """
    from urllib.request import getproxies_environment  # noqa: PLC0415 - as below

    from .emulator.server import Emulator  # noqa: PLC0415 - every pytest run imports this module, few need the server

    monkeypatch.delenv("SORA_CHARS_EMULATOR", raising=False)
    excepted = getproxies_environment().get("no", "")
    monkeypatch.setenv("no_proxy", excepted if excepted == "*" else f"{excepted},127.0.0.1")
    with ExitStack() as running:

        def start(**settings: Any) -> Emulator:
            return running.enter_context(_run_in_thread(Emulator(**settings)))

        yield start


@contextmanager
def _run_in_thread(emulator: Emulator) -> Generator[Emulator]:
    """Run the emulator on a new event loop in a new thread until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sora-emulator")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(emulator.start(), loop).result()
        yield emulator
    finally:
        asyncio.run_coroutine_threadsafe(emulator.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
