"""The wall clock: setting it affects no wait, no poll, no retry and no owner."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars import (
    AdaptiveInterval,
    CallbackReceiver,
    CharacterSession,
    EntryState,
    Ledger,
    SteppedInterval,
    open_ledger,
)
from sora_chars.errors import RateLimitedError, ServiceUnavailableError, TaskNotFoundError, WaitTimeoutError
from sora_chars.models import Character, TaskSnapshot
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.protocols import PollingStrategy, Provider
from tests.support.fake_providers import FaultyStore, RecordingInterval

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sora_chars.errors import SoraCharsError
    from sora_chars.models import Request

HOUR, DAY = 3600.0, 86400.0
BEGAN = 1_795_000_000.0
JUMPS = [-30 * DAY, -5 * HOUR, -1.0, 1.0, 5 * HOUR, 30 * DAY]
REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}

looptime = pytest.mark.looptime
jumps = pytest.mark.parametrize("jump", JUMPS)


@attrs.define(eq=False)
class WallClock:
    """Wall clock that runs with the event loop; changing `offset` sets it."""

    offset: float = BEGAN

    def __call__(self) -> float:
        """Return epoch seconds."""
        return self.offset + asyncio.get_running_loop().time()


@attrs.define(eq=False)
class TimedProvider(Provider):
    """Provider whose tasks take `duration` seconds; its clock is never set.

    Attributes:
        faults: Raised by the first polls.
        duration: Seconds from the create to the end of its task.
        callback_url: See `Provider`.
        created: Loop times of the creates.
        polls: Loop times of the polls.
        sent_url: Callback URL of the last create.
    """

    faults: list[SoraCharsError] = attrs.field(factory=list)
    duration: float = 95.0
    callback_url: str | None = None
    name: str = "fake"
    created: list[float] = attrs.field(factory=list)
    polls: list[float] = attrs.field(factory=list)
    sent_url: str = ""

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        del request, key
        self.sent_url = str(callback_url)
        async with on_send():
            self.created.append(asyncio.get_running_loop().time())
        return self.snapshot(f"t{len(self.created)}", "waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        now = asyncio.get_running_loop().time()
        self.polls.append(round(now, 3))
        if self.faults:
            raise self.faults.pop(0)
        return self.snapshot(task_id, "success" if now - self.created[0] >= self.duration else "waiting")

    def snapshot(self, task_id: str, state: str) -> TaskSnapshot:
        """Return a snapshot of a task in that state."""
        made = Character(id=f"ch_{task_id}", provider=self.name) if state == "success" else None
        created_at = BEGAN + self.created[0]
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state, character=made, created_at=created_at)


@pytest.fixture
def clock() -> WallClock:
    """Return a clock."""
    return WallClock()


def session_of(
    provider: Provider, clock: WallClock, polling: PollingStrategy, *, ledger: Ledger | None = None, **options: Any
) -> CharacterSession:
    """Return a session that uses one wall clock everywhere."""
    watcher = TaskWatcher(polling=polling, clock=clock)
    ledger = ledger or open_ledger("memory:", clock=clock)
    return CharacterSession(provider, watcher=watcher, ledger=ledger, **options)


@looptime
@jumps
async def test_clock_jump_does_not_affect_polling(clock: WallClock, jump: float) -> None:
    """Setting the clock while a task runs changes no poll, no observed age and no result."""
    provider, polling, loop = TimedProvider(), RecordingInterval(), asyncio.get_running_loop()
    async with session_of(provider, clock, polling) as session:
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(45)
        clock.offset += jump
        assert (await handle).id == "ch_t1"
        assert loop.time() == 100
    assert provider.polls == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert polling.ages == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


@looptime
@jumps
async def test_clock_jump_does_not_affect_timeouts(clock: WallClock, jump: float) -> None:
    """`timeout` counts seconds of the event loop, whatever the wall clock shows."""
    async with session_of(TimedProvider(), clock, RecordingInterval()) as session:
        creating = asyncio.create_task(session.create(**REQUEST, timeout=60))
        await asyncio.sleep(30)
        clock.offset += jump
        with pytest.raises(WaitTimeoutError):
            await creating
        assert asyncio.get_running_loop().time() == 60


@looptime
@jumps
@pytest.mark.parametrize("polling", [SteppedInterval(), AdaptiveInterval()], ids=lambda polling: type(polling).__name__)
async def test_resumed_task_is_polled_after_a_clock_jump(
    clock: WallClock, jump: float, polling: PollingStrategy
) -> None:
    """A task that seems to come from the future, or from last month, is polled within 30 s."""
    provider = TimedProvider()
    async with session_of(provider, clock, polling) as session:
        handle = await session.submit(**REQUEST)
    clock.offset += jump
    async with session_of(provider, clock, polling) as session:
        assert (await session.resume(handle).result()).id == "ch_t1"
        assert 95 <= asyncio.get_running_loop().time() <= 95 + 30
    gaps = [after - before for before, after in zip(provider.polls, provider.polls[1:], strict=False)]
    assert all(1.99 < gap < 30.01 for gap in gaps)


@looptime
@jumps
@pytest.mark.parametrize("polling", [SteppedInterval(), AdaptiveInterval()], ids=lambda polling: type(polling).__name__)
async def test_steps_after_a_clock_jump(clock: WallClock, jump: float, polling: PollingStrategy) -> None:
    """Each step calls for another within 30 s, and the last one finds the end of the task."""
    async with session_of(TimedProvider(), clock, polling) as session:
        await session.register(**REQUEST, key="mine")
        step = await session.advance("mine")
        while not step.finished:
            clock.offset += jump
            assert 2 <= (step.retry_in or 0) <= 30
            await asyncio.sleep(step.retry_in or 0)
            step = await session.advance("mine")
        assert step.entry.state is EntryState.SUCCEEDED


FAULTS = [
    ([TaskNotFoundError("not visible yet")] * 3, 90.0),
    ([ServiceUnavailableError("maintenance")] * 3, 300.0),
    ([RateLimitedError("busy", retry_after=20.0)], 300.0),
]


@looptime
@jumps
@pytest.mark.parametrize(("faults", "budget"), FAULTS, ids=lambda value: type(value).__name__)
async def test_clock_jump_does_not_affect_retries(
    clock: WallClock, jump: float, faults: list[SoraCharsError], budget: float
) -> None:
    """Transient faults are retried after a jump, and end the wait when their time is used up."""
    provider = TimedProvider([*faults])
    async with session_of(provider, clock, RecordingInterval()) as session:
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(11)  # the first fault was raised
        clock.offset += jump
        assert (await handle).id == "ch_t1"
    provider, loop = TimedProvider(faults * 1000), asyncio.get_running_loop()
    async with session_of(provider, clock, RecordingInterval()) as session:
        began = loop.time()
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(11)
        clock.offset += jump
        with pytest.raises(type(faults[0])):
            await handle
        assert budget <= loop.time() - began <= budget + 31  # 10 s to the first poll, the rest to the last


@looptime
@jumps
async def test_clock_jump_does_not_delay_ledger_retries(clock: WallClock, jump: float) -> None:
    """A failed write is repeated until the ledger accepts it, whatever the clock shows."""
    store = FaultyStore()
    async with session_of(TimedProvider(), clock, RecordingInterval(), ledger=Ledger(store, clock=clock)) as session:
        handle = await session.submit(**REQUEST)
        store.full.add(EntryState.SUCCEEDED)
        await handle
        clock.offset += jump
        await asyncio.sleep(60)
        store.full.clear()
        running = await session.entry(handle.key)
        assert running
        ended = await session.ledger.changed(running, timeout=11)
        assert (running.state, ended.state) == (EntryState.RUNNING, EntryState.SUCCEEDED)
        assert ended.updated_at == pytest.approx(clock(), abs=11)


async def keys(ledger: Ledger, **selection: Any) -> list[str]:
    """Return the keys of the selected entries."""
    return [entry.key async for entry in ledger.entries(**selection)]


@pytest.mark.parametrize("kind", ["memory:", "file"])
async def test_entries_keep_their_order_when_the_clock_goes_back(tmp_path: Path, kind: str) -> None:
    """Entries are listed in the order of registration, and every transition is noticed."""
    ticks = iter(BEGAN + jump * number for number, jump in enumerate(JUMPS * 20))
    url = "memory:" if kind == "memory:" else f"sqlite:///{tmp_path}/characters.db"
    order = [f"k-{number}" for number in range(10)]
    async with open_ledger(url, clock=lambda: next(ticks)) as ledger:
        times: list[float] = []
        for key in order:
            pending = await ledger.register(key=key, provider="fake", kind="character", request={"from_task": key})
            sending = await ledger.transition(pending, EntryState.SENDING)
            change = asyncio.create_task(ledger.changed(sending, timeout=30))
            await asyncio.sleep(0)
            running = await ledger.transition(sending, EntryState.RUNNING, task_id=f"t-{key}")
            assert await change == running
            result = {"task_id": f"t-{key}", "provider": "fake", "state": "success"}
            character = {"character": {"id": f"ch_{key}", "provider": "fake"}}
            done = await ledger.transition(running, EntryState.SUCCEEDED, result=result | character)
            times += [done.created_at, done.updated_at]
        assert sorted(times) != times
        assert await keys(ledger) == order
        assert await keys(ledger, newest_first=True) == order[::-1]
        assert await keys(ledger, newest_first=True, limit=3) == order[:-4:-1]
        async with CharacterSession(TimedProvider(), ledger=ledger) as session:
            assert [saved.key async for saved in session.characters()] == order[::-1]


@jumps
async def test_ownership_does_not_depend_on_time(tmp_path: Path, jump: float) -> None:
    """A living process keeps its entries, however old these seem, and a dead process keeps none."""
    url = f"sqlite:///{tmp_path}/characters.db"
    provider = TimedProvider(duration=0.0)
    async with session_of(
        provider, WallClock(), RecordingInterval(), ledger=open_ledger(url, clock=lambda: BEGAN + jump)
    ) as here:
        async with open_ledger(url, clock=lambda: BEGAN) as there:
            running = await there.register(key="running", provider="fake", kind="character", request=REQUEST)
            sending = await there.register(key="sending", provider="fake", kind="character", request=REQUEST)
            running = await there.transition(
                await there.transition(running, EntryState.SENDING), EntryState.RUNNING, task_id="t-running"
            )
            sending = await there.transition(sending, EntryState.SENDING)
            assert [handle.key async for handle in here.recover()] == ["running"]
            assert [await here.entry("running"), await here.entry("sending")] == [running, sending]
            assert provider.polls == []  # the owner polls
        provider.created.append(0.0)
        [handle] = [handle async for handle in here.recover()]
        assert (await handle).id == "ch_t-running"
        ended = [await here.entry(key) for key in ("running", "sending")]
        assert [entry.state for entry in ended if entry] == [EntryState.SUCCEEDED, EntryState.UNKNOWN]


def callback(at: float, *, key: str = "whsec") -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a callback of task t1, signed at a time."""
    digest = hmac.digest(key.encode(), f"t1.{at:.0f}".encode(), hashlib.sha256)
    signed = {"x-webhook-timestamp": f"{at:.0f}", "x-webhook-signature": base64.b64encode(digest).decode()}
    body = json.dumps({"code": 200, "msg": "ok", "data": {"taskId": "t1", "state": "success"}})
    return {"content-type": "application/json"} | signed, body.encode()


async def post(receiver: CallbackReceiver, provider: TimedProvider, at: float) -> int:
    """Deliver a callback that was signed at a time, and return the status of the response."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    headers, body = callback(at)
    return (await receiver.handle("POST", provider.sent_url, headers, chunks()))[0]


@looptime
@jumps
async def test_callback_freshness_uses_the_wall_clock(clock: WallClock, jump: float) -> None:
    """Callbacks are rejected while the clock is far off, and accepted once it is right."""
    provider = TimedProvider(callback_url="https://host.example/hooks")
    async with session_of(provider, clock, RecordingInterval()) as session:
        receiver = CallbackReceiver(session, "whsec", clock=clock)
        handle = await session.submit(**REQUEST)
        await asyncio.sleep(32)
        clock.offset += jump
        assert await post(receiver, provider, clock() - jump) == (200 if abs(jump) < 300 else 401)
        clock.offset -= jump
        await asyncio.sleep(2)
        assert await post(receiver, provider, clock()) == 200
        clock.offset += jump
        assert (await handle).id == "ch_t1"
    assert 34 in provider.polls


@looptime
async def test_replayed_callbacks_have_no_effect(clock: WallClock) -> None:
    """An old callback is rejected, or causes one poll if a wrong clock makes it seem recent."""
    provider = TimedProvider(callback_url="https://host.example/hooks")
    async with session_of(provider, clock, RecordingInterval()) as session:
        receiver = CallbackReceiver(session, "whsec", clock=clock)
        handle = await session.submit(**REQUEST)
        signed = clock()
        assert await post(receiver, provider, signed) == 200
        await asyncio.sleep(41)
        clock.offset += HOUR
        assert await post(receiver, provider, signed) == 401
        assert provider.polls[-1] < 41
        clock.offset -= HOUR
        assert await post(receiver, provider, signed) == 200
        await asyncio.sleep(0.1)
        assert provider.polls[-1] == 41
        assert not handle.done()  # the callback's claim is no result
        await handle
        ended = await session.entry(handle.key)
        polls = len(provider.polls)
        clock.offset -= clock() - signed
        assert await post(receiver, provider, signed) == 200
        await asyncio.sleep(100)
        assert (await session.entry(handle.key), len(provider.polls)) == (ended, polls)
