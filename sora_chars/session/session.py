"""The session manager: owns the connections, drives the providers' coroutines, hands out handles."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    SessionClosedError,
    WrongLoopError,
    printable,
)
from sora_chars.ids import is_id, new_key
from sora_chars.ledger import EntryState, Ledger, open_ledger
from sora_chars.ledger import serialize as records
from sora_chars.models import (
    Character,
    CharacterRequest,
    OmniCharacterRequest,
    TaskRequest,
    TaskSnapshot,
    as_request,
)
from sora_chars.polling.handle import TaskHandle
from sora_chars.polling.strategies import AdaptiveInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.protocols import PollingStrategy

from .dispatcher import Dispatcher, log_outlived

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Generator
    from types import TracebackType
    from typing import Self

    from sora_chars.batch.batch import Batch, Rows
    from sora_chars.batch.budget import Price
    from sora_chars.batch.outcome import Outcome
    from sora_chars.ledger import Entry
    from sora_chars.models import ModelInfo, Request
    from sora_chars.protocols import Provider

    from .dispatcher import Step
    from .pictures import Pictures


_SHUTDOWN_TIMEOUT = 30.0
_LESSONS = 2000  # finished tasks of the ledger that a pace is told of


class CharacterSession:
    """Makes characters through one or more providers. Use it inside `async with`, in one event loop.

    `pace`: when to poll (a `AdaptiveInterval`; it is told what the ledger holds). `wait`: seconds a wait lasts unless told
    otherwise. `shutdown_timeout`: seconds that closing waits for the answers of requests already sent. `watcher`: a `TaskWatcher`
    of your own.

    `ledger`: where every wish is recorded before it is sent: a URL or path as in `open_ledger`, or a `Ledger`, which
    is opened and closed here unless it is open already. What "memory:" keeps ends with this session, and of finished
    entries it keeps the last 10,000. `pictures`: a folder in which the profile picture of each character is saved,
    since its link dies within days.

    Raises:
        ConfigurationError: no provider, or two of the same name.
    """

    def __init__(
        self,
        *providers: Provider,
        ledger: Ledger | str | os.PathLike[str] = "memory:",
        pictures: str | os.PathLike[str] | None = None,
        polling: PollingStrategy | None = None,
        timeout: float = 1800.0,
        shutdown_timeout: float = _SHUTDOWN_TIMEOUT,
        watcher: TaskWatcher | None = None,
    ) -> None:
        names = [provider.name for provider in providers]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"providers: one or more with different names are needed, got {names}.")
        self.providers = providers
        self.timeout = timeout
        self.ledger = ledger if isinstance(ledger, Ledger) else open_ledger(ledger)
        self.watcher = watcher or TaskWatcher(polling=polling or AdaptiveInterval())
        self._pictures: Pictures | None = None
        if pictures is not None:
            from .pictures import Pictures  # noqa: PLC0415 # few keep them

            self._pictures = Pictures(Path(pictures))
        self._shutdown_timeout = shutdown_timeout
        self._dispatcher: Dispatcher  # since `open`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Open the connections, where `async with` is not at hand; `aclose` closes them.

        Raises:
            SessionClosedError: the session is open already.
        """
        if self._loop:
            self._check_open()
            raise SessionClosedError("This session is open already.")
        async with AsyncExitStack() as stack:
            if not self.ledger.is_open:
                await stack.enter_async_context(self.ledger)
            for provider in self.providers:
                await stack.enter_async_context(provider)
                if self.ledger.quota_store:
                    from sora_chars.ratelimit.distributed import shared  # noqa: PLC0415 # few ledgers are where processes meet

                    await stack.enter_async_context(shared(provider.account, self.ledger.quota_store))
            await self._teach(self.watcher.polling)
            self._stack = stack.pop_all()
        self._loop = asyncio.get_running_loop()
        self._dispatcher = Dispatcher(self.providers, self.ledger, self.watcher, self.timeout, self._pictures)
        return self

    async def _teach(self, pace: PollingStrategy) -> None:
        """Tell a pace that learns what is on record."""
        if (
            getattr(type(pace), "observe_finished", PollingStrategy.observe_finished)
            is not PollingStrategy.observe_finished
        ):
            for snapshot in await records.endings(self.ledger, limit=_LESSONS):
                pace.observe_finished(snapshot)

    async def aclose(self) -> None:
        """Close everything. Requests already sent get `shutdown_timeout` seconds for their answers; waiters hear why they end."""
        if self._loop is None:
            return
        self._check_open()
        self._loop = None
        try:
            await self._dispatcher.aclose(self._shutdown_timeout)
        finally:
            await self._stack.aclose()

    @overload
    async def submit(self, request: TaskRequest, /, *, provider: str | None = None) -> TaskHandle[TaskSnapshot]: ...
    @overload
    async def submit(
        self, request: CharacterRequest | OmniCharacterRequest, /, *, provider: str | None = None
    ) -> TaskHandle[Character]: ...
    @overload
    async def submit(self, /, *, provider: str | None = None, **fields: Any) -> TaskHandle[Character]: ...
    async def submit(
        self, request: Request | None = None, /, *, provider: str | None = None, **fields: Any
    ) -> TaskHandle[Any]:
        """Start a task and return its handle, without waiting for its end; a synchronous provider's is done.

        Give a request, or the fields of a `CharacterRequest`. It goes to the provider named, else to the first
        that can serve it. Once sent it is carried through, also when the caller is cancelled meanwhile.
        A key that was asked before gives the task that it has, from whatever process; nothing is sent then.

        Raises:
            InvalidRequestError: no provider can serve the request; nothing was sent.
            KeyConflictError: the key was asked before for something else; nothing was sent.
            SubmissionUnknownError: it was sent, now or earlier, and nobody said what became of it.
            ProviderError: the provider refused.
            LedgerError: the ledger could not be written. Nothing was sent, unless the error has a `task_id`.
            SessionClosedError: the session was closed before the request was sent.
        """
        with self._used():
            return await self._dispatcher.submit(await self._dispatcher.register(as_request(request, fields), provider))

    @overload
    async def create(
        self, request: TaskRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> TaskSnapshot: ...
    @overload
    async def create(
        self,
        request: CharacterRequest | OmniCharacterRequest,
        /,
        *,
        provider: str | None = None,
        timeout: float | None = None,
    ) -> Character: ...
    @overload
    async def create(
        self, /, *, provider: str | None = None, timeout: float | None = None, **fields: Any
    ) -> Character: ...
    async def create(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Character | TaskSnapshot:
        """Submit and wait: `submit` and then `handle.result`, whose errors are this one's.

        `timeout`: seconds for both together. A request that is being sent is not given up for it.
        """
        began = asyncio.get_running_loop().time()
        handle: TaskHandle[Any] = await self.submit(as_request(request, fields), provider=provider)
        limit = self.timeout if timeout is None else timeout
        left = max(0.0, began + limit - asyncio.get_running_loop().time())
        try:
            outcome: Character | TaskSnapshot = await handle.result(left)
        except asyncio.CancelledError:
            log_outlived(handle)
            raise
        return outcome

    def create_many(
        self,
        requests: Rows,
        *,
        concurrency: int = 100,
        provider: str | None = None,
        budget: float | None = None,
        price: Price | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """Make many characters: `async with session.create_many(requests) as outcomes`, then `async for` each outcome.

        `requests`: any iterable or async iterable, also an endless one, of requests or mappings of a
        `CharacterRequest`'s fields (and `provider`). It is read as places become free: at most `concurrency` tasks are in
        flight and `concurrency` outcomes unread. One that fails stops no other, and an invalid one is an outcome, too; only
        when an account refuses (bad key, no credits) none is taken up any more, and `outcomes.rejection` says why.
        Leaving the block sends nothing more. What was sent goes on: ask again with the same keys, or `recover`.

        `timeout`: seconds that each is waited for once it was sent. `budget`: credits that all of them may cost
        together, whenever they were paid. `price`: credits that one costs, or a function of the request; without it,
        one at a time is sent until the provider has told, and then each is taken to cost as much as the highest_cost so far.

        Raises:
            InvalidRequestError: `requests` is no iterable, or an option is wrong.
            ConfigurationError: there is no such provider here.
        """
        from sora_chars.batch.batch import Batch, BatchOptions, submit_concurrency  # noqa: PLC0415 # a program of single characters needs none of it

        self._check_open()
        serving = self.providers if provider is None else (self._dispatcher.provider(provider),)
        batch = BatchOptions(
            requests=requests,
            start=lambda request, name: self.submit(request, provider=name or provider),
            concurrency=concurrency,
            submit_concurrency=max(map(submit_concurrency, serving)),
            timeout=self.timeout if timeout is None else timeout,
            budget=budget,
            price=price,
        )
        return Batch(batch=batch)

    async def create_all(
        self,
        requests: Rows,
        *,
        concurrency: int = 100,
        provider: str | None = None,
        budget: float | None = None,
        price: Price | None = None,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """`create_many` for the small case: all outcomes, in the order of the requests, once the last has ended.

        It raises for none of them. Requests that the budget or the account did not allow are missing at the end.
        """
        async with self.create_many(
            requests, concurrency=concurrency, provider=provider, budget=budget, price=price, timeout=timeout
        ) as outcomes:
            return sorted([outcome async for outcome in outcomes], key=lambda outcome: outcome.index)

    def resume(
        self, task: str | TaskHandle[Any], *, provider: str | None = None, key: str | None = None
    ) -> TaskHandle[Any]:
        """Pick a task up again, by its id or a rebuilt handle; polling starts at once, nothing is paid.

        Raises:
            InvalidRequestError: the id is empty or not printable.
            ConfigurationError: no provider of that name here.
        """
        self._check_open()
        if not isinstance(task, TaskHandle):
            if not is_id(task):
                raise InvalidRequestError(f"task_id: must be the id of a task, got {printable(repr(task), limit=60)}.")
            task = TaskHandle(task_id=task, provider=self._dispatcher.provider(provider).name, key=key or new_key())
        owner = self._dispatcher.provider(task.provider)
        watched = self.watcher.watch(owner, task.task_id, on_finished=self._dispatcher.on_finished)
        return task.attach(self._dispatcher.live(owner, watched))

    async def register(self, request: Request | None = None, /, *, provider: str | None = None, **fields: Any) -> Entry:
        """Record a wish without sending it; `advance` takes it on from there. Raises as `submit` before it sends."""
        with self._used():
            return (await self._dispatcher.register(as_request(request, fields), provider)).entry

    async def advance(self, key: str) -> Step:
        """Do the next thing that a key needs: send once, look once, or nothing. For job engines.

        Safe from any process at any time, also twice at once. It waits for one answer at most, and nothing here goes
        on afterwards. How a finished one ended is in its entry.

        Raises:
            InvalidRequestError: the ledger has no such key.
            ConfigurationError: this session has no such provider.
            SubmissionUnknownError: it was sent and nobody said what became of it; see `resolve`.
            ProviderError: looking failed in a way that no later look mends.
            LedgerError: the ledger could not be read or written.
            SessionClosedError: the session was closed before this step was done; the next one begins where it began.
        """
        with self._used():
            return await self._dispatcher.advance(await records.find(self.ledger, key))

    async def recover(self) -> AsyncGenerator[TaskHandle[Any], None]:
        """A handle for each task that the ledger says is running, watched again from now on.

        What a process that has ended was sending becomes `unknown`: it is never sent again by itself. What a living
        process polls is only followed. Entries of providers that this session has not are left alone.

        Raises:
            LedgerError: the ledger could not be read or written.
        """
        with self._used():
            async for entry in self.ledger.entries(states={EntryState.SENDING, EntryState.RUNNING}):
                if handle := await self._dispatcher.recover(entry):
                    yield handle

    async def resolve(
        self, key: str, *, task_id: str | None = None, never_sent: bool = False, give_up: bool = False
    ) -> Entry:
        """Record what you found out about an entry whose outcome is unknown. Sends nothing, pays nothing.

        Exactly one of: `task_id`, what it became (`recover` watches it then); `never_sent`, so that it is sent when
        it is asked for again; `give_up`, it has failed for good.

        Raises:
            InvalidRequestError: not exactly one, no such key, or nothing to resolve.
            StaleEntryError: somebody else moved it meanwhile.
        """
        with self._used():
            if task_id is not None:
                entry = await records.find(self.ledger, key)
                if self._dispatcher.provider(entry.provider).synchronous:
                    raise InvalidRequestError(f"task_id: {entry.provider} has no tasks; use never_sent or give_up.")
            return await records.resolve(self.ledger, key, task_id=task_id, never_sent=never_sent, give_up=give_up)

    async def entry(self, key: str) -> Entry | None:
        """What the ledger knows of a key."""
        with self._used():
            return await self.ledger.get(key)

    async def characters(
        self, word: str | None = None, *, limit: int | None = None
    ) -> AsyncGenerator[records.SavedCharacter, None]:
        """The saved library, newest first: up to `limit` characters whose entries mention `word`, in any case."""
        with self._used():
            async for saved in records.characters(self.ledger, word, limit=limit):
                yield saved

    async def credit(self, provider: str | None = None) -> float:
        """How many credits the account has left, at the provider named, else at the first that has tasks."""
        self._check_open()
        return await self._dispatcher.provider(provider).credit()

    async def models(self, provider: str | None = None) -> list[ModelInfo]:
        """Which models can be asked for now; free, so that a dead model is seen before anything is paid."""
        self._check_open()
        return await self._dispatcher.provider(provider).models()

    @contextmanager
    def _used(self) -> Generator[None]:
        """Check that it is open. Once it is closed meanwhile, that is why the ledger is out of reach, and no fault."""
        self._check_open()
        try:
            yield
        except LedgerError as error:
            if self._loop or error.task_id:  # what was paid for is told
                raise
            raise SessionClosedError(
                "The session was closed meanwhile.", hint="Ask again in another one: the ledger knows how far it came."
            ) from error

    def _check_open(self) -> None:
        """Say so if this session cannot be used here and now.

        Raises:
            SessionClosedError: it is closed, or was never opened.
            WrongLoopError: it was opened in another event loop.
        """
        if self._loop is None:
            raise SessionClosedError("This session is not open.", hint="Use it inside `async with`.")
        if self._loop is not asyncio.get_running_loop():
            raise WrongLoopError(
                "This session was opened in another event loop. Nothing was sent.",
                hint="Open a session inside each asyncio.run(), and close it there.",
            )


def dispatcher_of(session: CharacterSession) -> Dispatcher:
    """Return the open dispatcher of a session, for the parts of this package that work inside a session.

    Raises:
        SessionClosedError: The session is closed, or was never opened.
        WrongLoopError: The session was opened in another event loop.
    """
    session._check_open()  # noqa: SLF001 # of this module
    return session._dispatcher  # noqa: SLF001 # of this module
