"""Lost responses, settled by asking the provider for the task of a key, in virtual time."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import (
    AuthenticationError,
    InvalidRequestError,
    NoAnswerError,
    StaleEntryError,
    SubmissionUnknownError,
    TaskFailedError,
    WaitTimeoutError,
)
from sora_chars.ledger import EntryState
from sora_chars.models import TaskFailure, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, now

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.ledger import Entry
    from sora_chars.models import Request
    from sora_chars.protocols import Settles

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "order-17"}


@attrs.define(eq=False)
class AskedProvider(FakeProvider):
    """A provider that loses its responses, and shows a task under its key from `visible_at` on.

    Attributes:
        visible_at: Seconds from when on the task is shown.
        question: Raised by each lookup.
        found: The state of the task that is shown.
        keys: The keys of the requests sent.
        lookups: Loop times and keys of the questions.
    """

    settles: Settles | None = "lookup"
    fault: Exception | None = attrs.field(factory=lambda: NoAnswerError("the connection was lost"))
    visible_at: float = 0.0
    question: Exception | None = None
    found: str = "waiting"
    keys: list[str] = attrs.field(factory=list)
    lookups: list[tuple[float, str]] = attrs.field(factory=list)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        self.keys.append(key)
        return await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """See `Provider`."""
        self.lookups.append((now(), key))
        await asyncio.sleep(0)
        if self.question:
            raise self.question
        if key not in self.keys or now() < self.visible_at:
            return None
        return self.snapshot(f"t{self.keys.index(key) + 1}", self.found)


def session_of(provider: FakeProvider, **options: Any) -> CharacterSession:
    """Return a session that polls every 10 s."""
    return CharacterSession(provider, polling=FixedInterval(10.0), **options)


async def entry_of(session: CharacterSession) -> Entry:
    """Return the entry of the request."""
    entry = await session.entry("order-17")
    assert entry is not None
    return entry


async def test_lost_response_is_found_at_once() -> None:
    """A create goes on as if its response had come, and nothing is sent twice."""
    provider = AskedProvider()
    async with session_of(provider) as session:
        assert (await session.create(**REQUEST)).id == "ch_1"
        assert (await entry_of(session)).state is EntryState.SUCCEEDED
    assert (len(provider.posts), len(provider.lookups)) == (1, 1)


async def test_task_that_appears_late() -> None:
    """The provider is asked again with growing gaps, since a new task may not be shown yet."""
    provider = AskedProvider(visible_at=60.0)
    async with session_of(provider) as session:
        assert (await session.create(**REQUEST)).id == "ch_1"
    times = [time for time, _ in provider.lookups]
    gaps = [round(after - before) for before, after in pairwise(times)]
    assert gaps == [1, 2, 4, 8, 16, 32]


async def test_task_that_never_appears() -> None:
    """After ten minutes the outcome stays unknown, and the error states what was asked."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError, match=r"was lost\. fake was asked 16 times .*: it shows no task"):
            await session.create(**REQUEST)
        assert 600 <= now() <= 660
        assert (await entry_of(session)).state is EntryState.UNKNOWN
    assert len(provider.posts) == 1


async def test_deadline_ends_the_questions() -> None:
    """The caller's time-out also bounds the questions."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST, timeout=40.0)
        assert 39 <= now() <= 42


@pytest.mark.parametrize("error", [AuthenticationError("no"), NoAnswerError("lost again")])
async def test_question_that_fails(error: Exception) -> None:
    """A question that fails settles nothing, and its reason stands in the error."""
    provider = AskedProvider(question=error)
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError, match=str(error)):
            await session.create(**REQUEST)
        assert (await entry_of(session)).state is EntryState.UNKNOWN


async def test_closing_ends_the_questions() -> None:
    """A session that closes does not wait for a question's gap."""
    provider = AskedProvider(visible_at=1e9)
    session = await session_of(provider).open()
    create = asyncio.create_task(session.create(**REQUEST))
    await asyncio.sleep(100.0)
    await session.aclose()
    assert now() < 101
    with pytest.raises(SubmissionUnknownError):
        await create


async def test_person_settles_it_first() -> None:
    """What a person records while the provider is asked ends the questions."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        create = asyncio.create_task(session.create(**REQUEST))
        await asyncio.sleep(25.0)
        await session.resolve("order-17", task_id="t1")
        assert (await create).id == "ch_1"


async def test_task_that_has_ended() -> None:
    """A task that has ended by the time of the question is recorded with its result."""
    provider = AskedProvider(found="success")
    async with session_of(provider) as session:
        assert (await session.create(**REQUEST)).id == "ch_1"
    assert provider.polls == []


async def test_unknown_entry_is_settled_by_the_same_request() -> None:
    """A request that stayed unknown is asked for again when it is requested again."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST, timeout=30.0)
        provider.visible_at = 0.0
        assert (await session.create(**REQUEST)).id == "ch_1"
    assert len(provider.posts) == 1


async def test_recover_asks_once() -> None:
    """`recover` asks for each unknown entry, and yields the tasks that are found."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST, timeout=30.0)
        asked = len(provider.lookups)
        assert [handle async for handle in session.recover()] == []
        assert len(provider.lookups) == asked + 1
        provider.visible_at = 0.0
        (handle,) = [handle async for handle in session.recover()]
        assert (await handle).id == "ch_1"
    assert len(provider.posts) == 1


async def test_advance_asks_once() -> None:
    """A step waits for one answer at most: it asks once, and leaves the polling to the next steps."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        await session.register(**REQUEST)
        began = time.time()
        steps: list[float | None] = []
        for later in (0.0, 9.0, 99.0, 700.0):
            session.watcher.clock = partial(float, began + later)
            step = await session.advance("order-17")
            assert step.state is EntryState.UNKNOWN
            steps.append(step.retry_in and round(step.retry_in))
        assert steps == [1, 9, 60, None]
        provider.visible_at = 0.0
        step = await session.advance("order-17")
        assert (step.entry.state, step.entry.owner) == (EntryState.RUNNING, None)
    assert len(provider.lookups) == 5


async def test_a_wait_outlasts_an_unknown_outcome() -> None:
    """A wait by the ledger alone goes on while a worker may still settle the outcome, and asks nothing itself."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        await session.register(**REQUEST)
        await session.advance("order-17")
        wait = asyncio.create_task(session.wait("order-17"))
        await asyncio.sleep(90)
        assert (len(provider.lookups), wait.done()) == (1, False)
        provider.visible_at = 0.0
        states = [(await session.advance("order-17")).state for _ in range(2)]
        assert states == [EntryState.RUNNING, EntryState.SUCCEEDED]
        assert (await wait).id == "ch_1"


async def test_a_wait_ends_once_nobody_asks() -> None:
    """Ten minutes after the response was lost, the wait raises; at once where the provider cannot be asked."""
    provider = AskedProvider(visible_at=1e9)
    async with session_of(provider) as session:
        await session.register(**REQUEST)
        await session.advance("order-17")
        began = now()
        with pytest.raises(WaitTimeoutError, match="it is unknown") as caught:
            await session.wait("order-17", timeout=99)
        assert (now() - began, caught.value.charged) == (99, "maybe")
        with pytest.raises(SubmissionUnknownError):
            await session.wait("order-17")
        assert 600 < now() - began <= 700
        provider.settles = None
        began = now()
        with pytest.raises(SubmissionUnknownError):
            await session.wait("order-17")
        assert now() == began


async def test_retry_has_a_key_of_its_own() -> None:
    """An attempt after a failed one is known by another key, so the failed task is not found again."""
    provider = AskedProvider(fault=None)
    provider.seen = TaskSnapshot(task_id="t1", provider="fake", state="fail", failure=TaskFailure(None, "no face"))
    async with session_of(provider) as session:
        with pytest.raises(TaskFailedError):
            await session.create(**REQUEST)
        provider.fault = NoAnswerError("the connection was lost")
        provider.seen = None
        handle = await session.retry("order-17")
        assert handle.task_id == "t2"
    assert provider.keys == ["order-17", "order-17~2"]


async def test_task_of_an_earlier_attempt_is_not_taken() -> None:
    """A lost retry that the provider does not show stays unknown, although the failed task is shown."""
    provider = AskedProvider(fault=None)
    provider.seen = TaskSnapshot(task_id="t1", provider="fake", state="fail", failure=TaskFailure(None, "no face"))
    async with session_of(provider, timeout=60.0) as session:
        with pytest.raises(TaskFailedError):
            await session.create(**REQUEST)
        provider.fault = NoAnswerError("the connection was lost")
        provider.visible_at = 0.0
        provider.keys.append("another")
        original = provider.lookup

        async def forgetful(key: str) -> TaskSnapshot | None:
            return None if key == "order-17~2" else await original(key)

        provider.lookup = forgetful  # type: ignore[method-assign]
        with pytest.raises(SubmissionUnknownError):
            await session.retry("order-17")


async def unknown_session(provider: AskedProvider) -> CharacterSession:
    """Return an open session whose request of key "order-17" is unknown."""
    session = await session_of(provider).open()
    with pytest.raises(SubmissionUnknownError):
        await session.create(**REQUEST, timeout=25)
    return session


async def test_asking_finds_the_task() -> None:
    """`resolve(ask=True)` asks once, and records what the provider shows; `recover` watches it afterwards."""
    provider = AskedProvider(visible_at=100.0)
    session = await unknown_session(provider)
    before = len(provider.lookups)
    with pytest.raises(SubmissionUnknownError, match=r"still unknown\. fake was asked once for this key: it shows no"):
        await session.resolve("order-17", ask=True)
    await asyncio.sleep(100)
    entry = await session.resolve("order-17", ask=True)
    assert (entry.state, entry.task_id, entry.owner) == (EntryState.RUNNING, "t1", None)
    assert len(provider.lookups) == before + 2
    assert [(await handle).id async for handle in session.recover()] == ["ch_1"]
    with pytest.raises(InvalidRequestError, match="order-17 is succeeded, so there is nothing to ask"):
        await session.resolve("order-17", ask=True)
    await session.aclose()
    assert len(provider.posts) == 1


async def test_rejected_question_is_stated() -> None:
    """The provider's answer to the question is part of the error, and the outcome stays unknown."""
    provider = AskedProvider(visible_at=1e9)
    session = await unknown_session(provider)
    provider.question = AuthenticationError("bad key")
    with pytest.raises(SubmissionUnknownError, match="asked once for this key: bad key"):
        await session.resolve("order-17", ask=True)
    assert (await entry_of(session)).state is EntryState.UNKNOWN
    await session.aclose()


async def test_question_needs_a_provider_that_can_be_asked() -> None:
    """Other providers, other decisions beside `ask` and stale versions are errors, and nothing is asked."""
    provider = AskedProvider(visible_at=1e9)
    session = await unknown_session(provider)
    before = len(provider.lookups)
    with pytest.raises(InvalidRequestError, match="ask cannot be combined with give_up"):
        await session.resolve("order-17", ask=True, give_up=True)
    with pytest.raises(StaleEntryError, match="order-17 was changed first"):
        await session.resolve("order-17", ask=True, version=1)
    provider.settles = None
    with pytest.raises(InvalidRequestError, match="ask: fake cannot be asked for the task of a key"):
        await session.resolve("order-17", ask=True)
    assert len(provider.lookups) == before
    await session.aclose()
