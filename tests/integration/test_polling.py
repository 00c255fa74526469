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

WISH: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}


def session_at(emulator: Emulator) -> CharacterSession:
    """A session that looks every 5 ms."""
    return CharacterSession(Kie("kie-key", base_url=emulator.url, limits=None), polling=FixedInterval(0.005))


@pytest.fixture
async def session(emulator: Emulator) -> AsyncIterator[CharacterSession]:
    """An open session at the emulator."""
    async with session_at(emulator) as opened:
        yield opened


PASSING = ["http_500", "body_500", "html", "reset", "truncated", "junk_json", "lost_response", "status", "maintenance"]


@pytest.mark.parametrize("kind", PASSING)
async def test_a_passing_fault_ends_no_wait(kind: str, emulator: Emulator, session: CharacterSession) -> None:
    """A look that went wrong is followed by one that does not."""
    fault = emulator.fault(kind, on="poll", times=1)
    assert (await session.create(**WISH)).id
    assert fault.hits == 1


@pytest.mark.parametrize("form", ["422", "404", "null"])
async def test_a_task_that_is_not_visible_yet_is_waited_for(
    form: str, emulator: Emulator, session: CharacterSession
) -> None:
    """An answer of "no such task" right after the create, in any form, ends no wait."""
    fault = emulator.fault("not_visible", form=form)
    assert (await session.create(**WISH)).id
    assert fault.hits == 1


@pytest.mark.parametrize("form", ["http_429", "body_429"])
async def test_a_429_to_a_poll_pauses_the_account(form: str) -> None:
    """After one rejected look nothing is sent until the pause is over, by no task; then all end well."""
    async with Emulator(durations=(1.0, 1.1)) as emulator, session_at(emulator) as session:
        handles = [await session.submit(**WISH) for _ in range(5)]
        emulator.fault(form, on="poll")
        loop = asyncio.get_running_loop()
        await emulator.until(lambda: emulator.counts.rate_limited["poll"])
        began, polls = loop.time(), emulator.counts.polls
        await emulator.until(lambda: emulator.counts.polls > polls + 4)  # those that were under way may still arrive
        assert loop.time() - began >= 0.9
        await asyncio.gather(*handles)
        assert emulator.counts.rate_limited["poll"] == 1


async def test_a_bad_key_ends_the_wait_at_once(emulator: Emulator, session: CharacterSession) -> None:
    """A fatal answer is told after one look."""
    handle = await session.submit(**WISH)
    emulator.fault("unauthorized", on="poll", times=None)
    with pytest.raises(AuthenticationError):
        await handle
    assert emulator.counts.polls == 1


async def test_a_failed_task_tells_why(emulator: Emulator, session: CharacterSession) -> None:
    """The provider's code and text come with the id; the updates end quietly."""
    emulator.fault("fail_task", code="SENSITIVE_WORD_ERROR", message="no such words")
    handle = await session.submit(**WISH)
    with pytest.raises(TaskFailedError, match="no such words") as caught:
        await handle
    assert (caught.value.code, caught.value.task_id) == ("SENSITIVE_WORD_ERROR", handle.task_id)
    assert [snapshot.state async for snapshot in handle.updates()] == ["fail"]


async def test_a_wait_that_runs_out_can_be_taken_up(emulator: Emulator, session: CharacterSession) -> None:
    """The task goes on, and the handle in the error waits for its end."""
    emulator.fault("stuck")
    with pytest.raises(WaitTimeoutError) as caught:
        await session.create(**WISH, timeout=0.05)
    handle = caught.value.handle
    emulator.finish(handle.task_id)
    assert (await handle).id
    assert emulator.counts.creates == 1


async def test_a_task_outlives_its_session(emulator: Emulator) -> None:
    """A pickled handle, or the id alone, picks the task up in another session, and nothing is paid again."""
    emulator.fault("stuck")
    async with session_at(emulator) as first:
        handle = await first.submit(**WISH, name="rex")
        kept = pickle.dumps(handle)
    emulator.finish(handle.task_id)
    async with session_at(emulator) as second:
        copy = second.resume(pickle.loads(kept))
        character = await copy
        assert (character.name, copy.key) == ("rex", handle.key)
        assert (await second.resume(handle.task_id)).id == character.id
    assert emulator.counts.creates == 1


async def test_waiters_share_the_looks(emulator: Emulator, session: CharacterSession) -> None:
    """Fifty waiters, of which some give up, cost no more looks than one, and all others get the character."""
    emulator.fault("stuck")
    handle = await session.submit(**WISH)
    waiting = [asyncio.create_task(handle.result(5)) for _ in range(50)]
    for waiter in waiting[:10]:
        waiter.cancel()
    hasty = [asyncio.create_task(handle.result(0.01)) for _ in range(10)]
    await asyncio.wait([*waiting[:10], *hasty])
    looks = emulator.counts.polls_by_task
    seen = looks[handle.task_id]
    await emulator.until(lambda: looks[handle.task_id] > seen + 3)
    emulator.finish(handle.task_id)
    characters = await asyncio.gather(*waiting[10:])
    assert characters == [characters[0]] * 40
    assert emulator.counts.polls < 50
    assert all(isinstance(waiter.exception(), WaitTimeoutError) for waiter in hasty)


async def test_updates_end_with_the_last_state(emulator: Emulator, session: CharacterSession) -> None:
    """The states come in order, no snapshot is told twice, and the last one is the end."""
    handle = await session.submit(**WISH)
    snapshots = [snapshot async for snapshot in handle.updates()]
    assert all(before != after for before, after in pairwise(snapshots))
    states = list(dict.fromkeys(snapshot.state for snapshot in snapshots))
    assert states == [state for state in ("waiting", "queuing", "generating", "success") if state in states]
    assert (states[0], states[-1]) == ("waiting", "success")
    assert emulator.counts.creates == 1
