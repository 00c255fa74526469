"""The handle of a task: its result, its changes and its present state."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import attrs

from sora_chars.errors import (
    MissingCharacterError,
    ProviderError,
    SessionClosedError,
    SoraCharsError,
    TaskNotFoundError,
    WaitTimeoutError,
    WrongLoopError,
    printable,
)
from sora_chars.models import Character, TaskSnapshot, Voice

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from typing import Literal

    from sora_chars.models import Eta
    from sora_chars.protocols import Provider

    from .watched_task import WatchedTask
    from .watcher import TaskWatcher

R = TypeVar("R", bound=Character | Voice | TaskSnapshot)


@attrs.frozen(eq=False, repr=False)
class HandleContext:
    """What a session provides to its handles.

    Attributes:
        task: The task, shared by all handles of it.
        provider: The provider that runs the task.
        watcher: The watcher that polls the task.
        timeout: Seconds that a wait lasts by default.
        from_ledger: Whether the ledger held the end of the task before it was requested.
        key: The idempotency key, if one is recorded for the task.
    """

    task: WatchedTask
    provider: Provider
    watcher: TaskWatcher
    timeout: float
    key: str | None = None
    from_ledger: bool = False


@attrs.define(eq=False, kw_only=True, repr=False)
class TaskHandle(Generic[R]):
    """A task that was submitted or resumed.

    `CharacterSession.submit` and `CharacterSession.resume` return handles. Await one
    for the result, or follow its changes:

        handle = await session.submit(video="rex.mp4", name="rex")
        async for snapshot in handle.updates():
            print(snapshot.state, handle.eta)
        character = await handle

    A handle pickles as its ids. The copy is detached: `session.resume(copy)` returns
    one that works.

    Attributes:
        task_id: The provider's id of the task. For a synchronous provider it is the id
            of the character.
        provider: The name of the provider that runs the task.
        key: The idempotency key of the request.
        name: The requested name of the character.
        wants: The type of the result: `Character`, `TaskSnapshot`, or None for a
            character if there is one and the snapshot otherwise.
    """

    task_id: str
    provider: str
    key: str
    name: str | None = None
    wants: type[Character | Voice | TaskSnapshot] | None = None
    _context: HandleContext | None = attrs.field(default=None, alias="context")

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        snapshot = self._context.task.snapshot if self._context else None
        state = printable(snapshot.state, limit=60) if snapshot else None
        return (
            f"TaskHandle(task_id={self.task_id!r}, provider={self.provider!r}, key={self.key!r}{name}, state={state!r})"
        )

    def done(self) -> bool:
        """Whether the wait has ended, with a result or with an error."""
        return self._attached().task.future.done()

    @property
    def snapshot(self) -> TaskSnapshot | None:
        """The task as the last poll showed it. None before the first poll of a resumed task."""
        return self._attached().task.snapshot

    @property
    def from_ledger(self) -> bool:
        """Whether the ledger held the end of the task before it was requested."""
        return self._attached().from_ledger

    @property
    def is_missing(self) -> bool:
        """Whether the provider answered the last poll that it has no such task, or does not show it yet."""
        return self._attached().task.missing_since is not None

    @property
    def eta(self) -> Eta | None:
        """The range of seconds that are left. None if too little is known of the model, and at the end."""
        context = self._attached()
        return context.watcher.estimate(context.task)

    @property
    def woken_by(self) -> Literal["poll", "callback"]:
        """What caused the last poll of the task: the polling strategy or a callback."""
        return self._attached().task.woken_by

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end, and return a `Character` or the finished `TaskSnapshot` of a `TaskRequest`.

        A wait that times out or is cancelled affects neither the task nor other waits.

        Args:
            timeout: Seconds to wait. None for the `timeout` of the session, `math.inf`
                to wait without a limit.

        Raises:
            WaitTimeoutError: The task still runs. The error holds this handle.
            TaskFailedError: The task failed.
            MissingCharacterError: The task succeeded, but its result holds no character id.
            ProviderError: The provider rejects the poll, or had transient faults for
                the whole fault budget.
            WatcherStoppedError: The session was closed.
            WrongLoopError: The task still runs, and its session belongs to another event loop.
        """
        context = self._attached_in_loop()
        future = context.task.future
        if not future.done():
            await context.task.wait(context.timeout if timeout is None else timeout)
            if not future.done():
                self._raise_timeout()
        return self._unwrap(future)

    def outcome(self) -> R:
        """Return what `result` returns, without waiting.

        Raises:
            WaitTimeoutError: The task still runs.
            SoraCharsError: As `result`.
        """
        future = self._attached().task.future
        if not future.done():
            self._raise_timeout()
        return self._unwrap(future)

    def add_done_callback(self, callback: Callable[[TaskHandle[R]], object]) -> None:
        """Schedule `callback` to be called with this handle once the wait has ended.

        Raises:
            WrongLoopError: As `result`.
        """
        self._attached_in_loop().task.future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, R]:
        """Wait as `result` does."""
        return self.result().__await__()

    async def updates(self, timeout: float | None = None) -> AsyncGenerator[TaskSnapshot, None]:
        """Yield each change of the task: its present state first, and the final one last, also if it failed.

        Args:
            timeout: Seconds for all updates together. None and `math.inf` as in `result`.

        Raises:
            WaitTimeoutError: The task still runs after `timeout` seconds.
            ProviderError: As `result`.
            WatcherStoppedError: As `result`.
            WrongLoopError: As `result`.
        """
        context = self._attached_in_loop()
        task = context.task
        deadline = asyncio.get_running_loop().time() + (context.timeout if timeout is None else timeout)
        queue: asyncio.Queue[TaskSnapshot | None] = asyncio.Queue()
        if task.snapshot:
            queue.put_nowait(task.snapshot)
        if task.future.done():
            queue.put_nowait(None)
        task.listeners += (queue,)
        try:
            while snapshot := await self._next_update(queue, deadline):
                yield snapshot
        finally:
            task.listeners = tuple(other for other in task.listeners if other is not queue)
        with self._facts_added():
            task.future.result()

    async def refresh(self) -> TaskSnapshot:
        """Poll the task once, now, and show the snapshot to all waiters.

        Raises:
            ProviderError: The poll failed. The wait continues.
        """
        context = self._attached()
        return await context.watcher.poll(context.provider, context.task)

    def attach(self, context: HandleContext) -> TaskHandle[R]:
        """Return a handle of the same task in the session that provides `context`."""
        return TaskHandle(
            task_id=self.task_id,
            provider=self.provider,
            key=self.key,
            name=self.name,
            wants=self.wants,
            context=context,
        )

    def __reduce__(self) -> tuple[Callable[..., TaskHandle[Any]], tuple[Any, ...]]:
        """Pickle the ids only."""
        return _rebuild, (self.task_id, self.provider, self.key, self.name, self.wants)

    @contextmanager
    def _facts_added(self) -> Generator[None]:
        """Complete an error that ended the wait with the facts of the task."""
        try:
            yield
        except SoraCharsError as error:
            error.add_facts(key=self._attached().key, provider=self.provider, task_id=self.task_id or None)
            if isinstance(error, ProviderError):  # a poll failed, not the create
                error.charged = "maybe" if isinstance(error, TaskNotFoundError) else "yes"
            raise

    def _unwrap(self, future: asyncio.Future[TaskSnapshot]) -> R:
        with self._facts_added():
            return self._outcome_of(future.result())

    def _outcome_of(self, snapshot: TaskSnapshot) -> R:
        outcome = snapshot.outcome()
        if self.wants is TaskSnapshot:
            outcome = snapshot
        elif isinstance(outcome, Character):
            outcome = attrs.evolve(outcome, name=outcome.name or self.name)
        elif self.wants and not isinstance(outcome, self.wants):
            raise MissingCharacterError(
                f"Task {self.task_id} succeeded, but its result at {self.provider} holds no "
                f"{self.wants.__name__.lower()}.",
                provider=self.provider,
                task_id=self.task_id,
                payload=snapshot.result,
            )
        return outcome  # type: ignore[return-value] # `wants` is the type R, if it is known

    async def _next_update(self, queue: asyncio.Queue[TaskSnapshot | None], deadline: float) -> TaskSnapshot | None:
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await queue.get()
        except TimeoutError:
            self._raise_timeout()

    def _raise_timeout(self) -> NoReturn:
        is_shown = self.snapshot is not None
        ended = "still runs, but the wait for it timed out"
        advice = ""
        if self.snapshot and self.snapshot.waiting_for:
            ended = "waits for a person, and the wait for it timed out"
            advice = "`handle.snapshot.waiting_for` is the page on which the person must act. "
        if not is_shown:
            known = "was not found" if self.is_missing else "could not be polled"
            ended = f"{known} before the wait for it timed out"
        raise WaitTimeoutError(
            f"Task {self.task_id} at {self.provider} {ended}.",
            hint=f"{advice}Wait for the handle again, or resume the task by its id: nothing is lost.",
            handle=self,
            key=self._attached().key,
            provider=self.provider,
            task_id=self.task_id,
            charged="yes" if is_shown else "maybe",
        ) from None

    def _attached(self) -> HandleContext:
        if self._context is None:
            raise SessionClosedError(
                f"This handle of task {self.task_id} was unpickled and belongs to no session.",
                hint="Attach it with `session.resume(handle)`.",
            )
        return self._context

    def _attached_in_loop(self) -> HandleContext:
        """Return the context for a wait.

        A result can be read in any event loop, but the future of a task that runs
        wakes waiters in its own loop only.
        """
        context = self._attached()
        future = context.task.future
        if not future.done() and future.get_loop() is not asyncio.get_running_loop():
            raise WrongLoopError(
                f"The session of task {self.task_id} belongs to another event loop.",
                hint="Await the handle there, or resume the task by its id in a session of this loop.",
            )
        return context


def _rebuild(task_id: str, provider: str, key: str, name: str | None, wants: type[Any] | None) -> TaskHandle[Any]:
    return TaskHandle(task_id=task_id, provider=provider, key=key, name=name, wants=wants)
