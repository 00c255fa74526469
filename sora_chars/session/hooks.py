"""A callback URL that exists before its request: for requests to any API, also one that this package does not know."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import attrs

from sora_chars.callbacks.hooks import HOOK, HookEvent, event_of
from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    KeyConflictError,
    SessionClosedError,
    WaitTimeoutError,
    printable,
)
from sora_chars.ids import new_token, token_digest
from sora_chars.ledger import Entry, EntryState
from sora_chars.ledger.entry import to_json
from sora_chars.models import check_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from .dispatcher import Dispatcher

T = TypeVar("T")

_POLL_INTERVAL = 10.0  # seconds


@attrs.define(eq=False, repr=False)
class Hook:
    """A URL to give away, and the first callback that arrives there. `CharacterSession.hook` opens it.

    Attributes:
        key: The key of the hook.
        url: The URL, whose last part is a secret token.
    """

    key: str
    url: str
    _entry: Entry
    _dispatcher: Dispatcher
    _timeout: float
    _deadline: float  # loop time

    def __repr__(self) -> str:
        return f"<Hook {self.key}>"  # the URL is a secret

    async def event(self) -> HookEvent:
        """Wait for the callback; return at once if it has arrived, at any process and also before a restart.

        Raises:
            WaitTimeoutError: It did not arrive within the `timeout` of the hook.
            SessionClosedError: The session was closed.
            TaskFailedError: The hook was given up with `CharacterSession.resolve`.
        """
        while self._entry.state is EntryState.RUNNING:
            await self._change()
        return event_of(self._entry)

    async def race(self, poll: Callable[[], Awaitable[T | None]], *, interval: float = _POLL_INTERVAL) -> HookEvent | T:
        """Wait for the callback and poll in between; return what comes first.

        Args:
            poll: Asks the API. It returns None as long as there is no result; what it raises ends the race.
            interval: Seconds between two polls.

        Raises:
            WaitTimeoutError: Neither came within the `timeout` of the hook.
            SessionClosedError: The session was closed.
            InvalidRequestError: `interval` is no number of seconds.
        """
        check_seconds("interval", interval)
        arriving = asyncio.create_task(self.event())
        polling = asyncio.create_task(_poll(poll, interval))
        try:
            await asyncio.wait((arriving, polling), return_when=asyncio.FIRST_COMPLETED)
            return arriving.result() if arriving.done() else polling.result()
        finally:
            arriving.cancel()
            polling.cancel()
            await asyncio.gather(arriving, polling, return_exceptions=True)

    async def _change(self) -> None:
        """Wait until the entry has changed."""
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise WaitTimeoutError(
                f"No callback of hook {self.key} arrived within {self._timeout:g} s.",
                hint="The hook stays: open it again by the same key.",
                key=self.key,
            )
        ledger = self._dispatcher.ledger
        changed = asyncio.ensure_future(ledger.changed(self._entry, timeout=None if left == math.inf else left))
        try:
            await asyncio.wait((changed, self._dispatcher.closed), return_when=asyncio.FIRST_COMPLETED)
            if not changed.done():
                raise SessionClosedError(
                    f"The session was closed before the callback of hook {self.key} arrived.",
                    hint="Open the hook again by the same key.",
                )
            self._entry = changed.result()
        finally:
            changed.cancel()


async def _poll(poll: Callable[[], Awaitable[T | None]], interval: float) -> T:
    while True:
        found = await poll()
        if found is not None:
            return found
        await asyncio.sleep(interval)


@asynccontextmanager
async def open_hook(
    dispatcher: Dispatcher, key: str, *, public_url: str | None, timeout: float
) -> AsyncGenerator[Hook, None]:
    """Open the hook of a key, which is made unless the ledger has it; see `CharacterSession.hook`."""
    if public_url is None:
        raise ConfigurationError("hook: the session needs a public_url.", hint="Pass CharacterSession(public_url=...).")
    entry = await _recorded(dispatcher, key)
    token: str = entry.request["callBackUrl"].rpartition("/")[2]
    deadline = asyncio.get_running_loop().time() + timeout
    yield Hook(entry.key, f"{public_url}/{token}", entry, dispatcher, timeout, deadline)


async def _recorded(dispatcher: Dispatcher, key: str) -> Entry:
    """Return the entry of a hook. It is running until the callback arrives, and ends with it."""
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] # callers without a type checker
        raise InvalidRequestError(f"key must be text, got {printable(repr(key), limit=60)}.")
    token = new_token()
    now = dispatcher.watcher.clock()
    new = Entry(
        key=key,
        provider=HOOK,
        kind=HOOK,
        state=EntryState.RUNNING,
        request_json=to_json({"callBackUrl": f"https://hook/{token}"}),  # a name that is masked wherever it is shown
        token_digest=token_digest(token),
        task_id=key,
        owner=dispatcher.ledger.owner,
        created_at=now,
        updated_at=now,
    )
    entry = await dispatcher.ledger.insert(new)
    if entry.kind != HOOK:
        raise KeyConflictError(
            f"Key {key} already belongs to a request to {entry.provider}.",
            hint="A key identifies one request. Use a new key for the hook.",
            key=key,
            provider=entry.provider,
        )
    return entry
