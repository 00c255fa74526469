from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, FixedInterval, Kie
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WISH: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
STEPS = 120  # of the event loop: more than a create takes until it waits for its task, which the tests check


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator in this loop whose tasks never end by themselves."""
    async with Emulator() as running:
        running.fault("stuck", times=None)
        yield running


def session_at(emulator: Emulator) -> CharacterSession:
    """A session that looks every 5 ms."""
    return CharacterSession(Kie("kie-key", base_url=emulator.url, limits=None), polling=FixedInterval(0.005))


async def steps(number: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the session has logged since it was asked last."""
    own = [vars(record) for record in caplog.records if record.name == "sora_chars.session"]
    caplog.clear()
    return own


async def test_a_create_cancelled_at_any_step_sends_nothing_or_logs_the_id(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the request leaves nothing is sent; from then on closing waits for the id, and it is in the log."""
    caplog.set_level("INFO", logger="sora_chars.session")
    outcomes: Counter[str] = Counter()
    for number in range(STEPS):
        made = set(emulator.tasks)
        async with session_at(emulator) as session:
            creating = asyncio.create_task(session.create(**WISH, key=f"key {number}"))
            await steps(number)
            waiting = not session._dispatcher._submissions and number > 3
            creating.cancel()
            await asyncio.wait([creating])
            assert creating.cancelled()
        told = [(event["message"], event.get("task_id"), event["key"]) for event in events(caplog)]
        new = set(emulator.tasks) - made
        if new:
            assert told == [("submission.outlived_its_caller", new.pop(), f"key {number}")]
            outcomes["waiting" if waiting else "carried through"] += 1
        else:
            assert [message for message, _, _ in told] in ([], ["submission.cancelled"])
            outcomes["not sent"] += 1
        assert not new
    assert set(outcomes) == {"not sent", "carried through", "waiting"}
    assert emulator.counts.creates == len(emulator.tasks) == outcomes["carried through"] + outcomes["waiting"]


async def test_a_cancelled_wait_leaves_the_task_and_the_others(emulator: Emulator) -> None:
    """At whatever step a wait is cancelled, another waiter of the same task gets its result."""
    async with session_at(emulator) as session:
        for number in range(0, 60, 3):
            handle = await session.submit(**WISH)
            patient, hasty = (asyncio.create_task(handle.result()) for _ in range(2))
            await steps(number)
            hasty.cancel()
            emulator.finish(handle.task_id)
            assert (await patient).id
            assert hasty.cancelled()


async def test_closing_at_any_step_leaves_no_task_unknown(emulator: Emulator) -> None:
    """Whatever step a create has reached when its session is closed, each task of the server has a known id."""
    known: set[str] = set()
    for number in range(0, STEPS, 2):
        session = await session_at(emulator).open()
        submitting = asyncio.create_task(session.submit(**WISH))
        await steps(number)
        await session.aclose()
        await asyncio.wait([submitting])
        if not submitting.exception():
            known.add(submitting.result().task_id)
    assert known == set(emulator.tasks)
    assert known
