"""Sending a key again knowingly: after a failure, and after a rejection that proves nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import (
    InvalidRequestError,
    KeyConflictError,
    NoAnswerError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionUnknownError,
    TaskFailedError,
)
from sora_chars.ledger import EntryState, transitions
from sora_chars.ledger.queries import find
from sora_chars.models import CharacterRequest, TaskFailure, TaskRequest
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider
from tests.support.log_events import events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}
OTHER = CharacterRequest(from_task="origin", clip="2,4", prompt="b")
UNPROVEN = ServiceUnavailableError("kie.ai answered 500: internal error", charged="maybe", transient=False)


@pytest.fixture
def provider() -> FakeProvider:
    """Return a provider without delay: fixtures run in real time."""
    return FakeProvider(callback_url="https://a.invalid/hooks", before=0, after=0)


@pytest.fixture
async def session(provider: FakeProvider) -> AsyncGenerator[CharacterSession]:
    """Return a session that polls every 10 s."""
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        yield session


async def fail(session: CharacterSession, provider: FakeProvider) -> None:
    """Let the task of the request fail at a cost of 3 credits."""
    provider.seen = provider.snapshot("t1", "fail", failure=TaskFailure("501", "generation failed"), credits=3.0)
    with pytest.raises(TaskFailedError) as caught:
        await session.create(**REQUEST)
    assert (caught.value.key, caught.value.task_id, caught.value.charged) == ("mine", "t1", "yes")
    provider.seen = None


async def test_a_rejection_without_proof_sends_nothing_again(session: CharacterSession, provider: FakeProvider) -> None:
    """An answer that proves nothing is a rejection; the key is sent again only by `retry`."""
    provider.fault = UNPROVEN
    for _ in range(2):
        with pytest.raises(ServiceUnavailableError, match=r"session.retry") as caught:
            await session.create(**REQUEST)
        error = caught.value
        assert (error.charged, error.may_have_been_paid, error.key, error.provider) == ("maybe", True, "mine", "fake")
        assert len(provider.posts) == 1
    step = await session.advance("mine")
    assert (step.finished, step.entry.state, len(provider.posts)) == (True, EntryState.REJECTED, 1)
    provider.fault = None
    assert (await (await session.retry("mine"))).id == "ch_1"
    assert len(provider.posts) == 2


async def test_a_rejection_with_proof_is_sent_again(session: CharacterSession, provider: FakeProvider) -> None:
    """A request that the provider rejected is sent again by the same call."""
    provider.fault = RequestRejectedError("prompt is required")
    with pytest.raises(RequestRejectedError) as caught:
        await session.create(**REQUEST)
    assert caught.value.charged == "no"
    provider.fault = None
    assert (await session.create(**REQUEST)).id == "ch_1"
    assert len(provider.posts) == 2


async def test_retry_keeps_the_failed_attempt(session: CharacterSession, provider: FakeProvider) -> None:
    """A failed key gets a new task, also with another prompt; its first attempt stays on record with its cost."""
    await fail(session, provider)
    with pytest.raises(TaskFailedError):
        await session.create(**REQUEST)
    handle = await session.retry("mine", prompt="a cat")
    assert (await handle).id == "ch_1"
    entry = await session.entry("mine")
    assert entry
    assert (entry.state, entry.task_id, entry.request["prompt"]) == (EntryState.SUCCEEDED, "t2", "a cat")
    [first] = await session.ledger.attempts("mine")
    assert (first.state, first.task_id, first.credits, first.number) == (EntryState.FAILED, "t1", 3.0, 1)
    assert "a dog" in first.request_json
    assert len(provider.posts) == 2


async def test_two_retries_at_once_send_one_request(session: CharacterSession, provider: FakeProvider) -> None:
    """The second of two concurrent retries returns the task of the first."""
    await fail(session, provider)
    handles = await asyncio.gather(*(session.retry("mine") for _ in range(5)))
    assert {handle.task_id for handle in handles} == {"t2"}
    assert len(provider.posts) == 2


async def test_two_retries_at_once_with_other_requests(session: CharacterSession, provider: FakeProvider) -> None:
    """Of two concurrent retries with different prompts, one raises an error, and the other's prompt is on record."""
    await fail(session, provider)
    failed = await find(session.ledger, "mine")
    await session.retry("mine", prompt="a cat")
    with pytest.raises(KeyConflictError, match=r"Recorded: .*a cat.* Given: .*a cow") as caught:
        await transitions.retry(session.ledger, failed, {**failed.request, "prompt": "a cow"})
    assert (caught.value.key, caught.value.provider) == ("mine", "fake")
    assert (await transitions.retry(session.ledger, failed, {**failed.request, "prompt": "a cat"})).task_id == "t2"


async def test_restart_leaves_the_sending_to_advance(session: CharacterSession, provider: FakeProvider) -> None:
    """`restart` records the changed request once, and `advance` sends it."""
    await fail(session, provider)
    entry = await session.restart("mine", prompt="a cat")
    assert (entry.state, entry.request["prompt"]) == (EntryState.PENDING, "a cat")
    assert await session.restart("mine", prompt="a cat") == entry
    assert len(provider.posts) == 1
    step = await session.advance("mine")
    assert (step.state, step.entry.task_id, len(provider.posts)) == (EntryState.RUNNING, "t2", 2)
    with pytest.raises(InvalidRequestError, match="is running"):
        await session.restart("mine")


async def test_retry_with_a_whole_request(session: CharacterSession, provider: FakeProvider) -> None:
    """The new attempt may be given as a request; it keeps the key."""
    await fail(session, provider)
    await (await session.retry("mine", CharacterRequest(from_task="origin", clip="2,4", prompt="b")))
    entry = await session.entry("mine")
    assert entry
    assert entry.request["clip"] == "2,4"


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ((), {"promt": "a cat"}, "promt must not be given.*use prompt"),
        ((TaskRequest(model="wan"),), {}, "must be of kind character"),
        ((), {"clip": "9"}, "clip must be"),
        (
            (CharacterRequest(from_task="o", clip="2,4", prompt="b"),),
            {"prompt": "c"},
            "got CharacterRequest with prompt",
        ),
        (("A friendly dog",), {}, "request must be a CharacterRequest.* got str"),
        ((attrs.evolve(OTHER, key="yours"),), {}, "has the key yours, not mine"),
    ],
)
async def test_invalid_retries(
    session: CharacterSession, provider: FakeProvider, arguments: Any, changes: Any, message: str
) -> None:
    """An invalid change is rejected before anything is sent."""
    await fail(session, provider)
    with pytest.raises(InvalidRequestError, match=message):
        await session.retry("mine", *arguments, **changes)
    assert len(provider.posts) == 1


async def test_only_failures_are_retried(session: CharacterSession, provider: FakeProvider) -> None:
    """A running, succeeded or unknown key cannot be sent again, and the error states what to do."""
    for key in ("mine", ""):
        with pytest.raises(InvalidRequestError, match=f"no entry {key!r}"):
            await session.retry(key)
    handle = await session.submit(**REQUEST)
    with pytest.raises(InvalidRequestError, match=r"is running.*Wait for its task"):
        await session.retry("mine")
    await handle
    with pytest.raises(InvalidRequestError, match=r"is succeeded.*new key"):
        await session.retry("mine")
    provider.fault = NoAnswerError("reset")
    with pytest.raises(SubmissionUnknownError) as caught:
        await session.submit(**REQUEST | {"key": "other"})
    assert caught.value.may_have_been_paid
    with pytest.raises(InvalidRequestError, match=r"is unknown.*resolve it first"):
        await session.retry("other")
    assert len(provider.posts) == 2


async def test_batch_retries_failed_keys(session: CharacterSession, provider: FakeProvider) -> None:
    """`retry_failed` sends the failed keys of a batch again, and no others."""
    await fail(session, provider)
    rows: Any = [REQUEST, REQUEST | {"key": "new"}]
    outcomes = await session.create_all(rows)
    assert [outcome.state for outcome in outcomes] == [EntryState.FAILED, EntryState.SUCCEEDED]
    outcomes = await session.create_all(rows, retry_failed=True)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED, EntryState.SUCCEEDED]
    assert len(provider.posts) == 3


async def test_a_batch_retries_a_key_once(session: CharacterSession, provider: FakeProvider) -> None:
    """Of several rows with one key, only the first sends it again; a row of another provider does not."""
    await fail(session, provider)
    provider.seen = provider.snapshot("t2", "fail", failure=TaskFailure("501", "generation failed"))
    rows: Any = [REQUEST] * 3
    await session.create_all(rows, retry_failed=True, concurrency=1)
    assert len(provider.posts) == 2


@pytest.mark.parametrize(("budget", "is_sent"), [(3.5, False), (4.0, True)])
async def test_a_budget_counts_the_attempt_that_failed(
    session: CharacterSession, provider: FakeProvider, *, budget: float, is_sent: bool
) -> None:
    """What the failed attempt of a key cost counts before the key is sent again."""
    await fail(session, provider)
    rows: Any = [REQUEST]
    async with session.create_many(rows, retry_failed=True, budget=budget, price=1.0) as batch:
        assert [outcome.state async for outcome in batch] == [EntryState.SUCCEEDED] * is_sent
    assert batch.stopped == (None if is_sent else "budget")
    assert len(provider.posts) == 1 + is_sent


async def test_a_budget_counts_earlier_attempts(session: CharacterSession, provider: FakeProvider) -> None:
    """What earlier attempts of a key cost counts once, in a later batch too."""
    await fail(session, provider)
    await (await session.retry("mine"))
    rows: Any = [REQUEST, REQUEST, REQUEST | {"key": "new"}]
    async with session.create_many(rows, budget=5.5, price=1.0, concurrency=1) as batch:
        assert [outcome.key async for outcome in batch] == ["mine", "mine"]
    assert (len(provider.posts), batch.stopped) == (2, "budget")


async def test_a_batch_retries_at_the_provider_of_the_row(provider: FakeProvider) -> None:
    """A row that names another provider than the ledger is no retry, but a conflict."""
    async with CharacterSession(provider, FakeProvider("other"), polling=FixedInterval(10.0)) as session:
        await fail(session, provider)
        row: Any = REQUEST | {"provider": "other"}
        [outcome] = await session.create_all([row], retry_failed=True)
    assert isinstance(outcome.error, KeyConflictError)
    assert len(provider.posts) == 1


async def callback(session: CharacterSession, url: str, task_id: str) -> int:
    """Deliver a callback, and return the status of the response."""
    body = b'{"code":200,"msg":"ok","data":{"taskId":"%b","state":"success"}}' % task_id.encode()
    receiver = CallbackReceiver(session)
    return (await receiver.handle("POST", url, {"content-type": "application/json"}, body))[0]


async def test_the_first_token_stays_valid(
    session: CharacterSession, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback of an earlier attempt is accepted, and a task that it reveals is logged."""
    provider.fault = UNPROVEN
    with pytest.raises(ServiceUnavailableError):
        await session.create(**REQUEST)
    provider.fault = None
    handle = await session.retry("mine")
    assert await callback(session, provider.posts[0], "t1") == 200
    assert "submission.second_task" in events(caplog.records)
    assert await callback(session, provider.posts[1], "t1") == 401
    assert (await handle).id == "ch_1"


async def test_the_first_token_settles_a_lost_second_attempt(
    session: CharacterSession, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """If only the first attempt has made a task, its callback gives the key its character."""
    provider.fault = UNPROVEN
    with pytest.raises(ServiceUnavailableError):
        await session.create(**REQUEST)
    with pytest.raises(ServiceUnavailableError):
        await session.retry("mine")
    assert await callback(session, provider.posts[0], "t1") == 200
    assert (await session.create(**REQUEST)).id == "ch_1"
    assert len(provider.posts) == 2
    assert "submission.second_task" not in events(caplog.records)


async def test_a_repeated_callback_of_a_failed_attempt_is_no_second_task(
    session: CharacterSession, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The task of the first attempt is on record, so its late callback changes and logs nothing."""
    await fail(session, provider)
    await (await session.retry("mine"))
    assert await callback(session, provider.posts[0], "t1") == 200
    assert "submission.second_task" not in events(caplog.records)


@pytest.mark.parametrize("delays", [{"before": 10.0}, {"after": 10.0}], ids=["waiting", "sending"])
async def test_a_callback_of_a_failed_task_does_not_become_the_next_attempt(
    session: CharacterSession, provider: FakeProvider, caplog: pytest.LogCaptureFixture, delays: dict[str, float]
) -> None:
    """A late callback of a failed task that arrives before the next attempt has a task changes nothing."""
    await fail(session, provider)
    provider.before, provider.after = delays.get("before", 0.0), delays.get("after", 0.0)
    retrying = asyncio.create_task(session.retry("mine"))
    await asyncio.sleep(5)
    assert await callback(session, provider.posts[0], "t1") == 200
    handle = await retrying
    assert (handle.task_id, (await handle).id) == ("t2", "ch_1")
    assert "submission.second_task" not in events(caplog.records)
