from __future__ import annotations

import asyncio
import gc
import random
import weakref
from typing import TYPE_CHECKING

import pytest

from sora_chars.errors import NoAnswerError
from sora_chars.ratelimit import window as module
from sora_chars.ratelimit.window import Account, Cooldown, Limits, Window, account, flow

if TYPE_CHECKING:
    from collections.abc import Iterator

CREATES = (5, 10.0)


@pytest.fixture(autouse=True)
def _accounts() -> Iterator[None]:
    """Each test meets a provider that has counted nothing yet, for virtual time starts at 0 again."""
    kept, module._ACCOUNTS = module._ACCOUNTS, {}
    yield
    module._ACCOUNTS = kept


def free(limit: tuple[int, float] | None = CREATES) -> Window:
    """A window without a history."""
    return Window(limit, Cooldown())


def most_in_any_window(arrivals: list[float], seconds: float) -> int:
    """How many arrivals the fullest half-open window holds."""
    return max(sum(start <= other < start + seconds for other in arrivals) for start in arrivals)


async def ask(window: Window, arrivals: list[float], *, way: float, back: float = 0.0) -> None:
    """One request: `way` seconds until it arrives, `back` until its answer is here."""
    async with window.slot() as slot:
        slot.mark_sent(asyncio.get_running_loop().time())
        await asyncio.sleep(way)
        arrivals.append(asyncio.get_running_loop().time())
        await asyncio.sleep(back)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(20))
async def test_a_server_never_sees_more_than_the_limit_in_any_window(seed: int) -> None:
    """Whatever the delays of the network, no window at the server holds more than `count` requests."""
    chance, window, arrivals = random.Random(seed), free(), list[float]()
    async with asyncio.TaskGroup() as group:
        for _ in range(60):
            way = chance.choice([0.0, chance.uniform(0.0, 5.0)])
            group.create_task(ask(window, arrivals, way=way, back=chance.choice([0.0, chance.expovariate(0.2)])))
            await asyncio.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 4.0)]))
    assert len(arrivals) == 60
    assert most_in_any_window(arrivals, 10.0) == 5


@pytest.mark.looptime
async def test_two_bursts_cannot_meet_at_the_server() -> None:
    """A slow first burst and a fast second one, which a bucket lets through, stay a whole window apart."""
    window, arrivals = free(), list[float]()
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(ask(window, arrivals, way=4.9 if number < 5 else 0.0))
    assert most_in_any_window(arrivals, 10.0) == 5


@pytest.mark.looptime
@pytest.mark.parametrize("why", ["cancelled", "timed out"])
async def test_a_request_given_up_may_still_arrive(why: str) -> None:
    """A place whose request was cancelled or got no answer counts until the request must have arrived."""
    window, loop = free((1, 10.0)), asyncio.get_running_loop()

    async def give_up() -> None:
        async with window.slot() as slot:
            slot.mark_sent(loop.time())
            if why == "timed out":
                raise NoAnswerError("no answer")
            await asyncio.sleep(60)

    given_up = asyncio.create_task(give_up())
    await asyncio.sleep(0.1)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled() or isinstance(given_up.exception(), NoAnswerError)
    async with window.slot() as slot:
        assert slot.sent >= 15.0
    assert loop.time() < 15.1


@pytest.mark.looptime
async def test_an_answer_frees_its_place_one_window_later() -> None:
    """A place counts from the answer, so a quick provider is used up to its limit."""
    window, arrivals = free(), list[float]()
    for _ in range(11):
        await ask(window, arrivals, way=0.0)
    assert [round(time) for time in arrivals] == [0] * 5 + [10] * 5 + [20]


@pytest.mark.looptime
async def test_a_long_request_counts_from_its_arrival() -> None:
    """A synchronous create of minutes holds its place no longer than one that was answered after 5 s."""
    window, arrivals = free((1, 10.0)), list[float]()
    async with asyncio.TaskGroup() as group:
        group.create_task(ask(window, [], way=300.0))
        group.create_task(ask(window, arrivals, way=0.0))
    assert [round(time) for time in arrivals] == [15]


@pytest.mark.looptime
async def test_a_place_that_nobody_used_is_free_again() -> None:
    """A request that was not sent after all takes nothing from the next one."""
    window, arrivals = free((1, 10.0)), list[float]()
    for _ in range(3):
        async with window.slot():
            pass
    await ask(window, arrivals, way=0.0)
    assert arrivals == [0.0]


@pytest.mark.looptime
async def test_first_come_first_served() -> None:
    """Places are given in the order in which they were asked for."""
    window, order = free((2, 1.0)), list[int]()

    async def ask_in_turn(number: int) -> None:
        async with window.slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())
            order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(9):
            group.create_task(ask_in_turn(number))
    assert order == list(range(9))


async def go(window: Window, whose: object, order: list[object]) -> None:
    """One request of a flow, which notes when it went."""
    async with window.slot(whose) as slot:
        slot.mark_sent(asyncio.get_running_loop().time())
        order.append(whose)


@pytest.mark.looptime
async def test_flows_take_turns() -> None:
    """A thousand requests that came before hold up one of somebody else by two at most, and nobody for ever."""
    window, order = free((1, 1.0)), list[object]()
    async with asyncio.TaskGroup() as group:
        for number in range(1003):
            group.create_task(go(window, "batch" if number < 1000 else f"other {number % 2}", order))
    assert order[:7] == ["batch", "batch", "batch", "other 0", "other 1", "batch", "other 0"]
    assert order[7:] == ["batch"] * 996


@pytest.mark.looptime
async def test_a_flow_that_is_set_goes_along() -> None:
    """What `flow` is set to holds for all that is sent from there, whatever sends it."""
    window, order = free((1, 1.0)), list[object]()

    async def batch() -> None:
        flow.set("batch")
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(go(window, number, order))

    async with asyncio.TaskGroup() as group:
        group.create_task(batch())
        await asyncio.sleep(0.1)
        group.create_task(go(window, "other", order))
    assert order == [0, 1, 2, "other", 3]


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(20))
async def test_waiters_that_give_up_hold_up_nobody(seed: int) -> None:
    """Whoever is cancelled, and whenever, all others go, in turn, and the line is gone afterwards."""
    chance, window, order = random.Random(seed), free((2, 1.0)), list[object]()
    waiters = [asyncio.create_task(go(window, number % 3, order)) for number in range(60)]
    given_up = chance.sample(waiters, 30)
    for waiter in given_up:
        await asyncio.sleep(chance.choice([0, 0, 0.5, 1.0]))
        waiter.cancel()
    done, _ = await asyncio.wait(waiters, timeout=100)
    assert len(done) == 60
    assert len(order) == sum(not waiter.cancelled() for waiter in waiters) >= 30
    assert not window._lines


@pytest.mark.looptime
async def test_a_turn_that_came_too_late_is_passed_on() -> None:
    """A waiter cancelled in the very moment in which its turn came gives it to the next one."""
    window, order = free((1, 10.0)), list[object]()
    await ask(window, [], way=0.0)
    first, second, third = (asyncio.create_task(go(window, name, order)) for name in "abc")
    await asyncio.sleep(0.1)
    first.cancel()
    asyncio.get_running_loop().call_soon(second.cancel)  # after the first has passed its turn on
    await third
    assert order == ["c"]
    fourth = asyncio.create_task(go(window, "d", order))
    await asyncio.sleep(0)
    fifth = asyncio.create_task(go(window, "e", order))
    await asyncio.sleep(0.1)
    fourth.cancel()
    asyncio.get_running_loop().call_soon(fifth.cancel)
    await asyncio.wait([fourth, fifth])
    assert not window._lines


@pytest.mark.looptime
async def test_a_cancelled_waiter_frees_its_turn() -> None:
    """Those behind a waiter that gave up move up, and it takes no place."""
    window, arrivals = free((1, 10.0)), list[float]()
    await ask(window, [], way=0.0)
    first, second = (asyncio.create_task(ask(window, arrivals, way=0.0)) for _ in range(2))
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert first.cancelled()
    assert [round(time) for time in arrivals] == [10]


@pytest.mark.looptime
async def test_no_limit_waits_for_nothing() -> None:
    """Without a limit every request goes out at once."""
    window, arrivals = free(None), list[float]()
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(ask(window, arrivals, way=0.0))
    assert set(arrivals) == {0.0}


@pytest.mark.looptime
async def test_ready_returns_when_a_place_is_free_and_takes_none() -> None:
    """`ready` waits as a request would, and leaves the place to it."""
    window, loop = free((1, 10.0)), asyncio.get_running_loop()
    await window.available()
    await window.available()
    assert loop.time() == 0.0
    await ask(window, [], way=0.0)
    await window.available()
    assert round(loop.time()) == 10


@pytest.mark.looptime
@pytest.mark.parametrize(("limit", "sent", "room"), [((10, 10.0), 4, 6), ((1000, 10.0), 150, 850), ((10, 1.0), 4, 10)])
async def test_ready_says_how_many_would_go_out(limit: tuple[int, float], sent: int, room: int) -> None:
    """What was sent within the window is taken off the limit, in narrow windows and in wide ones."""
    window = free(limit)
    for _ in range(sent):
        await ask(window, [], way=0.0)
    await asyncio.sleep(5.0)
    assert await window.available() == room


@pytest.mark.looptime
async def test_a_refusal_pauses_the_whole_account() -> None:
    """After a 429 to a create, polls and all other requests wait too."""
    busy, loop = Account.with_limits(Limits()), asyncio.get_running_loop()
    async with busy.windows["create"].slot() as slot:
        slot.mark_sent(loop.time())
        busy.cooldown.on_429(sent=slot.sent, now=loop.time(), retry_after=None)
    for kind in ("create", "poll", "other"):
        async with busy.windows[kind].slot() as slot:
            assert slot.sent >= 1.0


def test_the_pause_grows_and_is_capped() -> None:
    """Refusals in a row silence the account for 1, 2, 4 ... 60 s, with at most a quarter more."""
    cooldown, waits = Cooldown(), list[float]()
    for _ in range(1100):
        now = cooldown.until
        cooldown.on_429(sent=now, now=now, retry_after=None)
        waits.append(cooldown.until - now)
    for wait, least in zip(waits, [1, 2, 4, 8, 16, 32, *[60] * 1094], strict=True):
        assert least * 0.999 <= wait <= least * 1.2501


def test_one_volley_counts_once() -> None:
    """Twenty requests that were sent together and all refused are one refusal."""
    cooldown = Cooldown()
    for number in range(20):
        cooldown.on_429(sent=0.0, now=0.1 * number / 20, retry_after=None)
    assert cooldown.consecutive_429s == 1
    assert cooldown.until < 1.5


def test_retry_after_wins_when_it_is_longer() -> None:
    """The account is silent for as long as the provider asked, and never shorter than the pause has grown."""
    cooldown = Cooldown()
    cooldown.on_429(sent=0.0, now=0.0, retry_after=0.0)
    assert cooldown.until >= 1.0
    cooldown.on_429(sent=2.0, now=2.0, retry_after=30.0)
    assert cooldown.until == 32.0


def test_a_good_answer_ends_the_row_of_refusals() -> None:
    """The next pause is short again; the answer to a request from before the refusal says nothing."""
    cooldown = Cooldown()
    cooldown.on_429(sent=0.0, now=0.0, retry_after=None)
    cooldown.on_success(sent=0.5)
    assert cooldown.consecutive_429s == 1
    cooldown.on_success(sent=cooldown.until)
    assert cooldown.consecutive_429s == 0


@pytest.mark.looptime
async def test_one_probe_goes_first() -> None:
    """When the pause is over one request tries; the others go when it was answered well."""
    window, loop, sent = free(None), asyncio.get_running_loop(), list[float]()
    window.cooldown.on_429(sent=0.0, now=0.0, retry_after=2.0)

    async def probe() -> None:
        async with window.slot() as slot:
            slot.mark_sent(loop.time())
            sent.append(slot.sent)
            await asyncio.sleep(3)
        window.cooldown.on_success(sent=slot.sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(probe())
    assert [round(at) for at in sent] == [2, 5, 5, 5]
    assert round(loop.time()) == 8


@pytest.mark.looptime
async def test_a_request_from_before_the_refusal_is_no_probe() -> None:
    """A synchronous create that runs for minutes does not hold up the request that tries again."""
    window, arrivals = free(None), list[float]()
    long = asyncio.create_task(ask(window, [], way=300.0))
    await asyncio.sleep(1)
    window.cooldown.on_429(sent=0.0, now=1.0, retry_after=2.0)
    await ask(window, arrivals, way=0.0)
    assert [round(time) for time in arrivals] == [3]
    await long


@pytest.mark.looptime
async def test_sessions_of_one_account_share_its_windows() -> None:
    """The same address, key and limits are one account; another key or address is another."""
    limits = Limits(creates=(1, 10.0))
    ours = account("https://a.invalid", "key", limits)
    assert account("https://a.invalid", "key", Limits(creates=(1, 10.0))) is ours
    await ask(ours.windows["create"], [], way=0.0)
    for other in (account("https://a.invalid", "another key", limits), account("https://b.invalid", "key", limits)):
        arrivals: list[float] = []
        await ask(other.windows["create"], arrivals, way=0.0)
        assert arrivals == [0.0]


def test_the_accounts_hold_no_key_and_are_bounded() -> None:
    """A web app with a key for each user holds the latest 1000 accounts, and no key."""
    first = account("https://a.invalid", "key 0", Limits())
    for number in range(1, 1001):
        account("https://a.invalid", f"key {number}", Limits())
    assert len(module._ACCOUNTS) == 1000
    assert account("https://a.invalid", "key 0", Limits()) is not first
    assert "key 1000" not in repr(module._ACCOUNTS)


def test_the_count_goes_on_in_a_second_event_loop() -> None:
    """What was sent in one `asyncio.run` still counts in the next, and the loop that is over is let go."""
    window, loops = free((1, 0.2)), list[weakref.ref[asyncio.AbstractEventLoop]]()

    async def two() -> float:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        arrivals: list[float] = []
        await asyncio.gather(*(ask(window, arrivals, way=0.0) for _ in range(2)))
        return arrivals[-1]

    ends = [asyncio.run(two()) for _ in range(2)]
    assert ends[1] - ends[0] >= 0.4
    gc.collect()
    assert [loop() for loop in loops] == [None, None]


@pytest.mark.parametrize("window", [(0, 1.0), (1, 0.0), (1, float("inf")), (1.5, 1.0), (1,), "20/10", 5])
def test_a_window_that_is_none_is_refused(window: object) -> None:
    """A limit names its field and what is allowed when it is not (count, seconds), both above 0."""
    with pytest.raises(ValueError, match=r"limits.polls: must be \(count, seconds\), both above 0"):
        Limits(polls=window)  # type: ignore[arg-type] # callers without a type checker do this
