from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    MissingCharacterError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskNotFoundError,
)
from sora_chars.ledger import EntryState, Ledger
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.pictures import Pictures
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sora_chars.models import Character

pytestmark = pytest.mark.looptime

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def provider() -> FakeProvider:
    """Return the provider."""
    return FakeProvider()


@pytest.fixture
def store() -> FaultyStore:
    """Return a store that works so far."""
    return FaultyStore()


@pytest.fixture
async def session(provider: FakeProvider, store: FaultyStore) -> AsyncGenerator[CharacterSession]:
    """Return a session that looks every 10 s, and has no time to wait."""
    async with CharacterSession(provider, polling=FixedInterval(10.0), ledger=Ledger(store)) as session:
        yield session


async def advance(session: CharacterSession) -> tuple[EntryState, float | None]:
    """Take the wish one step on, and say where it is and when to call again."""
    step = await session.advance("mine")
    assert step.finished is (step.retry_in is None)
    assert step.entry == await session.entry("mine")
    return step.entry.state, step.retry_in


async def test_one_step_at_a_time(session: CharacterSession, provider: FakeProvider) -> None:
    """A wish is recorded, sent once, looked at until its end, and then left alone."""
    assert (await session.register(**WISH)).state is EntryState.PENDING
    assert provider.posts == []
    provider.seen = provider.snapshot(state="generating")
    assert await advance(session) == (EntryState.RUNNING, 10)
    assert (len(provider.posts), len(provider.polls)) == (1, 0)
    assert await advance(session) == (EntryState.RUNNING, 10)
    provider.seen = provider.snapshot(state="generating", retry_after=77.0)
    assert await advance(session) == (EntryState.RUNNING, 77)
    provider.seen = None
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert (len(provider.posts), len(provider.polls)) == (1, 3)
    assert [saved.character.id async for saved in session.characters("DOG")] == ["ch_1"]


async def test_nothing_goes_on_after_a_step(session: CharacterSession, provider: FakeProvider) -> None:
    """A task that a step has started is polled by nobody until the next."""
    await session.register(**WISH)
    await session.advance("mine")
    await asyncio.sleep(1000)
    assert provider.polls == []


async def test_steps_at_once_send_once(session: CharacterSession, provider: FakeProvider) -> None:
    """Many who advance one key in the same instant make one request, and find one end."""
    await session.register(**WISH)
    assert {await one for one in [asyncio.create_task(advance(session)) for _ in range(9)]} == {
        (EntryState.RUNNING, 10)
    }
    ends = await asyncio.gather(*(advance(session) for _ in range(9)))
    assert {*ends} == {(EntryState.SUCCEEDED, None)}
    assert len(provider.posts) == 1


async def test_a_synchronous_provider_needs_one_step() -> None:
    """Its answer is the end."""
    async with CharacterSession(FakeProvider(synchronous=True)) as session:
        await session.register(**WISH)
        assert await advance(session) == (EntryState.SUCCEEDED, None)


async def test_a_refusal_ends_the_steps(session: CharacterSession, provider: FakeProvider) -> None:
    """Refused is finished, for all who advance it at once, and a later step sends nothing either."""
    provider.fault = RequestRejectedError("a real person")
    await session.register(**WISH)
    assert {*await asyncio.gather(advance(session), advance(session))} == {(EntryState.REJECTED, None)}
    assert await advance(session) == (EntryState.REJECTED, None)
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    ("fault", "early", "retry_in"),
    [
        (RateLimitedError("busy"), None, 5.0),
        (RateLimitedError("busy", retry_after=60.0), None, 60.0),
        (None, NoAnswerError("the upload was reset"), 5.0),
    ],
)
async def test_a_step_that_did_nothing_is_worth_another(
    session: CharacterSession, provider: FakeProvider, fault: Exception | None, early: Exception | None, retry_in: float
) -> None:
    """A passing fault leaves the wish as it was, to be tried again when the provider says."""
    provider.fault, provider.early = fault, early
    await session.register(**WISH)
    assert await advance(session) == (EntryState.PENDING, retry_in)


async def test_a_refusal_that_is_not_on_record_yet_is_told(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """Where the ledger cannot take a refusal, the caller hears it as an error."""
    provider.fault = RequestRejectedError("a real person")
    store.full = {EntryState.REJECTED}
    await session.register(**WISH)
    with pytest.raises(RequestRejectedError):
        await session.advance("mine")
    assert await state_of(session) is EntryState.SENDING


async def test_what_another_process_sends_is_left_to_it(session: CharacterSession, store: FaultyStore) -> None:
    """A step waits for nobody while the sender lives, and leaves doubt once it does not."""
    await session.register(**WISH)
    await store.elsewhere("mine", EntryState.SENDING)
    began = asyncio.get_running_loop().time()
    assert await advance(session) == (EntryState.SENDING, 5)
    assert asyncio.get_running_loop().time() == began
    store.others_live = False
    for _ in range(2):
        with pytest.raises(SubmissionUnknownError, match="the process that sent it ended"):
            await session.advance("mine")
    assert await state_of(session) is EntryState.UNKNOWN


@pytest.mark.parametrize(
    ("seen", "state", "retry_in"),
    [
        (NoAnswerError("reset"), EntryState.RUNNING, 5.0),
        (RateLimitedError("busy", retry_after=9.0), EntryState.RUNNING, 9.0),
        (TaskNotFoundError("no such task"), EntryState.RUNNING, 5.0),
        (MissingCharacterError("none", provider="fake", task_id="t1", payload={}), EntryState.FAILED, None),
        (TaskSnapshot(task_id="t1", provider="fake", state="fail"), EntryState.FAILED, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_a_look_may_meet(
    session: CharacterSession,
    provider: FakeProvider,
    seen: TaskSnapshot | Exception,
    state: EntryState,
    retry_in: float | None,
) -> None:
    """A fault that may pass is worth another step; an end without a character is one."""
    await session.register(**WISH)
    await session.advance("mine")
    provider.seen = seen
    assert await advance(session) == (state, retry_in)


async def test_a_look_that_no_later_one_mends(session: CharacterSession, provider: FakeProvider) -> None:
    """A bad key is told, and the task still runs."""
    await session.register(**WISH)
    await session.advance("mine")
    provider.seen = AuthenticationError("bad key")
    with pytest.raises(AuthenticationError):
        await session.advance("mine")
    assert await state_of(session) is EntryState.RUNNING


async def test_an_end_that_is_not_on_record_yet(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """Where the ledger cannot take the end, the key is not finished."""
    await session.register(**WISH)
    await session.advance("mine")
    store.full = {EntryState.SUCCEEDED}
    assert await advance(session) == (EntryState.RUNNING, 5)
    store.full.clear()
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert len(provider.posts) == 1


async def test_only_what_is_known_is_advanced(session: CharacterSession, store: FaultyStore) -> None:
    """An unknown key, and one of a provider that is not here, are named."""
    with pytest.raises(InvalidRequestError, match="no entry 'mine'"):
        await session.advance("mine")
    await session.ledger.register(key="mine", provider="gone", kind="character", request={})
    for state in (EntryState.PENDING, EntryState.SENDING, EntryState.RUNNING):
        if state is not EntryState.PENDING:
            await store.elsewhere("mine", state, task_id="t1")
        if state is not EntryState.SENDING:
            with pytest.raises(ConfigurationError, match="must be one of fake, got 'gone'"):
                await session.advance("mine")


async def test_a_step_that_finds_the_end_saves_the_picture_and_teaches_the_pace(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that finds the end does all that waiting would have done, before it returns."""
    saved: list[Character] = []
    learned: list[TaskSnapshot] = []

    async def save(self: Pictures, character: Character) -> None:
        del self
        await asyncio.sleep(3)
        saved.append(character)

    class Pupil(FixedInterval):
        def observe_finished(self, snapshot: TaskSnapshot) -> None:
            learned.append(snapshot)

    monkeypatch.setattr(Pictures, "save", save)
    async with CharacterSession(provider, polling=Pupil(10.0), pictures=tmp_path) as session:
        await session.register(**WISH)
        await session.advance("mine")
        assert (saved, learned) == ([], [])
        await session.advance("mine")
        assert (saved, learned) == ([provider.snapshot().character], [provider.snapshot()])
        provider.synchronous = True
        await session.register(**WISH | {"key": "another"})
        await session.advance("another")
        assert len(saved) == 2
