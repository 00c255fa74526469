"""Sliding windows, fair queueing and cooldowns of one process."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest

from sora_chars.errors import NoAnswerError
from sora_chars.ratelimit import accounts
from sora_chars.ratelimit.accounts import Account, account
from sora_chars.ratelimit.window import Cooldown, Limits, Window, flow

CREATES = (5, 10.0)


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without accounts: virtual time starts at 0 again, so old slots would still count."""
    monkeypatch.setattr(accounts, "_ACCOUNTS", {})


def new_window(limit: tuple[int, float] | None = CREATES) -> Window:
    """Return a window without history."""
    return Window(limit, Cooldown())


def most_in_any_window(arrivals: list[float], seconds: float) -> int:
    """Return the arrivals in the fullest half-open window."""
    return max(sum(start <= other < start + seconds for other in arrivals) for start in arrivals)


async def send(window: Window, arrivals: list[float], *, travel: float, back: float = 0.0) -> None:
    """Send one request, which arrives after `travel` seconds and is answered `back` seconds later."""
    async with window.slot() as slot:
        slot.mark_sent(asyncio.get_running_loop().time())
        await asyncio.sleep(travel)
        arrivals.append(asyncio.get_running_loop().time())
        await asyncio.sleep(back)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(20))
async def test_server_never_sees_more_than_limit(seed: int) -> None:
    """Whatever the network delays, no window at the server holds more than `count` requests."""
    rng = random.Random(seed)
    window = new_window()
    arrivals: list[float] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(60):
            travel = rng.choice([0.0, rng.uniform(0.0, 5.0)])
            group.create_task(send(window, arrivals, travel=travel, back=rng.choice([0.0, rng.expovariate(0.2)])))
            await asyncio.sleep(rng.choice([0.0, 0.0, rng.uniform(0.0, 4.0)]))
    assert len(arrivals) == 60
    assert most_in_any_window(arrivals, 10.0) == 5


@pytest.mark.looptime
async def test_separates_bursts() -> None:
    """A slow first burst and a fast second one, which a token bucket admits, arrive in different windows."""
    window = new_window()
    arrivals: list[float] = []
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(send(window, arrivals, travel=4.9 if number < 5 else 0.0))
    assert most_in_any_window(arrivals, 10.0) == 5


@pytest.mark.looptime
@pytest.mark.parametrize("why", ["cancelled", "timed out"])
async def test_counts_abandoned_request(why: str) -> None:
    """The slot of a request that was cancelled or not answered counts until the request must have arrived."""
    window = new_window((1, 10.0))
    loop = asyncio.get_running_loop()

    async def abandon() -> None:
        async with window.slot() as slot:
            slot.mark_sent(loop.time())
            if why == "timed out":
                raise NoAnswerError("no answer")
            await asyncio.sleep(60)

    abandoned = asyncio.create_task(abandon())
    await asyncio.sleep(0.1)
    abandoned.cancel()
    await asyncio.wait([abandoned])
    assert abandoned.cancelled() or isinstance(abandoned.exception(), NoAnswerError)
    async with window.slot() as slot:
        assert slot.sent >= 15.0
    assert loop.time() < 15.1


@pytest.mark.looptime
async def test_slot_is_free_one_window_after_response() -> None:
    """A slot counts from the response, so a fast provider receives its full limit."""
    window = new_window()
    arrivals: list[float] = []
    for _ in range(11):
        await send(window, arrivals, travel=0.0)
    assert [round(time) for time in arrivals] == [0] * 5 + [10] * 5 + [20]


@pytest.mark.looptime
async def test_long_request_counts_from_arrival() -> None:
    """A synchronous create of minutes occupies its slot no longer than one answered after 5 s."""
    window = new_window((1, 10.0))
    arrivals: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(send(window, [], travel=300.0))
        group.create_task(send(window, arrivals, travel=0.0))
    assert [round(time) for time in arrivals] == [15]


@pytest.mark.looptime
async def test_unused_slot_does_not_count() -> None:
    """A request that was not sent takes no slot from the next one."""
    window = new_window((1, 10.0))
    arrivals: list[float] = []
    for _ in range(3):
        async with window.slot():
            pass
    await send(window, arrivals, travel=0.0)
    assert arrivals == [0.0]


@pytest.mark.looptime
async def test_serves_one_flow_in_order() -> None:
    """Requests of one flow get slots in the order in which they queue."""
    window = new_window((2, 1.0))
    order: list[int] = []

    async def note_order(number: int) -> None:
        async with window.slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())
            order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(9):
            group.create_task(note_order(number))
    assert order == list(range(9))


async def queue_up(window: Window, flow_id: object, order: list[object]) -> None:
    """Send one request of a flow and append the flow to `order`."""
    async with window.slot(flow_id) as slot:
        slot.mark_sent(asyncio.get_running_loop().time())
        order.append(flow_id)


@pytest.mark.looptime
async def test_flows_share_window_round_robin() -> None:
    """A thousand queued requests delay a request of another flow by two slots at most, and all are sent."""
    window = new_window((1, 1.0))
    order: list[object] = []
    async with asyncio.TaskGroup() as group:
        for number in range(1003):
            group.create_task(queue_up(window, "batch" if number < 1000 else f"other {number % 2}", order))
    assert order[:7] == ["batch", "batch", "batch", "other 0", "other 1", "batch", "other 0"]
    assert order[7:] == ["batch"] * 996


@pytest.mark.looptime
async def test_flow_of_context_takes_precedence() -> None:
    """The context variable `flow` applies to every request sent in its context, whatever its default flow is."""
    window = new_window((1, 1.0))
    order: list[object] = []

    async def batch() -> None:
        flow.set("batch")
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(queue_up(window, number, order))

    async with asyncio.TaskGroup() as group:
        group.create_task(batch())
        await asyncio.sleep(0.1)
        group.create_task(queue_up(window, "other", order))
    assert order == [0, 1, 2, "other", 3]


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(20))
async def test_cancelled_waiters_block_no_other(seed: int) -> None:
    """Whichever waiters are cancelled, and whenever, all others are sent and the queue is dropped."""
    rng = random.Random(seed)
    window = new_window((2, 1.0))
    order: list[object] = []
    waiters = [asyncio.create_task(queue_up(window, number % 3, order)) for number in range(60)]
    for waiter in rng.sample(waiters, 30):
        await asyncio.sleep(rng.choice([0, 0, 0.5, 1.0]))
        waiter.cancel()
    done, _ = await asyncio.wait(waiters, timeout=100)
    assert len(done) == 60
    assert len(order) == sum(not waiter.cancelled() for waiter in waiters) >= 30
    assert not window._queues


@pytest.mark.looptime
async def test_waiter_cancelled_at_head_releases_it() -> None:
    """A waiter cancelled in the moment in which it becomes the head makes the next one the head."""
    window = new_window((1, 10.0))
    order: list[object] = []
    await send(window, [], travel=0.0)
    first, second, third = (asyncio.create_task(queue_up(window, name, order)) for name in "abc")
    await asyncio.sleep(0.1)
    first.cancel()
    asyncio.get_running_loop().call_soon(second.cancel)  # after the first made it the head
    await third
    assert order == ["c"]
    fourth = asyncio.create_task(queue_up(window, "d", order))
    await asyncio.sleep(0)
    fifth = asyncio.create_task(queue_up(window, "e", order))
    await asyncio.sleep(0.1)
    fourth.cancel()
    asyncio.get_running_loop().call_soon(fifth.cancel)
    await asyncio.wait([fourth, fifth])
    assert not window._queues


@pytest.mark.looptime
async def test_cancelled_waiter_takes_no_slot() -> None:
    """The waiter behind a cancelled one moves up and gets the slot."""
    window = new_window((1, 10.0))
    arrivals: list[float] = []
    await send(window, [], travel=0.0)
    first, second = (asyncio.create_task(send(window, arrivals, travel=0.0)) for _ in range(2))
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert first.cancelled()
    assert [round(time) for time in arrivals] == [10]


@pytest.mark.looptime
async def test_unlimited_window_never_waits() -> None:
    """Without a limit every request is sent at once."""
    window = new_window(None)
    arrivals: list[float] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(send(window, arrivals, travel=0.0))
    assert set(arrivals) == {0.0}


@pytest.mark.looptime
async def test_available_waits_for_slot_and_takes_none() -> None:
    """`available` waits as a request would, and leaves the slot free."""
    window = new_window((1, 10.0))
    loop = asyncio.get_running_loop()
    await window.available()
    await window.available()
    assert loop.time() == 0.0
    await send(window, [], travel=0.0)
    await window.available()
    assert round(loop.time()) == 10


@pytest.mark.looptime
@pytest.mark.parametrize(("limit", "sent", "room"), [((10, 10.0), 4, 6), ((1000, 10.0), 150, 850), ((10, 1.0), 4, 10)])
async def test_available_counts_free_slots(limit: tuple[int, float], sent: int, room: int) -> None:
    """Requests sent within the window are subtracted from the limit, whatever the window."""
    window = new_window(limit)
    for _ in range(sent):
        await send(window, [], travel=0.0)
    await asyncio.sleep(5.0)
    assert await window.available() == room


@pytest.mark.looptime
async def test_429_pauses_whole_account() -> None:
    """After a 429 to a create, polls and other requests wait too."""
    busy = Account.with_limits(Limits())
    loop = asyncio.get_running_loop()
    async with busy.windows["create"].slot() as slot:
        slot.mark_sent(loop.time())
        busy.cooldown.on_429(sent=slot.sent, now=loop.time(), retry_after=None)
    for kind in ("create", "poll", "other"):
        async with busy.windows[kind].slot() as slot:
            assert slot.sent >= 1.0


def test_cooldown_doubles_up_to_maximum() -> None:
    """Consecutive 429s pause the account for 1, 2, 4 ... 60 s, plus at most a quarter."""
    cooldown = Cooldown()
    waits: list[float] = []
    for _ in range(1100):
        now = cooldown.until
        cooldown.on_429(sent=now, now=now, retry_after=None)
        waits.append(cooldown.until - now)
    for wait, least in zip(waits, [1, 2, 4, 8, 16, 32, *[60] * 1094], strict=True):
        assert least * 0.999 <= wait <= least * 1.2501


def test_429s_of_one_burst_count_once() -> None:
    """429s for twenty requests that were sent together count as one."""
    cooldown = Cooldown()
    for number in range(20):
        cooldown.on_429(sent=0.0, now=0.1 * number / 20, retry_after=None)
    assert cooldown.consecutive_429s == 1
    assert cooldown.until < 1.5


def test_longer_of_retry_after_and_backoff_applies() -> None:
    """The account pauses for as long as the provider asks, and never shorter than its own backoff."""
    cooldown = Cooldown()
    cooldown.on_429(sent=0.0, now=0.0, retry_after=0.0)
    assert cooldown.until >= 1.0
    cooldown.on_429(sent=2.0, now=2.0, retry_after=30.0)
    assert cooldown.until == 32.0


def test_success_resets_consecutive_429s() -> None:
    """The next cooldown is short again; a response to a request sent before the 429 changes nothing."""
    cooldown = Cooldown()
    cooldown.on_429(sent=0.0, now=0.0, retry_after=None)
    cooldown.on_success(sent=0.5)
    assert cooldown.consecutive_429s == 1
    cooldown.on_success(sent=cooldown.until)
    assert cooldown.consecutive_429s == 0


@pytest.mark.looptime
async def test_one_probe_is_sent_first() -> None:
    """After the cooldown one request is sent; the others follow once it succeeds."""
    window = new_window(None)
    loop = asyncio.get_running_loop()
    sent: list[float] = []
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
async def test_request_sent_before_429_is_no_probe() -> None:
    """A synchronous create that runs for minutes does not delay the probe."""
    window = new_window(None)
    arrivals: list[float] = []
    long = asyncio.create_task(send(window, [], travel=300.0))
    await asyncio.sleep(1)
    window.cooldown.on_429(sent=0.0, now=1.0, retry_after=2.0)
    await send(window, arrivals, travel=0.0)
    assert [round(time) for time in arrivals] == [3]
    await long


@pytest.mark.looptime
async def test_sessions_of_one_account_share_windows() -> None:
    """The same address, key and limits are one account; another key or address is another."""
    limits = Limits(creates=(1, 10.0))
    ours = account("https://a.invalid", "key", limits)
    assert account("https://a.invalid", "key", Limits(creates=(1, 10.0))) is ours
    await send(ours.windows["create"], [], travel=0.0)
    for other in (account("https://a.invalid", "another key", limits), account("https://b.invalid", "key", limits)):
        arrivals: list[float] = []
        await send(other.windows["create"], arrivals, travel=0.0)
        assert arrivals == [0.0]


def test_accounts_are_bounded_and_hold_no_key() -> None:
    """A web application with a key per user keeps the latest 1000 accounts, and no key."""
    first = account("https://a.invalid", "key 0", Limits())
    for number in range(1, 1001):
        account("https://a.invalid", f"key {number}", Limits())
    assert len(accounts._ACCOUNTS) == 1000
    assert account("https://a.invalid", "key 0", Limits()) is not first
    assert "key 1000" not in repr(accounts._ACCOUNTS)


def test_counts_across_event_loops() -> None:
    """Requests sent in one `asyncio.run` count in the next, and the finished loop is collected."""
    window = new_window((1, 0.2))
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def send_two() -> float:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        arrivals: list[float] = []
        await asyncio.gather(*(send(window, arrivals, travel=0.0) for _ in range(2)))
        return arrivals[-1]

    ends = [asyncio.run(send_two()) for _ in range(2)]
    assert ends[1] - ends[0] >= 0.4
    gc.collect()
    assert [loop() for loop in loops] == [None, None]


@pytest.mark.parametrize("window", [(0, 1.0), (1, 0.0), (1, float("inf")), (1.5, 1.0), (1,), "20/10", 5])
def test_rejects_invalid_limit(window: object) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(ValueError, match=r"limits.polls must be \(count, seconds\) with both above 0"):
        Limits(polls=window)  # type: ignore[arg-type] # callers without a type checker do this
