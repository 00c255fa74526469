"""Every request to a provider: connections, API key, limits, time-outs, retries and redaction.

`Transport.request` sends and reads in one step, because only the reader knows what a response means: kie.ai answers
HTTP 200 with a code of 429 inside. Two attributes of the error decide about a retry: `transient` and `harmless`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
import warnings
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import attrs
import backoff
from yarl import URL

from .connections import ReusedConnectionError, open_clients
from .errors import (
    ConfigurationError,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    SessionClosedError,
    WrongLoopError,
    printable,
)
from .logs import event_logger
from .observers import observation
from .proxies import Proxies, clean_proxy, is_rejected_by_proxy, proxies_of
from .ratelimit.accounts import Account, account
from .ratelimit.reservations import patience
from .ratelimit.window import Limits
from .redaction import HIDDEN, hide_secret, mask, secret_pattern
from .responses import Response
from .signing import sign_request
from .timeouts import NOTICEABLE, client_timeout, create_timeout, time_limit

if TYPE_CHECKING:
    import re
    import ssl
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from .kinds import Kind
    from .signing import Sign

T = TypeVar("T")

log = event_logger("sora_chars.transport")

_TRIES: Mapping[Kind, int] = {"create": 8, "poll": 2, "other": 4}
_TIMEOUTS: Mapping[Kind, float] = {"create": 60.0, "poll": 30.0, "other": 300.0}

_SEND_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, TypeError, ValueError)
_PERMANENT_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)
_MIN_KEY_IN_BODY = 16  # characters; a shorter key is a test's, and may be a word of the protocol
_MIN_KEY_IN_TEXT = 4  # characters
_MAX_BODY_BYTES = 16 * 1024 * 1024


def _delays() -> Generator[float, Any, None]:
    """Yield growing delays in seconds, with jitter, never shorter than the provider's `Retry-After`."""
    error = yield 0.0
    ceiling = 0.5
    while True:
        wait = random.uniform(ceiling / 2, ceiling)  # noqa: S311 # jitter, no secret
        error = yield max(wait, error.retry_after or 0.0)
        ceiling = min(ceiling * 2, 30.0)


def _final(error: Exception) -> bool:
    return not (isinstance(error, ProviderError) and error.transient and error.harmless)


@attrs.define(eq=False, repr=False)
class _Call:
    """One request and how it is sent.

    `failure` is the error of its first attempt. `may_have_left` is whether bytes of a create may have left this
    process in the present attempt. `sent` is how often it was sent before. `secrets` are those of its signature.
    """

    method: str
    url: str
    kind: Kind
    read: Callable[[Response], Any]
    timeout: float
    on_send: Callable[[], AbstractAsyncContextManager[None]]
    body: Callable[[], Any] | None
    options: dict[str, Any]
    failure: ProviderError | None = None
    may_have_left: bool = False
    sent: int = 0
    secrets: Sequence[str] = ()


@attrs.define(eq=False, kw_only=True)
class Transport:
    """The connections to one provider under one API key. `enter` opens them, and each `enter` needs a `leave`.

    Attributes:
        provider: The provider's name, for errors and log messages.
        base_url: The address that requests go to.
        api_key: Sent as a Bearer token, unless there is `sign`.
        sign: Returns the headers that authenticate a request.
        limits: How many requests the account may send.
        http: An aiohttp session to use; the transport never closes it.
        proxy: The URL of an HTTP proxy. Defaults to that of the environment; see `Proxies`.
        ssl: As aiohttp's option of that name.
        timeout: Seconds for a create, from sending to the end of its response.
        connections: The maximum number of requests in flight.
        account: Keeps the limits, shared by all sessions of this process.
    """

    provider: str
    base_url: str
    api_key: str = attrs.field(repr=False)
    sign: Sign | None = attrs.field(default=None, repr=False)
    limits: Limits = attrs.field(factory=Limits)
    http: aiohttp.ClientSession | None = attrs.field(default=None, repr=False)
    proxy: str | None = attrs.field(default=None, repr=False)
    ssl: ssl.SSLContext | bool = True
    timeout: float = _TIMEOUTS["create"]
    connections: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    account: Account = attrs.field(init=False, repr=False)
    _key_pattern: re.Pattern[bytes] = attrs.field(init=False, repr=False)
    _proxies: Proxies = attrs.field(init=False, repr=False)
    _users: int = attrs.field(default=0, init=False)
    _open: dict[Kind, aiohttp.ClientSession] | None = attrs.field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False, repr=False)
    _slots: asyncio.Semaphore = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits: object = self.limits  # callers without a type checker pass anything
        timeout: object = self.timeout
        if not isinstance(limits, Limits):
            given = printable(repr(limits), limit=60)
            raise ConfigurationError(f"limits must be Limits(creates=(20, 10), polls=...) or None, got {given}.")
        if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
            given = printable(repr(timeout), limit=60)
            raise ConfigurationError(f"timeout must be a number of seconds above 0, got {given}.")
        clean_proxy(self.proxy, field="proxy")
        self._key_pattern = secret_pattern(self.api_key)
        self.account = account(self.base_url, self.api_key, self.limits)
        self._slots = asyncio.Semaphore(self.connections)

    async def enter(self) -> None:
        """Open the connections for one more user.

        Raises:
            WrongLoopError: They are open in another event loop.
        """
        self._check_loop()
        if not self._users:
            self._loop = asyncio.get_running_loop()
            self._slots = asyncio.Semaphore(self.connections)
            self._proxies = proxies_of(self.provider, self.proxy, self.http)
            self._proxies.find(self.base_url)  # a wrong one is reported before anything is sent
            self._open = open_clients(self.http)
        self._users += 1

    async def leave(self) -> None:
        """Close the connections when the last user leaves."""
        self._users -= 1
        if not self._users and self._open:
            opened = self._open
            self._open = None
            self._loop = None
            for client in opened.values():
                await client.close()

    async def request(
        self,
        method: str,
        url: str,
        read: Callable[[Response], T],
        *,
        kind: Kind = "other",
        timeout: float | None = None,
        on_send: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        body: Callable[[], Any] | None = None,
        **options: Any,
    ) -> T:
        """Send a request, read its response, and retry if the error is transient and harmless.

        Args:
            method: The HTTP method.
            url: The absolute URL.
            read: Returns the result of a response, or raises a `ProviderError`.
            kind: Which limits apply. Only a "create" costs money; every other kind is harmless.
            timeout: Seconds for sending and reading together. Defaults to the kind's.
            on_send: Surrounds each attempt, once it holds its slots and nothing is left to wait for.
            body: Returns the data of one attempt.
            **options: Options of aiohttp's request (`json`, `params`).

        Raises:
            NoAnswerError: No response came, or one that a proxy wrote.
            ProviderError: What `read` raised.
        """
        if timeout is None:
            timeout = self.timeout if kind == "create" else _TIMEOUTS[kind]
        call = _Call(method, url, kind, read, timeout, on_send, body, options)
        result: T
        try:
            result = await self._attempt(call)  # the first attempt does without backoff's overhead
        except ProviderError as error:
            if _final(error) or patience.get():  # a caller that comes back repeats it
                raise
            call.failure = error
            result = await _RETRYING[kind](self, call)
        return result

    async def _attempt(self, call: _Call) -> Any:
        """Send the request once, within the limits, and read the answer."""
        if call.failure:
            error, call.failure = call.failure, None
            raise error
        self._check_loop()
        async with self.account.windows[call.kind].slot(self) as slot, self._slots:
            http = self._usable(call.kind)
            async with call.on_send():
                slot.mark_sent(asyncio.get_running_loop().time())
                call.may_have_left = False
                started = time.perf_counter()
                failure: ProviderError
                answer: Response | None = None
                try:
                    async with time_limit(call.timeout) if call.kind == "create" else nullcontext():
                        while answer is None:
                            with suppress(ReusedConnectionError):
                                async with http.request(
                                    call.method, call.url, **self._request_options(call)
                                ) as response:
                                    body = await self._read_body(response, call)
                                    answer = Response(response.status, response.headers, body)
                except _SEND_ERRORS as error:
                    self._log(call, started, error=error)
                    failure = _no_answer(error, self.provider, call)
                    # Other errors may contain our headers, or what the server wrote.
                    is_safe = isinstance(error, OSError) and mask(str(error)) == str(error)  # a URL has secrets
                    failure.__cause__ = error if is_safe else None
                else:
                    self._log(call, started, answer=answer)
                    try:
                        result = call.read(answer)
                    except ProviderError as error:
                        failure = error
                    else:
                        self.account.on_success(call.kind, sent=slot.sent)
                        return result
                self._note(failure, slot.sent, call)
                raise failure  # outside of `except`, where Python would attach the original error as context

    def _note(self, error: ProviderError, sent: float, call: _Call) -> None:
        """Complete an error, and pass it on to the account's cool-down."""
        if isinstance(error, RateLimitedError):
            now = asyncio.get_running_loop().time()
            (paused := self.account.paused_by(error)).on_429(sent=sent, now=now, retry_after=error.retry_after)
            if observed := observation.get():
                observed.cooled_down(call.kind, paused.until - now)
        elif not isinstance(error, NoAnswerError):
            self.account.on_success(call.kind, sent=sent)
        error.provider = self.provider
        error.message = self._hide(error.message, call.secrets)
        if call.kind != "create":
            error.harmless = True
            error.charged = "no"

    def _usable(self, kind: Kind) -> aiohttp.ClientSession:
        if self._open is None or self._open[kind].closed:
            raise SessionClosedError(f"{self.provider} is closed.", hint="Use it inside `async with`.")
        return self._open[kind]

    def _request_options(self, call: _Call) -> dict[str, Any]:
        options: dict[str, Any] = {
            "headers": {"User-Agent": "sora-chars"},
            "timeout": client_timeout(call.timeout),
            "allow_redirects": False,  # the key goes to the host it was meant for
            "proxy": self._proxies.find(call.url),
            "ssl": self.ssl,
            "data": call.body() if call.body else None,
            **call.options,
        }
        if call.kind == "create":
            # A server may close an idle connection at any moment, and a request that meets this is in doubt. So a
            # create opens its own. The server name in the pool's key leaves idle connections to other requests, and
            # "close" keeps the create's out of the pool; `connections` covers servers that ignore it.
            options["server_hostname"] = URL(call.url).raw_host
            options["headers"]["Connection"] = "close"
            options["trace_request_ctx"] = call
            options["timeout"] = create_timeout(call.timeout)
        if self.sign is None:
            options["headers"]["Authorization"] = f"Bearer {self.api_key}"
        else:
            call.secrets = sign_request(self.sign, call.method, call.url, options)
        return options

    async def _read_body(self, response: aiohttp.ClientResponse, call: _Call) -> bytes:
        body = bytearray()
        while chunk := await response.content.readany():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise aiohttp.ClientPayloadError(f"the response is larger than {_MAX_BODY_BYTES} bytes")
        for secret in call.secrets:
            body = body.replace(secret.encode(), HIDDEN.encode())
        if len(self.api_key) < _MIN_KEY_IN_BODY:  # a test's key
            return bytes(body)
        return hide_secret(bytes(body), self.api_key.encode(), self._key_pattern)

    def _hide(self, text: str, secrets: Sequence[str] = ()) -> str:
        for secret in (self.api_key, *secrets):
            if len(secret) >= _MIN_KEY_IN_TEXT:
                text = text.replace(secret, HIDDEN)
        return text

    def _log(
        self, call: _Call, started: float, *, answer: Response | None = None, error: Exception | None = None
    ) -> None:
        if observed := observation.get():
            status = answer.status if answer else None
            seconds = time.perf_counter() - started
            observed.answered(
                call.kind, call.method, mask(call.url), status=status, error=error, seconds=seconds, resend=call.sent
            )
        call.sent += 1
        if not log.isEnabledFor(logging.DEBUG):
            return
        shown = printable(error) if answer is None else answer.body.decode(errors="replace")
        log.debug(
            "exchange",
            extra={
                "provider": self.provider,
                "method": call.method,
                "url": mask(call.url),
                "sent": mask(json.dumps(call.options.get("json") or call.options.get("params") or {})),
                "status": answer.status if answer else type(error).__name__,
                "answer": mask(self._hide(shown, call.secrets)),
                "milliseconds": round((time.perf_counter() - started) * 1000),
            },
        )

    def _check_loop(self) -> None:
        if self._loop not in {None, asyncio.get_running_loop()}:
            raise WrongLoopError(
                f"The connections of {self.provider} belong to another event loop.",
                hint="Open one session inside each asyncio.run(), and close it there.",
            )


def _log_retry(details: Any) -> None:
    """Log why and when a request is sent again, once a wait is long enough to be noticed."""
    transport, call = details["args"]
    error = details["exception"]
    wait = details["wait"]
    if isinstance(error, ProviderError) and wait >= NOTICEABLE:
        seconds = round(wait, 1)
        facts = {"provider": transport.provider, "kind": call.kind, "seconds": seconds, "error": printable(error)}
        log.info("request.repeated", extra=facts)


def _retrying(tries: int) -> Callable[[Transport, _Call], Awaitable[Any]]:
    """Return `Transport._attempt` with at most `tries` attempts, by what `backoff` and `python-backoff` share."""
    retry = backoff.on_exception(
        _delays, ProviderError, max_tries=tries, giveup=_final, jitter=None, logger=None, on_backoff=_log_retry
    )
    with warnings.catch_warnings():
        # backoff 2.2.1 calls this function when it decorates; Python 3.14 and 3.15 warn about it, 3.16 removes it.
        warnings.filterwarnings("ignore", r"'asyncio\.iscoroutinefunction' is deprecated", DeprecationWarning)
        return retry(Transport._attempt)  # noqa: SLF001 # of this module


# Decorated once, at import: `catch_warnings` changes the filters of all threads before Python 3.14.
_RETRYING: Mapping[Kind, Callable[[Transport, _Call], Awaitable[Any]]] = {
    kind: _retrying(tries) for kind, tries in _TRIES.items()
}


def _no_answer(error: Exception, provider: str, call: _Call) -> NoAnswerError:
    is_bug = isinstance(error, TypeError | ValueError) and not isinstance(error, aiohttp.ClientError)
    reason = (
        f"no answer within {call.timeout:g} s"
        if type(error) is TimeoutError
        else printable(error) or type(error).__name__
    )
    return NoAnswerError(
        f"{provider} gave no answer to {call.method} {mask(call.url)}: {reason}.",
        hint="Check the proxy: proxy=, or HTTPS_PROXY and NO_PROXY." if is_rejected_by_proxy(error) else "",
        harmless=call.kind != "create" or not call.may_have_left,
        transient=not (isinstance(error, _PERMANENT_ERRORS) or is_bug)
        and (call.kind == "poll" or not is_rejected_by_proxy(error)),  # a poll waits for the network's return
    )
