"""Releases what a store holds when its event loop has ended without `aclose`."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_INTERVAL = 0.05  # seconds between two looks at an event loop that is ending


class Holding:
    """What an open store holds: threads, connections, and the lock that shows its process alive.

    They are released once, by `aclose` or by `abandon`.

    Args:
        name: What the store is, for the warning.
        loop: The event loop in which the store was opened.
        release: Releases everything without the event loop, from any thread.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, release: Callable[[], object]) -> None:
        self._name = name
        self._loop = loop
        self._release = release
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._released = threading.Event()

    def closed(self) -> None:
        """Note that `aclose` releases everything."""
        self._released.set()

    def abandon(self) -> None:
        """Release everything unless that was done, and warn that the ledger was not closed.

        In a forked child it does nothing: everything belongs to the parent.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._released.is_set():
                return
            self._released.set()
        self._release()
        warnings.warn(
            f'{self._name} was not closed; it no longer owns any entry. Use it inside "async with".',
            ResourceWarning,
            stacklevel=2,
        )

    def abandon_after_loop(self) -> None:
        """Release everything as soon as the event loop is closed.

        An ending loop cancels all asyncio tasks at once. Those that record the outcome of a
        request still need the store then.
        """
        if self._released.is_set():
            return
        threading.Thread(target=self._wait_for_loop, name="sora_chars ledger end", daemon=True).start()

    def _wait_for_loop(self) -> None:
        while not self._loop.is_closed():
            if self._released.wait(_INTERVAL):
                return
        self.abandon()
