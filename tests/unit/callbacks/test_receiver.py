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

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sora_chars import TaskHandle
    from sora_chars.models import Request

PACE = 10.0
JSON = {"content-type": "application/json"}


class Paper(Provider):
    """A provider without a network: tasks t1, t2, ... that end when the test says so."""

    name = "paper"
    callback_url = "https://host.example/hooks"

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.polls: dict[str, list[float]] = {}
        self.ended: set[str] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.sent = asyncio.Event()

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """Response once `answers` is set."""
        del request
        async with on_send():
            self.paths.append(f"/{str(callback_url).removeprefix('https://host.example/')}")
            number = len(self.paths)
            self.sent.set()
            await self.answers.wait()
        return TaskSnapshot(task_id=f"t{number}", provider=self.name, state="waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Say whether the task was ended."""
        self.polls.setdefault(task_id, []).append(asyncio.get_running_loop().time())
        state = "success" if task_id in self.ended else "waiting"
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state)

    async def poll_capacity(self) -> int:
        """Always be."""
        return 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Have nothing to close."""


@pytest.fixture
def paper() -> Paper:
    """Return the provider."""
    return Paper()


@pytest.fixture
async def session(paper: Paper) -> AsyncGenerator[CharacterSession]:
    """Return a session whose pace is too slow to matter."""
    async with CharacterSession(paper, polling=FixedInterval(3600)) as session:
        yield session


@pytest.fixture
def receiver(session: CharacterSession) -> CallbackReceiver:
    """Return a receiver that takes 1000 bytes and keeps five events."""
    return CallbackReceiver(session, body_limit=1000, max_events=5)


async def start(session: CharacterSession) -> TaskHandle[TaskSnapshot]:
    """Start a task."""
    return await session.submit(TaskRequest(model="m"))


def content(task_id: str = "t1", state: str = "success") -> bytes:
    """Return the body of a callback."""
    return json.dumps({"code": 200, "msg": "ok", "data": {"taskId": task_id, "state": state}}).encode()


async def chunks(*parts: bytes) -> AsyncGenerator[bytes]:
    """Give a body in parts."""
    for part in parts:
        yield part


class Unread:
    """A body that must not be read."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        pytest.fail("the body was read")


async def post(receiver: CallbackReceiver, path: str, body: bytes | None = None) -> int:
    """Bring a callback and return the status that answers it."""
    status, payload = await receiver.handle("POST", path, JSON, chunks(content() if body is None else body))
    assert payload["code"] == status
    return status


async def test_accepted(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """An accepted callback is answered as kie.ai's page asks, and the waiter gets it."""
    handle = await start(session)
    waiting = asyncio.create_task(receiver.expect(handle.task_id))
    answer = await receiver.handle("POST", paper.paths[0], JSON, chunks(content()[:5], b"", content()[5:]))
    assert answer == (200, {"code": 200, "msg": "success"})
    event = await waiting
    assert event.snapshot is not None
    assert (event.task_id, event.snapshot.provider) == ("t1", "paper")


async def test_body_that_has_come_already(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A body that is there as a whole is taken as one that comes in parts is, up to `body_limit` bytes."""
    await start(session)
    full = content().ljust(1000)
    assert (await receiver.handle("POST", paper.paths[0], JSON, full + b" "))[0] == 413
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t1", timeout=0)
    assert await receiver.handle("POST", paper.paths[0], JSON, full) == (200, {"code": 200, "msg": "success"})
    assert (await receiver.expect("t1", timeout=0)).task_id == "t1"


@pytest.mark.parametrize("prefix", ["", "/hooks", "/a/b/c"])
async def test_only_the_last_part_of_the_path_counts(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper, prefix: str
) -> None:
    """A tunnel or a mount may change what stands before the token, and add a slash after it."""
    await start(session)
    token = paper.paths[0].rpartition("/")[2]
    assert await post(receiver, f"{prefix}/{token}/") == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_only_post(receiver: CallbackReceiver, paper: Paper, method: str) -> None:
    """Any other method is refused with 405, whatever else is right."""
    await start(receiver.session)
    assert (await receiver.handle(method, paper.paths[0], JSON, Unread()))[0] == 405


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/hooks/wrong", JSON, 401),
        ("/hooks", JSON, 401),
        ("/", JSON, 401),
        ("", JSON, 401),
        ("/hooks/\udcff", JSON, 401),
        (None, {}, 415),
        (None, {"content-type": "text/plain"}, 415),
        (None, {"content-type": "application/jsonp"}, 415),
        (None, JSON | {"content-length": "1001"}, 413),
    ],
    ids=range(9),
)
async def test_refused_before_the_body_is_read(
    receiver: CallbackReceiver, paper: Paper, path: str | None, headers: dict[str, str], status: int
) -> None:
    """A wrong token, type or declared length is refused without reading the body."""
    await start(receiver.session)
    answer = await receiver.handle("POST", paper.paths[0] if path is None else path, headers, Unread())
    assert (answer[0], answer[1]["code"]) == (status, status)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json ;v=1"])
async def test_json_by_any_spelling(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper, kind: str
) -> None:
    """The content type may have parameters and any case."""
    await start(session)
    status, _ = await receiver.handle("POST", paper.paths[0], {"content-type": kind}, chunks(content()))
    assert status == 200


@pytest.mark.parametrize("length", ["", "7", "1e9", "9" * 5000])
async def test_body_limit_is_counted(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper, length: str
) -> None:
    """Up to `body_limit` bytes are taken, and one more is not, whatever the declared length says."""
    await start(session)
    headers = JSON | {"content-length": length}
    full = content().ljust(1000)
    assert (await receiver.handle("POST", paper.paths[0], headers, chunks(full, b" ")))[0] == 413
    assert (await receiver.handle("POST", paper.paths[0], headers, chunks(full[:400], full[400:])))[0] == 200


@pytest.mark.looptime
async def test_slow_sender(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A body that does not end within `body_timeout` is refused with 408, though it keeps coming."""

    async def trickle() -> AsyncGenerator[bytes]:
        while True:
            await asyncio.sleep(1)
            yield b" "

    await start(session)
    assert (await receiver.handle("POST", paper.paths[0], JSON, trickle()))[0] == 408


async def test_another_tasks_token(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """The right token of one task opens nothing for another, and resolves nobody."""
    await start(session)
    await start(session)
    assert await post(receiver, paper.paths[0], content("t2")) == 401
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t2", timeout=0)


async def test_refusal_is_one_log_line_without_secrets(
    session: CharacterSession, paper: Paper, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused callback leaves one warning with status and reason; no token, key, signature or body is in it."""
    caplog.set_level(logging.DEBUG, "sora_chars.callbacks")
    receiver = CallbackReceiver(session, "the-key")
    await start(session)
    headers = JSON | {"x-webhook-signature": "the-signature", "x-webhook-timestamp": "1"}
    status, payload = await receiver.handle("POST", paper.paths[0], headers, chunks(content("t1", "the-body")))
    (record,) = caplog.records
    assert (status, record.message, record.levelname) == (401, "callback.rejected", "WARNING")
    assert record.__dict__["status"] == 401
    assert record.__dict__["reason"] == payload["msg"]
    shown = f"{record.__dict__} {payload} {receiver!r}"
    assert not [s for s in ("the-key", "the-signature", "the-body", paper.paths[0][-32:]) if s in shown]


async def test_closed_session(paper: Paper) -> None:
    """After the session is closed every POST is answered 503, and `expect` says why it cannot wait."""
    async with CharacterSession(paper) as session:
        receiver = CallbackReceiver(session)
        await start(session)
    assert (await receiver.handle("POST", paper.paths[0], JSON, Unread()))[0] == 503
    with pytest.raises(SessionClosedError):
        await receiver.expect("t1")


async def test_waiters_hear_that_the_session_was_closed(paper: Paper) -> None:
    """Whoever still expects a callback when the session closes is told so, at once."""
    async with CharacterSession(paper) as session:
        receiver = CallbackReceiver(session)
        waiting = asyncio.create_task(receiver.expect("t1", timeout=math.inf))
        await asyncio.sleep(0)  # it waits now
    with pytest.raises(SessionClosedError):
        await waiting


async def test_session_closed_while_the_body_comes(paper: Paper) -> None:
    """A callback whose body is still coming when the session closes is answered 503 too, and has no effect."""
    session = await CharacterSession(paper).open()
    receiver = CallbackReceiver(session)
    await start(session)

    async def closing() -> AsyncGenerator[bytes]:
        yield content()
        await session.aclose()

    assert (await receiver.handle("POST", paper.paths[0], JSON, closing()))[0] == 503


async def test_other_loop(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A receiver that is served by another event loop than its session's answers 503."""
    await start(session)
    answer = await asyncio.to_thread(lambda: asyncio.run(receiver.handle("POST", paper.paths[0], JSON, Unread())))
    assert answer[0] == 503


@pytest.mark.parametrize("key", ["", b""])
async def test_empty_key(session: CharacterSession, key: str | bytes) -> None:
    """An empty key, as from an empty setting, does not switch verification off in silence."""
    with pytest.raises(ConfigurationError):
        CallbackReceiver(session, key)


async def test_expect_afterwards(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """An event that came before anybody asked is given at once, and to all who ask."""
    await start(session)
    await post(receiver, paper.paths[0])
    first, second = await receiver.expect("t1", timeout=0), await receiver.expect("t1")
    assert first is second


async def test_waiters_are_independent(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """One waiter's cancellation and another's time-out leave the third waiting, and it gets the event."""
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
    await post(receiver, paper.paths[0])
    assert (await patient).task_id == "t1"


async def test_waiter_cancelled_as_the_callback_comes(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper
) -> None:
    """A waiter that was cancelled in the same tick does no harm, and the event stays for others."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    other = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # both wait now
    waiting.cancel()
    assert await post(receiver, paper.paths[0]) == 200
    assert (await asyncio.gather(waiting, other, return_exceptions=True))[1] == await receiver.expect("t1")
    assert waiting.cancelled()


async def test_event_comes_as_time_runs_out(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper, caplog: pytest.LogCaptureFixture
) -> None:
    """A waiter whose event comes in the tick in which its time runs out gets it, and the clock does no harm."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1", timeout=0))
    await asyncio.sleep(0)  # it waits now, until the next tick
    posting = asyncio.create_task(post(receiver, paper.paths[0]))  # which runs in that tick, before its timers
    assert (await waiting).task_id == "t1"
    assert await posting == 200
    assert not caplog.records


async def test_double(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A duplicate is accepted and resolves nobody twice; whoever asks later gets the newer one."""
    await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # it waits now
    assert await post(receiver, paper.paths[0], content(state="success")) == 200
    assert await post(receiver, paper.paths[0], content(state="fail")) == 200
    states = [event.snapshot.state for event in (await waiting, await receiver.expect("t1")) if event.snapshot]
    assert states == ["success", "fail"]


@pytest.mark.looptime
async def test_default_wait_is_the_sessions(paper: Paper) -> None:
    """Without a time-out a wait lasts as long as the session's."""
    async with CharacterSession(paper, timeout=7) as session:
        with pytest.raises(WaitTimeoutError, match="7 s"):
            await CallbackReceiver(session).expect("t1")


async def test_memory_is_bounded(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """Twenty thousand posts, junk and well-formed ones alike, also while createTask has no answer, leave a handful."""
    paper.answers.clear()
    submitting = asyncio.create_task(start(session))
    await paper.sent.wait()
    statuses = [
        await post(receiver, path, body)
        for n in range(5000)
        for path, body in [
            (f"/hooks/{n}", content()),
            (paper.paths[0], b"junk"),
            (paper.paths[0], content("t1")),
            (paper.paths[0], content(f"x{n}")),
        ]
    ]
    paper.answers.set()
    await submitting
    assert [statuses.count(status) for status in (200, 400, 401)] == [5000, 5000, 10_000]
    assert len(receiver._events) == 1
    assert len([entry async for entry in session.ledger.entries()]) == 1
    assert not receiver._waiters


async def test_waits_that_end_leave_nothing_behind(receiver: CallbackReceiver) -> None:
    """Waits that ran out are forgotten."""
    for n in range(100):
        with pytest.raises(WaitTimeoutError):
            await receiver.expect(f"x{n}", timeout=0)
    assert not receiver._waiters


async def test_event_is_gone_once_nobody_needs_it(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper
) -> None:
    """A wait that was met holds its event no longer, though it might have lasted much longer."""
    for _ in range(6):
        await start(session)
    waiting = asyncio.create_task(receiver.expect("t1"))
    await asyncio.sleep(0)  # it waits now
    await post(receiver, paper.paths[0])
    event = weakref.ref(await waiting)
    del waiting
    for n in range(1, 6):
        await post(receiver, paper.paths[n], content(f"t{n + 1}"))
    await asyncio.sleep(0)  # else the event loop itself still holds what has just woken this test
    gc.collect()
    assert event() is None


async def test_oldest_event_makes_room(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """The last `max_events` events are kept; a duplicate makes an event young again."""
    for n in range(5):
        await start(session)
        await post(receiver, paper.paths[n], content(f"t{n + 1}"))
    await post(receiver, paper.paths[0], content("t1"))
    await start(session)
    await post(receiver, paper.paths[5], content("t6"))
    assert (await receiver.expect("t1", timeout=0)).task_id == "t1"
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t2", timeout=0)


@pytest.mark.looptime
async def test_early_callback_wakes_its_task(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper
) -> None:
    """A callback that comes before createTask has answered is kept, and wakes its task once the id is known."""
    paper.answers.clear()
    paper.ended.add("t1")
    submitting = asyncio.create_task(start(session))
    await paper.sent.wait()
    assert await post(receiver, paper.paths[0]) == 200
    paper.answers.set()
    handle = await submitting
    await handle.result(PACE)
    assert handle.woken_by == "callback"
    assert (await receiver.expect(handle.task_id, timeout=0)).task_id == "t1"


@pytest.mark.looptime
async def test_claim_is_confirmed(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A callback that claims an end before its record shows it only makes the watcher look, and look again."""
    handle = await start(session)
    await post(receiver, paper.paths[0], content(state="fail"))
    with pytest.raises(WaitTimeoutError):
        await handle.result(PACE)
    assert len(paper.polls["t1"]) > 1
    paper.ended.add("t1")
    assert (await handle.result(PACE)).state == "success"


@pytest.mark.looptime
@pytest.mark.parametrize("body", [content()[:-1] + b',"data":{"taskId":"t1","state":[]}}', content(state="")])
async def test_unreadable_claim_still_wakes(
    receiver: CallbackReceiver, session: CharacterSession, paper: Paper, body: bytes
) -> None:
    """A callback whose record says nothing useful still makes the watcher look."""
    handle = await start(session)
    paper.ended.add("t1")
    assert await post(receiver, paper.paths[0], body) == 200
    assert (await handle.result(PACE)).state == "success"


@pytest.mark.looptime
async def test_late_callback_has_no_effect(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A callback for a finished task is answered 200 and no look follows."""
    handle = await start(session)
    paper.ended.add("t1")
    await post(receiver, paper.paths[0])
    await handle.result(PACE)
    looks = len(paper.polls["t1"])
    assert await post(receiver, paper.paths[0]) == 200
    await asyncio.sleep(PACE)
    assert len(paper.polls["t1"]) == looks


@pytest.mark.looptime
async def test_polls_are_rarer_while_callbacks_arrive(paper: Paper) -> None:
    """While callbacks arrive, a task that expects one is looked at five times as rarely; then as before."""
    async with CharacterSession(paper, polling=FixedInterval(PACE)) as session:
        receiver = CallbackReceiver(session)
        await start(session)
        handle = await start(session)
        for _ in range(20):
            await post(receiver, paper.paths[0])
            await asyncio.sleep(PACE)
        with pytest.raises(WaitTimeoutError):
            await handle.result(30 * PACE)
        looks = paper.polls["t2"]
        gaps = [round((later - looks[n]) / PACE) for n, later in enumerate(looks[1:])]
    assert gaps.count(5) >= 3
    assert gaps[-10:] == [1] * 10


class Wire:
    """What an ASGI server would receive and send."""

    def __init__(self, *incoming: dict[str, Any]) -> None:
        self.incoming = list(incoming)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> MutableMapping[str, Any]:
        """Give the next message."""
        return self.incoming.pop(0)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Keep a message."""
        self.sent.append(dict(message))


def http_scope(path: str) -> dict[str, Any]:
    """Return the scope of a callback."""
    return {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}


async def test_asgi_request(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """The ASGI application reads a body in parts and answers with JSON of the declared length."""
    await start(session)
    wire = Wire(
        {"type": "http.request", "body": content()[:9], "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": content()[9:]},
    )
    await receiver.asgi(http_scope(paper.paths[0]), wire.receive, wire.send)
    head, body = wire.sent
    assert head["status"] == 200
    assert (b"content-length", str(len(body["body"])).encode()) in head["headers"]
    assert json.loads(body["body"]) == {"code": 200, "msg": "success"}


async def test_asgi_sender_leaves(receiver: CallbackReceiver, session: CharacterSession, paper: Paper) -> None:
    """A sender that leaves in the middle of its body has sent no callback."""
    await start(session)
    wire = Wire({"type": "http.request", "body": content(), "more_body": True}, {"type": "http.disconnect"})
    await receiver.asgi(http_scope(paper.paths[0]), wire.receive, wire.send)
    assert wire.sent[0]["status"] == 400
    with pytest.raises(WaitTimeoutError):
        await receiver.expect("t1", timeout=0)


async def test_asgi_lifespan(receiver: CallbackReceiver) -> None:
    """As an application of its own it starts up and shuts down as the server asks."""
    wire = Wire({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await receiver.asgi({"type": "lifespan"}, wire.receive, wire.send)
    assert [message["type"] for message in wire.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_asgi_websocket(receiver: CallbackReceiver) -> None:
    """A websocket is refused."""
    wire = Wire({"type": "websocket.connect"})
    await receiver.asgi({"type": "websocket"}, wire.receive, wire.send)
    assert [message["type"] for message in wire.sent] == ["websocket.close"]
