"""Requests that come back for a slot instead of waiting, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.ratelimit.reservations import NoSlotError, Patience, WindowState, estimate, patience
from sora_chars.ratelimit.window import Cooldown, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.looptime


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    """Leave no patience behind."""
    token = patience.set(None)
    yield
    patience.reset(token)


@attrs.define(eq=False)
class Share:
    """A share with fixed answers."""

    count: int = 2
    processes: int = 1
    may_grow: bool = False
    notified: int = 0

    def limit(self, now: float) -> tuple[int, float]:
        """See `QuotaShare`."""
        del now
        return self.count, 10.0

    def notify(self) -> None:
        """See `QuotaShare`."""
        self.notified += 1


def now() -> float:
    """Return the loop time."""
    return asyncio.get_running_loop().time()


def window_of(count: int | None = 2) -> Window:
    """Return a window of `count` requests in 10 s."""
    return Window(None if count is None else (count, 10.0), Cooldown())


async def send(window: Window, key: str, order: float, seconds: float = 0.0) -> float | None:
    """Send a request; return None, or the seconds after which it should come back."""
    token = patience.set(Patience(key, order, now() + seconds))
    try:
        async with window.slot() as slot:
            slot.mark_sent(now())
    except NoSlotError as error:
        return error.retry_after if error.transient and error.harmless else None
    finally:
        patience.reset(token)
    return None


async def test_a_full_window_says_when_to_come_back() -> None:
    """A request that finds no slot sends nothing, and finds one when it comes back in time."""
    window = window_of()
    assert [await send(window, key, 0.0) for key in "ab"] == [None, None]
    retry_in = await send(window, "c", 1.0)
    assert retry_in == pytest.approx(10.0, abs=0.1)
    await asyncio.sleep(retry_in or 0)
    assert await send(window, "c", 1.0) is None
    assert window.reservations.by_key == {}


async def test_a_patient_request_waits() -> None:
    """A request waits as long as its patience lasts, but only if a slot is expected by then."""
    window = window_of(1)
    await send(window, "a", 0.0)
    began = now()
    assert await send(window, "b", 1.0, seconds=9.0) == pytest.approx(10.0, abs=0.1)
    assert now() == began
    assert await send(window, "b", 1.0, seconds=11.0) is None
    assert now() == pytest.approx(began + 10.0, abs=0.1)


async def test_requests_come_back_in_their_order() -> None:
    """Each request is told the time of its own slot, and a newer one does not take it."""
    window = window_of()
    delays = [await send(window, key, order) for order, key in enumerate("abcdefg")]
    assert [delay and round(delay) for delay in delays] == [None, None, 10, 10, 20, 20, 30]
    await asyncio.sleep(10.05)
    assert await send(window, "new", 99.0) is not None
    assert [await send(window, key, order) for order, key in ((3, "d"), (2, "c"))] == [None, None]
    assert round(await send(window, "e", 4) or 0) == 10


async def test_a_request_that_does_not_come_back_loses_its_slot() -> None:
    """The slot is kept for 2 s, then the next request may have it."""
    window = window_of(1)
    await send(window, "a", 0.0)
    await send(window, "b", 1.0)
    await asyncio.sleep(11.0)
    assert await send(window, "new", 9.0) is not None
    await asyncio.sleep(1.1)
    assert await send(window, "new", 9.0) is None


async def test_waiters_leave_slots_to_requests_that_are_due() -> None:
    """A request that waits in the queue, and polls that are picked, take no slot that is kept."""
    window = window_of(2)
    await send(window, "a", 0.0)
    await send(window, "b", 0.0)
    await send(window, "c", 1.0)
    await asyncio.sleep(10.05)
    assert await window.available() == 1
    async with asyncio.timeout(0.1), window.slot() as slot:
        slot.mark_sent(now())
    queued = asyncio.create_task(window.slot().__aenter__())
    await asyncio.sleep(1.0)
    assert not queued.done()
    await queued
    assert now() < 13.0


async def test_a_cooldown_ends_with_one_request() -> None:
    """During a cooldown the first request comes back at its end, the others a moment later."""
    window = window_of(None)
    window.cooldown.on_429(sent=now(), now=now(), retry_after=30.0)
    first = await send(window, "a", 0.0)
    assert first == pytest.approx(30.0, abs=0.1)
    assert await send(window, "b", 1.0) == pytest.approx(30.5, abs=0.1)
    await asyncio.sleep(30.1)
    token = patience.set(Patience("a", 0.0, now()))
    async with window.slot() as slot:
        slot.mark_sent(now())
        assert await send(window, "b", 1.0) == pytest.approx(0.5)
        window.cooldown.on_success(sent=slot.sent)
        assert await send(window, "b", 1.0) is None
    patience.reset(token)


async def test_a_slot_is_kept_for_the_part_that_returns_to_this_process() -> None:
    """With three processes a third of those that are due is expected here; the order is the same everywhere."""
    window = window_of(9)
    share = Share(count=0, processes=3)
    window.shares.append(share)
    for order, key in enumerate("abcdef"):
        assert (await send(window, key, order) or 0) == pytest.approx(0.1)
    assert share.notified == 6
    await asyncio.sleep(0.2)
    share.count = 4
    assert await send(window, "from another process", 0.5) is None
    assert await send(window, "new", 99.0) is None


async def test_a_share_that_may_grow_is_checked_again_soon() -> None:
    """Before the share is known to be the whole, a request comes back at once."""
    window = window_of(9)
    window.shares.append(Share(count=1, may_grow=True))
    await send(window, "a", 0.0)
    assert await send(window, "b", 1.0) == pytest.approx(0.1)
    assert window.wanted == 1


def state_of(**changes: Any) -> WindowState:
    """Return a window with 3 slots, of which 2 are used."""
    facts: dict[str, Any] = {"count": 3, "share": 3, "capacity": 3, "freed": (104.0, 105.0)}
    facts |= {"may_grow": False, "cooldown": 0.0, "probing": False}
    return WindowState(now=100.0, seconds=10.0, **(facts | changes))


def estimates(state: WindowState, positions: Iterable[int]) -> list[float]:
    """Return the rounded estimates of some positions."""
    return [round(estimate(position, state), 1) for position in positions]


def test_estimates() -> None:
    """The estimate is the time at which the slot of a position becomes free."""
    assert estimates(state_of(), range(1, 8)) == [4, 5, 10, 14, 15, 20, 24]


def test_a_share_may_change_before_a_far_estimate() -> None:
    """Where other processes have a part of the limit, a request far behind asks again halfway."""
    assert estimates(state_of(capacity=9), (1, 2, 3, 4, 7, 10, 13)) == [4, 5, 10, 4, 14, 14, 24]


def test_a_new_process_expects_its_share() -> None:
    """The few slots of a process that has just begun do not make its requests wait for minutes."""
    state = state_of(count=1, share=60, capacity=180, freed=(104.0,))
    assert estimates(state, (0, 1, 59, 60, 119, 170)) == [4, 10, 10, 4, 10, 20]
    assert estimates(attrs.evolve(state, cooldown=30.0), (0, 59, 60)) == [30, 30.5, 40.5]


async def test_the_share_of_a_process_is_its_part_of_the_limit() -> None:
    """With one slot of a limit that three processes divide, a request behind 29 others waits for one window."""
    window = window_of(90)
    window.shares.append(Share(count=1, processes=3))
    await send(window, "a", 0.0)
    delays = [await send(window, f"k{number}", 1.0 + number) for number in range(30)]
    assert max(delay for delay in delays if delay) == pytest.approx(10, abs=0.1)
