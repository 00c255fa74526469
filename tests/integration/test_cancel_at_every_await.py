"""Cancelling and closing a session at every single await."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import attrs
import pytest

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, Kie
from sora_chars.errors import SessionClosedError, SubmissionUnknownError, WaitTimeoutError, WatcherStoppedError
from sora_chars.ledger import EntryState, listing, open_ledger
from sora_chars.models import Character, CharacterRequest, ModelInfo, TaskSnapshot
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sora_chars.models import Request
    from sora_chars.testing import Emulator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
DELAY = 0.005  # seconds
When = Literal["while waiting", "before resuming"]
WHEN: tuple[When, ...] = ("while waiting", "before resuming")


@attrs.define(eq=False)
class Closing:
    """A victim that closes a session instead of being cancelled."""

    session: CharacterSession
    asyncio_task: asyncio.Task[None] | None = None

    def cancel(self) -> bool:
        """Begin to close the session."""
        self.asyncio_task = asyncio.create_task(self.session.aclose())
        return True


@attrs.define(eq=False)
class Awaits:
    """Counts the awaits of asyncio tasks once there is a `victim`, and cancels it at one of them."""

    number: int
    when: When
    victim: asyncio.Task[Any] | Closing | None = None
    count: int = 0
    cancelled: bool = False

    def reached(self, awaited: asyncio.Future[Any] | None) -> None:
        """Count an await; cancel at once, or after the awaited future is done and before the task resumes."""
        if self.victim is None:
            return
        if self.count == self.number:
            if awaited is None or self.when == "while waiting":
                self.cancel_victim(awaited)
            else:
                awaited.add_done_callback(self.cancel_victim)
        self.count += 1

    def cancel_victim(self, _: object) -> None:
        """Cancel the victim if it is still running."""
        self.cancelled = bool(self.victim and self.victim.cancel())


@attrs.define(eq=False)
class ObservedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that reports every await."""

    inner: Coroutine[Any, Any, Any]
    on_await: Callable[[Any], None]

    def send(self, value: Any, /) -> Any:
        """Resume it."""
        awaited = self.inner.send(value)
        self.on_await(awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        """Resume it with an error."""
        awaited = self.inner.throw(*error)
        self.on_await(awaited)
        return awaited

    def close(self) -> None:
        """Close it."""
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError  # asyncio tasks drive it by `send`


@contextmanager
def count_awaits(number: int, when: When) -> Generator[Awaits]:
    """Count the awaits of all asyncio tasks that are created in the block."""
    awaits = Awaits(number, when)
    loop = asyncio.get_running_loop()

    def create_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(ObservedCoroutine(coroutine, awaits.reached), loop=loop, **options)

    loop.set_task_factory(create_task)
    try:
        yield awaits
    finally:
        loop.set_task_factory(None)


def session_at(emulator: Emulator, ledger: str) -> CharacterSession:
    """Return a session that polls every 5 ms."""
    kie = Kie("kie-key", base_url=emulator.url, upload_url=emulator.url, limits=None)
    return CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.005))


async def find_entry(ledger: str, key: str) -> tuple[EntryState | None, str | None]:
    """Return the state and the task id of a key, as the next process finds them."""
    async with open_ledger(ledger) as opened:
        entry = await opened.get(key)
    return (entry.state, entry.task_id) if entry else (None, None)


def keys(number: int) -> list[str]:
    """Return the three keys of one round."""
    return [f"key {number}.{part}" for part in range(3)]


async def wait_for_tasks(emulator: Emulator, number: int) -> None:
    """Wait until the emulator has `number` tasks."""
    await emulator.until(lambda: len(emulator.tasks) == number)


async def wait_until_clean(emulator: Emulator, alive: set[asyncio.Task[Any]]) -> None:
    """Wait until only the asyncio tasks in `alive` exist, and the emulator has no connection."""
    await emulator.until(lambda: asyncio.all_tasks() <= alive)
    server = emulator._runner.server if emulator._runner else None
    assert server
    await emulator.until(lambda: not server.connections)


@pytest.mark.parametrize("when", WHEN)
async def test_create_cancelled_at_every_await(
    when: When,
    sora_emulator_factory: Callable[..., Emulator],
    make_clip: Callable[[], Path],
    make_url: Callable[[str], str],
) -> None:
    """Wherever a create is cancelled, the ledger has the id of the created task after closing."""
    emulator = sora_emulator_factory(durations=(0.0, 0.0))  # in another thread, so its awaits are not counted
    clip = make_clip()
    ledger = make_url("sqlite")
    alive = asyncio.all_tasks()
    number = 0
    reached = True
    outcomes: set[tuple[bool, EntryState | None]] = set()
    while reached:
        before = set(emulator.tasks)
        session = await session_at(emulator, ledger).open()
        with count_awaits(number, when) as awaits:
            creating = asyncio.create_task(session.create(video=clip, prompt="a dog", key=f"key {number}"))
            awaits.victim = creating
            await asyncio.wait([creating])
        await session.aclose()
        await wait_until_clean(emulator, alive)
        assert creating.cancelled() == awaits.cancelled
        state, task_id = await find_entry(ledger, f"key {number}")
        assert set(emulator.tasks) - before == ({task_id} if task_id else set())
        outcomes.add((awaits.cancelled, state))
        reached = awaits.count > number
        number += 1
    assert outcomes - {(True, None), (True, EntryState.SUCCEEDED)} == {
        (True, EntryState.PENDING),
        (True, EntryState.RUNNING),
        (False, EntryState.SUCCEEDED),
    }


async def close_as_victim(awaits: Awaits, session: CharacterSession) -> None:
    """Close a session as the victim; awaits are counted from here on."""
    awaits.victim = asyncio.current_task()
    await session.aclose()


@pytest.fixture
async def claimed(
    sora_emulator_factory: Callable[..., Emulator], make_url: Callable[[str], str]
) -> AsyncIterator[tuple[Emulator, str]]:
    """An emulator, and a ledger in which another owner claims the task of the key `theirs`."""
    emulator = sora_emulator_factory(durations=(60.0, 60.0))
    url = make_url("sqlite")
    async with session_at(emulator, url) as session:
        await session.submit(**REQUEST, key="theirs")
    async with open_ledger(url) as other:
        entry = await other.get("theirs")
        assert entry
        await other.transition(entry, EntryState.RUNNING)
        yield emulator, url


@pytest.mark.parametrize("when", WHEN)
async def test_closing_cancelled_at_every_await(when: When, claimed: tuple[Emulator, str]) -> None:
    """Wherever closing is cancelled, the ledger has each task id or marks its entry unknown."""
    emulator, url = claimed
    alive = asyncio.all_tasks()
    number = 0
    reached = True
    outcomes: set[EntryState | None] = set()
    while reached:
        session = await session_at(emulator, url).open()
        waiting = asyncio.create_task((await session.submit(**REQUEST, key="theirs")).result())
        for seconds in (0.01, 0.03, 0.05):  # closing is cancelled when some responses have arrived and some have not
            emulator.fault("delay", on="create", seconds=seconds)
        made = set(emulator.tasks)
        with count_awaits(number, when) as awaits:
            submitting = {key: asyncio.create_task(session.submit(**REQUEST, key=key)) for key in keys(number)}
            await wait_for_tasks(emulator, len(made) + 3)
            closing = asyncio.create_task(close_as_victim(awaits, session))
            await asyncio.wait([closing, waiting, *submitting.values()])
        await wait_until_clean(emulator, alive)
        assert closing.cancelled() == awaits.cancelled
        assert isinstance(waiting.exception(), WatcherStoppedError)
        new = set(emulator.tasks) - made
        for key, submission in submitting.items():
            state, task_id = await find_entry(url, key)
            outcomes.add(state)
            if error := submission.exception():
                assert isinstance(error, SubmissionUnknownError)
            else:
                assert submission.result().task_id == task_id
            assert (task_id in new) == (state is EntryState.RUNNING)
        reached = awaits.count > number
        number += 1
    assert outcomes == {EntryState.RUNNING, EntryState.UNKNOWN}


@attrs.define(eq=False)
class SlowProvider(Provider):
    """A provider that responds late, also after closing. Its tasks end at the first poll."""

    name: str = "slow"
    posts: Counter[str | None] = attrs.field(factory=Counter)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        del key, callback_url
        async with on_send():
            self.posts[request.key] += 1
            await asyncio.sleep(DELAY)
        return TaskSnapshot(task_id=f"task of {request.key}", provider=self.name, state="waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        await asyncio.sleep(DELAY)
        made = Character(id=f"made by {task_id}", provider=self.name)
        return TaskSnapshot(task_id=task_id, provider=self.name, state="success", character=made)

    async def credit(self) -> float:
        """See `Provider`."""
        await asyncio.sleep(DELAY)
        return 1.0

    async def models(self) -> list[ModelInfo]:
        """See `Provider`."""
        await asyncio.sleep(DELAY)
        return []


async def exhaust(rows: AsyncIterable[object]) -> None:
    """Read all rows."""
    async for _ in rows:
        pass


async def create_batch(session: CharacterSession, *keys: str) -> None:
    """Create a batch, and raise the first error of an outcome."""
    for outcome in await session.create_all([CharacterRequest(**REQUEST, key=key) for key in keys]):
        outcome.unwrap()


async def expect_callback(session: CharacterSession) -> None:
    """Wait for a callback that is never sent."""
    await CallbackReceiver(session).expect("nothing", timeout=DELAY)


USES: dict[str, Callable[[CharacterSession, str], Awaitable[object]]] = {
    "register": lambda session, key: session.register(**REQUEST, key=key),
    "submit": lambda session, key: session.submit(**REQUEST, key=key),
    "create": lambda session, key: session.create(**REQUEST, key=key),
    "create_all": lambda session, key: create_batch(session, key, f"{key}, too"),
    "advance a request": lambda session, key: session.advance(f"pending {key}"),
    "advance a task": lambda session, key: session.advance(f"running {key}"),
    "resolve": lambda session, key: session.resolve(f"unknown {key}", task_id=f"task of unknown {key}"),
    "recover": lambda session, _: exhaust(session.recover()),
    "entry": lambda session, key: session.entry(key),
    "characters": lambda session, _: exhaust(session.characters(limit=3)),
    "credit": lambda session, _: session.credit(),
    "models": lambda session, _: session.models(),
    "result": lambda session, key: session.resume(f"task of running {key}").result(),
    "updates": lambda session, key: exhaust(session.resume(f"task of running {key}").updates()),
    "refresh": lambda session, key: session.resume(f"task of running {key}").refresh(),
    "expect": lambda session, _: expect_callback(session),
}


async def prepare(session: CharacterSession, key: str) -> None:
    """Record a pending, a running and an unknown entry."""
    for state in (EntryState.PENDING, EntryState.RUNNING, EntryState.UNKNOWN):
        entry = await session.register(**REQUEST, key=f"{state} {key}")
        if state is not EntryState.PENDING:
            entry = await session.ledger.transition(entry, EntryState.SENDING)
            await session.ledger.transition(
                entry, state, task_id=f"task of {entry.key}" if state is EntryState.RUNNING else None
            )


@pytest.mark.parametrize("use", USES)
async def test_closed_under_every_use_at_every_await(
    use: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A use of a closing session succeeds or raises; nothing is lost or sent twice."""
    monkeypatch.setattr(listing, "_PAGE_SIZE", 1)
    provider = SlowProvider()
    ledger = open_ledger(ledger_url)
    alive = asyncio.all_tasks()
    number = 0
    reached = True
    while reached:
        session = await CharacterSession(provider, ledger=ledger, polling=FixedInterval(DELAY)).open()
        await prepare(session, f"key {number}")
        closing = Closing(session)
        with count_awaits(number, "while waiting") as awaits:
            awaits.victim = closing
            using = asyncio.ensure_future(USES[use](session, f"key {number}"))
            await asyncio.wait([using])
        await (closing.asyncio_task or session.aclose())
        if closing.asyncio_task:  # it may have begun during the other closing, whose end it waits for
            await closing.asyncio_task
        if error := using.exception():
            timed_out = {"expect": WaitTimeoutError}.get(use, WatcherStoppedError)
            assert isinstance(error, SessionClosedError | timed_out), repr(error)
        assert asyncio.all_tasks() <= alive
        reached = awaits.cancelled
        number += 1
    async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(DELAY)) as session:
        recorded = [entry.key async for entry in ledger.entries() if entry.state is not EntryState.UNKNOWN]
        await create_batch(session, *recorded)
    assert set(provider.posts.values()) <= {1}
