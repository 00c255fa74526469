"""`CharacterSession` without `await`, for scripts, notebooks, Django views and Celery tasks.

    from sora_chars import Kie
    from sora_chars.sync import CharacterSession

    with CharacterSession(Kie(), ledger="characters.db") as session:
        character = session.create(video="rex.mp4", prompt="A friendly dog")

Each call runs the coroutine of the same name in an event loop, which a thread of this
module runs, and waits for it. All threads of a process share that thread, and may share a
session. Cancelling a call, as Ctrl-C does, cancels its coroutine.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .errors import WaitTimeoutError, WrongLoopError
from .loop_thread import LoopThread, loop_thread, opening, threads
from .models import Character, CharacterRequest, TaskRequest, TaskSnapshot
from .polling.handle import TaskHandle as AsyncHandle
from .session.session import CharacterSession as AsyncSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import TracebackType
    from typing import Self, Unpack

    from .batch.batch import Batch as AsyncBatch
    from .batch.options import BatchKeywords, Rows
    from .batch.outcome import Outcome
    from .batch.progress import Progress
    from .events import Event
    from .ledger import Entry
    from .ledger.queries import SavedCharacter
    from .models import CharacterFields, Eta, Request

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Character | TaskSnapshot)


def _blocking(
    method: Callable[Concatenate[AsyncSession, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[CharacterSession, P], T]:
    """Return a method that runs the one of the same name and waits for its result."""

    @functools.wraps(method)
    def call(self: CharacterSession, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(method(self._session, *args, **kwargs))

    return call


def _inside(
    method: Callable[Concatenate[AsyncSession, P], T],
) -> Callable[Concatenate[CharacterSession, P], T]:
    """Return a method that calls the one of the same name in the event loop of the session."""

    @functools.wraps(method)
    def call(self: CharacterSession, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(_call(lambda: method(self._session, *args, **kwargs)))

    return call


def _with_options_of(
    _: Callable[Concatenate[AsyncSession, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[CharacterSession, P], None]]:
    return lambda method: method


class TaskHandle(Generic[R]):
    """The handle of a task; see `sora_chars.TaskHandle`, whose other attributes it has too."""

    def __init__(self, session: CharacterSession, handle: AsyncHandle[R]) -> None:
        self._session = session
        self._handle = handle
        self.task_id = handle.task_id
        self.provider = handle.provider
        self.key = handle.key
        self.name = handle.name

    def __repr__(self) -> str:
        return repr(self._handle)

    def __reduce__(self) -> Any:
        """Pickle as the other handle: `session.resume` takes it."""
        return self._handle.__reduce__()

    @property
    def snapshot(self) -> TaskSnapshot | None:
        """The task as the last poll showed it."""
        return self._handle.snapshot

    @property
    def eta(self) -> Eta | None:
        """The range of seconds that are left."""
        return self._session.run(_call(lambda: self._handle.eta))

    def done(self) -> bool:
        """Whether the wait has ended, with a result or with an error."""
        return self._handle.done()

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return the result."""
        return self._session.run(self._handle.result(timeout))

    def refresh(self) -> TaskSnapshot:
        """Poll the task once, now."""
        return self._session.run(self._handle.refresh())

    def updates(self, timeout: float | None = None) -> Iterator[TaskSnapshot]:
        """Yield each change of the task."""
        return self._session.iterate(self._handle.updates(timeout))


class Batch:
    """The outcomes of a batch, as its requests end; see `sora_chars.Batch`."""

    def __init__(self, session: CharacterSession, batch: AsyncBatch) -> None:
        self._session = session
        self._batch = batch

    def __enter__(self) -> Self:
        self._session.run(self._batch.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.run(self._batch.__aexit__(kind, error, traceback))

    def __iter__(self) -> Iterator[Outcome]:
        return self._session.iterate(self._batch)

    @property
    def stopped(self) -> str | None:
        """Why submitting ended before the last request; None if it did not."""
        return self._batch.stopped

    @property
    def progress(self) -> Progress:
        """How far the batch is."""
        return self._session.run(_call(lambda: self._batch.progress))


class CharacterSession:
    """Creates characters without `await`; takes the options of `sora_chars.CharacterSession`.

    It opens with the first call, so a session of a module also works in processes that are
    forked before it is used, as those of Celery and of web servers. It closes at the end of a
    `with` block, by `close`, or when the interpreter exits.
    """

    @_with_options_of(AsyncSession.__init__)
    def __init__(self, *providers: Any, **options: Any) -> None:
        self._session = AsyncSession(*providers, **options)
        self.providers = self._session.providers
        self.observers = self._session.observers
        self._thread: LoopThread | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether the session is open."""
        return self._session.is_open

    def close(self) -> None:
        """Close the session. A later call opens it again. In a forked process it does nothing to an open session."""
        thread = self._thread
        if thread and thread.process == os.getpid():
            thread.run(self._close_in(thread))

    @overload
    def create(
        self, request: TaskRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> TaskSnapshot: ...
    @overload
    def create(
        self, request: CharacterRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> Character: ...
    @overload
    def create(
        self, /, *, provider: str | None = None, timeout: float | None = None, **fields: Unpack[CharacterFields]
    ) -> Character: ...
    def create(self, request: Any = None, /, **options: Any) -> Any:
        """Submit a request and wait for its character."""
        return self.run(self._session.create(request, **options))

    @overload
    def submit(self, request: TaskRequest, /, *, provider: str | None = None) -> TaskHandle[TaskSnapshot]: ...
    @overload
    def submit(self, request: CharacterRequest, /, *, provider: str | None = None) -> TaskHandle[Character]: ...
    @overload
    def submit(self, /, *, provider: str | None = None, **fields: Unpack[CharacterFields]) -> TaskHandle[Character]: ...
    def submit(self, request: Any = None, /, **options: Any) -> Any:
        """Start a task and return its handle without waiting for its end."""
        return TaskHandle(self, self.run(self._session.submit(request, **options)))

    def retry(self, key: str, request: Request | None = None, /, **changes: Unpack[CharacterFields]) -> TaskHandle[Any]:
        """Send a failed or rejected request again, knowingly."""
        retrying = self._session.retry(key, request, **changes)  # pyright: ignore[reportArgumentType] # `key` is of `changes`
        return TaskHandle(self, self.run(retrying))

    def resume(
        self, task: str | AsyncHandle[Any], *, provider: str | None = None, key: str | None = None
    ) -> TaskHandle[Any]:
        """Return a handle of a task by its id, or by a handle that was pickled."""
        return TaskHandle(self, self.run(_call(lambda: self._session.resume(task, provider=provider, key=key))))

    def recover(self) -> Iterator[TaskHandle[Any]]:
        """Yield a handle for each running task of the ledger."""
        return (TaskHandle(self, handle) for handle in self.iterate(self._session.recover()))

    def create_many(self, requests: Rows, **options: Unpack[BatchKeywords]) -> Batch:
        """Create many characters; enter the batch and iterate over its outcomes."""
        return Batch(self, self.run(_call(lambda: self._session.create_many(requests, **options))))

    def characters(self, query: str | None = None, *, limit: int | None = None) -> Iterator[SavedCharacter]:
        """Yield the saved characters, newest first."""
        return self.iterate(self._session.characters(query, limit=limit))

    def due(self, *, idle: float = 60.0, limit: int = 500) -> Iterator[Entry]:
        """Yield the entries that no process carries on; `advance` does."""
        return self.iterate(self._session.due(idle=idle, limit=limit))

    def events(self) -> Iterator[Event]:
        """Yield the session's events from now on."""
        return self.iterate(self.run(_call(self._session.events)))

    create_voice = _blocking(AsyncSession.create_voice)
    create_all = _blocking(AsyncSession.create_all)
    register = _blocking(AsyncSession.register)
    registering = _inside(AsyncSession.registering)
    restart = _blocking(AsyncSession.restart)
    advance = _blocking(AsyncSession.advance)
    wait = _blocking(AsyncSession.wait)
    resolve = _blocking(AsyncSession.resolve)
    delete = _blocking(AsyncSession.delete)
    entry = _blocking(AsyncSession.entry)
    credit = _blocking(AsyncSession.credit)
    models = _blocking(AsyncSession.models)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the open session, and return its result."""
        try:
            thread = self._open()
        except BaseException:
            coroutine.close()
            raise
        try:
            return thread.run(coroutine)
        except WaitTimeoutError as error:
            if isinstance(error.handle, AsyncHandle):
                error.handle = TaskHandle(self, error.handle)
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an async iterator yields in that event loop."""
        try:
            while True:
                with suppress(StopAsyncIteration):
                    yield self.run(_next(source))
                    continue
                return
        finally:
            thread = threads.get(os.getpid())  # the session may be closed, and is not opened for this
            if thread and not (thread.has_ended or thread.is_current()) and (close := getattr(source, "aclose", None)):
                thread.run(close())

    def _open(self) -> LoopThread:
        thread = self._thread
        if thread is None:
            thread = threads.get(os.getpid())
            # In the event loop `run` raises. It must not wait for the lock, whose holder may wait for the event loop.
            thread = thread if thread and thread.is_current() else self._opened()
        if thread.process != os.getpid():
            raise WrongLoopError(
                "This session was opened before this process was forked.",
                hint="Make a session in each process, or use it for the first time after the fork.",
            )
        return thread

    def _opened(self) -> LoopThread:
        with opening:
            thread = self._thread
            if thread is None:
                thread = loop_thread()
                thread.run(self._open_in(thread))
            return thread

    # These record what they did in the event loop, where no other thread and no Ctrl-C comes between.

    async def _open_in(self, thread: LoopThread) -> None:
        await self._session.open()
        thread.sessions.add(self)
        self._thread = thread

    async def _close_in(self, thread: LoopThread) -> None:
        try:
            await self._session.aclose()
        finally:
            self._forget(thread)

    def _forget(self, thread: LoopThread) -> None:
        if not self._session.is_open:  # else the closing was cancelled before it began
            thread.sessions.discard(self)
            self._thread = None


async def _call(function: Callable[[], T]) -> T:
    return function()


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source)
