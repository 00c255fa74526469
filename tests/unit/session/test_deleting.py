"""Characters that are deleted at their provider, and what the ledger says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import CharacterDeletedError, ConfigurationError, InvalidRequestError, NoAnswerError
from sora_chars.ledger import EntryState
from sora_chars.models import Character, CharacterRequest
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.models import TaskSnapshot

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


@attrs.define(eq=False)
class DeletingProvider(FakeProvider):
    """A provider that deletes characters.

    Attributes:
        gone: The ids that were to be deleted.
        broken: Raised in place of deleting.
    """

    gone: list[str] = attrs.field(factory=list)
    broken: Exception | None = None

    async def delete(self, character_id: str) -> None:
        """See `Provider`."""
        self.gone.append(character_id)
        if self.broken:
            raise self.broken

    def snapshot(self, task_id: str = "t1", state: str = "success", **facts: Any) -> TaskSnapshot:
        """Return a snapshot whose character has an id of its own."""
        made = super().snapshot(task_id, state, **facts)
        character = made.character and attrs.evolve(made.character, id=f"ch of {task_id}", task_id=task_id)
        return attrs.evolve(made, character=character)


@pytest.fixture
def provider() -> DeletingProvider:
    """Return a provider without delay."""
    return DeletingProvider(before=0, after=0)


@pytest.fixture
async def session(provider: DeletingProvider) -> AsyncGenerator[CharacterSession]:
    """Give a session with the character of key "mine" at two providers of which one deletes."""
    async with CharacterSession(provider, FakeProvider(name="other"), polling=FixedInterval(0.01)) as session:
        await session.create(**REQUEST, key="mine")
        yield session


@pytest.mark.parametrize("given", ["character", "key", "id"])
async def test_deletes_a_character_once(session: CharacterSession, provider: DeletingProvider, given: str) -> None:
    """A character is named by itself, by its key or by its id; the second time nothing is sent."""
    (saved,) = [saved async for saved in session.characters()]
    name: Any = {"character": saved.character, "key": " mine ", "id": "ch of t1"}[given]
    for _ in range(2):
        entry = await session.delete(name)
        assert entry is not None
        assert (entry.key, entry.state, entry.result["character"]["id"]) == ("mine", EntryState.DELETED, "ch of t1")
    assert provider.gone == ["ch of t1"]


async def test_key_of_a_deleted_character(session: CharacterSession, provider: DeletingProvider) -> None:
    """The key says that its character was deleted and is never sent again; the character is no longer listed."""
    await session.delete("mine")
    with pytest.raises(CharacterDeletedError, match=r"The character of key mine was deleted at fake\. Nothing") as info:
        await session.create(**REQUEST, key="mine")
    assert (info.value.key, info.value.task_id, info.value.may_have_been_paid) == ("mine", "t1", False)
    with pytest.raises(InvalidRequestError, match="mine is deleted; only a failed or rejected request"):
        await session.retry("mine")
    (outcome,) = await session.create_all([CharacterRequest(**REQUEST, key="mine")])
    assert (outcome.state, type(outcome.error)) == (EntryState.REJECTED, CharacterDeletedError)
    step = await session.advance("mine")
    assert (step.finished, type(step.outcome)) == (True, CharacterDeletedError)
    assert [saved async for saved in session.characters()] == []
    assert len(provider.posts) == 1


async def test_failed_delete_changes_nothing(session: CharacterSession, provider: DeletingProvider) -> None:
    """An error of the provider leaves the entry as it was, and the next call completes it."""
    provider.broken = NoAnswerError("reset")
    with pytest.raises(NoAnswerError):
        await session.delete("mine")
    assert await state_of(session) is EntryState.SUCCEEDED
    provider.broken = None
    await session.delete("mine")
    assert await state_of(session) is EntryState.DELETED


async def test_deleted_by_two_at_once(session: CharacterSession, provider: DeletingProvider) -> None:
    """Of two calls at once both succeed."""
    entry = await session.entry("mine")
    assert entry is not None
    original = session.ledger.get

    async def stale(key: str) -> object:
        del key
        session.ledger.get = original  # type: ignore[method-assign]
        await session.delete("mine")
        return entry

    session.ledger.get = stale  # type: ignore[method-assign,assignment]
    deleted = await session.delete("mine")
    assert deleted is not None
    assert deleted.state is EntryState.DELETED
    assert provider.gone == ["ch of t1", "ch of t1"]


async def test_provider_without_a_route(session: CharacterSession) -> None:
    """A provider that cannot delete says so, and the entry stays."""
    await session.create(**REQUEST, key="theirs", provider="other")
    with pytest.raises(ConfigurationError, match="other has no route that deletes characters, so ch_1 was not"):
        await session.delete("theirs")
    assert await state_of(session, "theirs") is EntryState.SUCCEEDED


async def test_character_of_another_ledger(session: CharacterSession, provider: DeletingProvider) -> None:
    """An id that the ledger does not record is sent only with the name of its provider; a character names it."""
    with pytest.raises(InvalidRequestError, match="recorded character, its key or its id, got 'ch_9'"):
        await session.delete("ch_9")
    assert await session.delete("ch_9", provider="fake") is None
    assert await session.delete(Character(id="ch_8", provider="fake", task_id="t1")) is None
    assert provider.gone == ["ch_9", "ch_8"]


async def test_id_of_two_providers(session: CharacterSession, provider: DeletingProvider) -> None:
    """An id that two providers have needs the name of one of them."""
    result = {
        "task_id": "t1", "provider": "other", "state": "success", "character": {"id": "ch of t1", "provider": "other"}
    }  # fmt: skip
    entry = await session.register(**REQUEST, key="theirs", provider="other")
    entry = await session.ledger.transition(entry, EntryState.SENDING)
    await session.ledger.transition(entry, EntryState.SUCCEEDED, task_id="t1", result=result)
    with pytest.raises(InvalidRequestError, match="provider must be given, since fake and other have"):
        await session.delete("ch of t1")
    await session.delete("ch of t1", provider="fake")
    assert provider.gone == ["ch of t1"]
    assert await state_of(session, "theirs") is EntryState.SUCCEEDED


async def test_nothing_to_delete(session: CharacterSession) -> None:
    """Only a key with a character can be deleted, at its own provider; the error names what came."""
    await session.register(**REQUEST, key="new")
    with pytest.raises(InvalidRequestError, match="key: new is pending and has no character to delete"):
        await session.delete("new")
    with pytest.raises(InvalidRequestError, match="key mine belongs to fake, got 'other'"):
        await session.delete("mine", provider="other")
    for nonsense in ("", 5):
        with pytest.raises(InvalidRequestError, match="recorded character, its key or its id"):
            await session.delete(nonsense, provider="fake")  # type: ignore[arg-type]


async def test_unreadable_entries_are_left_out(session: CharacterSession, provider: DeletingProvider) -> None:
    """An entry that another program wrote hides no other one."""
    entry = await session.register(**REQUEST, key="odd")
    entry = await session.ledger.transition(entry, EntryState.SENDING)
    await session.ledger.transition(entry, EntryState.SUCCEEDED, task_id="t9", result={"new": "ch of t1"})
    await session.delete("ch of t1")
    assert provider.gone == ["ch of t1"]
