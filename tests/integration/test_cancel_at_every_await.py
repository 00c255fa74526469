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
from sora_chars.ledger import EntryState, open_ledger
from sora_chars.ledger import ledger as ledger_module
from sora_chars.models import Character, ModelInfo, TaskSnapshot
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sora_chars.models import Request
    from sora_chars.testing import Emulator

WISH: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
MOMENT = 0.005  # seconds
When = Literal["while it waits", "as it wakes"]
WHEN: tuple[When, ...] = ("while it waits", "as it wakes")


@attrs.define(eq=False)
class Closing:
    """What closes a session where it is cancelled."""

    session: CharacterSession
    asyncio_task: asyncio.Task[None] | None = None

    def cancel(self) -> bool:
        """Begin."""
        self.asyncio_task = asyncio.create_task(self.session.aclose())
        return True


@attrs.define(eq=False)
class Awaits:
    """Counts the awaits of all asyncio tasks born meanwhile, once there is a `victim`, and cancels it at one."""

    number: int
    when: When
    victim: asyncio.Task[Any] | Closing | None = None
    count: int = 0
    struck: bool = False

    def reached(self, awaited: asyncio.Future[Any] | None) -> None:
        """Note that an asyncio task waits; cancel now, or between the end of what it waits for and its waking."""
        if self.victim is None:
            return
        if self.count == self.number:
            if awaited is None or self.when == "while it waits":
                self.strike(awaited)
            else:
                awaited.add_done_callback(self.strike)
        self.count += 1

    def strike(self, _: object) -> None:
        """Cancel the victim, if it still runs."""
        self.struck = bool(self.victim and self.victim.cancel())


@attrs.define(eq=False)
class Driven(Coroutine[Any, Any, Any]):
    """A coroutine whose every await is told."""

    inner: Coroutine[Any, Any, Any]
    tell: Callable[[Any], None]

    def send(self, value: Any, /) -> Any:
        """Wake it."""
        awaited = self.inner.send(value)
        self.tell(awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        """Wake it with an error."""
        awaited = self.inner.throw(*error)
        self.tell(awaited)
        return awaited

    def close(self) -> None:
        """End it."""
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError  # asyncio tasks drive it by `send`


@contextmanager
def counted(number: int, when: When) -> Generator[Awaits]:
    """Count the awaits of all asyncio tasks that are born in the block."""
    awaits = Awaits(number, when)
    loop = asyncio.get_running_loop()

    def born(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Driven(coroutine, awaits.reached), loop=loop, **options)

    loop.set_task_factory(born)
    try:
        yield awaits
    finally:
        loop.set_task_factory(None)


def session_at(emulator: Emulator, ledger: str) -> CharacterSession:
    """A session that looks every 5 ms."""
    kie = Kie("kie-key", base_url=emulator.url, upload_url=emulator.url, limits=None)
    return CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.005))


async def on_record(ledger: str, key: str) -> tuple[EntryState | None, str | None]:
    """The state and the task id of a key, as the next process will find them."""
    async with open_ledger(ledger) as opened:
        entry = await opened.get(key)
    return (entry.state, entry.task_id) if entry else (None, None)


def names(number: int) -> list[str]:
    """Three keys of one round."""
    return [f"key {number}.{part}" for part in range(3)]


async def grown(emulator: Emulator, number: int) -> None:
    """Wait until the emulator has so many tasks."""
    await emulator.until(lambda: len(emulator.tasks) == number)


async def nothing_left(emulator: Emulator, alive: set[asyncio.Task[Any]]) -> None:
    """Wait until the loop holds no asyncio task but those `alive` before, and the emulator no connection."""
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
    """Wherever it is cancelled, the id of what was made is on record after closing, and nothing is left over."""
    emulator = sora_emulator_factory(durations=(0.0, 0.0))  # in a thread of its own: its awaits are not counted
    clip, ledger, alive = make_clip(), make_url("sqlite"), asyncio.all_tasks()
    number, reached, outcomes = 0, True, set[tuple[bool, EntryState | None]]()
    while reached:
        before = set(emulator.tasks)
        session = await session_at(emulator, ledger).open()
        with counted(number, when) as awaits:
            creating = asyncio.create_task(session.create(video=clip, prompt="a dog", key=f"key {number}"))
            awaits.victim = creating
            await asyncio.wait([creating])
        await session.aclose()
        await nothing_left(emulator, alive)
        assert creating.cancelled() == awaits.struck
        state, task_id = await on_record(ledger, f"key {number}")
        assert set(emulator.tasks) - before == ({task_id} if task_id else set())
        outcomes.add((awaits.struck, state))
        number, reached = number + 1, awaits.count > number
    assert outcomes - {(True, None), (True, EntryState.SUCCEEDED)} == {
        (True, EntryState.PENDING),
        (True, EntryState.RUNNING),
        (False, EntryState.SUCCEEDED),
    }


async def closed_at(awaits: Awaits, session: CharacterSession) -> None:
    """Close a session; the awaits count from here on, and this is what is cancelled."""
    awaits.victim = asyncio.current_task()
    await session.aclose()


@pytest.fixture
async def followed(
    sora_emulator_factory: Callable[..., Emulator], make_url: Callable[[str], str]
) -> AsyncIterator[tuple[Emulator, str]]:
    """An emulator, and a ledger in which a living process, as it seems, looks after the task of the key `theirs`."""
    emulator, url = sora_emulator_factory(durations=(60.0, 60.0)), make_url("sqlite")
    async with session_at(emulator, url) as session:
        await session.submit(**WISH, key="theirs")
    async with open_ledger(url) as other:
        entry = await other.get("theirs")
        assert entry
        await other.transition(entry, EntryState.RUNNING)
        yield emulator, url


@pytest.mark.parametrize("when", WHEN)
async def test_closing_cancelled_at_every_await(when: When, followed: tuple[Emulator, str]) -> None:
    """Wherever it is cancelled, all is closed, and the ledger knows each id, or that the outcome is unknown."""
    emulator, url = followed
    alive = asyncio.all_tasks()
    number, reached, outcomes = 0, True, set[EntryState | None]()
    while reached:
        session = await session_at(emulator, url).open()
        waiting = asyncio.create_task((await session.submit(**WISH, key="theirs")).result())
        for seconds in (0.01, 0.03, 0.05):  # so that closing is cancelled while some have come and some have not
            emulator.fault("delay", on="create", seconds=seconds)
        made = set(emulator.tasks)
        with counted(number, when) as awaits:
            asked = {key: asyncio.create_task(session.submit(**WISH, key=key)) for key in names(number)}
            await grown(emulator, len(made) + 3)
            closing = asyncio.create_task(closed_at(awaits, session))
            await asyncio.wait([closing, waiting, *asked.values()])
        await nothing_left(emulator, alive)
        assert closing.cancelled() == awaits.struck
        assert isinstance(waiting.exception(), WatcherStoppedError)
        new = set(emulator.tasks) - made
        for key, submitting in asked.items():
            state, task_id = await on_record(url, key)
            outcomes.add(state)
            if error := submitting.exception():
                assert isinstance(error, SubmissionUnknownError)
            else:
                assert submitting.result().task_id == task_id
            assert (task_id in new) == (state is EntryState.RUNNING)
        number, reached = number + 1, awaits.count > number
    assert outcomes == {EntryState.RUNNING, EntryState.UNKNOWN}


@attrs.define(eq=False)
class Slow(Provider):
    """A provider whose answers take a moment, and come whatever is closed. A task ends at the first look."""

    name: str = "slow"
    posts: Counter[str | None] = attrs.field(factory=Counter["str | None"])

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        del callback_url
        async with on_send():
            self.posts[request.key] += 1
            await asyncio.sleep(MOMENT)
        return TaskSnapshot(task_id=f"task of {request.key}", provider=self.name, state="waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        await asyncio.sleep(MOMENT)
        made = Character(id=f"made by {task_id}", provider=self.name)
        return TaskSnapshot(task_id=task_id, provider=self.name, state="success", character=made)

    async def credit(self) -> float:
        """See `Provider`."""
        await asyncio.sleep(MOMENT)
        return 1.0

    async def models(self) -> list[ModelInfo]:
        """See `Provider`."""
        await asyncio.sleep(MOMENT)
        return []


async def listed(rows: AsyncIterable[object]) -> None:
    """Read all."""
    async for _ in rows:
        pass


async def created(session: CharacterSession, *keys: str) -> None:
    """Make a batch, and raise the first error of an outcome."""
    for outcome in await session.create_all([WISH | {"key": key} for key in keys]):
        outcome.unwrap()


async def expected(session: CharacterSession) -> None:
    """Wait for a callback that never comes."""
    await CallbackReceiver(session).expect("nothing", timeout=MOMENT)


USES: dict[str, Callable[[CharacterSession, str], Awaitable[object]]] = {
    "register": lambda session, key: session.register(**WISH, key=key),
    "submit": lambda session, key: session.submit(**WISH, key=key),
    "create": lambda session, key: session.create(**WISH, key=key),
    "create_all": lambda session, key: created(session, key, f"{key}, too"),
    "advance a wish": lambda session, key: session.advance(f"pending {key}"),
    "advance a task": lambda session, key: session.advance(f"running {key}"),
    "resolve": lambda session, key: session.resolve(f"unknown {key}", task_id=f"task of unknown {key}"),
    "recover": lambda session, _: listed(session.recover()),
    "entry": lambda session, key: session.entry(key),
    "characters": lambda session, _: listed(session.characters(limit=3)),
    "credit": lambda session, _: session.credit(),
    "models": lambda session, _: session.models(),
    "result": lambda session, key: session.resume(f"task of running {key}").result(),
    "updates": lambda session, key: listed(session.resume(f"task of running {key}").updates()),
    "refresh": lambda session, key: session.resume(f"task of running {key}").refresh(),
    "expect": lambda session, _: expected(session),
}


async def prepared(session: CharacterSession, key: str) -> None:
    """Put a wish, a task that runs, and a doubt on record."""
    for state in (EntryState.PENDING, EntryState.RUNNING, EntryState.UNKNOWN):
        entry = await session.register(**WISH, key=f"{state} {key}")
        if state is not EntryState.PENDING:
            entry = await session.ledger.transition(entry, EntryState.SENDING)
            await session.ledger.transition(
                entry, state, task_id=f"task of {entry.key}" if state is EntryState.RUNNING else None
            )


@pytest.mark.parametrize("use", USES)
async def test_closed_under_every_use_at_every_await(
    use: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a session is closed under ends well or says that it was closed, and nothing is lost or sent twice."""
    monkeypatch.setattr(ledger_module, "_PAGE", 1)
    provider, ledger, alive = Slow(), open_ledger(ledger_url), asyncio.all_tasks()
    number, reached = 0, True
    while reached:
        session = await CharacterSession(provider, ledger=ledger, polling=FixedInterval(MOMENT)).open()
        await prepared(session, f"key {number}")
        closing = Closing(session)
        with counted(number, "while it waits") as awaits:
            awaits.victim = closing
            using = asyncio.ensure_future(USES[use](session, f"key {number}"))
            await asyncio.wait([using])
        await (closing.asyncio_task or session.aclose())
        if error := using.exception():
            over = {"expect": WaitTimeoutError}.get(use, WatcherStoppedError)
            assert isinstance(error, SessionClosedError | over), repr(error)
        assert asyncio.all_tasks() <= alive
        number, reached = number + 1, awaits.struck
    async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(MOMENT)) as session:
        keys = [entry.key async for entry in ledger.entries() if entry.state is not EntryState.UNKNOWN]
        await created(session, *keys)
    assert set(provider.posts.values()) <= {1}
