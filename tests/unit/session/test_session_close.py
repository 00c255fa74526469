"""Cancelled callers, and closing a session while requests are in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import NoAnswerError, SessionClosedError, SubmissionUnknownError, WatcherStoppedError
from sora_chars.polling.strategies import FixedInterval
from sora_chars.protocols import PollingStrategy
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sora_chars.models import TaskSnapshot

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


def session_of(provider: FakeProvider, *, shutdown_timeout: float = 30.0) -> CharacterSession:
    """Return a session that polls every 10 s."""
    return CharacterSession(provider, polling=FixedInterval(10.0), shutdown_timeout=shutdown_timeout)


async def cancel_after(seconds: float, session: CharacterSession) -> None:
    """Start a create, and cancel it after this many seconds."""
    creating = asyncio.create_task(session.create(**REQUEST))
    await asyncio.sleep(seconds)
    creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled()


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the name, level and facts of each event that the session logged."""
    facts = ("levelname", "event", "provider", "key", "task_id", "sent", "error")
    own = [vars(record) for record in caplog.records if record.name == "sora_chars.session"]
    return [{name: record[name] for name in facts if name in record} for record in own]


FACTS = {"provider": "fake", "key": "mine"}
OUTLIVED = FACTS | {"levelname": "WARNING", "event": "submission.outlived_its_caller", "task_id": "t1"}
CANCELLED = FACTS | {"event": "submission.cancelled"}


async def test_cancelling_before_sending_sends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A request whose caller is cancelled while it waits for its slot is not sent."""
    caplog.set_level("INFO")
    provider = FakeProvider()
    async with session_of(provider) as session:
        await cancel_after(5, session)
        await asyncio.sleep(60)
    assert provider.posts == []
    assert events(caplog) == [CANCELLED | {"levelname": "INFO", "sent": False}]


async def test_cancelling_after_sending_logs_the_task_id(caplog: pytest.LogCaptureFixture) -> None:
    """A sent request is completed although its caller was cancelled, and the log names the task."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(15, session)
        assert events(caplog) == []
        await asyncio.sleep(10)
        assert events(caplog) == [OUTLIVED]
        assert session.resume("t1").snapshot


async def test_cancelling_while_polling_logs_the_task_id(caplog: pytest.LogCaptureFixture) -> None:
    """If `create` is cancelled while its task runs, the log names the task."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(25, session)
        assert events(caplog) == [OUTLIVED]


async def test_failure_without_a_caller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown outcome whose caller was cancelled is logged as an error with its key."""
    async with session_of(FakeProvider(fault=NoAnswerError("reset"))) as session:
        await cancel_after(15, session)
    [event] = events(caplog)
    assert "reset" in event.pop("error")
    assert event == FACTS | {"levelname": "ERROR", "event": "submission.failed"}


async def test_closing_waits_for_sent_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Closing waits for the response to a request whose caller was cancelled."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(15, session)
    assert asyncio.get_running_loop().time() == 20
    assert events(caplog) == [OUTLIVED]


async def test_openings_and_closings_follow_each_other() -> None:
    """A second closing waits for the first one, and an opening during it happens afterwards, on the same ledger."""
    loop = asyncio.get_running_loop()
    ended: list[tuple[str, float]] = []
    session = await session_of(FakeProvider()).open()
    await cancel_after(15, session)

    async def note(name: str, change: Coroutine[Any, Any, object]) -> None:
        await change
        ended.append((name, loop.time()))

    await asyncio.gather(
        note("first", session.aclose()), note("second", session.aclose()), note("open", session.open())
    )
    assert ended == [("first", 20), ("second", 20), ("open", 20)]
    assert session.is_open
    assert (await session.create(**REQUEST)).id == "ch_1"
    await session.aclose()
    assert not session.is_open


async def test_a_provider_may_close_its_session() -> None:
    """A session that its provider closes while it is closed itself does not wait for itself."""

    class ClosingProvider(FakeProvider):
        async def __aexit__(self, *_: object) -> None:
            await session.aclose()
            await super().__aexit__(None, None, None)

    session = session_of(ClosingProvider())
    async with asyncio.timeout(1), session:
        assert session.is_open
    assert not session.is_open


async def test_closing_waits_at_most_the_shutdown_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """Closing abandons a request after `shutdown_timeout` seconds and logs its key."""
    async with session_of(FakeProvider(after=1000), shutdown_timeout=7.0) as session:
        await cancel_after(15, session)
    assert asyncio.get_running_loop().time() == 22
    assert events(caplog) == [CANCELLED | {"levelname": "ERROR", "sent": True}]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_returns_the_handle_to_its_caller() -> None:
    """A caller that waits during closing receives its handle, whose wait raises."""
    async with session_of(FakeProvider()) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
    handle = await submitting
    assert handle.task_id == "t1"
    with pytest.raises(WatcherStoppedError):
        await handle


async def test_closing_before_sending_raises_session_closed() -> None:
    """The caller of an unsent request receives an error instead of a cancellation."""
    provider = FakeProvider()
    async with session_of(provider) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(5)
    with pytest.raises(SessionClosedError, match=r"closed before this request was sent. Nothing was sent"):
        await submitting
    assert provider.posts == []


async def test_closing_before_the_response_raises_unknown_outcome() -> None:
    """The caller of a request that closing abandons receives an unknown outcome with its key."""
    async with session_of(FakeProvider(after=1000), shutdown_timeout=1.0) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
    with pytest.raises(SubmissionUnknownError, match=r"key mine.*closed before an answer arrived") as caught:
        await submitting
    assert caught.value.key == "mine"


@attrs.frozen
class BrokenInterval(PollingStrategy):
    """Polling strategy that raises."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy`."""
        raise ZeroDivisionError(snapshot, age)


async def test_broken_polling_strategy_keeps_the_task_id() -> None:
    """A polling strategy that raises ends the wait, but the caller still receives the task id."""
    async with CharacterSession(FakeProvider(), polling=BrokenInterval()) as session:
        handle = await session.submit(**REQUEST)
        assert handle.task_id == "t1"
        with pytest.raises(WatcherStoppedError, match="ZeroDivisionError"):
            await handle


async def test_closing_session_rejects_requests() -> None:
    """A request made while the session waits for its last responses is rejected and not sent."""
    provider = FakeProvider()
    session = await session_of(provider).open()
    first = asyncio.create_task(session.submit(**REQUEST))
    await asyncio.sleep(15)
    closing = asyncio.create_task(session.aclose())
    await asyncio.sleep(1)
    with pytest.raises(SessionClosedError):
        await session.submit(**REQUEST)
    await closing
    assert (await first).task_id == "t1"
    assert len(provider.posts) == 1


async def test_cancelled_close_leaves_no_asyncio_task() -> None:
    """Cancelling `aclose` while it waits for responses abandons them and closes the session."""
    session = await session_of(FakeProvider(after=1000)).open()
    submitting = asyncio.create_task(session.submit(**REQUEST))
    await asyncio.sleep(15)
    closing = asyncio.create_task(session.aclose())
    await asyncio.sleep(1)
    closing.cancel()
    await asyncio.wait([closing, submitting])
    assert closing.cancelled()
    assert isinstance(submitting.exception(), SubmissionUnknownError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(SessionClosedError):
        await session.submit(**REQUEST)
