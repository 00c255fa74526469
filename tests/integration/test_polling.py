"""Waiting for tasks of the emulator: faults, time-outs, several waiters, updates."""

from __future__ import annotations

import asyncio
import pickle
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, FixedInterval, Kie
from sora_chars.errors import AuthenticationError, TaskFailedError, WaitTimeoutError
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}


def session_at(emulator: Emulator) -> CharacterSession:
    """Return a session that polls every 5 ms."""
    return CharacterSession(Kie("kie-key", base_url=emulator.url, limits=None), polling=FixedInterval(0.005))


@pytest.fixture
async def session(emulator: Emulator) -> AsyncIterator[CharacterSession]:
    """An open session that uses the emulator."""
    async with session_at(emulator) as opened:
        yield opened


TRANSIENT = [
    "http_500",
    "body_500",
    "html",
    "reset",
    "truncated",
    "junk_json",
    "lost_response",
    "status",
    "maintenance",
]


@pytest.mark.parametrize("kind", TRANSIENT)
async def test_transient_fault_ends_no_wait(kind: str, emulator: Emulator, session: CharacterSession) -> None:
    """A failed poll is followed by another one."""
    fault = emulator.fault(kind, on="poll", times=1)
    assert (await session.create(**REQUEST)).id
    assert fault.hits == 1


@pytest.mark.parametrize("form", ["422", "404", "null"])
async def test_task_that_is_not_visible_yet(form: str, emulator: Emulator, session: CharacterSession) -> None:
    """A response "no such task" right after the create, in any form, does not end the wait."""
    fault = emulator.fault("not_visible", form=form)
    assert (await session.create(**REQUEST)).id
    assert fault.hits == 1


@pytest.mark.parametrize("form", ["http_429", "body_429"])
async def test_429_to_a_poll_starts_a_cooldown(form: str) -> None:
    """After a rejected poll no task is polled until the cool-down ends; then all succeed."""
    async with Emulator(durations=(1.0, 1.1)) as emulator, session_at(emulator) as session:
        handles = [await session.submit(**REQUEST) for _ in range(5)]
        emulator.fault(form, on="poll")
        loop = asyncio.get_running_loop()
        await emulator.until(lambda: emulator.counts.rate_limited["poll"])
        started = loop.time()
        polls = emulator.counts.polls
        await emulator.until(lambda: emulator.counts.polls > polls + 4)  # polls that were already sent may still arrive
        assert loop.time() - started >= 0.9
        await asyncio.gather(*handles)
        assert emulator.counts.rate_limited["poll"] == 1


async def test_wrong_key_ends_the_wait(emulator: Emulator, session: CharacterSession) -> None:
    """A fatal error ends the wait after one poll."""
    handle = await session.submit(**REQUEST)
    emulator.fault("unauthorized", on="poll", times=None)
    with pytest.raises(AuthenticationError):
        await handle
    assert emulator.counts.polls == 1


async def test_failed_task(emulator: Emulator, session: CharacterSession) -> None:
    """The error has the task id and the provider's code and message; the updates just end."""
    emulator.fault("fail_task", code="SENSITIVE_WORD_ERROR", message="no such words")
    handle = await session.submit(**REQUEST)
    with pytest.raises(TaskFailedError, match="no such words") as caught:
        await handle
    assert (caught.value.code, caught.value.task_id) == ("SENSITIVE_WORD_ERROR", handle.task_id)
    assert [snapshot.state async for snapshot in handle.updates()] == ["fail"]


async def test_timed_out_wait_can_be_resumed(emulator: Emulator, session: CharacterSession) -> None:
    """The task keeps running, and the handle in the error waits for its end."""
    emulator.fault("stuck")
    with pytest.raises(WaitTimeoutError) as caught:
        await session.create(**REQUEST, timeout=0.05)
    handle = caught.value.handle
    emulator.finish(handle.task_id)
    assert (await handle).id
    assert emulator.counts.creates == 1


async def test_task_is_resumed_in_another_session(emulator: Emulator) -> None:
    """A pickled handle, or the task id, resumes the task in another session without a second create."""
    emulator.fault("stuck")
    async with session_at(emulator) as first:
        handle = await first.submit(**REQUEST, name="rex")
        pickled = pickle.dumps(handle)
    emulator.finish(handle.task_id)
    async with session_at(emulator) as second:
        copy = second.resume(pickle.loads(pickled))
        character = await copy
        assert (character.name, copy.key) == ("rex", handle.key)
        assert (await second.resume(handle.task_id)).id == character.id
    assert emulator.counts.creates == 1


async def test_waiters_share_polls(emulator: Emulator, session: CharacterSession) -> None:
    """Fifty waiters, some of which are cancelled or time out, need no more polls than one."""
    emulator.fault("stuck")
    handle = await session.submit(**REQUEST)
    waiting = [asyncio.create_task(handle.result(5)) for _ in range(50)]
    for waiter in waiting[:10]:
        waiter.cancel()
    impatient = [asyncio.create_task(handle.result(0.01)) for _ in range(10)]
    await asyncio.wait([*waiting[:10], *impatient])
    polls = emulator.counts.polls_by_task
    before = polls[handle.task_id]
    await emulator.until(lambda: polls[handle.task_id] > before + 3)
    emulator.finish(handle.task_id)
    characters = await asyncio.gather(*waiting[10:])
    assert characters == [characters[0]] * 40
    assert emulator.counts.polls < 50
    assert all(isinstance(waiter.exception(), WaitTimeoutError) for waiter in impatient)


async def test_updates_end_with_the_final_state(emulator: Emulator, session: CharacterSession) -> None:
    """Updates give each snapshot once, in order, and end with the final one."""
    handle = await session.submit(**REQUEST)
    snapshots = [snapshot async for snapshot in handle.updates()]
    assert all(before != after for before, after in pairwise(snapshots))
    states = list(dict.fromkeys(snapshot.state for snapshot in snapshots))
    assert states == [state for state in ("waiting", "queuing", "generating", "success") if state in states]
    assert (states[0], states[-1]) == ("waiting", "success")
    assert emulator.counts.creates == 1
