"""Outcomes and options of batches."""

from __future__ import annotations

import asyncio
import math
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionClosedError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
    WatcherStoppedError,
)
from sora_chars.models import TaskRequest
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import BatchProvider, make_request
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from sora_chars.models import Request
    from sora_chars.protocols import Provider

pytestmark = pytest.mark.looptime


def session_of(*providers: Provider, **options: Any) -> CharacterSession:
    """Return a session that polls every second."""
    return CharacterSession(*providers, polling=FixedInterval(1.0), **options)


async def test_outcomes_arrive_as_requests_end() -> None:
    """The first request to end is the first outcome, with its request, key, character, task, provider and cost."""
    requests = [make_request("ends 30", key="slow"), make_request("ends 10"), make_request("ends 20", key="third")]
    async with session_of(BatchProvider()) as session, session.create_many(requests) as batch:
        received = [(outcome, asyncio.get_running_loop().time()) async for outcome in batch]
    assert [time for _, time in received] == [11, 21, 31]
    first, _, last = (outcome for outcome, _ in received)
    assert first.request is requests[1]
    assert len(first.key or "") == 36
    assert (last.index, last.key, last.task_id, last.provider, last.state) == (
        0,
        "slow",
        "task of slow",
        "fake",
        "succeeded",
    )
    assert (last.unwrap(), last.credits, last.error) == (last.character, 2.0, None)


async def test_failures_do_not_stop_batch(caplog: pytest.LogCaptureFixture) -> None:
    """Rejections, failures, unknown outcomes, time-outs and bugs are outcomes with their own states."""
    requests: list[Any] = [
        make_request("fails 9", key="a"),
        make_request("rejected", key="b"),
        make_request("lost", key="c"),
        make_request("missing 9"),
    ]
    requests += [
        make_request("ends 99", key="e"),
        make_request("bug", key="f"),
        {"prompt": "no source"},
        7,
        make_request("ends 9", key="b"),
    ]
    async with session_of(BatchProvider()) as session:
        outcomes = await session.create_all([*requests, make_request()], timeout=20)
        timed_out = outcomes[4].error
        assert isinstance(timed_out, WaitTimeoutError)
        assert await timed_out.handle
    kinds = (
        ("failed", TaskFailedError), ("rejected", RequestRejectedError), ("unknown", SubmissionUnknownError),
        ("failed", MissingCharacterError), ("running", WaitTimeoutError), ("unknown", ZeroDivisionError),
        ("rejected", InvalidRequestError), ("rejected", InvalidRequestError), ("rejected", KeyConflictError),
        ("succeeded", type(None)),
    )  # fmt: skip
    assert tuple((outcome.state, type(outcome.error)) for outcome in outcomes) == kinds
    assert [outcome.key for outcome in outcomes if outcome.key in set("abcdefg")] == ["a", "b", "c", "e", "f", "b"]
    assert [outcome.provider for outcome in outcomes] == ["fake"] * 5 + [None, None, None, "fake", "fake"]
    assert (outcomes[6].request, outcomes[6].key, outcomes[0].credits) == ({"prompt": "no source"}, None, 2.0)
    with pytest.raises(TaskFailedError, match="too dark"):
        outcomes[0].unwrap()
    (logged,) = (record for record in caplog.records if record.name == "sora_chars.batch")
    assert (event_of(logged), vars(logged)["key"], logged.exc_info) == ("batch.broken", "f", logged.exc_info)
    assert logged.exc_info
    assert logged.exc_info[0] is ZeroDivisionError


async def test_unrecorded_task_counts_as_running() -> None:
    """A task whose id could not be recorded is an outcome with its id and its cost."""
    snapshot = BatchProvider().snapshot("t9", "success")

    async def start(request: Request, provider: str | None) -> Any:
        raise LedgerError("disk full", key=request.key, task_id="t9", snapshot=snapshot, hint=str(provider))

    async with session_of(BatchProvider()) as session:
        batch = session.create_many([make_request()])
        batch._options = attrs.evolve(batch._options, start=start)
        async with batch:
            (outcome,) = [outcome async for outcome in batch]
    assert (outcome.state, outcome.task_id, outcome.credits) == ("running", "t9", 2.0)


async def test_accepts_mappings_and_task_requests() -> None:
    """A mapping holds the fields of a character request and the provider; a task request yields its snapshot."""
    rows: list[Any] = [{"from_task": "ends-10", "name": "rex", "provider": "b"}, TaskRequest(model="m")]
    async with session_of(BatchProvider("a"), BatchProvider("b")) as session:
        first, second = await session.create_all(rows)
        assert await session.create_all(rows[:1], provider="a")
    assert first.request == make_request(name="rex")
    assert (first.provider, first.unwrap().name) == ("b", "rex")
    assert (second.provider, second.character, second.unwrap()) == ("a", None, second.snapshot)


async def test_rows_of_jobs() -> None:
    """A mapping with a model becomes a `TaskRequest`; with fields of both kinds, or without a model, it is an error."""
    async with CharacterSession(BatchProvider()) as session:
        given: list[Any] = [{"model": "m", "input": {"a": 1}}, {"model": "m", "clip": "1,3"}, {"input": {}}]
        good, mixed, bare = await session.create_all(given)
    assert good.request == TaskRequest(model="m", input={"a": 1})
    assert (good.state, good.unwrap().task_id) == ("succeeded", f"task of {good.key}")
    assert "the fields are model, input, key" in str(mixed.error)
    assert "model must be given with input" in str(bare.error)


async def test_repeated_key_reuses_task() -> None:
    """An interrupted batch is finished by the same batch, with one task per key."""
    provider = BatchProvider()
    requests = [make_request(key=str(number)) for number in range(10)]
    async with session_of(provider) as session:
        async with session.create_many(requests, concurrency=4) as batch:
            await anext(batch)
        again = await session.create_all(requests * 2, concurrency=4)
    assert [outcome.state for outcome in again] == ["succeeded"] * 20
    assert [outcome.task_id for outcome in again[:10]] == [outcome.task_id for outcome in again[10:]]
    assert sorted(provider.posts) == sorted(str(number) for number in range(10))


async def test_session_closed_during_batch() -> None:
    """Closing the session ends the batch: no request is sent, and `stopped` is "closed"."""
    provider = BatchProvider()
    session = session_of(provider)
    await session.open()
    async with session.create_many((make_request() for _ in count()), concurrency=3) as batch:
        await anext(batch)
        await session.aclose()
        sent = list(provider.posts)
        ends = [(outcome.state, type(outcome.error)) async for outcome in batch]
        rejected = ("rejected", SessionClosedError)
        assert set(ends) - {rejected} <= {("succeeded", type(None)), ("running", WatcherStoppedError)}
        assert ends[-1] == rejected
        assert batch.stopped == "closed"
    assert provider.posts == sent


async def test_batch_is_entered_once() -> None:
    """Iterating before entering, and entering twice, raise an error and send nothing."""
    async with session_of(BatchProvider()) as session:
        batch = session.create_many([])
        with pytest.raises(SessionClosedError, match="not open"):
            await anext(batch)
        async with batch:
            assert [outcome async for outcome in batch] == []
        with pytest.raises(SessionClosedError, match="opened before"):
            await batch.__aenter__()
    with pytest.raises(SessionClosedError, match="session is not open"):
        session.create_many([])


@pytest.mark.parametrize(
    ("requests", "options", "fields"),
    [
        ([], {"concurrency": 0}, ["concurrency"]),
        ([], {"concurrency": True}, ["concurrency"]),
        ([], {"budget": -1, "price": math.nan, "timeout": "9"}, ["timeout", "budget", "price"]),
        (7, {}, ["requests"]),
        ({"from_task": "t"}, {}, ["requests"]),
        ("batch.jsonl", {"concurrency": 2.5}, ["requests", "concurrency"]),
    ],
)
async def test_rejects_invalid_options(requests: Any, options: dict[str, Any], fields: list[str]) -> None:
    """One error names all invalid options, before anything is sent."""
    async with session_of(BatchProvider()) as session:
        with pytest.raises(InvalidRequestError, match="The batch was not sent") as caught:
            session.create_many(requests, **options)
        assert [problem.partition(" ")[0] for problem in caught.value.problems] == fields
        with pytest.raises(ConfigurationError, match="must be one of fake, got 'b'"):
            session.create_many([], provider="b")


async def test_timeout() -> None:
    """A time-out counts from the submission of each request; an infinite one never expires."""
    async with session_of(BatchProvider(), timeout=30.5) as session:
        requests = [make_request("ends 30.7"), make_request("ends 29.7")]  # sent at 1 s, and seen at 32 s and 31 s
        assert [outcome.state for outcome in await session.create_all(requests)] == ["running", "succeeded"]
        assert [outcome.state for outcome in await session.create_all(requests, timeout=math.inf)] == ["succeeded"] * 2


async def test_answers_of_the_ledger_are_not_measured() -> None:
    """A batch that is run again has no rate, and no task of it is running."""
    requests = [make_request(key=str(number)) for number in range(3)]
    async with session_of(BatchProvider()) as session:
        async with session.create_many(requests) as first:
            assert first.tasks_running == 0
            async for _ in first:
                assert first.progress.rate > 0
        async with session.create_many(requests) as second:
            handles = [outcome async for outcome in second]
            assert (len(handles), second.progress.rate) == (3, 0.0)


async def test_a_rejection_without_proof_counts_against_the_budget() -> None:
    """A rejected request that may have been charged uses its expected cost; one that was not charged is free."""
    unproven = ServiceUnavailableError("500", charged="maybe", transient=False)
    for rejection, sent in ((unproven, 2), (RequestRejectedError("no cats"), 9)):
        provider = BatchProvider(rejection=rejection)
        async with session_of(provider) as session:
            await session.create_all([make_request()] * 9, budget=4, price=2)
        assert len(provider.posts) == sent
