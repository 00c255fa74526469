"""The events that a session passes to its observers, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import (
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionUnknownError,
    TaskFailedError,
)
from sora_chars.events import Ended, Event, InDoubt, LedgerFailed, Polled, Queued, Recorded, Registered, Sent, TakenOver
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.models import TaskSnapshot

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


class Clock:
    """Wall clock that follows the loop's time."""

    def __call__(self) -> float:
        """Return the seconds since the test began."""
        return asyncio.get_running_loop().time()


def observed(
    provider: FakeProvider, *observers: Callable[[Event], object], store: FaultyStore | None = None
) -> tuple[CharacterSession, list[Event]]:
    """Return a session that polls every 10 s, and the list of its events."""
    events: list[Event] = []
    ledger = Ledger(store or FaultyStore(), clock=Clock())
    session = CharacterSession(
        provider, ledger=ledger, polling=FixedInterval(10.0), observers=[*observers, events.append]
    )
    return session, events


HIDDEN = {"key", "provider", "at", "seconds", "version", "created_at", "meta"}


def shown(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    """Return the name of each event and those of its facts that are neither None, False nor hidden."""

    def facts(event: Event) -> dict[str, Any]:
        values = attrs.asdict(event).items()
        return {
            name: value for name, value in values if value is not None and value is not False and name not in HIDDEN
        }

    return [(type(event).__name__, facts(event)) for event in events]


async def test_the_life_of_a_request() -> None:
    """A request is registered, queued, sent, recorded, polled and ended, in this order and with its key."""
    provider = FakeProvider(end=2)
    session, events = observed(provider)
    async with session:
        await session.create(**REQUEST)
    assert shown(events) == [
        ("Registered", {"kind": "character", "state": "pending", "is_new": True}),
        ("Queued", {}),
        ("Recorded", {"before": "pending", "state": "sending"}),
        ("Sent", {"waited": 10.0}),
        ("Recorded", {"before": "sending", "state": "running", "task_id": "t1"}),
        ("Polled", {"task_id": "t1", "state": "generating", "age": 10.0, "polls": 1}),
        ("Polled", {"task_id": "t1", "state": "success", "age": 20.0, "polls": 2}),
        ("Recorded", {"before": "running", "state": "succeeded", "task_id": "t1"}),
        (
            "Ended",
            {
                "kind": "character",
                "state": "succeeded",
                "task_id": "t1",
                "duration": 40.0,
                "polls": 2,
                "woken_by": "poll",
            },
        ),
    ]
    assert {(event.key, event.provider) for event in events} == {("mine", "fake")}


async def test_an_end_has_its_cost_and_its_lag() -> None:
    """`Ended` states what the task cost and how late its end was seen, by the provider's time."""
    provider = FakeProvider()
    provider.seen = provider.snapshot(credits=2.5, created_at=20.0, completed_at=26.0)
    session, events = observed(provider)
    async with session:
        await session.create(**REQUEST)
    [end] = [event for event in events if isinstance(event, Ended)]
    assert (end.credits, end.lag, end.created_at) == (2.5, 4.0, 0.0)


async def test_a_failed_task() -> None:
    """The end of a task that failed says why."""
    provider = FakeProvider()
    provider.seen = provider.snapshot(state="fail")
    session, events = observed(provider)
    async with session:
        with pytest.raises(TaskFailedError):
            await session.create(**REQUEST)
    [end] = [event for event in events if isinstance(event, Ended)]
    assert end.state == "failed"
    assert end.error == {"code": None, "message": ""}


async def test_a_success_without_a_character() -> None:
    """A success that holds no character ends as a failure, with the polls that found it."""
    session, events = observed(FakeProvider(seen=MissingCharacterError("no id", provider="fake", task_id="t1")))
    async with session:
        with pytest.raises(MissingCharacterError):
            await session.create(**REQUEST)
    assert [(event.state, event.polls) for event in events if isinstance(event, Ended)] == [("failed", 1)]
    assert [(event.state, event.error) for event in events if isinstance(event, Polled)] == [
        (None, "MissingCharacterError")
    ]


async def test_a_synchronous_provider() -> None:
    """A request that ends with its response has no polls."""
    session, events = observed(FakeProvider(synchronous=True))
    async with session:
        await session.create(**REQUEST)
    [end] = [event for event in events if isinstance(event, Ended)]
    assert (end.state, end.polls, end.woken_by, end.duration) == ("succeeded", 0, None, 20.0)


async def test_a_rejection_is_an_end() -> None:
    """A request that the provider rejected has ended."""
    session, events = observed(FakeProvider(fault=RequestRejectedError("no cats", provider="fake")))
    async with session:
        with pytest.raises(RequestRejectedError):
            await session.create(**REQUEST)
    [end] = [event for event in events if isinstance(event, Ended)]
    assert end.state == "rejected"
    assert end.error
    assert "no cats" in end.error["message"]


async def test_an_unknown_outcome() -> None:
    """A lost response is in doubt, and no end."""
    session, events = observed(FakeProvider(fault=NoAnswerError("reset by peer")))
    async with session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST)
    assert [event.reason for event in events if isinstance(event, InDoubt)] == ["reset by peer"]
    assert not [event for event in events if isinstance(event, Ended)]


async def test_a_failed_poll() -> None:
    """A poll that failed has no state, but the name of its error."""
    provider = FakeProvider(seen=ServiceUnavailableError("busy", provider="fake", transient=True))
    session, events = observed(provider)
    async with session:
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(10.5)
        provider.seen = None
        await handle
    polls = [(event.state, event.error) for event in events if isinstance(event, Polled)]
    assert polls[0] == (None, "ServiceUnavailableError")
    assert polls[-1] == ("success", None)


async def test_a_refresh_finds_the_end() -> None:
    """The poll of `TaskHandle.refresh` is observed as any other."""
    session, events = observed(FakeProvider())
    async with session:
        handle = await session.submit(**REQUEST)
        await handle.refresh()
    assert [(event.state, event.polls) for event in events if isinstance(event, Ended)] == [("succeeded", 1)]
    assert [event.key for event in events if isinstance(event, Polled)] == ["mine"]


async def test_a_resumed_task() -> None:
    """A task that was resumed by its id has no age before its first poll."""
    session, events = observed(FakeProvider())
    async with session:
        await session.resume("t1", key="mine")
    assert [(event.key, event.age) for event in events if isinstance(event, Polled)] == [("mine", None)]


async def test_a_known_key() -> None:
    """A key on record is registered without being new."""
    session, events = observed(FakeProvider())
    async with session:
        await session.create(**REQUEST)
        events.clear()
        await session.create(**REQUEST)
    assert shown(events) == [("Registered", {"kind": "character", "state": "succeeded"})]


async def test_the_ledger_fails() -> None:
    """A failed write is observed, and so is the end that is written later, with its polls."""
    store = FaultyStore(full={EntryState.SUCCEEDED})
    session, events = observed(FakeProvider(), store=store)
    async with session:
        await session.create(**REQUEST)
        store.full = {EntryState.PENDING}
        await asyncio.sleep(60)
        with pytest.raises(LedgerError):
            await session.create(**{name: value for name, value in REQUEST.items() if name != "key"})
    assert [event.error for event in events if isinstance(event, LedgerFailed)] == ["The disk is full. Empty it."] * 2
    assert [event.polls for event in events if isinstance(event, Ended)] == [1]


async def test_a_task_is_taken_over() -> None:
    """Polling the task of a process that has died is a take-over, whether at once or after a while."""
    store = FaultyStore(others_live=True)
    session, events = observed(FakeProvider(end=100), store=store)
    async with session:
        handle = await session.submit(**REQUEST)
        await store.elsewhere("mine", EntryState.RUNNING)
    async with session:
        [handle] = [handle async for handle in session.recover()]
        await asyncio.sleep(2)
        assert not [event for event in events if isinstance(event, TakenOver)]
        store.others_live = None
        await asyncio.sleep(2)
        assert [event.error for event in events if isinstance(event, LedgerFailed)][:1] == ["The disk fails."]
        store.others_live = False
        await asyncio.sleep(2)
        assert [event.task_id for event in events if isinstance(event, TakenOver)] == [handle.task_id]


async def test_a_failing_observer_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises is logged once and gets no more events; the others do, and the request succeeds."""
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise ZeroDivisionError

    session, events = observed(FakeProvider(), broken)
    async with session:
        await session.create(**REQUEST)
    assert len(calls) == 1
    assert len(events) > 5
    assert [record.levelname for record in caplog.records if vars(record).get("event") == "observer.failed"] == [
        "ERROR"
    ]


async def test_no_event_is_made_without_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an observer a session makes no event."""
    made: list[str] = []
    for kind in (Registered, Queued, Sent, Recorded, Polled, Ended):
        monkeypatch.setattr(kind, "__init__", lambda *_, **__: made.append("event"))
    async with CharacterSession(FakeProvider(), polling=FixedInterval(10.0)) as session:
        await session.create(**REQUEST)
    assert made == []


async def test_an_observer_that_comes_while_a_task_runs() -> None:
    """An observer that is added later sees the polls and the end of a task that runs."""
    events: list[Event] = []
    async with CharacterSession(FakeProvider(end=2), polling=FixedInterval(10.0)) as session:
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(15)
        session.observers.add(events.append)
        await handle
    assert [type(event).__name__ for event in events] == ["Polled", "Recorded", "Ended"]


async def test_an_observer_that_comes_during_a_poll() -> None:
    """A poll that is under way when the observer comes is not observed; the next one is."""

    class SlowProvider(FakeProvider):
        async def fetch(self, task_id: str) -> TaskSnapshot:
            await asyncio.sleep(5)
            return await super().fetch(task_id)

    events: list[Event] = []
    async with CharacterSession(SlowProvider(end=2), polling=FixedInterval(10.0)) as session:
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(12)
        session.observers.add(events.append)
        await handle
    assert [type(event).__name__ for event in events] == ["Polled", "Recorded", "Ended"]


async def test_steps_are_observed() -> None:
    """The steps of a job engine are observed as the work of a watcher is, with the key and the lag."""
    provider = FakeProvider(seen=ServiceUnavailableError("busy", provider="fake", transient=True))
    session, events = observed(provider)
    async with session:
        await session.register(**REQUEST)
        await session.advance("mine", patience=60.0)
        await session.advance("mine")
        provider.seen = provider.snapshot(created_at=20.0, completed_at=asyncio.get_running_loop().time())
        await asyncio.sleep(4)
        step = await session.advance("mine")
    assert step.finished
    polls = [(event.key, event.state, event.error) for event in events if isinstance(event, Polled)]
    assert polls == [("mine", None, "ServiceUnavailableError"), ("mine", "success", None)]
    assert [event.key for event in events if isinstance(event, Sent)] == ["mine"]
    assert [(event.lag, event.polls, event.woken_by) for event in events if isinstance(event, Ended)] == [
        (4.0, None, "poll")
    ]


async def test_another_attempt_is_recorded() -> None:
    """A failed key that is sent again becomes pending, which is an event."""
    provider = FakeProvider(end=0)
    session, events = observed(provider)
    async with session:
        provider.seen = provider.snapshot("t1", "fail")
        with pytest.raises(TaskFailedError):
            await session.create(**REQUEST)
        provider.seen = None
        events.clear()
        await session.retry("mine")
        changes = [(event.before, event.state) for event in events if isinstance(event, Recorded)]
    assert changes[0] == (EntryState.FAILED, EntryState.PENDING)


@pytest.mark.parametrize("facts", [5, {"a": object()}, {"a": float("nan")}, None])
async def test_an_observer_whose_facts_are_no_json(facts: object, caplog: pytest.LogCaptureFixture) -> None:
    """An observer whose `request_meta` raises, or returns no JSON, is dropped; the request goes on without it."""

    class Broken:
        def __call__(self, event: Event) -> None:
            """Take note of nothing."""

        def request_meta(self) -> object:
            return facts

    meta: dict[Any, Any] = {1: 2, "a": (3,)}
    async with CharacterSession(FakeProvider(), observers=[Broken()]) as session:
        entry = await session.register(**REQUEST, meta=meta)
    assert entry.meta == {"1": 2, "a": [3]}
    assert (
        "An observer of the session's events raised an error, and gets no more of them (observer=Broken)" in caplog.text
    )
