"""A receiver beside a job engine: it records what callbacks lead to, reports them, and polls nothing else."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import MissingCharacterError, NoAnswerError, SubmissionUnknownError
from sora_chars.events import Ended, Event
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, entry_of, state_of

if TYPE_CHECKING:
    from sora_chars.ledger import Entry
    from sora_chars.providers.kie_callback import CallbackEvent

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@attrs.define
class Scene:
    """A request that another process has sent, and a receiver that settles only."""

    session: CharacterSession
    provider: FakeProvider
    receiver: CallbackReceiver
    reported: list[tuple[str, EntryState]] = attrs.field(factory=list)

    async def report(self, event: CallbackEvent, entry: Entry) -> None:
        """Take note of an event."""
        self.reported.append((event.task_id, entry.state))

    async def post(self, task_id: str = "t1", *, receiver: CallbackReceiver | None = None) -> int:
        """Deliver the callback of the request; return the status of the answer."""
        body = json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()
        token = self.provider.posts[0].rpartition("/")[2]
        status, _ = await (receiver or self.receiver).handle("POST", f"/hooks/{token}", {}, body)
        return status


async def sent(provider: FakeProvider, store: FaultyStore) -> None:
    """Send a request in a session that does not poll it."""
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        await session.register(**REQUEST)
        await session.advance("mine", patience=60.0)


async def scene(provider: FakeProvider) -> Scene:
    """Return an open scene, whose session the caller closes."""
    store = FaultyStore()
    await sent(provider, store)
    session = await CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)).open()
    made = Scene(session, provider, CallbackReceiver(session, settle_only=True))
    made.receiver.on_event = made.report
    return made


async def test_records_the_end_with_one_poll() -> None:
    """A callback leads to one poll, whose end is recorded before it is reported; nothing is polled afterwards."""
    events: list[Event] = []
    made = await scene(FakeProvider(callback_url="https://example.com/hooks"))
    made.session.observers.add(events.append)
    async with aclosing(made.session) as session:
        assert await made.post() == 200
        assert await state_of(session) is EntryState.SUCCEEDED
        await asyncio.sleep(100)
    assert [(event.key, event.woken_by) for event in events if isinstance(event, Ended)] == [("mine", "callback")]
    assert made.reported == [("t1", EntryState.SUCCEEDED)]
    assert len(made.provider.polls) == 1


async def test_does_not_become_the_poller() -> None:
    """A callback of a task that still runs leaves it to the engine; many callbacks cause one poll a second."""
    made = await scene(FakeProvider(callback_url="https://example.com/hooks", end=1000))
    async with aclosing(made.session) as session:
        statuses = await asyncio.gather(*(made.post() for _ in range(20)))
        await asyncio.sleep(100)
        entry = await entry_of(session)
    assert set(statuses) == {200}
    assert (entry.state, entry.owner) == (EntryState.RUNNING, None)
    assert len(made.provider.polls) == 1


async def test_records_a_success_without_a_character() -> None:
    """A success that holds no character is recorded as a failure."""
    provider = FakeProvider(callback_url="https://example.com/hooks")
    made = await scene(provider)
    provider.seen = MissingCharacterError("no id", provider="fake", task_id="t1")
    async with aclosing(made.session) as session:
        assert await made.post() == 200
        assert await state_of(session) is EntryState.FAILED


async def test_settles_a_lost_response_without_owning_it() -> None:
    """The callback of a request whose response was lost names the task, which no process owns."""
    provider = FakeProvider(callback_url="https://example.com/hooks", fault=NoAnswerError("reset"))
    store = FaultyStore()
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST)
        provider.seen = provider.snapshot("t9", "generating")
        made = Scene(session, provider, CallbackReceiver(session, settle_only=True))
        assert await made.post("t9") == 200
        entry = await entry_of(session)
    assert (entry.state, entry.task_id, entry.owner) == (EntryState.RUNNING, "t9", None)
    assert len(provider.polls) == 1


async def test_an_error_of_the_application_refuses_no_callback(caplog: pytest.LogCaptureFixture) -> None:
    """An `on_event` that raises is logged; the callback is taken and its end recorded."""
    made = await scene(FakeProvider(callback_url="https://example.com/hooks"))

    async def broken(event: CallbackEvent, entry: Entry) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError(event.task_id, entry.key)

    receiver = CallbackReceiver(made.session, on_event=broken)
    async with aclosing(made.session) as session:
        assert await made.post(receiver=receiver) == 200
        await asyncio.sleep(1)
        assert await state_of(session) is EntryState.SUCCEEDED
    [record] = [vars(record) for record in caplog.records if vars(record).get("event") == "callback.on_event_failed"]
    assert (record["key"], record["task_id"]) == ("mine", "t1")


async def test_a_refused_callback_is_not_reported() -> None:
    """A callback with an unknown token, or of another task, is not reported."""
    made = await scene(FakeProvider(callback_url="https://example.com/hooks"))
    async with aclosing(made.session):
        assert (await made.receiver.handle("POST", f"/hooks/{'x' * 32}", {}, b"{}"))[0] == 401
        assert await made.post("t2") == 401
    assert made.reported == []
