"""What a session does with the requests that its ledger records: read, step, resume, retry and resolve them."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sora_chars.errors import LedgerError, SessionClosedError, WrongLoopError
from sora_chars.ledger import Ledger, queries
from sora_chars.observers import Observation, observation

from . import deleting, following, recovery, registering, resolving, stepping
from .options import seconds_to_wait

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from typing import Unpack

    from sora_chars.ledger import Entry
    from sora_chars.ledger.postgres_ledger import Connection
    from sora_chars.ledger.registration import Registration
    from sora_chars.models import Character, CharacterFields, Request
    from sora_chars.observers import Observers
    from sora_chars.polling.handle import TaskHandle

    from .dispatcher import Dispatcher
    from .resolving import Decision
    from .stepping import Step


class RecordedRequests:
    """The part of `CharacterSession` that works on recorded requests, by their keys.

    Attributes:
        ledger: Where requests are recorded.
        observers: Those who observe the session.
    """

    ledger: Ledger
    observers: Observers
    _dispatcher: Dispatcher  # set while the session is open
    _loop: asyncio.AbstractEventLoop | None = None  # the event loop of an open session

    @property
    def is_open(self) -> bool:
        """Whether the session is open."""
        return self._loop is not None

    async def register(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        meta: Mapping[str, Any] | None = None,
        connection: Connection | None = None,
        **fields: Unpack[CharacterFields],
    ) -> Entry:
        """Record a request without sending it; `advance` sends it.

            async with connection.transaction():  # the order and its request are recorded together, or not at all
                await connection.execute("INSERT INTO orders (id) VALUES (17)")
                await session.register(video="rex.mp4", name="rex", key="order-17", connection=connection)

        Args:
            request: What to make; or give the fields of a `CharacterRequest`. A whole request may be given a `key`.
            provider: Name of the provider. Defaults to the first that accepts the request.
            meta: Your own facts, as a JSON object, such as the order or the tenant. They are kept as they are, found
                by searches, and are no part of the request: of a recorded key they are not replaced.
            connection: A connection or cursor of psycopg, async or sync, to the database of the ledger. The request
                is recorded in its transaction.
            **fields: The fields of a `CharacterRequest`.

        Raises:
            SoraCharsError: What `submit` raises before it sends.
            ConfigurationError: There is a connection, but no PostgreSQL ledger.
        """
        with self._in_use() as dispatcher:
            entry = registering.new_entry(dispatcher, registering.keyed_request(request, fields), provider, meta)
            return await registering.register(dispatcher, entry, connection)

    def registering(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        meta: Mapping[str, Any] | None = None,
        **fields: Unpack[CharacterFields],
    ) -> Registration:
        """Return the statement that records a request, for SQLAlchemy, Django or asyncpg; nothing is written.

            new = session.registering(video="rex.mp4", name="rex", key="order-17")
            await connection.execute(text(new.named), new.parameters)  # SQLAlchemy
            cursor.execute(new.statement, new.values)  # Django
            await connection.execute(new.numbered, *new.values)  # asyncpg

        It takes the same arguments as `register` and raises the same errors.
        """
        with self._in_use() as dispatcher:
            entry = registering.new_entry(dispatcher, registering.keyed_request(request, fields), provider, meta)
            return registering.postgres_ledger(dispatcher).registration(entry)

    async def advance(self, key: str, *, patience: float = 0.0) -> Step:
        """Take the next step of a key: send once, poll once, or nothing. Meant for job engines.

            step = await session.advance("order-17")
            if step.finished:
                print(step.state, step.outcome)

        It is safe from any process at any time, also twice at once, and waits
        for one answer at most. A request that was rejected, has failed or is
        unknown is a finished step: `step.outcome` is the error.

        Args:
            key: The idempotency key.
            patience: Seconds to wait for the limits of the account. If the request may not be sent in that time,
                nothing is sent and `step.retry_in` is when it may be. Keys that come back then are served in the
                order in which they were registered.

        Raises:
            InvalidRequestError: The ledger has no such key, or `patience` is no number of seconds.
            ConfigurationError: The session has no such provider.
            ProviderError: The provider rejects the polls of a running task, as with a wrong API key, or does not have
                the task 90 s after it was recorded.
            LedgerError: The ledger could not be read or written.
            SessionClosedError: The session was closed before the step ended. The next step starts where this one did.
        """
        with self._in_use() as dispatcher:
            return await stepping.advance(dispatcher, key, patience)

    async def wait(self, key: str, *, timeout: float | None = None) -> Any:
        """Wait for the character of a key, whichever process makes it; for a `TaskRequest` its finished snapshot.

        It follows the ledger only: it sends nothing, polls nothing and takes no task over.

        Args:
            key: The idempotency key.
            timeout: Seconds to wait. None for the `timeout` of the session, `math.inf` to wait without a limit.

        Raises:
            InvalidRequestError: The ledger has no such key.
            WaitTimeoutError: The request has not ended.
            SubmissionUnknownError: The request was sent and its outcome is unknown. A callback may still settle it.
                Where a provider can be asked for the task of a key, this is raised ten minutes after the response
                was lost, since the process that sent the request may settle it until then.
            SoraCharsError: Why there is no result; as `TaskHandle.result`.
        """
        with self._in_use() as dispatcher:
            seconds = seconds_to_wait(timeout, dispatcher.timeout)
            return (await following.ended_entry(dispatcher, key, seconds)).outcome()

    async def due(self, *, idle: float = 60.0, limit: int = 500) -> AsyncGenerator[Entry, None]:
        """Yield the entries that no process carries on, those that changed longest ago first; `advance` does.

        They are unfinished (pending, sending or running), no living process owns them, and they did not change for
        `idle` seconds.

        Args:
            idle: Seconds, by the recorded times.
            limit: Yield at most this many entries.
        """
        with self._in_use(observed=False) as dispatcher:
            async for entry in following.due(dispatcher, idle=idle, limit=limit):
                yield entry

    async def recover(self) -> AsyncGenerator[TaskHandle[Any], None]:
        """Yield a handle for each running task of the ledger, watched from now on.

        A request that a dead process was sending becomes `unknown`, and is
        never sent again automatically. Entries of providers that this session
        lacks, and entries that cannot be read, are logged and left alone.
        """
        with self._in_use(observed=False) as dispatcher:
            async for handle in recovery.recover_all(dispatcher):
                yield handle

    async def retry(
        self, key: str, request: Request | None = None, /, **changes: Unpack[CharacterFields]
    ) -> TaskHandle[Any]:
        """Send a failed or rejected request again, knowingly, and return the handle of its new task.

            handle = await session.retry("order-17", prompt="A friendly dog, without a leash")

        The entry keeps each earlier attempt, with its cost; see `Ledger.attempts`. Two calls at once send one request.

        Args:
            key: The idempotency key.
            request: The request of the new attempt. Defaults to the recorded one.
            **changes: Fields of the recorded request to replace.

        Raises:
            InvalidRequestError: There is no such key, or its request has neither failed nor been rejected.
            SoraCharsError: What `submit` raises.
        """
        with self._in_use() as dispatcher:
            return await resolving.retry(dispatcher, key, request, changes)

    async def restart(self, key: str, request: Request | None = None, /, **changes: Unpack[CharacterFields]) -> Entry:
        """Record another attempt of a failed or rejected request, as `retry` does, and leave the sending to `advance`.

            entry = await session.restart("order-17", prompt="A friendly dog, without a leash")

        Args:
            key: The idempotency key.
            request: The request of the new attempt. Defaults to the recorded one.
            **changes: Fields of the recorded request to replace.

        Returns:
            The entry, which is pending, or what another process has made of the same attempt since.

        Raises:
            InvalidRequestError: There is no such key, or its request has neither failed nor been rejected.
            KeyConflictError: Another process has begun an attempt of another request.
        """
        with self._in_use() as dispatcher:
            entry, _, _ = await resolving.restart(dispatcher, key, request, changes)
            return entry

    async def resolve(self, key: str, *, ask: bool = False, **decision: Unpack[Decision]) -> Entry:
        """Ask for the outcome of a request that is unknown, or record what you found out. Nothing is paid.

        Args:
            key: The idempotency key of the request.
            ask: Ask the provider now, once, for the task of the key. `recover` watches what it shows.
            task_id: The task that the request created. It is fetched first; `recover` watches it afterwards.
            never_sent: The request did not arrive. It is sent when it is requested again.
            give_up: The request counts as failed.
            undo: The last resolution was wrong. Possible until the request is sent again or the task has ended.
            unchecked: Record `task_id` although the provider cannot show it now.
            version: `Entry.version` on which you decided, where others may decide about the key too.

        Raises:
            InvalidRequestError: Not exactly one of the first five was given, there is no such key or nothing to
                resolve, the provider cannot be asked, or it has no such task.
            SubmissionUnknownError: The provider was asked and showed no task; the message states its answer.
            ProviderError: The task could not be fetched.
            StaleEntryError: Another process moved the entry first.
        """
        with self._in_use() as dispatcher:
            return await resolving.resolve(dispatcher, key, ask=ask, **decision)

    async def delete(self, character: Character | str, *, provider: str | None = None) -> Entry | None:
        """Delete a character at its provider, and record that. Free of charge; it cannot be undone.

        The key is never sent again: a request under it raises `CharacterDeletedError`.
        `characters` no longer yields the character. Deleting it twice has no effect.

        Args:
            character: The character, its key or its id.
            provider: Name of the provider, which an id that this ledger does not record needs.

        Returns:
            The entry as it is now; None for a character that this ledger does not record.

        Raises:
            InvalidRequestError: There is no such key or id, or the key has no character.
            ConfigurationError: The session has no such provider, or the provider has no route that deletes characters.
            ProviderError: The provider was not reached, or rejected the request.
        """
        with self._in_use() as dispatcher:
            return await deleting.delete(dispatcher, character, provider)

    async def entry(self, key: str) -> Entry | None:
        """Return what the ledger records under a key, or None. `InvalidRequestError` if it is no text."""
        with self._in_use():
            return await queries.get(self.ledger, key)

    async def characters(
        self, query: str | None = None, *, limit: int | None = None
    ) -> AsyncGenerator[queries.SavedCharacter, None]:
        """Yield the saved characters, newest first: up to `limit` whose entries mention `query`, in any case."""
        with self._in_use(observed=False):
            async for saved in queries.characters(self.ledger, query, limit=limit):
                yield saved

    def dispatcher(self) -> Dispatcher:
        """Return the parts of the open session, for the parts of this package that work inside a session.

        Raises:
            SessionClosedError: The session is closed, or was never opened.
            WrongLoopError: The session was opened in another event loop.
        """
        if self._loop is None:
            raise SessionClosedError("This session is not open.", hint="Use it inside `async with`.")
        if self._loop is not asyncio.get_running_loop():
            raise WrongLoopError(
                "This session was opened in another event loop. Nothing was sent.",
                hint="Open a session inside each asyncio.run(), and close it there.",
            )
        return self._dispatcher

    @contextmanager
    def _in_use(self, *, observed: bool = True) -> Generator[Dispatcher]:
        """Give the dispatcher of the open session. A ledger that fails because the session was closed is no fault.

        `observed` must be False in an async generator.
        """
        # Not by `observing`, whose objects would live as long as the call and make Python's collector run more often.
        token = observation.set(Observation(self.observers)) if observed and self.observers.listening else None
        try:
            yield self.dispatcher()
        except LedgerError as error:
            if self._loop or error.task_id:  # a task that was paid for is always reported
                raise
            raise SessionClosedError(
                "The session was closed during this call.",
                hint="Repeat the call in another session: the ledger knows how far it came.",
            ) from error
        finally:
            if token:
                observation.reset(token)
