"""A create's time-out holds to the second until the request was sent, whatever it waits for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import NoAnswerError, ProviderError, RateLimitedError, SubmissionUnknownError, WaitTimeoutError
from sora_chars.ledger import EntryState, Ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from sora_chars.timeouts import submit_deadline
from tests.support.fake_providers import FakeProvider, now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Attempt, Entry

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@attrs.define(eq=False)
class RetryingProvider(FakeProvider):
    """A provider whose creates are rejected without harm again and again, as by a transport that retries."""

    async def submit(self, request: Any, *, key: str, callback_url: str | None, on_send: Any) -> Any:
        """See `Provider`."""
        while True:
            with suppress(ProviderError):
                return await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)


@attrs.define(eq=False)
class StandingStore(MemoryStore):
    """A store that answers no more calls of the methods named."""

    standing: tuple[str, ...] = ()

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        await self._stand("insert")
        return await super().insert(entry)

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """See `LedgerStore`."""
        await self._stand("replace")
        return await super().replace(before, after, archive=archive)

    async def _stand(self, name: str) -> None:
        if name in self.standing:
            await asyncio.sleep(3600)


@asynccontextmanager
async def opened(provider: FakeProvider, *, store: MemoryStore | None = None) -> AsyncGenerator[CharacterSession]:
    """Give a session on a store in memory."""
    async with CharacterSession(
        provider, polling=FixedInterval(10.0), ledger=Ledger(store or MemoryStore()), shutdown_timeout=1.0
    ) as session:
        yield session


@pytest.mark.parametrize("before", [6.0, 3600.0])
async def test_waits_before_sending_count(before: float) -> None:
    """An upload, or a wait for the limits, ends at the time-out. Nothing is sent, and the key can be used again."""
    provider = FakeProvider(before=before)
    async with opened(provider) as session:
        with pytest.raises(WaitTimeoutError, match="was not sent") as caught:
            await session.create(**REQUEST, timeout=5)
        error = caught.value
        assert (now(), provider.posts, error.handle) == (5.0, [], None)
        assert (error.key, error.provider, error.charged, error.may_have_been_paid) == ("mine", "fake", "no", False)
        provider.before = 1.0
        assert (await session.create(**REQUEST, timeout=60)).id == "ch_1"


@pytest.mark.parametrize(
    "fault", [RateLimitedError("slow down", retry_after=3600.0), NoAnswerError("no", harmless=True)]
)
async def test_retries_count(fault: NoAnswerError | RateLimitedError) -> None:
    """Attempts that did no harm end at the time-out, with the last fault in the error."""
    provider = RetryingProvider(before=1.0, after=1.0, fault=fault)
    async with opened(provider) as session:
        with pytest.raises(WaitTimeoutError, match=fault.message) as caught:
            await session.create(**REQUEST, timeout=6.5)
        assert (now(), caught.value.charged, caught.value.retry_after) == (6.5, "no", fault.retry_after)
        entry = await session.entry("mine")
        assert entry
        assert entry.state is EntryState.PENDING


async def test_a_harmless_answer_after_the_deadline_ends_it() -> None:
    """A request under way at the time-out is awaited; if it did nothing, it is not sent again."""
    provider = RetryingProvider(before=1.0, after=10.0, fault=RateLimitedError("slow down"))
    async with opened(provider) as session:
        with pytest.raises(WaitTimeoutError, match="was not sent"):
            await session.create(**REQUEST, timeout=5)
        assert now() == 11.0


async def test_a_sent_request_is_carried_through() -> None:
    """A request whose answer comes after the time-out keeps its task: the error has a live handle."""
    async with opened(FakeProvider(before=1.0, after=30.0)) as session:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.create(**REQUEST, timeout=5)
        error = caught.value
        assert (now(), error.task_id, error.charged) == (31.0, "t1", "yes")
        assert (await error.handle).id == "ch_1"


@pytest.mark.parametrize("standing", ["insert", "replace"])
async def test_a_ledger_that_stands_still(standing: str) -> None:
    """A ledger that does not answer ends the create at the time-out, and nothing is sent."""
    store = StandingStore(standing=(standing,))
    provider = FakeProvider(before=0.0)
    async with opened(provider, store=store) as session:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.create(**REQUEST, timeout=5)
        assert (now(), provider.posts, caught.value.charged, caught.value.key) == (5.0, [], "no", "mine")
        store.standing = ()


async def test_waiting_for_another_sender() -> None:
    """A key that another call is sending is awaited until the time-out, and the error states that."""
    provider = FakeProvider(before=0.0, after=100.0, fault=NoAnswerError("reset"))
    async with opened(provider) as session:
        sending = asyncio.create_task(session.create(**REQUEST))
        await asyncio.sleep(1)
        with pytest.raises(WaitTimeoutError, match="Another process was still sending") as caught:
            await session.create(**REQUEST, timeout=5)
        assert (now(), caught.value.charged) == (6.0, "maybe")
        with pytest.raises(SubmissionUnknownError):
            await sending
    assert len(provider.posts) == 1


async def test_the_deadline_reaches_the_transport() -> None:
    """Connecting gets no more time than the caller has."""
    seen: list[float] = []

    class Noting(FakeProvider):
        async def submit(self, request: Any, *, key: str, callback_url: str | None, on_send: Any) -> Any:
            seen.append(submit_deadline.get())
            return await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)

    async with opened(Noting(before=0.0)) as session:
        await session.create(**REQUEST, timeout=50)
    assert seen == [50.0]
