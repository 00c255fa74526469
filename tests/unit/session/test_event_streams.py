"""The events of a session as an async stream."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import LedgerError, SessionClosedError
from sora_chars.events import Ended, Event, InDoubt, Queued, Recorded
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session import streaming
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore

if TYPE_CHECKING:
    from sora_chars.ledger import Attempt, Entry
    from sora_chars.session.streaming import EventStream

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


def session_of(provider: FakeProvider, store: FaultyStore | None = None) -> CharacterSession:
    """Return a session that polls every 10 s."""
    return CharacterSession(provider, ledger=Ledger(store or FaultyStore()), polling=FixedInterval(10.0))


def is_listening(session: CharacterSession) -> bool:
    """Return whether anything observes a session."""
    return session.observers.listening


async def read(stream: EventStream, events: list[Event]) -> None:
    """Read a stream to its end."""
    events += [event async for event in stream]


async def test_yields_what_observers_see() -> None:
    """A stream yields the same events as an observer gets, and ends when the session closes."""
    seen: list[Event] = []
    session = session_of(FakeProvider())
    session.observers.add(seen.append)
    async with session:
        events: list[Event] = []
        reading = asyncio.create_task(read(session.events(), events))
        await session.create(**REQUEST)
    await reading
    assert events == seen
    assert type(events[-1]) is Ended


async def test_unread_events_outlive_the_session() -> None:
    """What was not read before the session closed is still there."""
    events: list[Event] = []
    async with session_of(FakeProvider()) as session:
        stream = session.events()
        await session.create(**REQUEST)
    await read(stream, events)
    assert type(events[-1]) is Ended
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_closed_session_has_no_stream() -> None:
    """A session that is not open yields no events."""
    with pytest.raises(SessionClosedError):
        session_of(FakeProvider()).events()


async def test_a_dropped_stream_costs_nothing() -> None:
    """After its reader has left, no event is made and the ledger is not followed; another stream may come."""
    async with session_of(FakeProvider()) as session:
        first, second = session.events(), session.events()
        del first
        gc.collect()
        assert is_listening(session)
        del second
        gc.collect()
        assert not is_listening(session)
        assert not session.ledger.notifier.is_followed
        third = session.events()
        await session.create(**REQUEST)
        assert (await anext(third)).key == "mine"


async def test_drops_the_oldest_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is not read keeps the newest events, and counts the others."""
    monkeypatch.setattr(streaming, "_MAX_UNREAD", 3)
    events: list[Event] = []
    async with session_of(FakeProvider()) as session:
        stream = session.events()
        await session.create(**REQUEST)
    await read(stream, events)
    assert [type(event).__name__ for event in events] == ["Polled", "Recorded", "Ended"]
    assert stream.missed == 5


async def change(session: CharacterSession, store: FaultyStore, to: EntryState, **facts: Any) -> None:
    """Change an entry as another process does, and notify as a store does."""
    await store.elsewhere("mine", to, **facts)
    entry = await session.entry("mine")
    assert entry
    session.ledger.notifier.notify("mine", entry.version)


async def test_yields_what_other_processes_do() -> None:
    """Changes of other processes come as `Recorded`, `InDoubt` and `Ended`, each once, with `elsewhere`."""
    store = FaultyStore()
    async with session_of(FakeProvider(), store) as session:
        await session.register(**REQUEST)
        events: list[Event] = []
        reading = asyncio.create_task(read(session.events(), events))
        for to in (EntryState.SENDING, EntryState.UNKNOWN):
            await change(session, store, to)
            await asyncio.sleep(1)
        await change(session, store, EntryState.RUNNING, task_id="t1")
        await change(session, store, EntryState.SUCCEEDED)
        await asyncio.sleep(1)
        session.ledger.notifier.notify("mine", 1)
        await asyncio.sleep(1)
    await reading
    assert all(event.elsewhere and event.key == "mine" for event in events)
    states = [event.state if isinstance(event, Recorded | Ended) else "in doubt" for event in events]
    assert states == ["sending", "unknown", "in doubt", "succeeded", "succeeded"]
    assert [type(event) for event in events[-3:]] == [InDoubt, Recorded, Ended]


async def test_own_changes_come_once() -> None:
    """A notice of this process's own change, which PostgreSQL sends too, is no event of another process."""

    class NotifyingStore(FaultyStore):
        async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
            kept = await super().replace(before, after, archive=archive)
            session.ledger.notifier.notify(after.key, after.version)
            await asyncio.sleep(1)
            return kept

    session = session_of(FakeProvider(), NotifyingStore())
    async with session:
        events: list[Event] = []
        reading = asyncio.create_task(read(session.events(), events))
        await session.create(**REQUEST)
        await asyncio.sleep(1)
    await reading
    assert type(events[1]) is Queued
    assert not [event for event in events if event.elsewhere]


async def test_a_ledger_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """A change that cannot be read is logged, and the stream continues. A removed entry has no event."""
    store = FaultyStore()
    async with session_of(FakeProvider(), store) as session:
        await session.register(**REQUEST)
        events: list[Event] = []
        reading = asyncio.create_task(read(session.events(), events))
        await store.elsewhere("mine", EntryState.SENDING)
        store.away = True
        session.ledger.notifier.notify("mine", 2)
        session.ledger.notifier.notify("removed", 2)
        with suppress(LedgerError):
            await asyncio.sleep(1)
        store.away = False
        session.ledger.notifier.notify("removed", 3)
        session.ledger.notifier.notify_all()
        await change(session, store, EntryState.UNKNOWN)
        await asyncio.sleep(1)
    await reading
    assert [type(event) for event in events] == [Recorded, InDoubt]
    assert "ledger.poll_failed" in [vars(record).get("event") for record in caplog.records]


async def test_closing_ends_the_reading_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that closes before a change was read leaves nothing behind."""
    monkeypatch.setattr(streaming, "_READ_DELAY", 1000.0)
    async with session_of(FakeProvider()) as session:
        stream = session.events()
        session.ledger.notifier.notify("mine", 2)
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert asyncio.all_tasks() == {asyncio.current_task()}
