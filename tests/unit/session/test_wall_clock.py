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
WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}

looptime = pytest.mark.looptime
jumps = pytest.mark.parametrize("jump", JUMPS)


@attrs.define(eq=False)
class Wall:
    """A wall clock that runs with the loop's, unless somebody sets it."""

    set_by: float = BEGAN

    def __call__(self) -> float:
        """Epoch seconds."""
        return self.set_by + asyncio.get_running_loop().time()


@attrs.define(eq=False)
class Fake(Provider):
    """A provider whose tasks take 95 s; looks meet `faults` first. Its own clock is nobody else's."""

    faults: list[SoraCharsError] = attrs.field(factory=list["SoraCharsError"])
    lasts: float = 95.0
    callback_url: str | None = None
    name: str = "fake"
    begun: list[float] = attrs.field(factory=list[float])
    polls: list[float] = attrs.field(factory=list[float])
    hook: str = ""

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        del request
        self.hook = str(callback_url)
        async with on_send():
            self.begun.append(asyncio.get_running_loop().time())
        return self.seen(f"t{len(self.begun)}", "waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        now = asyncio.get_running_loop().time()
        self.polls.append(round(now, 3))
        if self.faults:
            raise self.faults.pop(0)
        return self.seen(task_id, "success" if now - self.begun[0] >= self.lasts else "waiting")

    def seen(self, task_id: str, state: str) -> TaskSnapshot:
        """A snapshot."""
        made = Character(id=f"ch_{task_id}", provider=self.name) if state == "success" else None
        created = BEGAN + self.begun[0]
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state, character=made, created_at=created)


@pytest.fixture
def clock() -> Wall:
    """Give a clock."""
    return Wall()


def session_of(
    provider: Provider, clock: Wall, pace: PollingStrategy, *, ledger: Ledger | None = None, **options: Any
) -> CharacterSession:
    """A session all of whose wall clocks are one."""
    watcher = TaskWatcher(polling=pace, clock=clock)
    ledger = ledger or open_ledger("memory:", clock=clock)
    return CharacterSession(provider, watcher=watcher, ledger=ledger, **options)


@looptime
@jumps
async def test_a_wait_goes_on_as_if_nothing_were(clock: Wall, jump: float) -> None:
    """A clock set while a task is waited for changes no look, no age that the pace hears, and no end."""
    provider, pace, loop = Fake(), RecordingInterval(), asyncio.get_running_loop()
    async with session_of(provider, clock, pace) as session:
        handle = await session.submit(**WISH)
        await asyncio.sleep(45)
        clock.set_by += jump
        assert (await handle).id == "ch_t1"
        assert loop.time() == 100
    assert provider.polls == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert pace.ages == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


@looptime
@jumps
async def test_a_wait_ends_when_it_should(clock: Wall, jump: float) -> None:
    """The seconds of `timeout` are seconds, whatever the clock on the wall says."""
    async with session_of(Fake(), clock, RecordingInterval()) as session:
        creating = asyncio.create_task(session.create(**WISH, timeout=60))
        await asyncio.sleep(30)
        clock.set_by += jump
        with pytest.raises(WaitTimeoutError):
            await creating
        assert asyncio.get_running_loop().time() == 60


@looptime
@jumps
@pytest.mark.parametrize("pace", [SteppedInterval(), AdaptiveInterval()], ids=lambda pace: type(pace).__name__)
async def test_a_task_picked_up_after_the_jump_is_looked_at_in_time(
    clock: Wall, jump: float, pace: PollingStrategy
) -> None:
    """A task that seems to come from the future, or from last month, is looked at by some rung of the ladder."""
    provider = Fake()
    async with session_of(provider, clock, pace) as session:
        handle = await session.submit(**WISH)
    clock.set_by += jump
    async with session_of(provider, clock, pace) as session:
        assert (await session.resume(handle).result()).id == "ch_t1"
        assert 95 <= asyncio.get_running_loop().time() <= 95 + 30
    gaps = [after - before for before, after in zip(provider.polls, provider.polls[1:], strict=False)]
    assert all(1.99 < gap < 30.01 for gap in gaps)


@looptime
@jumps
@pytest.mark.parametrize("pace", [SteppedInterval(), AdaptiveInterval()], ids=lambda pace: type(pace).__name__)
async def test_a_step_says_when_to_come_again(clock: Wall, jump: float, pace: PollingStrategy) -> None:
    """`advance` asks to be called again within a rung of the ladder, and brings the task to its end."""
    async with session_of(Fake(), clock, pace) as session:
        await session.register(**WISH, key="mine")
        step = await session.advance("mine")
        while not step.finished:
            clock.set_by += jump
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
async def test_retries_go_on(clock: Wall, jump: float, faults: list[SoraCharsError], budget: float) -> None:
    """Faults that pass do so after a jump too; those that do not end the wait when their budget is used up."""
    provider = Fake([*faults])
    async with session_of(provider, clock, RecordingInterval()) as session:
        handle = await session.submit(**WISH)
        await asyncio.sleep(11)  # the first fault was met
        clock.set_by += jump
        assert (await handle).id == "ch_t1"
    provider, loop = Fake(faults * 1000), asyncio.get_running_loop()
    async with session_of(provider, clock, RecordingInterval()) as session:
        began = loop.time()
        handle = await session.submit(**WISH)
        await asyncio.sleep(11)
        clock.set_by += jump
        with pytest.raises(type(faults[0])):
            await handle
        assert budget <= loop.time() - began <= budget + 31  # 10 s to the first look, then some to the last


@looptime
@jumps
async def test_a_write_that_failed_is_tried_again(clock: Wall, jump: float) -> None:
    """What the ledger could not be told is written when it can be, not when the clock says so."""
    store = FaultyStore()
    async with session_of(Fake(), clock, RecordingInterval(), ledger=Ledger(store, clock=clock)) as session:
        handle = await session.submit(**WISH)
        store.full.add(EntryState.SUCCEEDED)
        await handle
        clock.set_by += jump
        await asyncio.sleep(60)
        store.full.clear()
        running = await session.entry(handle.key)
        assert running
        ended = await session.ledger.changed(running, timeout=11)
        assert (running.state, ended.state) == (EntryState.RUNNING, EntryState.SUCCEEDED)
        assert ended.updated_at == pytest.approx(clock(), abs=11)


async def keys(ledger: Ledger, **choice: Any) -> list[str]:
    """The keys of the entries of a choice."""
    return [entry.key async for entry in ledger.entries(**choice)]


@pytest.mark.parametrize("kind", ["memory:", "file"])
async def test_times_that_go_back_disturb_no_order(tmp_path: Path, kind: str) -> None:
    """Entries and characters come in the order in which they were asked; each move is seen, whatever its time."""
    ticks = iter(BEGAN + jump * number for number, jump in enumerate(JUMPS * 20))
    url = "memory:" if kind == "memory:" else f"sqlite:///{tmp_path}/characters.db"
    order = [f"k-{number}" for number in range(10)]
    async with open_ledger(url, clock=lambda: next(ticks)) as ledger:
        times: list[float] = []
        for key in order:
            asked = await ledger.register(key=key, provider="fake", kind="character", request={"from_task": key})
            sending = await ledger.transition(asked, EntryState.SENDING)
            waits = asyncio.create_task(ledger.changed(sending, timeout=30))
            await asyncio.sleep(0)
            run = await ledger.transition(sending, EntryState.RUNNING, task_id=f"t-{key}")
            assert await waits == run
            result = {"task_id": f"t-{key}", "provider": "fake", "state": "success"}
            made = {"character": {"id": f"ch_{key}", "provider": "fake"}}
            done = await ledger.transition(run, EntryState.SUCCEEDED, result=result | made)
            times += [done.created_at, done.updated_at]
        assert sorted(times) != times
        assert await keys(ledger) == order
        assert await keys(ledger, newest_first=True) == order[::-1]
        assert await keys(ledger, newest_first=True, limit=3) == order[:-4:-1]
        async with CharacterSession(Fake(), ledger=ledger) as session:
            assert [saved.key async for saved in session.characters()] == order[::-1]


@jumps
async def test_who_holds_what_is_no_question_of_time(tmp_path: Path, jump: float) -> None:
    """A living process keeps what it sends and polls, however old it looks; one that has ended keeps nothing."""
    url = f"sqlite:///{tmp_path}/characters.db"
    mine = Fake(lasts=0.0)
    async with session_of(
        mine, Wall(), RecordingInterval(), ledger=open_ledger(url, clock=lambda: BEGAN + jump)
    ) as here:
        async with open_ledger(url, clock=lambda: BEGAN) as there:
            held = await there.register(key="held", provider="fake", kind="character", request=WISH)
            sending = await there.register(key="sending", provider="fake", kind="character", request=WISH)
            held = await there.transition(
                await there.transition(held, EntryState.SENDING), EntryState.RUNNING, task_id="t-held"
            )
            sending = await there.transition(sending, EntryState.SENDING)
            assert [handle.key async for handle in here.recover()] == ["held"]
            assert [await here.entry("held"), await here.entry("sending")] == [held, sending]
            assert mine.polls == []  # the other one polls
        mine.begun.append(0.0)
        [handle] = [handle async for handle in here.recover()]
        assert (await handle).id == "ch_t-held"
        ends = [await here.entry(key) for key in ("held", "sending")]
        assert [entry.state for entry in ends if entry] == [EntryState.SUCCEEDED, EntryState.UNKNOWN]


def callback(at: float, *, key: str = "whsec") -> tuple[dict[str, str], bytes]:
    """The headers and the body of a callback of task t1, signed at a time."""
    digest = hmac.digest(key.encode(), f"t1.{at:.0f}".encode(), hashlib.sha256)
    signed = {"x-webhook-timestamp": f"{at:.0f}", "x-webhook-signature": base64.b64encode(digest).decode()}
    body = json.dumps({"code": 200, "msg": "ok", "data": {"taskId": "t1", "state": "success"}})
    return {"content-type": "application/json"} | signed, body.encode()


async def post(receiver: CallbackReceiver, provider: Fake, at: float) -> int:
    """Bring a callback that was signed then, and return the status that answers it."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    headers, body = callback(at)
    return (await receiver.handle("POST", provider.hook, headers, chunks()))[0]


@looptime
@jumps
async def test_callbacks_are_fresh_by_our_clock(clock: Wall, jump: float) -> None:
    """With a clock far off they are refused, which polling makes good; once it is right again, they are taken."""
    provider = Fake(callback_url="https://host.example/hooks")
    async with session_of(provider, clock, RecordingInterval()) as session:
        receiver = CallbackReceiver(session, "whsec", clock=clock)
        handle = await session.submit(**WISH)
        await asyncio.sleep(32)
        clock.set_by += jump
        assert await post(receiver, provider, clock() - jump) == (200 if abs(jump) < 300 else 401)
        clock.set_by -= jump
        await asyncio.sleep(2)
        assert await post(receiver, provider, clock()) == 200
        clock.set_by += jump
        assert (await handle).id == "ch_t1"
    assert 34 in provider.polls


@looptime
async def test_a_replay_is_refused_until_the_clock_is_set_back(clock: Wall) -> None:
    """A callback from before the window is refused; one that a wrong clock takes for fresh has no effect but a look."""
    provider = Fake(callback_url="https://host.example/hooks")
    async with session_of(provider, clock, RecordingInterval()) as session:
        receiver = CallbackReceiver(session, "whsec", clock=clock)
        handle = await session.submit(**WISH)
        caught = clock()
        assert await post(receiver, provider, caught) == 200
        await asyncio.sleep(41)
        clock.set_by += HOUR
        assert await post(receiver, provider, caught) == 401
        assert provider.polls[-1] < 41
        clock.set_by -= HOUR
        assert await post(receiver, provider, caught) == 200
        await asyncio.sleep(0.1)
        assert provider.polls[-1] == 41
        assert not handle.done()  # whatever it claims
        await handle
        ended = await session.entry(handle.key)
        looks = len(provider.polls)
        clock.set_by -= clock() - caught
        assert await post(receiver, provider, caught) == 200
        await asyncio.sleep(100)
        assert (await session.entry(handle.key), len(provider.polls)) == (ended, looks)
