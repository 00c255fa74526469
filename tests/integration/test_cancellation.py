"""Cancelling creates and waits after any number of event-loop iterations."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, FixedInterval, Kie
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
ITERATIONS = 120  # of the event loop; enough for a create to reach its wait, which the tests check


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator in this event loop whose tasks never end by themselves."""
    async with Emulator() as running:
        running.fault("stuck", times=None)
        yield running


def session_at(emulator: Emulator) -> CharacterSession:
    """Return a session that polls every 5 ms."""
    return CharacterSession(Kie("kie-key", base_url=emulator.url, limits=None), polling=FixedInterval(0.005))


async def iterate(number: int) -> None:
    """Let the event loop run so many iterations."""
    for _ in range(number):
        await asyncio.sleep(0)


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what the session has logged since the last call."""
    own = [vars(record) for record in caplog.records if record.name == "sora_chars.session"]
    caplog.clear()
    return own


async def test_cancelled_create_sends_nothing_or_logs_the_task_id(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A create is cancelled before it is sent, or closing waits for the task id and logs it."""
    caplog.set_level("INFO", logger="sora_chars.session")
    outcomes: Counter[str] = Counter()
    for number in range(ITERATIONS):
        made = set(emulator.tasks)
        async with session_at(emulator) as session:
            creating = asyncio.create_task(session.create(**REQUEST, key=f"key {number}"))
            await iterate(number)
            waiting = not session._dispatcher._submissions and number > 3
            creating.cancel()
            await asyncio.wait([creating])
            assert creating.cancelled()
        logged = [(event["event"], event.get("task_id"), event["key"]) for event in events(caplog)]
        new = set(emulator.tasks) - made
        if new:
            assert logged == [("submission.outlived_its_caller", new.pop(), f"key {number}")]
            outcomes["waiting" if waiting else "completed"] += 1
        else:
            assert [message for message, _, _ in logged] in ([], ["submission.cancelled"])
            outcomes["not sent"] += 1
        assert not new
    assert set(outcomes) == {"not sent", "completed", "waiting"}
    assert emulator.counts.creates == len(emulator.tasks) == outcomes["completed"] + outcomes["waiting"]


async def test_cancelled_wait_leaves_other_waiters(emulator: Emulator) -> None:
    """Another waiter of the same task gets its result, whenever a wait is cancelled."""
    async with session_at(emulator) as session:
        for number in range(0, 60, 3):
            handle = await session.submit(**REQUEST)
            patient, cancelled = (asyncio.create_task(handle.result()) for _ in range(2))
            await iterate(number)
            cancelled.cancel()
            emulator.finish(handle.task_id)
            assert (await patient).id
            assert cancelled.cancelled()


async def test_closing_loses_no_task(emulator: Emulator) -> None:
    """Whenever a session is closed during a create, the id of the server's task is known."""
    known: set[str] = set()
    for number in range(0, ITERATIONS, 2):
        session = await session_at(emulator).open()
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await iterate(number)
        await session.aclose()
        await asyncio.wait([submitting])
        if not submitting.exception():
            known.add(submitting.result().task_id)
    assert known == set(emulator.tasks)
    assert known
