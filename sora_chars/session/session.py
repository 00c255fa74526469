"""The session manager: owns the connections, drives the providers' coroutines, and returns handles."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sora_chars.errors import SessionClosedError
from sora_chars.ledger import Ledger, open_ledger
from sora_chars.media import Cutting
from sora_chars.models import Character, CharacterRequest, TaskRequest, TaskSnapshot, Voice, VoiceRequest, as_request
from sora_chars.observers import Observers
from sora_chars.polling.strategies import AdaptiveInterval
from sora_chars.polling.watcher import TaskWatcher

from .dispatcher import Dispatcher
from .mutex import Mutex, exclusive
from .options import check_options, checked_observers, seconds_to_wait
from .orphans import log_outlived
from .recorded import RecordedRequests
from .videos import CutVideos

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager
    from typing import Self, Unpack

    from aiohttp import web

    from sora_chars.batch.batch import Batch
    from sora_chars.batch.options import BatchKeywords, Rows
    from sora_chars.batch.outcome import Outcome
    from sora_chars.callbacks.adapters import AsgiApp
    from sora_chars.callbacks.receiver import CallbackReceiver
    from sora_chars.events import Observer
    from sora_chars.models import CharacterFields, ModelInfo, Request, Source
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import PollingStrategy, Provider

    from .hooks import Hook
    from .pictures import Pictures
    from .streaming import EventStream


class CharacterSession(RecordedRequests):
    """Create characters through one or more providers.

    A session owns its HTTP connections, polls every waiting task with one
    scheduler, and records each request in a ledger before sending it. Use it
    as an async context manager, inside a single event loop:

        async with CharacterSession(Kie()) as session:
            character = await session.create(
                from_task="7118f712a5efa1d0f1c3f2ac1b3f9a55", clip="3.55,5.55", prompt="A friendly dog"
            )

    Args:
        *providers: Tried in order; a request goes to the first that accepts it.
        ledger: Where requests are recorded: "memory:" (the default, lost when
            the session closes; of finished entries it keeps the last 10,000),
            the path of a SQLite file, a PostgreSQL URL, or a `Ledger`. A
            `Ledger` that is not open is opened and closed with the session.
        pictures: Folder in which to save profile pictures, whose links expire
            within days. Not saved by default.
        cutting: How videos are cut for providers that take whole videos, with the
            extra `media`. Defaults to `Cutting()`.
        polling: When to poll a task. Defaults to `AdaptiveInterval()`, which
            learns how long the tasks of each model take, from the ledger too.
        timeout: Seconds to wait for a task unless a call says otherwise.
        shutdown_timeout: Seconds that closing waits for responses to requests
            that were already sent.
        watcher: A `TaskWatcher` with your own options. It replaces `polling`.
        observers: Called with each event of the session; see `sora_chars.events`.
        public_url: The public URL under which your application serves `asgi` or
            `aiohttp_app`, such as "https://example.com/hooks". It is given to each
            provider that sends callbacks and has no `callback_url`.

    Raises:
        ConfigurationError: No provider was given, two share a name, or an option is invalid.
    """

    def __init__(
        self,
        *providers: Provider,
        ledger: Ledger | str | os.PathLike[str] = "memory:",
        pictures: str | os.PathLike[str] | None = None,
        cutting: Cutting | None = None,
        polling: PollingStrategy | None = None,
        timeout: float = 1800.0,
        shutdown_timeout: float = 30.0,
        watcher: TaskWatcher | None = None,
        observers: Iterable[Observer] = (),
        public_url: str | None = None,
    ) -> None:
        check_options(providers, polling, timeout=timeout, shutdown_timeout=shutdown_timeout)
        self.providers = providers
        self.timeout = timeout
        self.ledger = ledger if isinstance(ledger, Ledger) else open_ledger(ledger)
        self.watcher = watcher or TaskWatcher(polling=polling or AdaptiveInterval())
        self._pictures: Pictures | None = None
        if pictures is not None:
            from .pictures import Pictures  # noqa: PLC0415 # loaded only where pictures are saved

            self._pictures = Pictures(Path(pictures))
        self._cutting = cutting or Cutting()
        self._mutex = Mutex()
        self._shutdown_timeout = shutdown_timeout
        self.observers = Observers(checked_observers(observers))
        self.public_url = public_url
        self._receiver: CallbackReceiver | None = None
        if public_url is not None:
            from .hosting import give_callback_urls  # noqa: PLC0415 # as above

            self.public_url = give_callback_urls(providers, public_url)

    def __repr__(self) -> str:
        names = ", ".join(provider.name for provider in self.providers)
        return f"<CharacterSession of {names}, {'open' if self._loop else 'closed'}>"

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @exclusive
    async def open(self) -> Self:
        """Open the connections where `async with` is not possible; `aclose` closes them.

        Raises:
            SessionClosedError: The session is already open.
            LedgerError: The ledger could not be opened.
        """
        if self._loop:
            self.dispatcher()
            raise SessionClosedError("This session is open already.")
        dispatcher = Dispatcher(
            self.providers,
            self.ledger,
            self.watcher,
            self.timeout,
            pictures=self._pictures,
            videos=CutVideos(self._cutting),
            observers=self.observers,
        )
        await dispatcher.open()
        self._loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        return self

    @property
    def asgi(self) -> AsgiApp:
        """An ASGI application that receives callbacks: `app.mount("/hooks", session.asgi)` in Starlette and FastAPI.

        The path of `public_url` must lead to it. `CallbackReceiver` has options.
        """
        return self._callbacks.asgi

    def aiohttp_app(self) -> web.Application:
        """Return an aiohttp application that receives callbacks: `app.add_subapp("/hooks/", session.aiohttp_app())`."""
        return self._callbacks.aiohttp_app()

    @property
    def _callbacks(self) -> CallbackReceiver:
        if self._receiver is None:
            from .hosting import receiver_of  # noqa: PLC0415 # few sessions receive callbacks

            self._receiver = receiver_of(self)
        return self._receiver

    def hook(self, key: str, *, timeout: float | None = None) -> AbstractAsyncContextManager[Hook]:
        """Open a callback URL for a request to any API, before that request is made.

            async with session.hook("poster-17", timeout=1200) as hook:
                await other_api.start(callback_url=hook.url)
                event = await hook.event()
                print(event.payload)

        The same key is the same hook, with the same URL, from any process and after a crash: the ledger keeps it, and
        the callback once it has arrived. The session needs a `public_url`, and its `asgi` or `aiohttp_app` there.

        Args:
            key: Identifies the hook among the keys of the ledger.
            timeout: Seconds to wait for the callback, from opening the hook. Defaults to the session's.

        Raises:
            ConfigurationError: The session has no `public_url`.
            KeyConflictError: The key belongs to a request.
            LedgerError: The ledger could not be written.
        """
        from .hooks import open_hook  # noqa: PLC0415 # few need hooks

        seconds = seconds_to_wait(timeout, self.timeout)
        return open_hook(self.dispatcher(), key, public_url=self.public_url, timeout=seconds)

    def events(self) -> EventStream:
        """Return a stream of the session's events from now on, also of what other processes on its ledger do.

            async for event in session.events():
                print(event.at, event.key, type(event).__name__)

        Of other processes it yields `Recorded`, `InDoubt` and `Ended`, with `elsewhere`. In an SQLite file their
        changes are found within about 0.1 s, and only the last of several changes of one entry within that time.
        """
        return self.dispatcher().streams.open()

    @exclusive
    async def aclose(self) -> None:
        """Close the session, or wait for its end if it is being closed. Closing twice has no effect.

        Requests that were sent get up to `shutdown_timeout` seconds for their answers. Tasks continue at their
        providers; awaiting one here raises `WatcherStoppedError`.
        """
        if self._loop is None:
            return
        dispatcher = self.dispatcher()
        self._loop = None
        await dispatcher.aclose(self._shutdown_timeout)

    @overload
    async def submit(self, request: VoiceRequest, /, *, provider: str | None = None) -> TaskHandle[Voice]: ...
    @overload
    async def submit(self, request: TaskRequest, /, *, provider: str | None = None) -> TaskHandle[TaskSnapshot]: ...
    @overload
    async def submit(self, request: CharacterRequest, /, *, provider: str | None = None) -> TaskHandle[Character]: ...
    @overload
    async def submit(
        self, /, *, provider: str | None = None, **fields: Unpack[CharacterFields]
    ) -> TaskHandle[Character]: ...
    async def submit(
        self, request: Request | None = None, /, *, provider: str | None = None, **fields: Unpack[CharacterFields]
    ) -> TaskHandle[Any]:
        """Start a task and return its handle without waiting for its end.

        Once sent, a request is carried through even if the caller is cancelled.
        A key that was used before returns its task, and nothing is sent.

        Args:
            request: What to make; or give the fields of a `CharacterRequest`.
            provider: Name of the provider. Defaults to the first that accepts the request.
            **fields: The fields of a `CharacterRequest`.

        Raises:
            InvalidRequestError: No provider accepts the request. Nothing was sent.
            KeyConflictError: The key was used for another request. Nothing was sent.
            CharacterDeletedError: The character of this key was deleted. Nothing was sent.
            SubmissionUnknownError: The request was sent, now or before, and its outcome is unknown.
            ProviderError: The provider rejected the request, or was unreachable.
            LedgerError: The ledger failed. Nothing was sent, unless the error has a `task_id`.
            SessionClosedError: The session was closed before the request was sent.
        """
        with self._in_use() as dispatcher:
            return await dispatcher.submit(as_request(request, fields), provider)

    async def create_voice(
        self,
        source: Source,
        name: str,
        *,
        key: str | None = None,
        provider: str | None = None,
        timeout: float | None = None,
    ) -> Voice:
        """Create a voice from a recording, and wait for it; `CharacterRequest.voice` takes its id.

            voice = await session.create_voice("https://example.com/rex.wav", "Rex")
            rex = await session.create(video="rex.mp4", name="Rex", prompt="A friendly dog", voice=voice.id)

        The request is recorded and settled as any other paid request; a `VoiceRequest` does the same in `submit`.

        Args:
            source: http(s) URL or local path of a recording of one clean voice.
            name: Name of the voice.
            key: Idempotency key.
            provider: Name of the provider. Defaults to the first that creates voices.
            timeout: Seconds to wait. Defaults to the session's.

        Raises:
            SoraCharsError: As `create`.
        """
        request = VoiceRequest(source=source, name=name, key=key)
        return await self.create(request, provider=provider, timeout=timeout)

    @overload
    async def create(
        self, request: VoiceRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> Voice: ...
    @overload
    async def create(
        self, request: TaskRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> TaskSnapshot: ...
    @overload
    async def create(
        self, request: CharacterRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> Character: ...
    @overload
    async def create(
        self, /, *, provider: str | None = None, timeout: float | None = None, **fields: Unpack[CharacterFields]
    ) -> Character: ...
    async def create(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[CharacterFields],
    ) -> Character | Voice | TaskSnapshot:
        """Submit a request and wait for its character.

            character = await session.create(
                from_task="7118f712a5efa1d0f1c3f2ac1b3f9a55", clip="1,3", prompt="A friendly dog", key="order-17"
            )

        Args:
            request: What to make; or give the fields of a `CharacterRequest`.
            provider: Name of the provider. Defaults to the first that accepts the request.
            timeout: Seconds for submitting and waiting together. Only while a request is being sent, which ends
                with the provider's own time-out, does it take longer.
            **fields: The fields of a `CharacterRequest`.

        Returns:
            The character; for a `TaskRequest` the finished snapshot.

        Raises:
            SoraCharsError: What `submit` and `TaskHandle.result` raise.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds_to_wait(timeout, self.timeout)
        with self._in_use() as dispatcher:
            handle = await dispatcher.submit(as_request(request, fields), provider, deadline=deadline)
        try:
            outcome: Character | Voice | TaskSnapshot = await handle.result(max(0.0, deadline - loop.time()))
        except asyncio.CancelledError:
            log_outlived(handle)
            raise
        return outcome

    def create_many(self, requests: Rows, **options: Unpack[BatchKeywords]) -> Batch:
        """Create many characters.

            async with session.create_many(requests, concurrency=50) as batch:
                async for outcome in batch:
                    print(outcome.key, outcome.state, outcome.character or outcome.error)

        A failed request does not stop the others, and an invalid request is an
        outcome too. When an account rejects requests (bad key, no credits), no
        more are submitted, and `batch.rejection` holds the error. After the
        block nothing more is sent. Tasks that were created continue; the same
        keys or `recover` return them.

        Args:
            requests: Any iterable or async iterable of requests, or of
                mappings with the fields of a `CharacterRequest` or a `TaskRequest`
                and `provider`. It may be endless; it is read as slots become free.
            concurrency: The maximum number of tasks in flight, and of unread outcomes. Defaults to 100.
            provider: Name of the provider for requests that name none.
            budget: Credits that all requests may cost together, whenever they were paid.
            price: Credits that one request costs, or a function of it. Without
                it, requests are sent one at a time until the provider reports
                a cost; then each is expected to cost as much as the highest.
            timeout: Seconds to wait for each task once it was sent.
            retry_failed: Send keys again whose request failed or was rejected, as `retry` does.

        Raises:
            InvalidRequestError: `requests` is not iterable, or an option is invalid.
            ConfigurationError: The session has no such provider.
        """
        from .batches import new_batch  # noqa: PLC0415 # few need batches

        return new_batch(self, self.dispatcher(), requests, **options)

    async def create_all(self, requests: Rows, **options: Unpack[BatchKeywords]) -> list[Outcome]:
        """Run `create_many` and return all outcomes in the order of the requests.

        It takes the same options and raises for no outcome. Requests that the
        budget or the account did not allow are missing at the end of the list.
        """
        async with self.create_many(requests, **options) as batch:
            return sorted([outcome async for outcome in batch], key=lambda outcome: outcome.index)

    def resume(
        self, task: str | TaskHandle[Any], *, provider: str | None = None, key: str | None = None
    ) -> TaskHandle[Any]:
        """Return a live handle of a task by its id, or by a handle that was pickled. Nothing is paid.

        Raises:
            SoraCharsError: The id is empty or not printable, or there is no such provider.
        """
        return self.dispatcher().resume(task, provider, key)

    async def credit(self, provider: str | None = None) -> float:
        """Return the credits left at the provider named, or at the first that has tasks."""
        return await self.dispatcher().provider(provider).credit()

    async def models(self, provider: str | None = None) -> list[ModelInfo]:
        """Return the models that can be requested now. Free, so an unavailable model shows before a payment."""
        return await self.dispatcher().provider(provider).models()
