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
from sora_chars.ratelimit.window import Account, Cooldown, Limits, Window
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
    """A session that looks every second."""
    return CharacterSession(*providers, polling=FixedInterval(1.0), **options)


class Knowing(FixedInterval):
    """A pace that has learned that tasks take a minute."""

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta:
        """See `PollingStrategy.expect`."""
        del snapshot
        return Eta(low=50 - age, median=60 - age, high=70 - age)


async def states(outcomes: Batch) -> list[str]:
    """How each has ended, in the order of the ends."""
    return [f"{outcome.index} {outcome.state}" async for outcome in outcomes]


async def test_a_task_in_flight_takes_one_of_the_places() -> None:
    """Never more than `limit` are asked and not ended, and each end makes room for the next."""
    shop = BatchProvider()
    async with session_of(shop) as session:
        outcomes = await session.create_all([make_request() for _ in range(12)], concurrency=4)
    assert (len(outcomes), shop.peaks["running"]) == (12, 4)
    assert asyncio.get_running_loop().time() == 3 * 11


@pytest.mark.parametrize(
    ("shop", "most"),
    [
        (BatchProvider(), 250),
        (BatchProvider(account=Account.with_limits(Limits(polls=(1, 1.0)))), 250),
        (BatchProvider(account=Account.with_limits(Limits(creates=(20, 10.0)))), 20),
        (BatchProvider(account=Account.with_limits(Limits(creates=(1000, 10.0)))), 250),
        (BatchProvider(synchronous=True), 300),
    ],
)
async def test_few_are_sent_at_a_time(shop: BatchProvider, most: int) -> None:
    """No more than may go out at once, but all that there may be where the answer comes when the task ends."""
    async with session_of(shop) as session:
        await session.create_all([make_request() for _ in range(400)], concurrency=300)
    assert shop.peaks["sending"] == most


async def test_ten_thousand_in_flight_need_no_asyncio_tasks() -> None:
    """What waits costs none; only submits and looks have one each, and these are bounded."""
    most, loop = 0, asyncio.get_running_loop()

    def wishes() -> Iterator[CharacterRequest]:
        nonlocal most
        for _ in range(2000):
            most = max(most, len(asyncio.all_tasks()))
            yield make_request("ends 600")

    shop = BatchProvider()
    async with CharacterSession(shop, polling=FixedInterval(590.0)) as session:
        outcomes = await session.create_all(wishes(), concurrency=100_000)
    assert (len(outcomes), shop.peaks["running"]) == (2000, 2000)
    assert most < 2 * 250 + 10
    assert loop.time() < 2000


async def test_a_slow_consumer_holds_back_submitting() -> None:
    """At most `limit` outcomes lie unread; all the others come when it reads on."""
    shop = BatchProvider()
    async with session_of(shop) as session, session.create_many([make_request()] * 50, concurrency=5) as outcomes:
        await asyncio.sleep(1000)
        assert 5 <= len(shop.posts) <= 10
        assert len(await states(outcomes)) == 50


async def test_requests_are_taken_as_late_as_can_be() -> None:
    """An endless iterable is read by one for each place that became free; the rest stays with its owner."""
    taken = count()
    async with session_of(BatchProvider()) as session:
        async with session.create_many((make_request() for _ in taken), concurrency=3) as outcomes:
            for _ in range(7):
                await anext(outcomes)
        assert next(taken) <= 7 + 3


async def test_a_stream_needs_the_memory_of_its_limit() -> None:
    """Of thousands of requests no more are alive than are in flight, or ended and unread."""
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    async def wishes() -> AsyncIterator[TaskRequest]:
        nonlocal alive, most
        for _ in range(5000):
            request = TaskRequest(model="m")
            weakref.finalize(request, gone)
            alive += 1
            most = max(most, alive)
            yield request

    async with (
        session_of(BatchProvider(synchronous=True), ledger=open_ledger("memory:")) as session,
        session.create_many(wishes(), concurrency=20) as outcomes,
    ):
        assert len([outcome.index async for outcome in outcomes]) == 5000
    assert most <= 2 * 20 + 2


@pytest.mark.parametrize("error", [OSError("the file is gone"), asyncio.CancelledError()])
async def test_what_the_requests_raise_is_raised_at_the_end(error: BaseException) -> None:
    """First come the outcomes of all that was taken up before; it is raised once, to whoever reads."""

    def wishes() -> Iterator[CharacterRequest]:
        yield from repeat(make_request(), 3)
        raise error

    async with session_of(BatchProvider()) as session, session.create_many(wishes()) as outcomes:
        assert [(await anext(outcomes)).state for _ in range(3)] == ["succeeded"] * 3
        with pytest.raises(type(error)):
            await anext(outcomes)
        assert outcomes.progress.remaining is None
        assert await states(outcomes) == []


async def test_what_the_requests_raise_is_raised_on_leaving() -> None:
    """Whoever leaves before having read that far is told then, unless an error of his own is under way."""

    def wishes() -> Iterator[CharacterRequest]:
        yield make_request()
        raise OSError("the file is gone")

    async with session_of(BatchProvider()) as session:
        with pytest.raises(OSError, match="gone"):
            async with session.create_many(wishes()):
                await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with session.create_many(wishes()):
                await asyncio.wait_for(asyncio.sleep(9), timeout=1)


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_leaving_early_sends_nothing_more_and_loses_nothing(how: str) -> None:
    """It takes no time and leaves no asyncio task; what was sent is found again, and nothing is paid twice."""
    shop, loop = BatchProvider(), asyncio.get_running_loop()
    wishes = [make_request("ends 50", key=str(number)) for number in range(600)]
    async with session_of(shop) as session:
        caller, before = asyncio.current_task(), asyncio.all_tasks()
        assert caller
        outcomes = session.create_many(wishes, concurrency=300)
        with suppress(KeyError, asyncio.CancelledError):
            async with outcomes:
                await asyncio.sleep(1.5)  # 250 have been answered, and 50 are on their way
                if how == "cancel":
                    loop.call_soon(caller.cancel)
                    await anext(outcomes)
                elif how == "error":
                    raise KeyError
        assert (caller.cancelling(), loop.time()) == (how == "cancel", 1.5)
        caller.uncancel()
        names = {asyncio_task.get_name() for asyncio_task in asyncio.all_tasks() - before}
        await asyncio.sleep(0)  # a generator that nobody closed would be closed by an asyncio task of its own
        names |= {asyncio_task.get_name() for asyncio_task in asyncio.all_tasks() - before}
        assert names == {"sora_chars watcher of shop", *(f"sora_chars submit {number}" for number in range(250, 300))}
        await asyncio.sleep(100)
        assert (len(shop.posts), outcomes.progress.running, await states(outcomes)) == (300, 300, [])
        assert [handle.done() async for handle in session.recover()] == []  # these were watched all the time
        began = loop.time()
        again = await session.create_all(wishes[:300])
        assert [outcome.state for outcome in again] == ["succeeded"] * 300
        assert (len(shop.posts), loop.time()) == (300, began)


async def test_a_small_batch_does_not_wait_for_a_large_one() -> None:
    """Two batches of one session take turns at the limit of creates."""
    window = Window((2, 10.0), Cooldown())
    async with (
        session_of(BatchProvider(window=window)) as session,
        session.create_many(make_request() for _ in count()),
    ):
        await asyncio.sleep(100)
        began = asyncio.get_running_loop().time()
        await session.create_all([make_request(), make_request(), make_request()])
        assert asyncio.get_running_loop().time() - began < 70  # and not the 160 that the whole line would take


async def test_progress_is_told_as_it_changes() -> None:
    """Each change comes to a reader that keeps up, the last one last; a slow reader misses what lies between."""
    seen: list[Progress] = []
    async with (
        session_of(BatchProvider()) as session,
        session.create_many(iter([make_request(), make_request("fails 5")])) as outcomes,
    ):

        async def read() -> None:
            seen.extend([progress async for progress in outcomes.updates()])

        reading, slow = asyncio.create_task(read()), outcomes.updates()
        assert (await anext(slow)).remaining is None
        await asyncio.sleep(9)
        assert ((await anext(slow)).failed, outcomes.progress.running) == (1, 1)
        assert await states(outcomes) == ["1 failed", "0 succeeded"]
        await reading
        assert [progress.ended async for progress in slow] == [2]
    assert [progress.ended for progress in seen if progress.registered == 2] == [0, 1, 2]
    assert (seen[-1].running, seen[-1].ended, seen[-1].remaining, seen[-1].credits) == (0, 2, 0, 4.0)
    assert seen[-1] == outcomes.progress


async def test_the_eta_knows_what_the_pace_has_learned() -> None:
    """Before any task has ended the youngest one's own ETA tells; with no task in flight there is none to ask."""
    async with (
        CharacterSession(BatchProvider(), polling=Knowing(1.0)) as session,
        session.create_many([make_request("ends 60"), make_request("ends 60")]) as outcomes,
    ):
        etas = [outcomes.progress.eta]
        await asyncio.sleep(11)
        etas.append(outcomes.progress.eta)
        assert await states(outcomes) == ["0 succeeded", "1 succeeded"]
        assert [*etas, outcomes.progress.eta] == [None, 50, 0]


@pytest.mark.parametrize("number", [3, 1000])
async def test_updates_end_when_the_batch_is_left(number: int) -> None:
    """Whoever observes from elsewhere is not left waiting, whether or not all has been sent."""
    seen: list[Progress] = []

    async def read(outcomes: Batch) -> None:
        seen.extend([progress async for progress in outcomes.updates()])

    async with session_of(BatchProvider()) as session:
        async with session.create_many([make_request()] * number) as outcomes:
            reading = asyncio.create_task(read(outcomes))
            await asyncio.sleep(5)
        await reading
    assert seen[-1] == outcomes.progress


async def test_what_was_left_is_forgotten() -> None:
    """Once its task has ended nothing holds a request or the batch, long before the wait for it would be over."""
    requests = [make_request("ends 5")]
    alive = weakref.ref(requests[0])
    async with session_of(BatchProvider()) as session:
        outcomes = session.create_many(iter(requests))
        async with outcomes:
            await asyncio.sleep(2)
            requests.clear()
        await asyncio.sleep(10)
        gc.collect()
        assert alive() is None
        batch = weakref.ref(outcomes)
        del outcomes
        gc.collect()
        assert batch() is None


@pytest.mark.parametrize("price", [2, 2.0, None, lambda _: 2])
async def test_a_budget_stops_submitting(price: Any) -> None:
    """What is in flight counts as if spent; the batch says why it ended, and how many are left."""
    shop = BatchProvider(credits=2.0)
    async with session_of(shop) as session:
        async with session.create_many([make_request()] * 9, budget=10, price=price, concurrency=3) as outcomes:
            assert len(await states(outcomes)) == 5
            assert (outcomes.stopped, outcomes.progress.remaining, outcomes.progress.credits) == ("budget", 4, 10.0)
        assert len(await session.create_all([make_request()] * 9, budget=99, price=price)) == 9
    assert len(shop.posts) == 5 + 9


@pytest.mark.parametrize("kind", [AuthenticationError, InsufficientCreditsError, UsageCapError])
async def test_a_refusal_of_the_account_stops_submitting(kind: type[ProviderError]) -> None:
    """What was sent ends as it does, nothing else is sent or called refused; the same batch then pays for the rest."""
    shop, wishes = BatchProvider(), [make_request("ends 30", key=str(number)) for number in range(99)]
    async with session_of(shop) as session:
        async with session.create_many(wishes, concurrency=4) as outcomes:
            asyncio.get_running_loop().call_later(10, setattr, shop, "refusal", kind("no more"))
            ended = [outcome async for outcome in outcomes]
            assert Counter(outcome.state for outcome in ended) == {"succeeded": 4, "rejected": 4}
            assert (outcomes.stopped, outcomes.refusal) == ("account", ended[-1].error)
            assert (outcomes.progress.registered, outcomes.progress.remaining) == (8, 91)
        shop.refusal = None
        assert {outcome.state for outcome in await session.create_all(wishes)} == {"succeeded"}
    assert Counter(Counter(shop.posts).values()) == {1: 95, 2: 4}


async def test_a_refusal_while_another_is_weighed_stops_it() -> None:
    """What waits for the budget is not sent then, even if there is room for it; the first refusal is the reason."""
    shop = BatchProvider(refusal=InsufficientCreditsError("no credits"))
    other = BatchProvider("other", refusal=PermissionDeniedError("not this person"))
    async with (
        session_of(shop, other) as session,
        session.create_many(
            [{"provider": "other", "from_task": "t"}, make_request(), make_request()], budget=4, price=2
        ) as outcomes,
    ):
        assert await states(outcomes) == ["0 rejected", "1 rejected"]
        assert (outcomes.stopped, outcomes.refusal, len(shop.posts)) == ("account", shop.refusal, 1)


async def test_cheaper_ones_than_expected_leave_room() -> None:
    """A request that the budget may not allow waits for those in flight, and then goes."""
    shop = BatchProvider(credits=1.0)
    async with session_of(shop) as session:
        outcomes = await session.create_all([make_request()] * 9, budget=4, price=2)
    assert (len(outcomes), shop.peaks["running"]) == (3, 2)


async def test_what_waits_for_the_budget_is_not_yet_asked() -> None:
    """It is counted, and its time runs, from when it goes."""
    wishes = [make_request(), make_request()]
    async with (
        session_of(BatchProvider(credits=1.0)) as session,
        session.create_many(wishes, budget=3, price=2) as outcomes,
    ):
        await asyncio.sleep(5)
        assert (outcomes.progress.registered, outcomes.progress.remaining) == (1, 1)
        await anext(outcomes)
        await asyncio.sleep(5)
        assert outcomes.progress.eta == 11 - 5
        assert await states(outcomes) == ["1 succeeded"]


async def test_a_budget_needs_a_price() -> None:
    """One goes first, alone; when neither it nor the caller tells what it cost, no other does."""
    async with (
        session_of(BatchProvider(credits=None)) as session,
        session.create_many([make_request()] * 9, budget=10) as outcomes,
    ):
        assert await states(outcomes) == ["0 succeeded"]
        assert outcomes.stopped == "price"


async def test_a_price_that_cannot_be_had_refuses_its_request() -> None:
    """A bug in the caller's function is the outcome of each request that it was asked for, and of no other."""
    shop, prices = BatchProvider(), {"b": 2.0}
    async with session_of(shop) as session:
        outcomes = await session.create_all(
            [make_request(key="a"), make_request(key="b")], budget=9, price=lambda request: prices[str(request.key)]
        )
    ends = [(outcome.state, type(outcome.error)) for outcome in outcomes]
    assert ends == [("rejected", KeyError), ("succeeded", type(None))]
    assert shop.posts == ["b"]


async def test_what_was_paid_earlier_counts() -> None:
    """The same batch again, with the same budget, pays nothing more."""
    shop, wishes = BatchProvider(), [make_request(key=str(number)) for number in range(9)]
    async with session_of(shop) as session:
        for _ in range(2):
            assert len(await session.create_all(wishes, budget=6)) == 3
    assert len(shop.posts) == 3
