"""Notifies the callers in this process that an entry has changed."""

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
class Subscription:
    """A callback for the changes that other processes make to one entry.

    `version` is the newest version of the entry that the subscriber knows.
    """

    version: int
    callback: Callable[[], object]


@attrs.define(eq=False, repr=False)
class ChangeNotifier:
    """The waiters and subscriptions of this process, by the key of their entry.

    A store polls or listens for the changes of other processes only while
    `has_subscribers` is set: while there is any waiter or subscription.
    """

    has_subscribers: asyncio.Event = attrs.field(factory=asyncio.Event)
    _events: dict[str, list[asyncio.Event]] = attrs.field(factory=dict)
    _subscriptions: dict[str, list[Subscription]] = attrs.field(factory=dict)

    @property
    def keys(self) -> Collection[str]:
        """The keys that have a waiter or a subscription."""
        return self._events.keys() | self._subscriptions.keys()

    @contextmanager
    def waiting(self, key: str) -> Generator[asyncio.Event]:
        """Yield an event that is set whenever the entry of `key` may have changed."""
        event = asyncio.Event()
        self._add(self._events, key, event)
        try:
            yield event
        finally:
            self._remove(self._events, key, event)

    def subscribe(self, key: str, version: int, callback: Callable[[], object]) -> Callable[[], None]:
        """Run `callback` when another process changes the entry of `key` past `version`.

        Returns a function that ends the subscription.
        """
        subscription = Subscription(version, callback)
        self._add(self._subscriptions, key, subscription)
        return partial(self._remove, self._subscriptions, key, subscription)

    def changed_here(self, key: str, version: int) -> None:
        """Wake the waiters of `key` after a change by this process; run no callback."""
        for event in self._events.get(key, ()):
            event.set()
        for subscription in self._subscriptions.get(key, ()):
            subscription.version = version

    def notify(self, key: str, version: int | None = None) -> None:
        """Wake the waiters of `key` and run the callbacks that do not know `version` yet.

        Without a version, all callbacks of the key run.
        """
        for event in self._events.get(key, ()):
            event.set()
        for subscription in self._subscriptions.get(key, ()):
            if version is None or version > subscription.version:
                subscription.version = version or subscription.version
                subscription.callback()

    def notify_all(self) -> None:
        """Notify every key, after changes may have been missed."""
        for key in self.keys:
            self.notify(key)

    def _add(self, items: dict[str, list[T]], key: str, item: T) -> None:
        items.setdefault(key, []).append(item)
        self.has_subscribers.set()

    def _remove(self, items: dict[str, list[T]], key: str, item: T) -> None:
        items[key].remove(item)
        if not items[key]:
            del items[key]
        if not (self._events or self._subscriptions):
            self.has_subscribers.clear()
