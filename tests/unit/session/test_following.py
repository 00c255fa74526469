"""`CharacterSession.wait`: the result of a key by the ledger alone, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    CharacterDeletedError,
    InvalidRequestError,
    MissingCharacterError,
    RequestRejectedError,
    SessionClosedError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
)
from sora_chars.ledger import EntryState, Ledger
from sora_chars.ledger.serialize import to_result
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import Character, TaskRequest, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, entry_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "name": "rex", "key": "mine"}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the fields of the request, some of them changed."""
    return {**REQUEST, **fields}


@pytest.fixture
def provider() -> FakeProvider:
    """Return a provider without faults."""
    return FakeProvider(before=1.0, after=1.0)


@pytest.fixture
async def session(provider: FakeProvider) -> AsyncGenerator[CharacterSession]:
    """Return a session that polls every 10 s."""
    async with CharacterSession(provider, polling=FixedInterval(10.0), ledger=Ledger(FaultyStore())) as session:
        yield session


async def test_waits_for_the_character_of_another_call(session: CharacterSession, provider: FakeProvider) -> None:
    """A wait sends and polls nothing, and has the character as soon as it is on record."""
    entry = await session.register(**REQUEST)
    with pytest.raises(WaitTimeoutError, match="Key mine has not ended: it is pending"):
        entry.outcome()
    assert entry.character is None
    waits = [asyncio.create_task(session.wait(" mine\n")) for _ in range(3)]
    await asyncio.sleep(100)
    assert (provider.posts, provider.polls) == ([], [])
    made = await session.create(**REQUEST)
    assert await asyncio.gather(*waits) == [made, made, made]
    assert (made.name, len(provider.polls)) == ("rex", 1)
    ended = await entry_of(session)
    assert (ended.character, ended.outcome(), await session.wait("mine")) == (made, made, made)


async def test_a_wait_times_out(session: CharacterSession) -> None:
    """A wait that times out says how far the request is, and the session's time-out is the default."""
    await session.register(**REQUEST)
    began = asyncio.get_running_loop().time()
    with pytest.raises(WaitTimeoutError, match=r"Key mine had not ended .*: it is pending") as caught:
        await session.wait("mine", timeout=7.0)
    assert (asyncio.get_running_loop().time() - began, caught.value.charged) == (7.0, "no")
    session._dispatcher.timeout = 3.0
    with pytest.raises(WaitTimeoutError):
        await session.wait("mine")
    with pytest.raises(InvalidRequestError, match="no entry 'other'"):
        await session.wait("other")
    with pytest.raises(InvalidRequestError, match="timeout must be"):
        await session.wait("mine", timeout=-1.0)


async def test_a_closed_session_ends_the_wait(provider: FakeProvider) -> None:
    """Closing the session ends its waits with an error that says so."""
    async with CharacterSession(provider) as session:
        await session.register(**REQUEST)
        wait = asyncio.create_task(session.wait("mine", timeout=float("inf")))
        await asyncio.sleep(1)
    with pytest.raises(SessionClosedError, match="before key mine ended"):
        await wait


async def test_raises_why_there_is_no_character(session: CharacterSession, provider: FakeProvider) -> None:
    """A rejected, failed, unknown or deleted request raises its own error."""
    provider.fault = RequestRejectedError("a real person")
    ends: dict[EntryState, tuple[type[Exception], dict[str, Any]]] = {
        EntryState.FAILED: (TaskFailedError, to_result(provider.snapshot(state="fail"))),
        EntryState.SUCCEEDED: (
            MissingCharacterError,
            to_result(TaskSnapshot(task_id="t1", provider="fake", state="success")),
        ),
    }
    for state, (error, result) in ends.items():
        entry = await session.register(**changed(key=state))
        entry = await session.ledger.transition(entry, EntryState.SENDING)
        await session.ledger.transition(entry, state, task_id="t1", result=result)
        with pytest.raises(error) as caught:
            await session.wait(state)
        assert (caught.value.key, caught.value.provider, caught.value.task_id) == (state, "fake", "t1")  # type: ignore[attr-defined]
    await session.register(**REQUEST)
    await session.advance("mine")
    with pytest.raises(RequestRejectedError, match="a real person"):
        await session.wait("mine")
    entry = await session.ledger.transition(await session.register(**changed(key="u")), EntryState.SENDING)
    await session.ledger.transition(entry, EntryState.UNKNOWN)
    with pytest.raises(SubmissionUnknownError, match="no reason is recorded"):
        await session.wait("u")


async def test_a_deleted_character() -> None:
    """The wait for a character that was deleted raises."""
    async with CharacterSession(FakeProvider(synchronous=True), ledger=Ledger(MemoryStore())) as session:
        await session.create(**REQUEST)
        entry = await entry_of(session)
        await session.ledger.transition(entry, EntryState.DELETED, result=entry.result)
        with pytest.raises(CharacterDeletedError):
            await session.wait("mine")
        assert (await entry_of(session)).character is None


async def test_the_request_of_a_task_has_a_snapshot() -> None:
    """The result of a `TaskRequest` is its finished snapshot."""
    async with CharacterSession(FakeProvider(synchronous=True)) as session:
        snapshot = await session.create(TaskRequest(model="m", key="mine"))
        assert await session.wait("mine") == snapshot


async def test_an_entry_of_a_later_version_has_no_name() -> None:
    """A request that this version cannot read gives the character without its requested name."""
    store = MemoryStore()
    async with CharacterSession(FakeProvider(synchronous=True), ledger=Ledger(store)) as session:
        entry = await session.ledger.register(key="k", provider="fake", kind="character", request={"later": 1})
        entry = await session.ledger.transition(entry, EntryState.SENDING)
        made = Character(id="ch_1", provider="fake")
        result = to_result(TaskSnapshot(task_id="t1", provider="fake", state="success", character=made))
        await session.ledger.transition(entry, EntryState.SUCCEEDED, task_id="t1", result=result)
        assert await session.wait("k") == made
