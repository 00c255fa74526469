"""What a caller holds while a task runs."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import attrs

from sora_chars.errors import MissingCharacterError, SessionClosedError, WaitTimeoutError, WrongLoopError
from sora_chars.models import Character, TaskSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from typing import Literal

    from sora_chars.models import Eta
    from sora_chars.protocols import Provider

    from .watched_task import WatchedTask
    from .watcher import TaskWatcher

R = TypeVar("R", bound=Character | TaskSnapshot)


@attrs.frozen(eq=False, repr=False)
class HandleContext:
    """What a session lends to its handles: the shared watch, who looks and where, the default wait in seconds."""

    watch: WatchedTask
    provider: Provider
    watcher: TaskWatcher
    timeout: float


@attrs.define(eq=False, kw_only=True)
class TaskHandle(Generic[R]):
    """A task that was submitted or resumed. `await handle` is `await handle.result()`.

    A handle pickles as its ids; the copy belongs to no session until `session.resume(copy)` gives a live one.
    `task_id` of a synchronous provider is the id of what it made; `name` is the one asked for.
    """

    task_id: str
    provider: str
    key: str
    name: str | None = None
    wants: type[Character | TaskSnapshot] | None = attrs.field(default=None, repr=False)
    _live: HandleContext | None = attrs.field(default=None, repr=False, alias="live")

    def done(self) -> bool:
        """Whether the wait is over, well or not."""
        return self._in_session().watch.future.done()

    @property
    def snapshot(self) -> TaskSnapshot | None:
        """The task as it was last seen."""
        return self._in_session().watch.snapshot

    @property
    def eta(self) -> Eta | None:
        """How many seconds are left, as a range; None while too little is known of the model, and at the end."""
        live = self._in_session()
        return live.watcher.estimate(live.watch)

    @property
    def woken_by(self) -> Literal["poll", "callback"]:
        """What led to the last look at the task."""
        return self._in_session().watch.woken_by

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end: a `Character`, or the finished `TaskSnapshot` of a `TaskRequest`.

        `timeout`: seconds; None for the session's `wait`, `math.inf` for no end. A wait that ends early, or is
        cancelled, disturbs neither the task nor others who wait.

        Raises:
            WaitTimeoutError: the task still runs; the error holds this handle.
            TaskFailedError: the task failed.
            MissingCharacterError: it succeeded and its result holds no character id.
            ProviderError: the provider refuses to tell, or was out of reach for the whole fault budget.
            WatcherStoppedError: the session was closed.
            WrongLoopError: the task is not done, and its session belongs to another event loop.
        """
        live = self._in_loop()
        future = live.watch.future
        if not future.done():
            await live.watch.ended(live.timeout if timeout is None else timeout)
            if not future.done():
                self._timed_out()
        return self._unwrap(future.result())  # not by `outcome`, whose frame the error of each waiter would keep

    def outcome(self) -> R:
        """What `result` gives, without waiting: a `WaitTimeoutError` if the task still runs."""
        future = self._in_session().watch.future
        if not future.done():
            self._timed_out()
        return self._unwrap(future.result())

    def add_done_callback(self, callback: Callable[[TaskHandle[R]], object]) -> None:
        """Have the event loop call `callback` with this handle once the wait is over; soon, if it is already.

        Raises:
            WrongLoopError: as `result`.
        """
        self._in_loop().watch.future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, R]:
        """Wait as `result` does."""
        return self.result().__await__()

    async def updates(self, timeout: float | None = None) -> AsyncGenerator[TaskSnapshot, None]:
        """Each change of the task: its present state first, the final one last, also when it failed.

        Raises:
            WaitTimeoutError: `timeout` seconds are over and the task still runs.
            ProviderError: as `result`.
            WatcherStoppedError: as `result`.
            WrongLoopError: as `result`.
        """
        live = self._in_loop()
        watch, limit = live.watch, live.timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        if watch.snapshot:
            queue.put_nowait(watch.snapshot)
        if watch.future.done():
            queue.put_nowait(None)
        watch.listeners += (queue,)
        try:
            while snapshot := await self._next(queue, deadline):
                yield snapshot
        finally:
            watch.listeners = tuple(other for other in watch.listeners if other is not queue)
        watch.future.result()

    async def refresh(self) -> TaskSnapshot:
        """Look at the task once, now, and show it to everybody who waits.

        Raises:
            ProviderError: the look failed; waits go on.
        """
        live = self._in_session()
        return await live.watcher.poll(live.provider, live.watch)

    def attach(self, live: HandleContext) -> TaskHandle[R]:
        """The same task, in the session that lends `live`."""
        return TaskHandle(
            task_id=self.task_id, provider=self.provider, key=self.key, name=self.name, wants=self.wants, live=live
        )

    def __reduce__(self) -> tuple[Callable[..., TaskHandle[Any]], tuple[Any, ...]]:
        """Pickle the ids only."""
        return _rebuild, (self.task_id, self.provider, self.key, self.name, self.wants)

    def _unwrap(self, snapshot: TaskSnapshot) -> R:
        outcome = snapshot.outcome()
        if self.wants is TaskSnapshot:
            outcome = snapshot
        elif isinstance(outcome, Character):
            outcome = attrs.evolve(outcome, name=outcome.name or self.name)
        elif self.wants is Character:
            raise MissingCharacterError(
                f"Task {self.task_id} succeeded, but {self.provider} gave no character.",
                provider=self.provider,
                task_id=self.task_id,
                payload=snapshot.result,
            )
        return outcome  # type: ignore[return-value] # `wants` says which of the two R is

    async def _next(self, queue: asyncio.Queue[TaskSnapshot | None], deadline: float) -> TaskSnapshot | None:
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await queue.get()
        except TimeoutError:
            self._timed_out()

    def _timed_out(self) -> NoReturn:
        raise WaitTimeoutError(
            f"Task {self.task_id} at {self.provider} still runs; the wait for it is over.",
            hint="Nothing is lost: await the handle again, or resume the task by its id.",
            handle=self,
        ) from None

    def _in_session(self) -> HandleContext:
        if self._live is None:
            raise SessionClosedError(
                f"This handle of task {self.task_id} was rebuilt and belongs to no session.",
                hint="Make it live with `session.resume(handle)`.",
            )
        return self._live

    def _in_loop(self) -> HandleContext:
        """For a wait. What is done can be had in any loop; a future of another one would wake nobody here."""
        live = self._in_session()
        if not live.watch.future.done() and live.watch.future.get_loop() is not asyncio.get_running_loop():
            raise WrongLoopError(
                f"The session of task {self.task_id} belongs to another event loop.",
                hint="Await the handle there, or resume the task by its id in a session of this loop.",
            )
        return live


def _rebuild(task_id: str, provider: str, key: str, name: str | None, wants: type[Any] | None) -> TaskHandle[Any]:
    return TaskHandle(task_id=task_id, provider=provider, key=key, name=name, wants=wants)
