"""Receives the callbacks of kie.ai: verification (pure), one core, and its aiohttp and ASGI faces.

A callback is a nudge: the signature does not cover the body, so what it claims is confirmed by polling at once.
Source of the protocol facts: contracts, kie.ai, "Callback".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import math
import re
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs
from aiohttp import web

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
from sora_chars.polling.watched_task import wake
from sora_chars.providers.kie_codec import read_snapshot
from sora_chars.session.session import dispatcher_of
from sora_chars.transport import parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, MutableMapping

    from sora_chars.ledger import Entry
    from sora_chars.models import TaskSnapshot
    from sora_chars.session.session import CharacterSession

    Body = AsyncIterable[bytes] | bytes
    Waiter = asyncio.Future["CallbackEvent | None"]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("sora_chars.callbacks")

_ID_LIMIT = 200
# The first is required with 405 and harmless beside the others (RFC 9110, 10.2.1).
_ANSWER_HEADERS = {"Allow": "POST", "Content-Type": "application/json"}
_ACCEPTED = {"code": 200, "msg": "success"}
_ACCEPTED_JSON = json.dumps(_ACCEPTED).encode()


@attrs.frozen(kw_only=True)
class CallbackEvent:
    """A callback as it came, for a task of `provider`.

    `code` and `message` are the envelope's, and say less than `snapshot.state`. `raw` is the whole body.
    """

    task_id: str
    provider: str
    code: int | None
    message: str
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @cached_property
    def snapshot(self) -> TaskSnapshot | None:
        """What the sender claims, unconfirmed: the truth is `handle.result()`.

        None where nobody can read the claim, or a success holds no character.
        """
        try:
            record = {**_record(self.raw), "taskId": self.task_id}
            return read_snapshot(record, provider=self.provider, wrong=ValueError)
        except (MissingCharacterError, ValueError, RecursionError):
            return None  # the nudge still counts: polling tells those who wait what is wrong


def verify(
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    hmac_key: str | bytes | None,
    tolerance: float = 300.0,
    provider: str = "kie",
) -> CallbackEvent:
    """Read a callback, and check its signature when there is a key.

    `headers`: names in lower case, or a mapping that ignores case. `now` is epoch seconds; the sender's timestamp
    may be `tolerance` seconds off. `provider` goes into the snapshot.

    Raises:
        InvalidCallbackError: 400 for a body that is no callback, 401 for a bad signature or time.
    """
    try:
        envelope = parse_json(body)
    except ValueError as error:
        raise _refusal(400, "the body is no JSON") from error
    if not isinstance(envelope, dict):
        raise _refusal(400, "the body is no JSON object")
    task_id = _task_id(_record(envelope)) or _task_id(envelope)
    if task_id is None:
        raise _refusal(400, "the body names no task")
    if hmac_key is not None:
        _check_signature(headers, task_id, now=now, hmac_key=hmac_key, tolerance=tolerance)
    code = envelope.get("code")
    return CallbackEvent(
        task_id=task_id,
        provider=provider,
        code=code if isinstance(code, int) else None,
        message=_message(envelope),
        raw=envelope,
    )


def _refusal(status: int, reason: str) -> InvalidCallbackError:
    return InvalidCallbackError(f"Callback refused: {reason}.", status=status)


def _record(envelope: Mapping[str, Any]) -> Mapping[str, Any]:
    data = envelope.get("data")
    return data if isinstance(data, dict) else envelope


def _task_id(record: Mapping[str, Any]) -> str | None:
    """`taskId`, or `task_id` as in kie.ai's own samples; text that can stand in a signature and a log."""
    for name in ("taskId", "task_id"):
        match record.get(name):
            case str(task_id) if 0 < len(task_id) <= _ID_LIMIT and task_id.isprintable():
                return task_id
            case _:
                pass
    return None


def _message(envelope: Mapping[str, Any]) -> str:
    message = envelope.get("msg") or envelope.get("message")
    return printable(message) if isinstance(message, str) else ""


def _check_signature(
    headers: Mapping[str, str], task_id: str, *, now: float, hmac_key: str | bytes, tolerance: float
) -> None:
    timestamp = headers.get("x-webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise _refusal(401, "it has no timestamp")
    key = hmac_key.encode() if isinstance(hmac_key, str) else hmac_key
    digest = hmac.digest(key, f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    # As bytes: compare_digest raises TypeError for text that is not ASCII.
    given = headers.get("x-webhook-signature", "").encode(errors="replace")
    if not hmac.compare_digest(base64.b64encode(digest), given):
        raise _refusal(401, "its signature is wrong")
    if not abs(now - int(timestamp)) <= tolerance:
        raise _refusal(401, "its timestamp is too old or too new")


@attrs.define(eq=False)
class CallbackReceiver:
    """Takes callbacks for a session; mount its `aiohttp_app()` or `asgi` where the provider's `callback_url` points.

    The last part of a callback's path must be the token of an entry of the session's ledger, whatever process sent
    it. `hmac_key`: the webhookHmacKey of the kie.ai account; with it unsigned callbacks are refused. `tolerance`:
    seconds that a signed timestamp may be off. `body_limit`: bytes; `body_timeout`: seconds for them to come.
    `most_events`: how many of the last events are kept for those who ask later.

    Raises:
        ConfigurationError: the key is empty.
    """

    session: CharacterSession = attrs.field(repr=False)
    hmac_key: str | bytes | None = attrs.field(default=None, repr=False)
    tolerance: float = attrs.field(default=300.0, kw_only=True)
    body_limit: int = attrs.field(default=1024 * 1024, kw_only=True)
    body_timeout: float = attrs.field(default=10.0, kw_only=True)
    most_events: int = attrs.field(default=1024, kw_only=True)
    clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True, repr=False)
    _events: dict[str, CallbackEvent] = attrs.field(factory=dict[str, CallbackEvent], init=False, repr=False)
    _waiters: dict[str, set[Waiter]] = attrs.field(factory=dict[str, "set[Waiter]"], init=False, repr=False)
    _closed: asyncio.Future[None] | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.hmac_key is not None and not self.hmac_key:
            raise ConfigurationError("hmac_key: must not be empty.", hint="Leave it out if kie.ai signs nothing.")

    async def expect(self, task_id: str, *, timeout: float | None = None) -> CallbackEvent:
        """Wait for the task's callback; one that has come already is given at once.

        `timeout`: seconds; None for the session's `wait`, `math.inf` for no end. Waiters do not disturb each other.

        Raises:
            WaitTimeoutError: none came in time. It may be lost: only `handle.result()` is sure to end.
            SessionClosedError: the session is closed.
            WrongLoopError: it belongs to another event loop.
        """
        dispatcher_of(self.session)
        if event := self._events.get(task_id):
            return event
        limit = self.session.timeout if timeout is None else timeout
        if event := await self._next(task_id, limit):
            return event
        dispatcher_of(self.session)
        raise WaitTimeoutError(
            f"No callback of task {printable(task_id)} came within {limit:g} s.",
            hint="It may be lost; await the task's handle, which polls too.",
        )

    async def _next(self, task_id: str, limit: float) -> CallbackEvent | None:
        """The task's next event; None when time is up, or the session was closed."""
        closed = dispatcher_of(self.session).closed
        if self._closed is not closed:  # once for all waiters of an opening
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
        """Let all go who wait: the session was closed."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                wake(waiter, None)

    def aiohttp_app(self) -> web.Application:
        """An application to mount: `app.add_subapp("/hooks/kie/", receiver.aiohttp_app())`."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer_aiohttp)
        return app

    @property
    def asgi(self) -> _Asgi:
        """An ASGI application to mount: `app.mount("/hooks/kie", receiver.asgi)` in Starlette and FastAPI."""
        return _Asgi(self)

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: Body
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON to answer a request of any framework. `headers` as in `verify`; `body` in parts or whole."""
        try:
            entry = await self._owner(method, path)
            await self._take(await self._read(entry, headers, body), entry)
        except InvalidCallbackError as error:
            log.warning("callback.refused", extra={"status": error.status, "reason": error.message})
            return error.status, {"code": error.status, "msg": error.message}
        return 200, _ACCEPTED.copy()

    async def _owner(self, method: str, path: str) -> Entry:
        """The entry whose token the path bears."""
        if method != "POST":
            raise _refusal(405, "it must be a POST")
        self._check_session()
        token = path.rstrip("/").rpartition("/")[2]  # whatever a proxy or a mount did to the parts before it
        entry = await self._ask_ledger(token_digest(token)) if is_token(token) else None
        if entry is None:
            raise _refusal(401, "its token is unknown")
        return entry

    async def _ask_ledger(self, digest: str) -> Entry | None:
        try:
            return await self.session.ledger.by_token(digest)
        except LedgerError as error:
            raise _refusal(503, "its ledger is out of reach") from error

    async def _read(self, entry: Entry, headers: Mapping[str, str], body: Body) -> CallbackEvent:
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _refusal(415, "it must be application/json")
        content = await self._read_body(headers, body)
        return verify(
            headers,
            content,
            now=self.clock(),
            hmac_key=self.hmac_key,
            tolerance=self.tolerance,
            provider=entry.provider,
        )

    async def _read_body(self, headers: Mapping[str, str], body: Body) -> bytes:
        if isinstance(body, bytes):
            self._check_size(len(body))
            return body
        length = headers.get("content-length", "")
        if re.fullmatch("[0-9]{1,18}", length):
            self._check_size(int(length))
        content = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                async for chunk in body:
                    content += chunk
                    self._check_size(len(content))
        except TimeoutError as error:
            raise _refusal(408, f"its body took longer than {self.body_timeout:g} s") from error
        return bytes(content)

    def _check_size(self, size: int) -> None:
        if size > self.body_limit:
            raise _refusal(413, f"its body is larger than {self.body_limit} bytes")

    def _check_session(self) -> None:
        try:
            dispatcher_of(self.session)
        except (SessionClosedError, WrongLoopError) as error:
            raise _refusal(503, "its session is not open here") from error

    async def _take(self, event: CallbackEvent, entry: Entry) -> None:
        """Let the event have its effect."""
        self._check_session()  # it may have been closed while the body came
        if entry.task_id is None and entry.token_digest:
            entry = await self._ask_ledger(entry.token_digest) or entry  # createTask may have answered meanwhile
        if entry.task_id not in {None, event.task_id}:
            raise _refusal(401, "its token belongs to another task")
        self._keep(event)
        for waiter in self._waiters.get(event.task_id, ()):
            wake(waiter, event)
        self.session.watcher.callback_health.record_success()
        try:
            await dispatcher_of(self.session).handle_callback(entry, event.task_id)
        except (SessionClosedError, ConfigurationError, LedgerError, ProviderError, MissingCharacterError) as error:
            raise _refusal(503, "it cannot be confirmed now") from error

    def _keep(self, event: CallbackEvent) -> None:
        self._events.pop(event.task_id, None)  # so that it becomes the youngest
        self._events[event.task_id] = event
        if len(self._events) > self.most_events:
            del self._events[next(iter(self._events))]

    async def _answer_aiohttp(self, request: web.Request) -> web.Response:
        content = request.content
        whole = content.is_eof() and not content.exception()
        body = content.read_nowait() if whole else _aiohttp_body(request)
        status, payload = await self.handle(request.method, request.path, request.headers, body)
        return web.Response(body=_encode(payload), status=status, headers=_ANSWER_HEADERS)


def _encode(payload: Mapping[str, Any]) -> bytes:
    return _ACCEPTED_JSON if payload == _ACCEPTED else json.dumps(payload).encode()


async def _aiohttp_body(request: web.Request) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (OSError, web.RequestPayloadError) as error:
        raise _refusal(400, "its body broke off") from error


@attrs.frozen
class _Asgi:
    """An object, since uvicorn takes a bound coroutine method for an application of the old ASGI 2."""

    receiver: CallbackReceiver

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case _:  # lifespan, of which nothing here depends
                for phase in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{phase}.complete"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, payload = await self.receiver.handle(scope["method"], scope["path"], headers, _asgi_body(receive))
        body = _encode(payload)
        answer_headers = {**_ANSWER_HEADERS, "Content-Length": str(len(body))}
        pairs = [(name.lower().encode(), value.encode()) for name, value in answer_headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


async def _asgi_body(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _refusal(400, "its body broke off")
        yield message.get("body", b"")
        more = message.get("more_body", False)
