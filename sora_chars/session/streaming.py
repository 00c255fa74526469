"""The events of a session as async streams, together with the changes that other processes make to its ledger."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import LedgerError, printable
from sora_chars.ledger.reports import events_of
from sora_chars.logs import event_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from sora_chars.events import Event
    from sora_chars.ledger import Ledger
    from sora_chars.observers import Observers

log = event_logger("sora_chars.events")

_MAX_UNREAD = 10_000  # events
_READ_DELAY = 0.05  # seconds until changed entries are read, of several changes the last


@attrs.define(eq=False, repr=False)
class EventStream:
    """An async iterator of events. It ends when the session closes.

    Attributes:
        missed: How many events were dropped, because 10,000 others were unread.
    """

    missed: int = attrs.field(default=0, init=False)
    _unread: deque[Event] = attrs.field(factory=deque, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _ended: bool = attrs.field(default=False, init=False)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._unread.popleft()

    def put(self, event: Event) -> None:
        """Add an event, and drop the oldest one if too many are unread."""
        self._unread.append(event)
        if len(self._unread) > _MAX_UNREAD:
            self._unread.popleft()
            self.missed += 1
        self._changed.set()

    def end(self) -> None:
        """End the stream after the events that are unread."""
        self._ended = True
        self._changed.set()


@attrs.define(eq=False, repr=False)
class EventStreams:
    """The streams of one open session.

    A stream that its reader has dropped gets no more events. While there is none, the
    ledger is not followed.
    """

    observers: Observers
    ledger: Ledger
    _streams: weakref.WeakSet[EventStream] = attrs.field(factory=weakref.WeakSet)
    _count: int = 0  # of `_streams`, which may lag behind
    _changes: dict[str, None] = attrs.field(factory=dict)  # the keys to read
    _reading: asyncio.Task[None] | None = None
    _unfollow: Callable[[], None] | None = None

    def open(self) -> EventStream:
        """Return a new stream. It has the events from now on."""
        if self._unfollow is None:
            self.observers.add(self._put)
            self._unfollow = self.ledger.notifier.follow(self._on_change)
        stream = EventStream()
        self._streams.add(stream)
        self._count += 1
        weakref.finalize(stream, self._dropped).atexit = False
        return stream

    async def aclose(self) -> None:
        """End all streams."""
        self._stop()
        if self._reading:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        for stream in self._streams:
            stream.end()

    def _put(self, event: Event) -> None:
        for stream in tuple(self._streams):
            stream.put(event)

    def _dropped(self) -> None:
        self._count -= 1
        if not self._count:
            self._stop()

    def _stop(self) -> None:
        if self._unfollow:
            self.observers.remove(self._put)
            self._unfollow()
            self._unfollow = None

    def _on_change(self, key: str, _version: int) -> None:
        self._changes[key] = None
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(
                self._read(), name="sora_chars events", context=Context()
            )

    async def _read(self) -> None:
        """Read the entries that other processes have changed, and pass their events on."""
        while self._changes:
            await asyncio.sleep(_READ_DELAY)
            changes = self._changes
            self._changes = {}
            for key in changes:
                await self._read_entry(key)

    async def _read_entry(self, key: str) -> None:
        try:
            entry = await self.ledger.get(key)
        except LedgerError as error:
            log.warning("ledger.poll_failed", extra={"error": printable(error)})
            return
        if entry:
            for event in events_of(entry):
                self._put(event)
