"""What a person names as the task of an unknown key is fetched first, and can be taken back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    InvalidRequestError,
    MissingCharacterError,
    NoAnswerError,
    ServiceUnavailableError,
    StaleEntryError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
)
from sora_chars.ledger import EntryState
from sora_chars.models import TaskFailure
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def provider() -> FakeProvider:
    """Return a provider without delay that loses its responses."""
    return FakeProvider(callback_url="https://a.invalid/hooks", before=0, after=0, end=99, fault=NoAnswerError("reset"))


@pytest.fixture
async def session(provider: FakeProvider) -> AsyncGenerator[CharacterSession]:
    """Return a session with an unknown key."""
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.submit(**REQUEST)
        provider.fault = None
        yield session


async def state(session: CharacterSession) -> EntryState:
    """Return the state of the key."""
    entry = await session.entry("mine")
    assert entry
    return entry.state


async def test_a_mistyped_task_is_rejected(session: CharacterSession, provider: FakeProvider) -> None:
    """A task that the provider does not have is not recorded, unless the check is left out."""
    provider.seen = TaskNotFoundError("no such task")
    with pytest.raises(InvalidRequestError, match=r"fake has no task t8.*unchecked=True"):
        await session.resolve("mine", task_id="t8")
    assert await state(session) is EntryState.UNKNOWN
    assert (await session.resolve("mine", task_id="t8", unchecked=True)).task_id == "t8"


async def test_a_provider_that_cannot_be_reached(session: CharacterSession, provider: FakeProvider) -> None:
    """Without an answer nothing is recorded, and the error is that of the poll."""
    provider.seen = NoAnswerError("no route")
    with pytest.raises(NoAnswerError, match="no route"):
        await session.resolve("mine", task_id="t8")
    assert await state(session) is EntryState.UNKNOWN


async def test_the_task_of_another_request_is_rejected(session: CharacterSession, provider: FakeProvider) -> None:
    """A task whose record names another callback URL was made by another request."""
    raw = {"param": '{"callBackUrl":"https://a.invalid/hooks/' + "x" * 43 + '"}'}
    provider.seen = provider.snapshot("t8", "generating", raw=raw)
    with pytest.raises(InvalidRequestError, match="another request"):
        await session.resolve("mine", task_id="t8")
    assert await state(session) is EntryState.UNKNOWN


async def test_the_task_of_an_earlier_attempt_is_accepted(session: CharacterSession, provider: FakeProvider) -> None:
    """A task whose record names the callback URL of an earlier attempt was made by this key."""
    provider.fault = ServiceUnavailableError("500", charged="maybe", transient=False)
    with pytest.raises(ServiceUnavailableError):
        await session.submit(**REQUEST | {"key": "other"})
    first = provider.posts[-1]
    provider.fault = NoAnswerError("reset")
    with pytest.raises(SubmissionUnknownError):
        await session.retry("other")
    provider.seen = provider.snapshot("t8", raw={"param": json.dumps({"callBackUrl": first})})
    assert (await session.resolve("other", task_id="t8")).state is EntryState.SUCCEEDED
    with pytest.raises(InvalidRequestError, match="another request"):
        await session.resolve("mine", task_id="t8")


async def test_a_finished_task_ends_the_key_at_once(session: CharacterSession, provider: FakeProvider) -> None:
    """What the check shows is recorded: a task that has ended needs no other poll."""
    provider.seen = provider.snapshot("t7")
    assert (await session.resolve("mine", task_id=" t7 ")).state is EntryState.SUCCEEDED
    assert len(provider.polls) == 1


async def test_a_success_without_character(session: CharacterSession, provider: FakeProvider) -> None:
    """A task that exists is recorded, although its result holds no character."""
    provider.seen = MissingCharacterError("no id", provider="fake", task_id="t7")
    assert (await session.resolve("mine", task_id="t7")).state is EntryState.RUNNING


async def test_a_named_task_can_be_taken_back(session: CharacterSession, provider: FakeProvider) -> None:
    """Until the task has ended, the key can return to unknown and be resolved again."""
    await session.resolve("mine", task_id="t8")
    assert (await session.resolve("mine", undo=True)).state is EntryState.UNKNOWN
    entry = await session.resolve("mine", task_id="t9")
    assert (entry.state, entry.task_id, len(provider.posts)) == (EntryState.RUNNING, "t9", 1)


async def test_never_sent_can_be_taken_back(session: CharacterSession, provider: FakeProvider) -> None:
    """Until the request is sent again, the key can return to unknown, and sends nothing then."""
    await session.resolve("mine", never_sent=True)
    assert (await session.resolve("mine", undo=True)).state is EntryState.UNKNOWN
    with pytest.raises(SubmissionUnknownError, match=r"made this character \(key mine\)\. It may exist"):
        await session.submit(**REQUEST)
    assert len(provider.posts) == 1


async def test_giving_up_can_be_taken_back(session: CharacterSession) -> None:
    """A key that was given up returns to what it was: unknown, or running with its task."""
    await session.resolve("mine", give_up=True)
    assert (await session.resolve("mine", undo=True)).state is EntryState.UNKNOWN
    handle = await session.submit(**REQUEST | {"key": "other"})
    await session.resolve("other", give_up=True)
    entry = await session.resolve("other", undo=True)
    assert (entry.state, entry.task_id) == (EntryState.RUNNING, handle.task_id)


async def test_what_cannot_be_taken_back(session: CharacterSession, provider: FakeProvider) -> None:
    """A key that was never resolved, or whose task has ended, stays as it is."""
    await session.submit(**REQUEST | {"key": "other"})
    with pytest.raises(InvalidRequestError, match="no resolution of it"):
        await session.resolve("other", undo=True)
    provider.seen = provider.snapshot("t7", "fail", failure=TaskFailure("501", "no"))
    await session.resolve("mine", task_id="t7")
    with pytest.raises(InvalidRequestError, match="no resolution of it"):
        await session.resolve("mine", undo=True)
    with pytest.raises(TaskFailedError):
        await session.create(**REQUEST)
    with pytest.raises(InvalidRequestError, match="exactly one of"):
        await session.resolve("mine", undo=True, give_up=True)


async def test_a_retry_keeps_the_task_that_a_person_named(session: CharacterSession, provider: FakeProvider) -> None:
    """If the named task fails and the key is tried again, the task stays on record with its cost."""
    provider.seen = provider.snapshot("t7", "fail", failure=TaskFailure("501", "no"), credits=3.0)
    await session.resolve("mine", task_id="t7")
    provider.seen = None
    await session.retry("mine")
    attempts = await session.ledger.attempts("mine")
    assert [(one.state, one.task_id, one.credits) for one in attempts] == [
        (EntryState.UNKNOWN, None, None),
        (EntryState.FAILED, "t7", 3.0),
    ]
    found = await session.ledger.by_task("fake", "t7")
    assert found
    assert found.key == "mine"


async def test_a_task_that_was_taken_back_is_free(session: CharacterSession) -> None:
    """A task id that was recorded under a wrong key can be recorded under another one."""
    await session.resolve("mine", task_id="t8")
    await session.resolve("mine", undo=True)
    assert await session.ledger.by_task("fake", "t8") is None


async def test_a_decision_on_an_older_version(session: CharacterSession, provider: FakeProvider) -> None:
    """A decision that was made before the entry changed again is rejected, and can pay for nothing."""
    before = await session.entry("mine")
    assert before
    await session.resolve("mine", never_sent=True, version=before.version)
    provider.fault = NoAnswerError("reset")
    with pytest.raises(SubmissionUnknownError):
        await session.submit(**REQUEST)
    with pytest.raises(StaleEntryError, match="was changed first") as caught:
        await session.resolve("mine", never_sent=True, version=before.version)
    assert caught.value.key == "mine"
    assert (await state(session), len(provider.posts)) == (EntryState.UNKNOWN, 2)


@pytest.mark.parametrize(
    ("decision", "end"),
    [
        ({"task_id": "t7"}, EntryState.RUNNING),
        ({"never_sent": True}, EntryState.PENDING),
        ({"give_up": True}, EntryState.FAILED),
    ],
)
async def test_a_rejection_without_proof_can_be_resolved(
    session: CharacterSession, provider: FakeProvider, decision: Any, end: EntryState
) -> None:
    """A person who knows what a rejection left behind can record it, and nothing is paid again."""
    provider.fault = ServiceUnavailableError("500", charged="maybe", transient=False)
    with pytest.raises(ServiceUnavailableError):
        await session.submit(**REQUEST | {"key": "other"})
    assert (await session.resolve("other", **decision)).state is end
    assert len(provider.posts) == 2


async def test_a_proven_rejection_has_nothing_to_resolve(session: CharacterSession, provider: FakeProvider) -> None:
    """A rejection that proves that nothing was charged is sent again by the next call."""
    provider.fault = ServiceUnavailableError("455", transient=False)
    with pytest.raises(ServiceUnavailableError):
        await session.submit(**REQUEST | {"key": "other"})
    with pytest.raises(InvalidRequestError, match="nothing to resolve"):
        await session.resolve("other", give_up=True)
