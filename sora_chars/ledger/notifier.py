"""Notifies the callers in this process that an entry has changed."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

T = TypeVar("T")

_MAX_KNOWN = 10_000  # keys whose versions are remembered while there is a follower


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
    _followers: list[Callable[[str, int], object]] = attrs.field(factory=list)
    _followed: dict[str, int] = attrs.field(factory=dict)  # the versions that followers were called with
    _own: dict[str, int] = attrs.field(factory=dict)  # the versions that this process wrote, while there are followers

    @property
    def is_followed(self) -> bool:
        """Whether the changes of all keys are wanted."""
        return bool(self._followers)

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

    def follow(self, callback: Callable[[str, int], object]) -> Callable[[], None]:
        """Run `callback` with key and version when another process changes any entry.

        Returns a function that ends this.
        """
        self._followers.append(callback)
        self.has_subscribers.set()
        return partial(self._unfollow, callback)

    def writing(self, key: str, version: int) -> float:
        """Note that this process writes a version: a store may notify of it before the write returns.

        Returns the time of `time.perf_counter`.
        """
        if self._followers:
            _remember(self._own, key, version)
        return time.perf_counter()

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
        if version is not None:
            self.notify_followers(key, version)

    def notify_followers(self, key: str, version: int) -> None:
        """Run the callbacks that follow all keys, unless they know `version` or this process wrote it."""
        if self._followers and version > max(self._followed.get(key, 0), self._own.get(key, 0)):
            _remember(self._followed, key, version)
            for callback in tuple(self._followers):
                callback(key, version)

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
        self._clear_if_unused()

    def _unfollow(self, callback: Callable[[str, int], object]) -> None:
        self._followers.remove(callback)
        if not self._followers:
            self._followed.clear()
            self._own.clear()
        self._clear_if_unused()

    def _clear_if_unused(self) -> None:
        if not (self._events or self._subscriptions or self._followers):
            self.has_subscribers.clear()


def _remember(versions: dict[str, int], key: str, version: int) -> None:
    versions.pop(key, None)
    versions[key] = version
    if len(versions) > _MAX_KNOWN:
        del versions[next(iter(versions))]
