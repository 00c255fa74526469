"""Processes of the stateful session test, which can be stopped and killed at every step."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import (
    InvalidTransitionError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    SoraCharsError,
    TaskNotFoundError,
)
from sora_chars.ledger import Attempt, Entry, EntryState, Ledger
from sora_chars.models import FAIL, SUCCESS, Character, TaskFailure, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.protocols import Provider
from sora_chars.session.session import CharacterSession
from tests.support.simulated_world import EMPTY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.ledger.entry import Lookup
    from sora_chars.ledger.notifier import ChangeNotifier
    from sora_chars.models import Request
    from tests.support.simulated_world import SimulatedTask, SimulatedWorld

READ = 0.003  # seconds; a process may die during each of these steps
WRITE = 0.01
TRAVEL = 0.05
ANSWER = 5.0  # seconds until the provider responds
TIMEOUT = 120.0  # seconds until a request without a response fails
LATE = 20.0  # seconds by which a delayed request arrives late
WAIT = 300.0  # seconds that callers wait for a task
HOOKS = "https://a.invalid/hooks"
T = TypeVar("T")
PROCESS: contextvars.ContextVar[SimulatedProcess] = contextvars.ContextVar("PROCESS")


class ProcessKilled(BaseException):
    """Ends every step of a killed process."""


@attrs.define(eq=False)
class SimulatedStore:
    """One process's view of the shared entries.

    Attributes:
        faults: Results of the next writes: "" succeeds, "not written" and "written"
            raise before or after the entry is written.
        reads: Number of next reads that fail.
    """

    quota_store = None

    world: SimulatedWorld
    process: SimulatedProcess
    owner: str
    faults: deque[str] = attrs.field(factory=deque)
    reads: int = 0

    async def open(self, notifier: ChangeNotifier) -> None:
        """See `LedgerStore`."""
        self.world.notifiers[self.owner] = notifier

    async def aclose(self) -> None:
        """See `LedgerStore`."""
        self.world.notifiers.pop(self.owner, None)
        self.world.dead.add(self.owner)

    def abandon(self) -> None:
        """See `LedgerStore`."""

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        return await self._write(partial(self._insert, entry))

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        return await self._write(partial(self._replace, before, after, archive))

    async def all_by_task(self, provider: str, task_id: str) -> Sequence[Entry]:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.all_by_task(provider, task_id)

    async def attempts(self, keys: Sequence[str]) -> Sequence[Attempt]:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.attempts(keys)

    async def find(self, by: Lookup, *values: str) -> Entry | None:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.find(by, *values)

    async def page(
        self,
        states: Collection[EntryState],
        *,
        query: str | None = None,
        after: int | None,
        newest_first: bool,
        size: int,
    ) -> Sequence[tuple[int, Entry]]:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.page(states, query=query, after=after, newest_first=newest_first, size=size)

    async def idle_page(self, before: float, *, after: tuple[float, str] | None, size: int) -> Sequence[Entry]:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.idle_page(before, after=after, size=size)

    async def prune(self, before: float, *, size: int) -> int:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.prune(before, size=size)

    async def count_old(self, before: float) -> int:
        """See `LedgerStore`."""
        await self._read()
        return await self.world.entries.count_old(before)

    async def is_dead(self, owner: str) -> bool:
        """See `LedgerStore`."""
        await self._read()
        return owner in self.world.dead

    async def _read(self) -> None:
        await self.process.passes(READ)
        if self.reads:
            self.reads -= 1
            raise LedgerError("The database is unavailable.")

    async def _write(self, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        await self.process.passes(WRITE)
        fault = self.faults.popleft() if self.faults else ""
        if fault == "not written":
            raise LedgerError("The disk is full.")
        kept = await write()
        await self.process.passes(WRITE)
        if fault == "written":
            raise LedgerError("The connection was lost.")
        return kept

    async def _insert(self, entry: Entry) -> Entry:
        return self.world.kept.setdefault(entry.key, await self.world.entries.insert(entry))

    async def _replace(self, before: Entry, after: Entry, archive: Attempt | None) -> Entry | None:
        kept = await self.world.entries.replace(before, after, archive=archive)
        if kept is after:
            self.world.moved(after)
            for name, notifier in self.world.notifiers.items():
                if name != self.owner:
                    notifier.notify(after.key, after.version)
        return kept


@attrs.define(eq=False)
class SimulatedProvider(Provider):
    """One process's connection to the provider; `fates` states how its next request for a key ends."""

    world: SimulatedWorld
    process: SimulatedProcess
    fates: dict[str, str] = attrs.field(factory=dict)
    name: str = "fake"
    callback_url: str | None = HOOKS
    synchronous: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.synchronous = self.world.synchronous

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`. A request without effect is retried once, as by the transport."""
        key = request.key or ""
        url = callback_url or ""
        fate = self._fate(key)
        await self.process.passes(TRAVEL)
        if fate == "upload lost":
            raise NoAnswerError("the upload was reset")
        if fate == "upload rejected":
            raise RequestRejectedError("no such video")
        with self.world.counted(self.world.on_the_way, key):
            try:
                made = await self._post(key, url, fate, on_send)
            except ProviderError as error:
                if not error.harmless:
                    raise
                await self.process.passes(2.0)
                made = await self._post(key, url, self._fate(key), on_send)
        return self._snapshot(made)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        await self.process.passes(TRAVEL)
        made = self.world.made.get(task_id)
        if self.world.faulty_polls:
            self.world.faulty_polls -= 1
            raise NoAnswerError("reset")
        if made is None or asyncio.get_running_loop().time() < made.visible:
            raise TaskNotFoundError("no such task")
        snapshot = self._snapshot(made)
        await self.process.passes(TRAVEL)
        return snapshot

    def _snapshot(self, made: SimulatedTask) -> TaskSnapshot:
        if made.state == EMPTY:
            raise MissingCharacterError("none", provider=self.name, task_id=made.task_id, payload={"id": ""})
        return TaskSnapshot(
            task_id=made.task_id,
            provider=self.name,
            state=made.state,
            character=Character(id=f"ch-{made.task_id}", provider=self.name) if made.state == SUCCESS else None,
            failure=TaskFailure("1", "it failed") if made.state == FAIL else None,
            raw={"param": json.dumps({"callBackUrl": made.url})},
        )

    def _fate(self, key: str) -> str:
        fate = self.fates.pop(key, "answer")
        self.world.answers.add((key, fate))
        return fate

    async def _post(
        self, key: str, url: str, fate: str, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> SimulatedTask:
        async with on_send():
            with self.world.counted(self.world.posted, key):
                return await self._arrive(key, url, fate)

    async def _arrive(self, key: str, url: str, fate: str) -> SimulatedTask:
        await self.process.passes(TRAVEL)
        if fate == "never left":
            raise NoAnswerError("no connection", harmless=True)
        if fate == "busy":
            raise RateLimitedError("busy")
        if fate == "rejected":
            raise RequestRejectedError("a real person")
        if fate in {"request lost", "late", "answer lost", "hangs"}:
            self.world.doubted.add(key)
        if fate == "late":
            self._arrive_late(key, url)
        if fate in {"request lost", "late"}:
            raise NoAnswerError("reset")
        made = self.world.make(key, url)
        if fate == "empty":
            made.state = EMPTY
        await self.process.passes(TIMEOUT if fate == "hangs" else ANSWER)
        if fate in {"answer lost", "hangs"}:
            raise NoAnswerError("reset")
        return made

    def _arrive_late(self, key: str, url: str) -> None:
        """Let the request arrive later, even if the process dies."""

        def arrive() -> None:
            self.world.make(key, url)
            self.world.on_the_way[key] -= 1
            self.world.posted[key] -= 1

        self.world.on_the_way[key] += 1
        self.world.posted[key] += 1
        asyncio.get_running_loop().call_later(LATE, arrive)


class SimulatedProcess:
    """Process with a session, its asyncio tasks, and its waiting callers with their keys."""

    def __init__(self, world: SimulatedWorld, runner: asyncio.Runner, name: str) -> None:
        self.world = world
        self.runner = runner
        self.alive = True
        self.faulted = False
        self.goes = asyncio.Event()
        self.goes.set()
        self.asyncio_tasks: set[asyncio.Task[Any]] = set()
        self.callers: dict[asyncio.Task[Any], str] = {}
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.store = SimulatedStore(world, self, name)
        self.provider = SimulatedProvider(world, self)
        clock = runner.get_loop().time
        self.session = CharacterSession(
            self.provider,
            ledger=Ledger(self.store, clock=clock),
            watcher=TaskWatcher(polling=FixedInterval(10.0), clock=clock),
            timeout=WAIT,
        )
        self.receiver = CallbackReceiver(self.session)
        self.run(self.session.open())

    async def passes(self, seconds: float) -> None:
        """Wait in a step of this process, which ends here if killed and pauses while stopped."""
        await asyncio.sleep(seconds)
        await self.goes.wait()
        if not self.alive:
            raise ProcessKilled

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in this process while the others continue."""
        return self.runner.run(asyncio.wait_for(work, 9999.0), context=self.context)

    def start(self, key: str, work: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine in this process that a caller waits for."""
        self.callers[self.runner.get_loop().create_task(work, context=self.context)] = key

    def doubt(self) -> None:
        """Record that the outcome of requests being sent by this process may become unknown."""
        sending = {entry.key for entry in self.world.kept.values() if entry.state is EntryState.SENDING}
        self.world.doubted |= {key for key in sending if self.world.kept[key].owner == self.store.owner}

    def stop(self, *, presumed_dead: bool) -> None:
        """Stop the process, as SIGSTOP does; without its database connection it is presumed dead."""
        self.doubt()
        self.goes.clear()
        if presumed_dead:
            self.world.dead.add(self.store.owner)

    def cont(self) -> None:
        """Continue the process, as SIGCONT does, with a new database connection."""
        self.goes.set()
        self.world.dead.discard(self.store.owner)

    def kill(self) -> None:
        """Kill the process: nothing it does reaches the ledger or the provider any more."""
        self.doubt()
        self.alive = False
        self.goes.set()
        self.world.notifiers.pop(self.store.owner, None)
        self.world.dead.add(self.store.owner)
        self.callers.clear()
        self.runner.run(self._cancel_all())

    async def _cancel_all(self) -> None:
        while self.asyncio_tasks:
            for asyncio_task in self.asyncio_tasks:
                asyncio_task.cancel()
            await asyncio.wait(self.asyncio_tasks)

    async def call_back(self, url: str, task_id: str) -> int:
        """Deliver a callback and return the status of the response."""

        async def body() -> AsyncGenerator[bytes]:
            yield json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()

        return (await self.receiver.handle("POST", url, {"content-type": "application/json"}, body()))[0]


def own_task(world: SimulatedWorld, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """Create an asyncio task owned by the process that starts it, and check how it ends."""
    made = asyncio.Task(work, loop=loop, **options)
    process = (options.get("context") or contextvars.copy_context()).get(PROCESS, None)
    if process:
        process.asyncio_tasks.add(made)
        made.add_done_callback(process.asyncio_tasks.discard)

    def check(ended: asyncio.Task[Any]) -> None:
        error = None if ended.cancelled() else ended.exception()
        if error and (
            isinstance(error, InvalidTransitionError) or not isinstance(error, (SoraCharsError, ProcessKilled))
        ):
            world.wrong.append(f"{ended} raised {error!r}")

    made.add_done_callback(check)
    return made
