"""How batches submit: concurrency, back-pressure, progress, budget and early exit."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from contextlib import suppress
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    AuthenticationError,
    InsufficientCreditsError,
    PermissionDeniedError,
    ProviderError,
    UsageCapError,
)
from sora_chars.ledger import open_ledger
from sora_chars.models import CharacterRequest, Eta, TaskRequest
from sora_chars.polling.strategies import FixedInterval
from sora_chars.ratelimit.accounts import Account
from sora_chars.ratelimit.window import Cooldown, Limits, Window
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import BatchProvider, make_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sora_chars.batch.batch import Batch
    from sora_chars.batch.progress import Progress
    from sora_chars.models import TaskSnapshot
    from sora_chars.protocols import Provider

pytestmark = pytest.mark.looptime


def session_of(*providers: Provider, **options: Any) -> CharacterSession:
    """Return a session that polls every second."""
    return CharacterSession(*providers, polling=FixedInterval(1.0), **options)


class LearnedInterval(FixedInterval):
    """Polling strategy with an estimate of one minute per task."""

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta:
        """See `PollingStrategy.estimate`."""
        del snapshot
        return Eta(low=50 - age, median=60 - age, high=70 - age)


async def states(batch: Batch) -> list[str]:
    """Return index and state of each outcome, in the order of arrival."""
    return [f"{outcome.index} {outcome.state}" async for outcome in batch]


async def test_concurrency_bounds_tasks_in_flight() -> None:
    """At most `concurrency` requests are in flight, and each end admits the next."""
    provider = BatchProvider()
    async with session_of(provider) as session:
        outcomes = await session.create_all([make_request() for _ in range(12)], concurrency=4)
    assert (len(outcomes), provider.peaks["running"]) == (12, 4)
    assert asyncio.get_running_loop().time() == 3 * 11


@pytest.mark.parametrize(
    ("provider", "peak"),
    [
        (BatchProvider(), 250),
        (BatchProvider(account=Account.with_limits(Limits(polls=(1, 1.0)))), 250),
        (BatchProvider(account=Account.with_limits(Limits(creates=(20, 10.0)))), 20),
        (BatchProvider(account=Account.with_limits(Limits(creates=(1000, 10.0)))), 250),
        (BatchProvider(synchronous=True), 300),
    ],
)
async def test_submissions_are_bounded(provider: BatchProvider, peak: int) -> None:
    """No more are submitted than the limit admits at once; a synchronous provider has no bound."""
    async with session_of(provider) as session:
        await session.create_all([make_request() for _ in range(400)], concurrency=300)
    assert provider.peaks["sending"] == peak


async def test_tasks_in_flight_need_no_asyncio_tasks() -> None:
    """Only submissions and polls need an asyncio task each, and these are bounded."""
    most = 0
    loop = asyncio.get_running_loop()

    def requests() -> Iterator[CharacterRequest]:
        nonlocal most
        for _ in range(2000):
            most = max(most, len(asyncio.all_tasks()))
            yield make_request("ends 600")

    provider = BatchProvider()
    async with CharacterSession(provider, polling=FixedInterval(590.0)) as session:
        outcomes = await session.create_all(requests(), concurrency=100_000)
    assert (len(outcomes), provider.peaks["running"]) == (2000, 2000)
    assert most < 2 * 250 + 10
    assert loop.time() < 2000


async def test_slow_consumer_pauses_submitting() -> None:
    """At most `concurrency` outcomes are unread; the others follow when the consumer continues."""
    provider = BatchProvider()
    async with session_of(provider) as session, session.create_many([make_request()] * 50, concurrency=5) as batch:
        await asyncio.sleep(1000)
        assert 5 <= len(provider.posts) <= 10
        assert len(await states(batch)) == 50


async def test_requests_are_read_lazily() -> None:
    """An endless iterable is read only as requests can be submitted."""
    numbers = count()
    async with session_of(BatchProvider()) as session:
        async with session.create_many((make_request() for _ in numbers), concurrency=3) as batch:
            for _ in range(7):
                await anext(batch)
        assert next(numbers) <= 7 + 3


async def test_memory_is_bounded_by_concurrency() -> None:
    """Of thousands of requests only those in flight or unread are alive."""
    alive = most = 0

    def count_collected() -> None:
        nonlocal alive
        alive -= 1

    async def requests() -> AsyncIterator[TaskRequest]:
        nonlocal alive, most
        for _ in range(5000):
            request = TaskRequest(model="m")
            weakref.finalize(request, count_collected)
            alive += 1
            most = max(most, alive)
            yield request

    async with (
        session_of(BatchProvider(synchronous=True), ledger=open_ledger("memory:")) as session,
        session.create_many(requests(), concurrency=20) as batch,
    ):
        assert len([outcome.index async for outcome in batch]) == 5000
    assert most <= 2 * 20 + 2


@pytest.mark.parametrize("error", [OSError("the file is gone"), asyncio.CancelledError()])
async def test_error_of_requests_is_raised_after_outcomes(error: BaseException) -> None:
    """The outcomes of earlier requests come first; the error is raised once."""

    def requests() -> Iterator[CharacterRequest]:
        yield from repeat(make_request(), 3)
        raise error

    async with session_of(BatchProvider()) as session, session.create_many(requests()) as batch:
        assert [(await anext(batch)).state for _ in range(3)] == ["succeeded"] * 3
        with pytest.raises(type(error)):
            await anext(batch)
        assert batch.progress.remaining is None
        assert await states(batch) == []


async def test_error_of_requests_is_raised_on_exit() -> None:
    """An unread error is raised on exit, unless another exception is propagating."""

    def requests() -> Iterator[CharacterRequest]:
        yield make_request()
        raise OSError("the file is gone")

    async with session_of(BatchProvider()) as session:
        with pytest.raises(OSError, match="gone"):
            async with session.create_many(requests()):
                await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with session.create_many(requests()):
                await asyncio.wait_for(asyncio.sleep(9), timeout=1)


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_early_exit_stops_submitting(how: str) -> None:
    """It takes no time and leaves no asyncio task; sent requests are recovered, and nothing is paid twice."""
    provider = BatchProvider()
    loop = asyncio.get_running_loop()
    requests = [make_request("ends 50", key=str(number)) for number in range(600)]
    async with session_of(provider) as session:
        caller = asyncio.current_task()
        before = asyncio.all_tasks()
        assert caller
        batch = session.create_many(requests, concurrency=300)
        with suppress(KeyError, asyncio.CancelledError):
            async with batch:
                await asyncio.sleep(1.5)  # 250 are answered, and 50 are being sent
                if how == "cancel":
                    loop.call_soon(caller.cancel)
                    await anext(batch)
                elif how == "error":
                    raise KeyError
        assert (caller.cancelling(), loop.time()) == (how == "cancel", 1.5)
        caller.uncancel()
        names = {asyncio_task.get_name() for asyncio_task in asyncio.all_tasks() - before}
        await asyncio.sleep(0)  # an asyncio task would close a generator that was left open
        names |= {asyncio_task.get_name() for asyncio_task in asyncio.all_tasks() - before}
        assert names == {"sora_chars watcher of fake", *(f"sora_chars submit {number}" for number in range(250, 300))}
        await asyncio.sleep(100)
        assert (len(provider.posts), batch.progress.running, await states(batch)) == (300, 300, [])
        assert [handle.done() async for handle in session.recover()] == []  # the session's watcher polled them
        began = loop.time()
        again = await session.create_all(requests[:300])
        assert [outcome.state for outcome in again] == ["succeeded"] * 300
        assert (len(provider.posts), loop.time()) == (300, began)


async def test_batches_share_limit_of_creates() -> None:
    """A small batch does not wait for a large one."""
    window = Window((2, 10.0), Cooldown())
    async with (
        session_of(BatchProvider(window=window)) as session,
        session.create_many(make_request() for _ in count()),
    ):
        await asyncio.sleep(100)
        began = asyncio.get_running_loop().time()
        await session.create_all([make_request(), make_request(), make_request()])
        assert asyncio.get_running_loop().time() - began < 70  # the whole queue takes 160


async def test_updates_yield_each_change() -> None:
    """A fast reader receives each change; a slow one skips intermediate values."""
    seen: list[Progress] = []
    async with (
        session_of(BatchProvider()) as session,
        session.create_many(iter([make_request(), make_request("fails 5")])) as batch,
    ):

        async def read() -> None:
            seen.extend([progress async for progress in batch.updates()])

        reading = asyncio.create_task(read())
        slow = batch.updates()
        assert (await anext(slow)).remaining is None
        await asyncio.sleep(9)
        assert ((await anext(slow)).failed, batch.progress.running) == (1, 1)
        assert await states(batch) == ["1 failed", "0 succeeded"]
        await reading
        assert [progress.ended async for progress in slow] == [2]
    assert [progress.ended for progress in seen if progress.registered == 2] == [0, 1, 2]
    assert (seen[-1].running, seen[-1].ended, seen[-1].remaining, seen[-1].credits) == (0, 2, 0, 4.0)
    assert seen[-1] == batch.progress


async def test_eta_uses_polling_strategy() -> None:
    """Before any task has ended, the ETA is that of the newest task; with no task in flight there is none."""
    async with (
        CharacterSession(BatchProvider(), polling=LearnedInterval(1.0)) as session,
        session.create_many([make_request("ends 60"), make_request("ends 60")]) as batch,
    ):
        etas = [batch.progress.eta]
        await asyncio.sleep(11)
        etas.append(batch.progress.eta)
        assert await states(batch) == ["0 succeeded", "1 succeeded"]
        assert [*etas, batch.progress.eta] == [None, 50, 0]


@pytest.mark.parametrize("number", [3, 1000])
async def test_updates_end_on_exit(number: int) -> None:
    """A reader in another asyncio task ends with the batch, whether or not everything was sent."""
    seen: list[Progress] = []

    async def read(batch: Batch) -> None:
        seen.extend([progress async for progress in batch.updates()])

    async with session_of(BatchProvider()) as session:
        async with session.create_many([make_request()] * number) as batch:
            reading = asyncio.create_task(read(batch))
            await asyncio.sleep(5)
        await reading
    assert seen[-1] == batch.progress


async def test_exited_batch_is_collected() -> None:
    """Once its task has ended nothing references a request or the batch, long before the time-out."""
    requests = [make_request("ends 5")]
    request_ref = weakref.ref(requests[0])
    async with session_of(BatchProvider()) as session:
        batch = session.create_many(iter(requests))
        async with batch:
            await asyncio.sleep(2)
            requests.clear()
        await asyncio.sleep(10)
        gc.collect()
        assert request_ref() is None
        batch_ref = weakref.ref(batch)
        del batch
        gc.collect()
        assert batch_ref() is None


@pytest.mark.parametrize("price", [2, 2.0, None, lambda _: 2])
async def test_budget_stops_submitting(price: Any) -> None:
    """Requests in flight count as spent; `stopped` and `remaining` report the end."""
    provider = BatchProvider(credits=2.0)
    async with session_of(provider) as session:
        async with session.create_many([make_request()] * 9, budget=10, price=price, concurrency=3) as batch:
            assert len(await states(batch)) == 5
            assert (batch.stopped, batch.progress.remaining, batch.progress.credits) == ("budget", 4, 10.0)
        assert len(await session.create_all([make_request()] * 9, budget=99, price=price)) == 9
    assert len(provider.posts) == 5 + 9


@pytest.mark.parametrize("kind", [AuthenticationError, InsufficientCreditsError, UsageCapError])
async def test_account_rejection_stops_submitting(kind: type[ProviderError]) -> None:
    """Requests in flight complete, no other is sent or rejected, and the same batch later sends the rest."""
    provider = BatchProvider()
    requests = [make_request("ends 30", key=str(number)) for number in range(99)]
    async with session_of(provider) as session:
        async with session.create_many(requests, concurrency=4) as batch:
            asyncio.get_running_loop().call_later(10, setattr, provider, "rejection", kind("no more"))
            ended = [outcome async for outcome in batch]
            assert Counter(outcome.state for outcome in ended) == {"succeeded": 4, "rejected": 4}
            assert (batch.stopped, batch.rejection) == ("account", ended[-1].error)
            assert (batch.progress.registered, batch.progress.remaining) == (8, 91)
        provider.rejection = None
        assert {outcome.state for outcome in await session.create_all(requests)} == {"succeeded"}
    assert Counter(Counter(provider.posts).values()) == {1: 95, 2: 4}


async def test_account_rejection_stops_request_waiting_for_budget() -> None:
    """A request that waits for the budget is not sent, even if the budget allows it by then."""
    provider = BatchProvider(rejection=InsufficientCreditsError("no credits"))
    other = BatchProvider("other", rejection=PermissionDeniedError("not this person"))
    async with (
        session_of(provider, other) as session,
        session.create_many(
            [{"provider": "other", "from_task": "t"}, make_request(), make_request()], budget=4, price=2
        ) as batch,
    ):
        assert await states(batch) == ["0 rejected", "1 rejected"]
        assert (batch.stopped, batch.rejection, len(provider.posts)) == ("account", provider.rejection, 1)


async def test_lower_cost_frees_budget() -> None:
    """A request waits for those in flight, and is sent if they cost less than expected."""
    provider = BatchProvider(credits=1.0)
    async with session_of(provider) as session:
        outcomes = await session.create_all([make_request()] * 9, budget=4, price=2)
    assert (len(outcomes), provider.peaks["running"]) == (3, 2)


async def test_request_waiting_for_budget_is_not_registered() -> None:
    """It is counted, and its duration measured, from its submission."""
    requests = [make_request(), make_request()]
    async with (
        session_of(BatchProvider(credits=1.0)) as session,
        session.create_many(requests, budget=3, price=2) as batch,
    ):
        await asyncio.sleep(5)
        assert (batch.progress.registered, batch.progress.remaining) == (1, 1)
        await anext(batch)
        await asyncio.sleep(5)
        assert batch.progress.eta == 11 - 5
        assert await states(batch) == ["1 succeeded"]


async def test_budget_without_price_stops_after_one() -> None:
    """The first request is sent alone; if its cost is not reported, no other is sent."""
    async with (
        session_of(BatchProvider(credits=None)) as session,
        session.create_many([make_request()] * 9, budget=10) as batch,
    ):
        assert await states(batch) == ["0 succeeded"]
        assert batch.stopped == "price"


async def test_failing_price_function_rejects_request() -> None:
    """An exception of the price function is the outcome of that request, and of no other."""
    provider = BatchProvider()
    prices = {"b": 2.0}
    async with session_of(provider) as session:
        outcomes = await session.create_all(
            [make_request(key="a"), make_request(key="b")], budget=9, price=lambda request: prices[str(request.key)]
        )
    ends = [(outcome.state, type(outcome.error)) for outcome in outcomes]
    assert ends == [("rejected", KeyError), ("succeeded", type(None))]
    assert provider.posts == ["b"]


async def test_earlier_cost_counts() -> None:
    """Repeating a batch with the same budget costs nothing more."""
    provider = BatchProvider()
    requests = [make_request(key=str(number)) for number in range(9)]
    async with session_of(provider) as session:
        for _ in range(2):
            assert len(await session.create_all(requests, budget=6)) == 3
    assert len(provider.posts) == 3
