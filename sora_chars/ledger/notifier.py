"""Who waits or listens in this process for an entry to change."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

T = TypeVar("T")


@attrs.define(eq=False, repr=False)
class Listener:
    """Who is called when another process moves an entry; `version` is the last one that is known here."""

    version: int
    call: Callable[[], object]


@attrs.define(eq=False, repr=False)
class Waiters:
    """The events of those who wait, and the listeners, by key. `some` is set while there are any."""

    some: asyncio.Event = attrs.field(factory=asyncio.Event)
    _events: dict[str, list[asyncio.Event]] = attrs.field(factory=dict[str, list[asyncio.Event]])
    _listeners: dict[str, list[Listener]] = attrs.field(factory=dict[str, list[Listener]])

    @property
    def keys(self) -> Collection[str]:
        """The keys that somebody is here for."""
        return self._events.keys() | self._listeners.keys()

    @contextmanager
    def waiting(self, key: str) -> Generator[asyncio.Event]:
        """Give an event that is set whenever the entry of `key` may have changed."""
        event = asyncio.Event()
        self._add(self._events, key, event)
        try:
            yield event
        finally:
            self._remove(self._events, key, event)

    def listen(self, key: str, version: int, call: Callable[[], object]) -> Callable[[], None]:
        """Call `call` whenever another process has moved the entry of `key` past `version`; returns what ends that."""
        listener = Listener(version, call)
        self._add(self._listeners, key, listener)
        return partial(self._remove, self._listeners, key, listener)

    def moved(self, key: str, version: int) -> None:
        """This process has moved the entry of `key`."""
        for event in self._events.get(key, ()):
            event.set()
        for listener in self._listeners.get(key, ()):
            listener.version = version

    def wake(self, key: str, version: int | None = None) -> None:
        """The entry of `key` is at `version`, whoever moved it; None if nobody knows."""
        for event in self._events.get(key, ()):
            event.set()
        for listener in self._listeners.get(key, ()):
            if version is None or version > listener.version:
                listener.version = version or listener.version
                listener.call()

    def wake_all(self) -> None:
        """Any entry may have changed."""
        for key in self.keys:
            self.wake(key)

    def _add(self, where: dict[str, list[T]], key: str, one: T) -> None:
        where.setdefault(key, []).append(one)
        self.some.set()

    def _remove(self, where: dict[str, list[T]], key: str, one: T) -> None:
        where[key].remove(one)
        if not where[key]:
            del where[key]
        if not (self._events or self._listeners):
            self.some.clear()
