"""Events over real sockets and ledgers: exchanges, cool-downs, callbacks, and other processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, Kie, SubmissionUnknownError, open_ledger
from sora_chars.events import Answered, CallbackReceived, Cooldown, Ended, Event, Recorded

if TYPE_CHECKING:
    from sora_chars.testing import Emulator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}


def session_at(emulator: Emulator, events: list[Event], **options: Any) -> CharacterSession:
    """Return a session that polls every 5 ms and adds its events to a list."""
    kie = Kie("kie-key", base_url=emulator.url, limits=None)
    return CharacterSession(kie, polling=FixedInterval(0.005), observers=[events.append], **options)


async def test_each_exchange_is_observed(emulator: Emulator) -> None:
    """An exchange has its method, its URL and its status, and the key of its request. Repeated ones are counted."""
    events: list[Event] = []
    emulator.fault("http_500", on="poll", times=1)
    async with session_at(emulator, events) as session:
        await session.create(**REQUEST, key="mine")
    exchanges = [event for event in events if isinstance(event, Answered)]
    assert {event.key for event in exchanges} == {"mine"}
    assert (exchanges[0].request, exchanges[0].method, exchanges[0].status) == ("create", "POST", 200)
    assert exchanges[0].url == f"{emulator.url}/api/v1/jobs/createTask"
    assert [event.status for event in exchanges if event.request == "poll"][:2] == [500, 200]
    assert [event.resend for event in exchanges if event.request == "poll"][:2] == [0, 1]
    assert all(event.seconds > 0 for event in exchanges)
    [end] = [event for event in events if isinstance(event, Ended)]
    assert end.lag is not None


async def test_an_exchange_without_a_response(emulator: Emulator) -> None:
    """An exchange that brought no response has the name of its error in place of a status."""
    events: list[Event] = []
    emulator.fault("reset", on="create", times=1)
    async with session_at(emulator, events) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST)
    failed = [event for event in events if isinstance(event, Answered) and event.status is None]
    assert [(event.request, event.error) for event in failed] == [("create", "ClientOSError")]


async def test_a_429_is_a_cooldown(emulator: Emulator) -> None:
    """A 429 is observed with the kind of its request and the length of the pause."""
    events: list[Event] = []
    emulator.fault("http_429", on="create", times=1)
    async with session_at(emulator, events) as session:
        await session.create(**REQUEST)
    [pause] = [event for event in events if isinstance(event, Cooldown)]
    assert pause.request == "create"
    assert 0.9 < pause.seconds < 60


async def test_callbacks_are_observed(emulator: Emulator) -> None:
    """A callback that is taken, and one that is refused, are observed with their status."""
    events: list[Event] = []
    app = web.Application()
    runner = web.AppRunner(app)
    async with session_at(emulator, events) as session:
        receiver = CallbackReceiver(session)
        app.add_subapp("/hooks/", receiver.aiohttp_app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            session.providers[0].callback_url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
            emulator.fault("stuck")
            handle = await session.submit(**REQUEST, key="mine")
            status, _ = await receiver.handle("POST", f"/hooks/{'x' * 32}", {}, b"{}")
            assert status == 401
            emulator.finish(handle.task_id)
            await handle
            await emulator.until(lambda: any(isinstance(event, CallbackReceived) and event.key for event in events))
        finally:
            await runner.cleanup()
    calls = [event for event in events if isinstance(event, CallbackReceived)]
    assert [(call.status, call.key, call.task_id) for call in calls] == [
        (401, None, None),
        (200, "mine", handle.task_id),
    ]
    assert "token" in str(calls[0].reason)


async def test_the_changes_of_another_process(emulator: Emulator, shared_url: str) -> None:
    """A stream yields what another session on the same ledger does, until the end of its request."""
    async with session_at(emulator, [], ledger=open_ledger(shared_url)) as watching:
        stream = watching.events()
        await asyncio.sleep(0.3)
        async with session_at(emulator, [], ledger=open_ledger(shared_url)) as working:
            await working.create(**REQUEST, key="theirs")
            await watching.create(**REQUEST, key="own")
            async with asyncio.timeout(20):
                events = [await anext(stream)]
                while {event.key for event in events if isinstance(event, Ended)} != {"theirs", "own"}:
                    events.append(await anext(stream))
    foreign = [event for event in events if event.elsewhere]
    assert {event.key for event in foreign} == {"theirs"}
    assert [event.state for event in foreign if isinstance(event, Recorded)][-1] == "succeeded"
    assert {event.key for event in events if not event.elsewhere} == {"own"}
