"""The callback receiver without a network: verification, waiters, limits and ASGI."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    ConfigurationError,
    FixedInterval,
    SessionClosedError,
    TaskRequest,
    TaskSnapshot,
    WaitTimeoutError,
)
from sora_chars.protocols import Provider
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sora_chars import TaskHandle
    from sora_chars.models import Request

INTERVAL = 10.0  # seconds
JSON = {"content-type": "application/json"}


class Fake(Provider):
    """A provider without a network: the test ends its tasks t1, t2, ..."""

    name = "fake"
    callback_url = "https://host.example/hooks"

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.polls: dict[str, list[float]] = {}
        self.ended: set[str] = set()
        self.released = asyncio.Event()
        self.released.set()
        self.sent = asyncio.Event()

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Return the first snapshot once `released` is set."""
        del request, key
        async with on_send():
            self.paths.append(f"/{str(callback_url).removeprefix('https://host.example/')}")
            number = len(self.paths)
            self.sent.set()
            await self.released.wait()
        return TaskSnapshot(task_id=f"t{number}", provider=self.name, state="waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Return the state that the test has set."""
        self.polls.setdefault(task_id, []).append(asyncio.get_running_loop().time())
        state = "success" if task_id in self.ended else "waiting"
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state)

    async def poll_capacity(self) -> int:
        """Return 1."""
        return 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close nothing."""


@pytest.fixture
def fake() -> Fake:
    """Return the provider."""
    return Fake()


@pytest.fixture
async def session(fake: Fake) -> AsyncGenerator[CharacterSession]:
    """Open a session that polls once an hour."""
    async with CharacterSession(fake, polling=FixedInterval(3600)) as session:
        yield session


@pytest.fixture
def receiver(session: CharacterSession) -> CallbackReceiver:
    """Return a receiver that accepts 1000 bytes and keeps five events."""
    return CallbackReceiver(session, body_limit=1000, max_events=5)


async def start(session: CharacterSession) -> TaskHandle[TaskSnapshot]:
    """Start a task."""
    return await session.submit(TaskRequest(model="m"))


def content(task_id: str = "t1", state: str = "success") -> bytes:
    """Return the body of a callback."""
    return json.dumps({"code": 200, "msg": "ok", "data": {"taskId": task_id, "state": state}}).encode()


async def chunks(*parts: bytes) -> AsyncGenerator[bytes]:
    """Yield a body in parts."""
    for part in parts:
        yield part


class Unread:
    """A body that must not be read."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        pytest.fail("the body was read")


async def post(receiver: CallbackReceiver, path: str, body: bytes | None = None) -> int:
    """Send a callback and return the status of the response."""
    status, payload = await receiver.handle("POST", path, JSON, chunks(content() if body is None else body))
    assert payload["code"] == status
    return status


async def test_accepted(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """An accepted callback is answered as in kie.ai's docs, and the waiter gets the event."""
    handle = await start(session)
    waiting = asyncio.create_task(receiver.expect(handle.task_id))
    response = await receiver.handle("POST", fake.paths[0], JSON, chunks(content()[:5], b"", content()[5:]))
    assert response == (200, {"code": 200, "msg": "success"})
    event = await waiting
    assert event.snapshot is not None
    assert (event.task_id, event.snapshot.provider) == ("t1", "fake")


async def test_complete_body(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A body of bytes is accepted like one in chunks, up to `body_limit` bytes."""
    await start(session)
    full = content().ljust(1000)
    assert (await receiver.handle("POST", fake.paths[0], JSON, full + b" "))[0] == 413
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t1", timeout=0)
    assert await receiver.handle("POST", fake.paths[0], JSON, full) == (200, {"code": 200, "msg": "success"})
    assert (await receiver.expect("t1", timeout=0)).task_id == "t1"


@pytest.mark.parametrize("prefix", ["", "/hooks", "/a/b/c"])
async def test_path_prefix(receiver: CallbackReceiver, session: CharacterSession, fake: Fake, prefix: str) -> None:
    """A proxy or a mount may change what precedes the token, and add a slash after it."""
    await start(session)
    token = fake.paths[0].rpartition("/")[2]
    assert await post(receiver, f"{prefix}/{token}/") == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_only_post(session: CharacterSession, receiver: CallbackReceiver, fake: Fake, method: str) -> None:
    """Any other method is rejected with 405, even with a valid token."""
    await start(session)
    assert (await receiver.handle(method, fake.paths[0], JSON, Unread()))[0] == 405


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/hooks/wrong", JSON, 401),
        ("/hooks", JSON, 401),
        ("/", JSON, 401),
        ("", JSON, 401),
        ("/hooks/\udcff", JSON, 401),
        (None, JSON | {"content-length": "1001"}, 413),
    ],
    ids=range(6),
)
async def test_rejected_before_reading(
    receiver: CallbackReceiver,
    fake: Fake,
    path: str | None,
    headers: dict[str, str],
    status: int,
) -> None:
    """A wrong token or declared length is rejected without reading the body."""
    assert isinstance(receiver.session, CharacterSession)
    await start(receiver.session)
    response = await receiver.handle("POST", fake.paths[0] if path is None else path, headers, Unread())
    assert (response[0], response[1]["code"]) == (status, status)


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-8"}]
)
async def test_any_content_type(
    receiver: CallbackReceiver, session: CharacterSession, fake: Fake, headers: dict[str, str]
) -> None:
    """JSON is read whatever its content type: the token has authenticated the sender."""
    await start(session)
    assert (await receiver.handle("POST", fake.paths[0], headers, chunks(content())))[0] == 200
    status, _ = await receiver.handle("POST", fake.paths[0], headers, chunks(b"taskId=t1&state=success"))
    assert status == 400


@pytest.mark.parametrize("length", ["", "7", "1e9", "9" * 5000])
async def test_body_limit(receiver: CallbackReceiver, session: CharacterSession, fake: Fake, length: str) -> None:
    """Up to `body_limit` bytes are accepted, and one more is not, whatever length is declared."""
    await start(session)
    headers = JSON | {"content-length": length}
    full = content().ljust(1000)
    assert (await receiver.handle("POST", fake.paths[0], headers, chunks(full, b" ")))[0] == 413
    assert (await receiver.handle("POST", fake.paths[0], headers, chunks(full[:400], full[400:])))[0] == 200


@pytest.mark.looptime
async def test_slow_sender(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A body that does not end within `body_timeout` is rejected with 408, even if bytes keep arriving."""

    async def trickle() -> AsyncGenerator[bytes]:
        while True:
            await asyncio.sleep(1)
            yield b" "

    await start(session)
    assert (await receiver.handle("POST", fake.paths[0], JSON, trickle()))[0] == 408


async def test_token_of_another_task(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """The token of one task is rejected for another task, whose waiters are not woken."""
    await start(session)
    await start(session)
    assert await post(receiver, fake.paths[0], content("t2")) == 401
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t2", timeout=0)


async def test_rejection_log(session: CharacterSession, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """A rejection logs one warning with status and reason, without token, key, signature or body."""
    caplog.set_level(logging.DEBUG, "sora_chars.callbacks")
    receiver = CallbackReceiver(session, "the-key")
    await start(session)
    headers = JSON | {"x-webhook-signature": "the-signature", "x-webhook-timestamp": "1"}
    status, payload = await receiver.handle("POST", fake.paths[0], headers, chunks(content("t1", "the-body")))
    (record,) = caplog.records
    assert (status, event_of(record), record.levelname) == (401, "callback.rejected", "WARNING")
    assert record.__dict__["status"] == 401
    assert record.__dict__["reason"] == payload["msg"]
    shown = f"{record.__dict__} {payload} {receiver!r}"
    assert not [s for s in ("the-key", "the-signature", "the-body", fake.paths[0][-32:]) if s in shown]


async def test_closed_session(fake: Fake) -> None:
    """After the session is closed every POST gets 503, and `expect` raises SessionClosedError."""
    async with CharacterSession(fake) as session:
        receiver = CallbackReceiver(session)
        await start(session)
    assert (await receiver.handle("POST", fake.paths[0], JSON, Unread()))[0] == 503
    with pytest.raises(SessionClosedError):
        await receiver.expect("t1")


async def test_close_wakes_waiters(fake: Fake) -> None:
    """Closing the session ends every `expect` at once."""
    async with CharacterSession(fake) as session:
        receiver = CallbackReceiver(session)
        waiting = asyncio.create_task(receiver.expect("t1", timeout=math.inf))
        await asyncio.sleep(0)  # it is waiting
    with pytest.raises(SessionClosedError):
        await waiting


async def test_close_during_body(fake: Fake) -> None:
    """A callback whose body arrives while the session closes gets 503 and has no effect."""
    session = await CharacterSession(fake).open()
    receiver = CallbackReceiver(session)
    await start(session)

    async def closing() -> AsyncGenerator[bytes]:
        yield content()
        await session.aclose()

    assert (await receiver.handle("POST", fake.paths[0], JSON, closing()))[0] == 503


async def test_other_loop(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A receiver that runs in another event loop than its session's responds 503."""
    await start(session)
    response = await asyncio.to_thread(lambda: asyncio.run(receiver.handle("POST", fake.paths[0], JSON, Unread())))
    assert response[0] == 503


@pytest.mark.parametrize("key", ["", b""])
async def test_empty_key(session: CharacterSession, key: str | bytes) -> None:
    """An empty key, as from an empty setting, is an error and does not switch verification off."""
    with pytest.raises(ConfigurationError):
        CallbackReceiver(session, key)


async def test_expect_afterwards(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """An event that arrived earlier is returned at once, to every caller."""
    await start(session)
    await post(receiver, fake.paths[0])
    first = await receiver.expect("t1", timeout=0)
    second = await receiver.expect("t1")
    assert first is second


async def test_waiters_are_independent(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """The cancellation of one waiter and the timeout of another leave the third waiting for the event."""
    await start(session)
    cancelled, timed, patient = (
        asyncio.create_task(receiver.expect("t1", timeout=timeout)) for timeout in (None, 0, math.inf)
    )
    await asyncio.wait((timed,))
    cancelled.cancel()
    await asyncio.wait((cancelled,))
    assert cancelled.cancelled()
    with pytest.raises(WaitTimeoutError, match="t1"):
        timed.result()
    await post(receiver, fake.paths[0])
    assert (await patient).task_id == "t1"


async def test_cancelled_as_callback_arrives(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A waiter cancelled in the same tick does no harm, and other waiters get the event."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    other = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # both are waiting
    waiting.cancel()
    assert await post(receiver, fake.paths[0]) == 200
    assert (await asyncio.gather(waiting, other, return_exceptions=True))[1] == await receiver.expect("t1")
    assert waiting.cancelled()


async def test_event_as_timeout_fires(
    receiver: CallbackReceiver, session: CharacterSession, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    """A waiter whose event arrives in the tick of its timeout gets the event."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1", timeout=0))
    await asyncio.sleep(0)  # it is waiting, until the next tick
    posting = asyncio.create_task(post(receiver, fake.paths[0]))  # runs in that tick, before its timers
    assert (await waiting).task_id == "t1"
    assert await posting == 200
    assert not caplog.records


async def test_duplicate(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A duplicate is accepted; a waiter gets the first event, and later callers the second."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # it is waiting
    assert await post(receiver, fake.paths[0], content(state="success")) == 200
    assert await post(receiver, fake.paths[0], content(state="fail")) == 200
    states = [event.snapshot.state for event in (await waiting, await receiver.expect("t1")) if event.snapshot]
    assert states == ["success", "fail"]


@pytest.mark.looptime
async def test_default_timeout(fake: Fake) -> None:
    """The default timeout is that of the session."""
    async with CharacterSession(fake, timeout=7) as session:
        with pytest.raises(WaitTimeoutError, match="7 s"):
            await CallbackReceiver(session).expect("t1")


async def test_memory_is_bounded(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """Twenty thousand posts, valid and junk, before and after the response to createTask, leave one event."""
    fake.released.clear()
    submitting = asyncio.create_task(start(session))
    await fake.sent.wait()
    statuses = [
        await post(receiver, path, body)
        for n in range(5000)
        for path, body in [
            (f"/hooks/{n}", content()),
            (fake.paths[0], b"junk"),
            (fake.paths[0], content("t1")),
            (fake.paths[0], content(f"x{n}")),
        ]
    ]
    fake.released.set()
    await submitting
    assert [statuses.count(status) for status in (200, 400, 401)] == [5000, 5000, 10_000]
    assert len(receiver._events) == 1
    assert len([entry async for entry in session.ledger.entries()]) == 1
    assert not receiver._waiters


async def test_timeouts_leave_no_waiters(receiver: CallbackReceiver) -> None:
    """Waiters that timed out are removed."""
    for n in range(100):
        with pytest.raises(WaitTimeoutError):
            await receiver.expect(f"x{n}", timeout=0)
    assert not receiver._waiters


async def test_event_is_freed(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A waiter with a long timeout does not keep its event alive after it got it."""
    for _ in range(6):
        await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # it is waiting
    await post(receiver, fake.paths[0])
    event = weakref.ref(await waiting)
    del waiting
    for n in range(1, 6):
        await post(receiver, fake.paths[n], content(f"t{n + 1}"))
    await asyncio.sleep(0)  # the event loop still references the event that has woken this test
    gc.collect()
    assert event() is None


async def test_max_events(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """The last `max_events` events are kept; a duplicate counts as new."""
    for n in range(5):
        await start(session)
        await post(receiver, fake.paths[n], content(f"t{n + 1}"))
    await post(receiver, fake.paths[0], content("t1"))
    await start(session)
    await post(receiver, fake.paths[5], content("t6"))
    assert (await receiver.expect("t1", timeout=0)).task_id == "t1"
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t2", timeout=0)


@pytest.mark.looptime
async def test_early_callback(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A callback before the response to createTask is kept, and wakes its task once the id is known."""
    fake.released.clear()
    fake.ended.add("t1")
    submitting = asyncio.create_task(start(session))
    await fake.sent.wait()
    assert await post(receiver, fake.paths[0]) == 200
    fake.released.set()
    handle = await submitting
    await handle.result(INTERVAL)
    assert handle.woken_by == "callback"
    assert (await receiver.expect(handle.task_id, timeout=0)).task_id == "t1"


@pytest.mark.looptime
async def test_claim_is_confirmed(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A callback that claims an end which the record does not show yet only causes polls."""
    handle = await start(session)
    await post(receiver, fake.paths[0], content(state="fail"))
    with pytest.raises(WaitTimeoutError):
        await handle.result(INTERVAL)
    assert len(fake.polls["t1"]) > 1
    fake.ended.add("t1")
    assert (await handle.result(INTERVAL)).state == "success"


@pytest.mark.looptime
@pytest.mark.parametrize("body", [content()[:-1] + b',"data":{"taskId":"t1","state":[]}}', content(state="")])
async def test_malformed_claim(receiver: CallbackReceiver, session: CharacterSession, fake: Fake, body: bytes) -> None:
    """A callback with a malformed record still causes a poll."""
    handle = await start(session)
    fake.ended.add("t1")
    assert await post(receiver, fake.paths[0], body) == 200
    assert (await handle.result(INTERVAL)).state == "success"


@pytest.mark.looptime
async def test_late_callback(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A callback for a finished task gets 200 and causes no poll."""
    handle = await start(session)
    fake.ended.add("t1")
    await post(receiver, fake.paths[0])
    await handle.result(INTERVAL)
    polls = len(fake.polls["t1"])
    assert await post(receiver, fake.paths[0]) == 200
    await asyncio.sleep(INTERVAL)
    assert len(fake.polls["t1"]) == polls


@pytest.mark.looptime
async def test_poll_interval_with_callbacks(fake: Fake) -> None:
    """While callbacks arrive, a task that expects one is polled at five times the interval; then as before."""
    async with CharacterSession(fake, polling=FixedInterval(INTERVAL)) as session:
        receiver = CallbackReceiver(session)
        await start(session)
        handle = await start(session)
        for _ in range(20):
            await post(receiver, fake.paths[0])
            await asyncio.sleep(INTERVAL)
        with pytest.raises(WaitTimeoutError):
            await handle.result(30 * INTERVAL)
        polls = fake.polls["t2"]
        gaps = [round((later - polls[n]) / INTERVAL) for n, later in enumerate(polls[1:])]
    assert gaps.count(5) >= 3
    assert gaps[-10:] == [1] * 10


class Wire:
    """The messages that an ASGI server would receive and send."""

    def __init__(self, *incoming: dict[str, Any]) -> None:
        self.incoming = list(incoming)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next message."""
        return self.incoming.pop(0)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Store a message."""
        self.sent.append(dict(message))


def http_scope(path: str) -> dict[str, Any]:
    """Return the ASGI scope of a callback."""
    return {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}


async def test_asgi_request(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """The ASGI application reads a body in parts and responds with JSON of the declared length."""
    await start(session)
    wire = Wire(
        {"type": "http.request", "body": content()[:9], "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": content()[9:]},
    )
    await receiver.asgi(http_scope(fake.paths[0]), wire.receive, wire.send)
    head, body = wire.sent
    assert head["status"] == 200
    assert (b"content-length", str(len(body["body"])).encode()) in head["headers"]
    assert json.loads(body["body"]) == {"code": 200, "msg": "success"}


async def test_asgi_disconnect(receiver: CallbackReceiver, session: CharacterSession, fake: Fake) -> None:
    """A sender that disconnects within the body has sent no callback."""
    await start(session)
    wire = Wire({"type": "http.request", "body": content(), "more_body": True}, {"type": "http.disconnect"})
    await receiver.asgi(http_scope(fake.paths[0]), wire.receive, wire.send)
    assert wire.sent[0]["status"] == 400
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t1", timeout=0)


async def test_asgi_lifespan(receiver: CallbackReceiver) -> None:
    """The ASGI application answers the lifespan messages of a server."""
    wire = Wire({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await receiver.asgi({"type": "lifespan"}, wire.receive, wire.send)
    assert [message["type"] for message in wire.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_asgi_websocket(receiver: CallbackReceiver) -> None:
    """A WebSocket is closed."""
    wire = Wire({"type": "websocket.connect"})
    await receiver.asgi({"type": "websocket"}, wire.receive, wire.send)
    assert [message["type"] for message in wire.sent] == ["websocket.close"]


@pytest.mark.parametrize("key", ["secret\n", b"secret\r\n"])
async def test_key_with_line_break(session: CharacterSession, key: str | bytes) -> None:
    """A signing key that was read from a file is used without its line break."""
    receiver = CallbackReceiver(session, hmac_key=key)
    assert receiver.hmac_key in {"secret", b"secret"}


@pytest.mark.parametrize("key", ["", " ", b"\n"])
async def test_blank_key(session: CharacterSession, key: str | bytes) -> None:
    """A signing key of nothing but blanks is an error, and never turns verification off."""
    with pytest.raises(ConfigurationError, match="hmac_key must not be empty"):
        CallbackReceiver(session, hmac_key=key)
