"""Who waits in this process for an entry to change."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Generator


@attrs.define(eq=False)
class Waiters:
    """The events of those who wait, by key. `some` is set while anybody does."""

    some: asyncio.Event = attrs.field(factory=asyncio.Event)
    _events: dict[str, list[asyncio.Event]] = attrs.field(factory=dict[str, list[asyncio.Event]])

    @property
    def keys(self) -> Collection[str]:
        """The keys that are waited for."""
        return self._events.keys()

    @contextmanager
    def waiting(self, key: str) -> Generator[asyncio.Event]:
        """Give an event that is set whenever the entry of `key` may have changed."""
        event = asyncio.Event()
        self._events.setdefault(key, []).append(event)
        self.some.set()
        try:
            yield event
        finally:
            self._events[key].remove(event)
            if not self._events[key]:
                del self._events[key]
            if not self._events:
                self.some.clear()

    def wake(self, key: str) -> None:
        """The entry of `key` may have changed."""
        for event in self._events.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        """Any entry may have changed."""
        for key in self._events:
            self.wake(key)
