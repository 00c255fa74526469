"""Pytest fixtures: `sora_emulator`, and `sora_emulator_factory` for one with settings of its own.

Each emulator runs on an event loop in a thread of its own. So the fixtures are plain ones: they serve sync tests and
every asyncio plugin in every mode alike, need none of them, and a test that blocks its own loop does not stop the
server. Only a test that uses them makes this module import aiohttp.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .emulator import Emulator


@pytest.fixture
def sora_emulator(sora_emulator_factory: Callable[..., Emulator]) -> Emulator:
    """A started emulator with the settings it comes with; it is closed after the test."""
    return sora_emulator_factory()


@pytest.fixture
def sora_emulator_factory() -> Iterator[Callable[..., Emulator]]:
    """A function that starts an emulator with the settings it is given; all are closed after the test."""
    from .emulator import Emulator  # noqa: PLC0415 - every pytest run loads this module, few need aiohttp

    with ExitStack() as running:
        yield lambda **settings: running.enter_context(_background(Emulator(**settings)))


@contextmanager
def _background(emulator: Emulator) -> Iterator[Emulator]:
    """Run it on a thread of its own until the block ends."""
    started: Future[Callable[[], None]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_live(emulator, started)), name="sora-emulator")
    thread.start()
    try:
        stop = started.result()
        yield emulator
        stop()
    finally:
        thread.join()


async def _live(emulator: Emulator, started: Future[Callable[[], None]]) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    try:
        async with emulator:
            started.set_result(lambda: loop.call_soon_threadsafe(stopped.set) and None)
            await stopped.wait()
    except OSError as error:
        started.set_exception(error)
