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
    from sora_chars.models import TaskSnapshot

pytestmark = pytest.mark.looptime

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


def session_of(provider: FakeProvider, *, shutdown_timeout: float = 30.0) -> CharacterSession:
    """A session that looks every 10 s."""
    return CharacterSession(provider, polling=FixedInterval(10.0), shutdown_timeout=shutdown_timeout)


async def cancel_after(seconds: float, session: CharacterSession) -> None:
    """Begin a create, and cancel it after so many seconds."""
    creating = asyncio.create_task(session.create(**WISH))
    await asyncio.sleep(seconds)
    creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled()


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the session has logged: the event, its level and its facts."""
    facts = ("levelname", "message", "provider", "key", "task_id", "sent", "error")
    own = [vars(record) for record in caplog.records if record.name == "sora_chars.session"]
    return [{name: record[name] for name in facts if name in record} for record in own]


FACTS = {"provider": "fake", "key": "mine"}
OUTLIVED = FACTS | {"levelname": "WARNING", "message": "submission.outlived_its_caller", "task_id": "t1"}
CANCELLED = FACTS | {"message": "submission.cancelled"}


async def test_cancelled_before_sending_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A caller that goes away while its request waits for its turn takes the request along."""
    caplog.set_level("INFO")
    provider = FakeProvider()
    async with session_of(provider) as session:
        await cancel_after(5, session)
        await asyncio.sleep(60)
    assert provider.posts == []
    assert events(caplog) == [CANCELLED | {"levelname": "INFO", "sent": False}]


async def test_cancelled_after_sending_the_id_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A request under way is carried through without its caller, and the log says which task it made."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(15, session)
        assert events(caplog) == []
        await asyncio.sleep(10)
        assert events(caplog) == [OUTLIVED]
        assert session.resume("t1").snapshot


async def test_cancelled_while_waiting_the_id_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A `create` that is cancelled once its task runs has given nobody the id but the log."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(25, session)
        assert events(caplog) == [OUTLIVED]


async def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown outcome without a caller is an error in the log, with its key."""
    async with session_of(FakeProvider(fault=NoAnswerError("reset"))) as session:
        await cancel_after(15, session)
    [event] = events(caplog)
    assert "reset" in event.pop("error")
    assert event == FACTS | {"levelname": "ERROR", "message": "submission.failed"}


async def test_closing_waits_for_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A session that is closed while a request without a caller is under way hears its answer first."""
    async with session_of(FakeProvider()) as session:
        await cancel_after(15, session)
    assert asyncio.get_running_loop().time() == 20
    assert events(caplog) == [OUTLIVED]


async def test_closing_waits_no_longer_than_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    """A request that gets no answer is given up after `shutdown_timeout` seconds, as an error with its key."""
    async with session_of(FakeProvider(after=1000), shutdown_timeout=7.0) as session:
        await cancel_after(15, session)
    assert asyncio.get_running_loop().time() == 22
    assert events(caplog) == [CANCELLED | {"levelname": "ERROR", "sent": True}]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_gives_a_caller_its_handle() -> None:
    """Whoever waits for the answer while the session is closed gets the handle, whose wait says why it ended."""
    async with session_of(FakeProvider()) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
    handle = await submitting
    assert handle.task_id == "t1"
    with pytest.raises(WatcherStoppedError):
        await handle


async def test_closing_before_sending_tells_the_caller_that_nothing_was_sent() -> None:
    """A caller that nobody cancelled gets an error, and no cancellation."""
    provider = FakeProvider()
    async with session_of(provider) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(5)
    with pytest.raises(SessionClosedError, match=r"closed before this request was sent. Nothing was sent"):
        await submitting
    assert provider.posts == []


async def test_closing_before_the_answer_tells_the_caller_that_it_is_unknown() -> None:
    """A caller whose request was sent and given up when closing hears of the doubt, with the key."""
    async with session_of(FakeProvider(after=1000), shutdown_timeout=1.0) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
    with pytest.raises(SubmissionUnknownError, match=r"key mine.*closed before an answer arrived") as caught:
        await submitting
    assert caught.value.key == "mine"


@attrs.frozen
class BrokenPace(PollingStrategy):
    """A pace with a bug."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Fail."""
        raise ZeroDivisionError(snapshot, age)


async def test_a_broken_pace_does_not_lose_the_id() -> None:
    """A pace that raises at the submission ends the wait, and the caller still gets the id that was paid for."""
    async with CharacterSession(FakeProvider(), polling=BrokenPace()) as session:
        handle = await session.submit(**WISH)
        assert handle.task_id == "t1"
        with pytest.raises(WatcherStoppedError, match="ZeroDivisionError"):
            await handle


async def test_a_closing_session_takes_no_more_requests() -> None:
    """What is asked for while a session waits for its last answers is refused, not cut off."""
    provider = FakeProvider()
    session = await session_of(provider).open()
    first = asyncio.create_task(session.submit(**WISH))
    await asyncio.sleep(15)
    closing = asyncio.create_task(session.aclose())
    await asyncio.sleep(1)
    with pytest.raises(SessionClosedError):
        await session.submit(**WISH)
    await closing
    assert (await first).task_id == "t1"
    assert len(provider.posts) == 1


async def test_a_cancelled_closing_still_leaves_nothing() -> None:
    """Cancelled while it waits for answers, closing gives these up and closes all the same."""
    session = await session_of(FakeProvider(after=1000)).open()
    submitting = asyncio.create_task(session.submit(**WISH))
    await asyncio.sleep(15)
    closing = asyncio.create_task(session.aclose())
    await asyncio.sleep(1)
    closing.cancel()
    await asyncio.wait([closing, submitting])
    assert closing.cancelled()
    assert isinstance(submitting.exception(), SubmissionUnknownError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(SessionClosedError):
        await session.submit(**WISH)
