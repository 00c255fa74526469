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

if TYPE_CHECKING:
    from sora_chars.models import Request
    from sora_chars.protocols import Provider

pytestmark = pytest.mark.looptime


def session_of(*providers: Provider, **options: Any) -> CharacterSession:
    """A session that looks every second."""
    return CharacterSession(*providers, polling=FixedInterval(1.0), **options)


async def test_outcomes_come_as_they_end() -> None:
    """The first to end is the first to be told, with its request, key, character, task, provider and cost."""
    wishes = [make_request("ends 30", key="slow"), make_request("ends 10"), make_request("ends 20", key="third")]
    async with session_of(BatchProvider()) as session, session.create_many(wishes) as outcomes:
        told = [(outcome, asyncio.get_running_loop().time()) async for outcome in outcomes]
    assert [time for _, time in told] == [11, 21, 31]
    first, _, last = (outcome for outcome, _ in told)
    assert first.request is wishes[1]
    assert len(first.key or "") == 36
    assert (last.index, last.key, last.task_id, last.provider, last.state) == (
        0,
        "slow",
        "task of slow",
        "shop",
        "succeeded",
    )
    assert (last.unwrap(), last.credits, last.error) == (last.character, 2.0, None)


async def test_one_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Every end is an outcome that says how: refusals, failures, doubts, ends of the wait, and bugs."""
    wishes: list[Any] = [
        make_request("fails 9", key="a"),
        make_request("rejected", key="b"),
        make_request("lost", key="c"),
        make_request("missing 9"),
    ]
    wishes += [
        make_request("ends 99", key="e"),
        make_request("bug", key="f"),
        {"prompt": "no source"},
        7,
        make_request("ends 9", key="b"),
    ]
    async with session_of(BatchProvider()) as session:
        outcomes = await session.create_all([*wishes, make_request()], timeout=20)
        still = outcomes[4].error
        assert isinstance(still, WaitTimeoutError)
        assert await still.handle
    kinds = (
        ("failed", TaskFailedError), ("rejected", RequestRejectedError), ("unknown", SubmissionUnknownError),
        ("failed", MissingCharacterError), ("running", WaitTimeoutError), ("unknown", ZeroDivisionError),
        ("rejected", InvalidRequestError), ("rejected", InvalidRequestError), ("rejected", KeyConflictError),
        ("succeeded", type(None)),
    )  # fmt: skip
    assert tuple((outcome.state, type(outcome.error)) for outcome in outcomes) == kinds
    assert [outcome.key for outcome in outcomes if outcome.key in set("abcdefg")] == ["a", "b", "c", "e", "f", "b"]
    assert [outcome.provider for outcome in outcomes] == ["shop"] * 5 + [None, None, None, None, "shop"]
    assert (outcomes[6].request, outcomes[6].key, outcomes[0].credits) == ({"prompt": "no source"}, None, 2.0)
    with pytest.raises(TaskFailedError, match="too dark"):
        outcomes[0].unwrap()
    (logged,) = (record for record in caplog.records if record.name == "sora_chars.batch")
    assert (logged.message, vars(logged)["key"], logged.exc_info) == ("batch.broken", "f", logged.exc_info)
    assert logged.exc_info
    assert logged.exc_info[0] is ZeroDivisionError


async def test_what_was_made_and_not_recorded_runs() -> None:
    """A task whose id the ledger could not be told is an outcome with that id and with what it cost."""
    snapshot = BatchProvider().snapshot("t9", "success")

    async def start(request: Request, provider: str | None) -> Any:
        raise LedgerError("disk full", key=request.key, task_id="t9", snapshot=snapshot, hint=str(provider))

    async with session_of(BatchProvider()) as session:
        outcomes = session.create_many([make_request()])
        outcomes._options = attrs.evolve(outcomes._options, start=start)
        async with outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
    assert (outcome.state, outcome.task_id, outcome.credits) == ("running", "t9", 2.0)


async def test_rows_may_be_mappings_and_any_request() -> None:
    """A mapping holds the fields of a character's request and the provider; a task's request gives its snapshot."""
    rows: list[Any] = [{"from_task": "ends 10", "name": "rex", "provider": "b"}, TaskRequest(model="m")]
    async with session_of(BatchProvider("a"), BatchProvider("b")) as session:
        first, second = await session.create_all(rows)
        assert await session.create_all(rows[:1], provider="a")
    assert first.request == make_request(name="rex")
    assert (first.provider, first.unwrap().name) == ("b", "rex")
    assert (second.provider, second.character, second.unwrap()) == ("a", None, second.snapshot)


async def test_a_key_asked_again_takes_up_the_task_it_has() -> None:
    """A batch left in the middle is finished by the same batch, with one task for each key."""
    shop = BatchProvider()
    wishes = [make_request(key=str(number)) for number in range(10)]
    async with session_of(shop) as session:
        async with session.create_many(wishes, concurrency=4) as outcomes:
            await anext(outcomes)
        again = await session.create_all(wishes * 2, concurrency=4)
    assert [outcome.state for outcome in again] == ["succeeded"] * 20
    assert [outcome.task_id for outcome in again[:10]] == [outcome.task_id for outcome in again[10:]]
    assert sorted(shop.posts) == sorted(str(number) for number in range(10))


async def test_the_session_may_close_first() -> None:
    """Then nobody waits any more, nothing is sent, and the batch says why it ends."""
    shop, session = BatchProvider(), session_of(BatchProvider())
    await session.open()
    async with session.create_many((make_request() for _ in count()), concurrency=3) as outcomes:
        await anext(outcomes)
        await session.aclose()
        ends = [(outcome.state, type(outcome.error)) async for outcome in outcomes]
        refused = ("rejected", SessionClosedError)
        assert set(ends) - {refused} <= {("succeeded", type(None)), ("running", WatcherStoppedError)}
        assert ends[-1] == refused
        assert outcomes.stopped == "closed"
    assert shop.posts == []


async def test_a_batch_is_opened_once_and_inside_async_with() -> None:
    """Anything else is told, and sends nothing."""
    async with session_of(BatchProvider()) as session:
        outcomes = session.create_many([])
        with pytest.raises(SessionClosedError, match="not open"):
            await anext(outcomes)
        async with outcomes:
            assert [outcome async for outcome in outcomes] == []
        with pytest.raises(SessionClosedError, match="opened before"):
            await outcomes.__aenter__()
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
async def test_wrong_options_are_named(requests: Any, options: dict[str, Any], fields: list[str]) -> None:
    """All of them at once, before anything is sent."""
    async with session_of(BatchProvider()) as session:
        with pytest.raises(InvalidRequestError, match="The batch was not sent") as caught:
            session.create_many(requests, **options)
        assert [problem.partition(":")[0] for problem in caught.value.problems] == fields
        with pytest.raises(ConfigurationError, match="must be one of shop, got 'b'"):
            session.create_many([], provider="b")


async def test_a_wait_may_have_no_end() -> None:
    """A time-out counts from when a request was sent, however long it stood in line; an infinite one never comes."""
    async with session_of(BatchProvider(), timeout=30.5) as session:
        wishes = [make_request("ends 30.7"), make_request("ends 29.7")]  # sent at 1 s, and seen at 32 s and 31 s
        assert [outcome.state for outcome in await session.create_all(wishes)] == ["running", "succeeded"]
        assert [outcome.state for outcome in await session.create_all(wishes, timeout=math.inf)] == ["succeeded"] * 2
