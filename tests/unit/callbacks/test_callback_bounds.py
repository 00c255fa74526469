"""What callbacks under a true token may cost: polls of one entry, and the inflated size of a body."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING

import pytest

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, InvalidCallbackError, TaskRequest
from sora_chars.callbacks.confirmations import Confirmations
from sora_chars.errors import NoAnswerError, TaskNotFoundError
from sora_chars.models import TaskSnapshot
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sora_chars.models import Request

pytestmark = pytest.mark.looptime

JSON = {"content-type": "application/json"}
BODY = json.dumps({"code": 200, "msg": "ok", "data": {"taskId": "t1", "state": "success"}}).encode()


class Losing(Provider):
    """A provider whose task is t1, and whose answer to the create is lost. A poll takes 0.1 s."""

    name = "losing"
    callback_url = "https://host.example/hooks"

    def __init__(self) -> None:
        self.path = ""
        self.polls: list[float] = []
        self.ends_at = 0.7

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Make the task and lose the answer."""
        del request, key
        async with on_send():
            self.path = str(callback_url).removeprefix("https://host.example")
        raise NoAnswerError("lost", harmless=False)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Return the task, which ends after 0.7 s."""
        self.polls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        if task_id != "t1":
            raise TaskNotFoundError("no such task")
        state = "success" if asyncio.get_running_loop().time() >= self.ends_at else "waiting"
        return TaskSnapshot(task_id=task_id, provider=self.name, state=state)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close nothing."""


@pytest.fixture
async def losing() -> Losing:
    """The provider."""
    return Losing()


@pytest.fixture
async def receiver(losing: Losing) -> AsyncGenerator[CallbackReceiver]:
    """A receiver for one entry of unknown outcome, in a session that polls once an hour."""
    async with CharacterSession(losing, polling=FixedInterval(3600)) as session:
        with pytest.raises(Exception, match="unknown whether"):
            await session.submit(TaskRequest(model="m", key="k"))
        yield CallbackReceiver(session, body_limit=1000)


async def post(receiver: CallbackReceiver, path: str, body: bytes = BODY, **headers: str) -> int:
    """Send a callback and return the status of the response."""
    named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return (await receiver.handle("POST", path, named, body))[0]


async def test_callbacks_of_an_unknown_entry_share_a_confirmation(receiver: CallbackReceiver, losing: Losing) -> None:
    """600 callbacks at once cost one poll, all are accepted, and the task ends when it ends."""
    assert set(await asyncio.gather(*(post(receiver, losing.path) for _ in range(600)))) == {200}
    assert isinstance(receiver.session, CharacterSession)
    entry = await receiver.session.entry("k")
    assert entry
    assert (entry.state, entry.task_id) == ("running", "t1")
    await receiver.session.resume("t1").result(10)
    assert asyncio.get_running_loop().time() < 2
    assert len(losing.polls) <= 5


async def test_a_stream_of_callbacks_costs_one_poll_a_second(receiver: CallbackReceiver, losing: Losing) -> None:
    """Callbacks that keep coming cause at most a poll a second, and the few that follow an early callback."""
    losing.ends_at = 20.0
    for _ in range(600):
        assert await post(receiver, losing.path) == 200
        await asyncio.sleep(0.05)
    assert len(losing.polls) <= 25
    assert isinstance(receiver.session, CharacterSession)
    assert (await receiver.session.resume("t1").result(10)).state == "success"


async def test_false_tasks_of_an_entry_are_bounded(receiver: CallbackReceiver, losing: Losing) -> None:
    """Callbacks that name many tasks are confirmed one a second; a third at a time is rejected with 503."""
    bodies = [BODY.replace(b"t1", b"x%d" % number) for number in range(50)]
    statuses = await asyncio.gather(*(post(receiver, losing.path, body) for body in bodies))
    assert set(statuses) == {503}
    assert losing.polls == [0.0, 1.1]
    await asyncio.sleep(1)
    assert await post(receiver, losing.path) == 200


async def test_a_rejection_is_shared() -> None:
    """Callbacks of one task that wait together are rejected together, each with an error of its own."""
    confirmations = Confirmations()

    async def reject() -> None:
        await asyncio.sleep(1)
        raise InvalidCallbackError("Callback rejected: no.", status=401)

    results = await asyncio.gather(*(confirmations.run("k", "t", reject) for _ in range(3)), return_exceptions=True)
    assert [getattr(error, "status", None) for error in results] == [401] * 3
    assert len(set(map(id, results))) == 3


async def test_a_cancelled_confirmation_rejects_those_that_share_it() -> None:
    """If the request that confirms is cancelled, the others are told to come again, and the next one confirms."""
    confirmations = Confirmations()
    confirmed: list[float] = []

    async def confirm() -> None:
        await asyncio.sleep(1)
        confirmed.append(asyncio.get_running_loop().time())

    first = asyncio.create_task(confirmations.run("k", "t", confirm))
    second = asyncio.create_task(confirmations.run("k", "t", confirm))
    await asyncio.sleep(0.5)
    first.cancel()
    with pytest.raises(InvalidCallbackError) as caught:
        await second
    assert caught.value.status == 503
    await confirmations.run("k", "t", confirm)
    assert confirmed == [2.5]


async def test_confirmations_leave_nothing_behind() -> None:
    """An entry is forgotten a second after its last confirmation."""
    confirmations = Confirmations()

    async def confirm() -> None:
        await asyncio.sleep(0.5)

    await confirmations.run("k", "t", confirm)
    await confirmations.run("k", "t", confirm)
    await asyncio.sleep(0.9)
    assert confirmations._queues
    await asyncio.sleep(0.2)
    assert not confirmations._queues


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in parts"])
@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("x-GZIP ", gzip.compress), ("deflate", zlib.compress)]
)
async def test_inflates_bodies(
    receiver: CallbackReceiver, losing: Losing, encoding: str, compress: Callable[[bytes], bytes], *, whole: bool
) -> None:
    """A compressed body is read; one that the framework has inflated already is left as it is."""
    body = compress(BODY)

    async def parts() -> AsyncGenerator[bytes]:
        yield b""
        for byte in body:
            yield bytes((byte,))

    headers = JSON | {"content-encoding": encoding, "content-length": str(len(body))}
    status, _ = await receiver.handle("POST", losing.path, headers, body if whole else parts())
    assert status == 200
    assert await post(receiver, losing.path, content_encoding=encoding) == 200


@pytest.mark.parametrize(
    "body",
    [gzip.compress(BODY)[:-9], gzip.compress(BODY)[:20] + b"junk" * 9, b"\x1f\x8bx", b"\x1f\x8b" + bytes(30)],
    ids=["cut", "junk", "start", "zeros"],
)
async def test_damaged_body(receiver: CallbackReceiver, losing: Losing, body: bytes) -> None:
    """A body that cannot be inflated is rejected with 400."""
    assert await post(receiver, losing.path, body, content_encoding="gzip") == 400


async def test_inflated_size_is_bounded(receiver: CallbackReceiver, losing: Losing) -> None:
    """A small body that inflates beyond `body_limit` is rejected with 413."""
    bomb = gzip.compress(bytes(50_000_000), 9)
    receiver.body_limit = 100_000
    assert len(bomb) < 100_000
    assert await post(receiver, losing.path, bomb, content_encoding="gzip") == 413
