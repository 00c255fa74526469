"""Pytest fixtures: `sora_emulator`, and `sora_emulator_factory` for one with settings of its own.

Each emulator runs on an event loop in a thread of its own. So the fixtures are plain ones: they serve sync tests
and every asyncio plugin in every mode alike, they need none of them, and a test that blocks its own loop does
not stop the server. Only a test that uses them loads the server.
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
    """A started emulator whose tasks end within a fifth of a second; it is closed after the test."""
    return sora_emulator_factory(durations=(0.05, 0.2))


@pytest.fixture
def sora_emulator_factory() -> Generator[Callable[..., Emulator]]:
    """A function that starts an emulator with the settings it is given; all are closed after the test."""
    from .emulator.server import Emulator  # noqa: PLC0415 - every pytest run loads this module, few need the server

    with ExitStack() as running:

        def start(**settings: Any) -> Emulator:
            return running.enter_context(_background(Emulator(**settings)))

        yield start


@contextmanager
def _background(emulator: Emulator) -> Generator[Emulator]:
    """Run it on a loop and a thread of its own until the block ends."""
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
