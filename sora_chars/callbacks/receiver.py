"""Receives callbacks of providers for a session, independently of the web framework.

A callback only triggers a poll of its task: what it claims is confirmed before a waiter
sees a result. Its sender is authenticated by the secret token at the end of its path
and, with a key, by its signature.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sora_chars.errors import (
    ConfigurationError,
    InvalidCallbackError,
    LedgerError,
    MissingCharacterError,
    ProviderError,
    SessionClosedError,
    WaitTimeoutError,
    WrongLoopError,
    printable,
)
from sora_chars.ids import is_token, token_digest
from sora_chars.logs import event_logger
from sora_chars.observers import observing
from sora_chars.polling.watched_task import wake
from sora_chars.providers.kie_callback import verify

from .adapters import ACCEPTED, AsgiApp, aiohttp_app
from .confirmations import Confirmations
from .hooks import HOOK, record_event
from .inflate import inflated, is_compressed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from aiohttp import web

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.observers import Observers
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider
    from sora_chars.providers.kie_callback import CallbackEvent

    from .adapters import Body

    Waiter = asyncio.Future[CallbackEvent | None]
    OnEvent = Callable[[CallbackEvent, Entry], Awaitable[object]]

log = event_logger("sora_chars.callbacks")


class ReceivingDispatcher(Protocol):
    """What a receiver needs of an open session."""

    closed: asyncio.Future[None]

    async def handle_callback(
        self, entry: Entry, task_id: str, digest: str | None, *, settle_only: bool = False
    ) -> None:
        """Poll the task that a callback names."""
        ...


class ReceivingSession(Protocol):
    """What a receiver needs of a session: `CharacterSession` has it."""

    @property
    def ledger(self) -> Ledger:
        """Where the requests are recorded."""
        ...

    @property
    def providers(self) -> Sequence[Provider]:
        """The providers whose callbacks arrive."""
        ...

    @property
    def watcher(self) -> TaskWatcher:
        """Polls the tasks."""
        ...

    @property
    def observers(self) -> Observers:
        """Those who observe the session."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds that a wait lasts by default."""
        ...

    def dispatcher(self) -> ReceivingDispatcher:
        """Return the parts of the open session, or raise."""
        ...


@attrs.define(eq=False)
class CallbackReceiver:
    """Receives the callbacks of a session's tasks, which end a wait before the next poll is due.

    Mount it under the URL that the provider got as `callback_url`. In FastAPI:

        kie = Kie(callback_url="https://example.com/hooks/kie")
        session = CharacterSession(kie, ledger="characters.db")
        receiver = CallbackReceiver(session, hmac_key=os.environ["KIE_WEBHOOK_HMAC_KEY"])
        app.mount("/hooks/kie", receiver.asgi)

    The path of a callback ends in a secret token. The token must belong to an entry of
    the session's ledger, which any process may have submitted.

    Attributes:
        session: The session, which must be open while callbacks are received.
        hmac_key: The webhookHmacKey of the kie.ai account. With a key, callbacks
            without a valid signature are rejected. None skips the check.
        tolerance: Seconds by which the timestamp of a signature may differ from `clock`.
        body_limit: Largest accepted body in bytes.
        body_timeout: Seconds in which the whole body must arrive.
        max_events: Number of recent events that are kept for later calls of `expect`.
        clock: Returns the current time in seconds since the epoch.
        on_event: Awaited with each callback that was taken, and the entry as it is then. An error of it is logged,
            and the callback counts as taken.
        settle_only: Poll the task once for each callback and record what it shows, but do not go on to poll it: for
            a web process beside a job engine that polls. A task that this process polls already is polled now.

    Raises:
        ConfigurationError: The key is empty.
    """

    session: ReceivingSession = attrs.field(repr=False)
    hmac_key: str | bytes | None = attrs.field(default=None, repr=False)
    tolerance: float = attrs.field(default=300.0, kw_only=True)
    body_limit: int = attrs.field(default=1024 * 1024, kw_only=True)
    body_timeout: float = attrs.field(default=10.0, kw_only=True)
    max_events: int = attrs.field(default=1024, kw_only=True)
    clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True, repr=False)
    on_event: OnEvent | None = attrs.field(default=None, kw_only=True, repr=False)
    settle_only: bool = attrs.field(default=False, kw_only=True)
    _events: dict[str, CallbackEvent] = attrs.field(factory=dict, init=False, repr=False)
    _confirmations: Confirmations = attrs.field(factory=Confirmations, init=False, repr=False)
    _waiters: dict[str, set[Waiter]] = attrs.field(factory=dict, init=False, repr=False)
    _closed: asyncio.Future[None] | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.hmac_key is None:
            log.warning("callback.unsigned")
        else:
            self.hmac_key = self.hmac_key.strip()  # a key that was read from a file may end in a line break
            if not self.hmac_key:
                raise ConfigurationError(
                    "hmac_key must not be empty.", hint="Omit it if kie.ai does not sign callbacks."
                )

    async def expect(self, task_id: str, *, timeout: float | None = None) -> CallbackEvent:
        """Wait for the callback of a task; return at once if it has already arrived.

        Any number of callers may wait for the same task. A callback can get lost: use
        `TaskHandle.result`, which polls too, to wait for the task itself.

        Args:
            task_id: The provider's id of the task.
            timeout: Seconds to wait; None for the timeout of the session, `math.inf` for
                no limit.

        Raises:
            WaitTimeoutError: No callback arrived in time.
            SessionClosedError: The session is closed.
            WrongLoopError: The session belongs to another event loop.
        """
        self.session.dispatcher()
        if event := self._events.get(task_id):
            return event
        limit = self.session.timeout if timeout is None else timeout
        if event := await self._next(task_id, limit):
            return event
        self.session.dispatcher()  # raises if the session was closed
        raise WaitTimeoutError(
            f"No callback of task {printable(task_id)} arrived within {limit:g} s.",
            hint="Await the task's handle, which polls too.",
        )

    async def _next(self, task_id: str, limit: float) -> CallbackEvent | None:
        """Wait for the next event of a task; return None after `limit` seconds or when the session closes."""
        closed = self.session.dispatcher().closed
        if self._closed is not closed:  # one done callback serves all waiters until the session closes
            self._closed = closed
            self._closed.add_done_callback(self._release)
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        waiters = self._waiters.setdefault(task_id, set())
        waiters.add(waiter)
        timer = loop.call_later(limit, wake, waiter, None) if limit < math.inf else None
        try:
            return await waiter
        finally:
            if timer:
                timer.cancel()
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(task_id, None)

    def _release(self, _: object) -> None:
        """Wake all waiters, because the session was closed."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                wake(waiter, None)

    def aiohttp_app(self) -> web.Application:
        """Return an aiohttp application to mount: `app.add_subapp("/hooks/kie/", receiver.aiohttp_app())`."""
        return aiohttp_app(self.handle)

    @property
    def asgi(self) -> AsgiApp:
        """An ASGI application to mount: `app.mount("/hooks/kie", receiver.asgi)` in Starlette and FastAPI."""
        return AsgiApp(self.handle)

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: Body
    ) -> tuple[int, dict[str, Any]]:
        """Handle a request of any web framework; return the HTTP status and the JSON body of the response.

        Args:
            method: HTTP method.
            path: Path of the URL. Only its last segment counts, so any mount point works.
            headers: Names in lower case, or a mapping that ignores case.
            body: The body, as a whole or as an async iterable of its chunks.
        """
        with observing(self.session.observers) as observed:
            try:
                entry, digest = await self._find_entry(method, path)
                if observed:
                    observed.key = entry.key
                    observed.provider = entry.provider
                if entry.kind == HOOK:
                    await self._take_hook(entry, headers, body)
                    task_id = entry.task_id
                else:
                    event = await self._read(entry, headers, body)
                    await self._admit(event, entry, digest)
                    task_id = event.task_id
            except InvalidCallbackError as error:
                log.warning("callback.rejected", extra={"status": error.status, "reason": error.message})
                if observed:
                    observed.callback(error.status, reason=error.message)
                return error.status, {"code": error.status, "msg": error.message}
            if observed:
                observed.callback(200, task_id=task_id)
            return 200, ACCEPTED.copy()

    async def _find_entry(self, method: str, path: str) -> tuple[Entry, str]:
        """Return the entry of the token that ends the path, and the token's digest."""
        if method != "POST":
            raise _rejection(405, "the method must be POST")
        self._check_session()
        token = path.rstrip("/").rpartition("/")[2]  # proxies and mounts may change the segments before it
        digest = token_digest(token)
        entry = await self._query_ledger(digest) if is_token(token) else None
        if entry is None:
            raise _rejection(401, "its token is unknown")
        return entry, digest

    async def _query_ledger(self, digest: str) -> Entry | None:
        try:
            return await self.session.ledger.by_token(digest)
        except LedgerError as error:
            raise _rejection(503, "the ledger is unavailable") from error

    async def _take_hook(self, entry: Entry, headers: Mapping[str, str], body: Body) -> None:
        content = await self._read_body(headers, body)
        try:
            await record_event(self.session.ledger, entry, content, now=self.clock())
        except LedgerError as error:
            raise _rejection(503, "the ledger is unavailable") from error

    async def _read(self, entry: Entry, headers: Mapping[str, str], body: Body) -> CallbackEvent:
        content = await self._read_body(headers, body)
        now = self.clock()
        for provider in self.session.providers:
            if provider.name == entry.provider and (read := getattr(provider, "read_callback", None)):
                event: CallbackEvent = read(headers, content, now=now, tolerance=self.tolerance)
                return event
        return verify(
            headers,
            content,
            now=now,
            hmac_key=self.hmac_key,
            tolerance=self.tolerance,
            provider=entry.provider,
        )

    async def _read_body(self, headers: Mapping[str, str], body: Body) -> bytes:
        encoding = headers.get("content-encoding", "")
        if isinstance(body, bytes):
            self._check_size(len(body))
            if not is_compressed(encoding):
                return body  # nothing is left to wait for
            body = _once(body)
        length = headers.get("content-length", "")
        if re.fullmatch("[0-9]{1,18}", length):
            self._check_size(int(length))
        content = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                async for chunk in inflated(body, encoding):
                    content += chunk
                    self._check_size(len(content))
        except TimeoutError as error:
            reason = f"the body took longer than {self.body_timeout:g} s"
            raise _rejection(408, reason) from error
        return bytes(content)

    def _check_size(self, size: int) -> None:
        if size > self.body_limit:
            reason = f"the body is larger than {self.body_limit} bytes"
            raise _rejection(413, reason)

    def _check_session(self) -> None:
        try:
            self.session.dispatcher()
        except (SessionClosedError, WrongLoopError) as error:
            raise _rejection(503, "the session is not open here") from error

    async def _admit(self, event: CallbackEvent, entry: Entry, digest: str) -> None:
        """Accept an event, after others of its entry if the provider must confirm that the task is the entry's."""
        accept = partial(self._accept, event, entry, digest)
        is_known = event.task_id == entry.task_id or (entry.task_id and digest == entry.token_digest)
        if is_known and not self.settle_only:
            await accept()
        else:  # a token without a task, or of an earlier attempt, or the provider is asked for each callback
            await self._confirmations.run(entry.key, event.task_id, accept)
        if self.on_event:
            await self._report(self.on_event, event, entry)

    async def _report(self, on_event: OnEvent, event: CallbackEvent, entry: Entry) -> None:
        try:
            await on_event(event, await self.session.ledger.get(entry.key) or entry)
        except Exception as error:  # the application's; the task is settled by the callback all the same
            facts = {"key": entry.key, "task_id": event.task_id, "error": printable(error)}
            log.exception("callback.on_event_failed", extra=facts)

    async def _accept(self, event: CallbackEvent, entry: Entry, digest: str) -> None:
        """Wake the waiters of `expect` and have the task polled."""
        self._check_session()  # the session may have been closed while the body arrived
        if entry.task_id is None:
            # createTask may have been answered while the body arrived.
            entry = await self._query_ledger(digest) or entry
        if entry.task_id not in {None, event.task_id} and digest == entry.token_digest:
            raise _rejection(401, "its token belongs to another task")
        self._keep(event)
        for waiter in self._waiters.get(event.task_id, ()):
            wake(waiter, event)
        self.session.watcher.callback_health.record_success()
        try:
            await self.session.dispatcher().handle_callback(entry, event.task_id, digest, settle_only=self.settle_only)
        except (SessionClosedError, ConfigurationError, LedgerError, ProviderError, MissingCharacterError) as error:
            raise _rejection(503, "it cannot be confirmed now") from error

    def _keep(self, event: CallbackEvent) -> None:
        self._events.pop(event.task_id, None)  # a repeated event counts as new
        self._events[event.task_id] = event
        if len(self._events) > self.max_events:
            del self._events[next(iter(self._events))]


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _rejection(status: int, reason: str) -> InvalidCallbackError:
    return InvalidCallbackError(f"Callback rejected: {reason}.", status=status)
