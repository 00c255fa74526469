"""Context variables: those of a request are its caller's, and what serves several requests has none."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.ledger import EntryState, Ledger
from sora_chars.models import CharacterRequest, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from sora_chars.timeouts import submit_deadline
from tests.support.fake_providers import FakeProvider, FaultyStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request

pytestmark = pytest.mark.looptime

trace: ContextVar[str] = ContextVar("trace", default="none")

SEEN: tuple[str, ...] = ("submit", "poll", "poll", "poll")


@attrs.define(eq=False)
class TracedProvider(FakeProvider):
    """Provider that notes the trace of each of its calls, by task id. Each task ends with its third poll."""

    calls: dict[str, list[tuple[str, str]]] = attrs.field(factory=dict)
    capacities: list[str] = attrs.field(factory=list)
    deadlines: list[float] = attrs.field(factory=list)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        del request, callback_url
        async with on_send():
            self.calls[f"task of {key}"] = [("submit", trace.get())]
        return self.snapshot(f"task of {key}", "waiting")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        calls = self.calls[task_id]
        calls.append(("poll", trace.get()))
        self.deadlines.append(submit_deadline.get())
        return self.snapshot(task_id, "success" if len(calls) == len(SEEN) else "generating")

    async def poll_capacity(self) -> int:
        """See `Provider`."""
        self.capacities.append(trace.get())
        return 100


def request_of(key: str) -> CharacterRequest:
    """Return a request of this key."""
    return CharacterRequest(from_task="origin", clip="1,3", prompt="a dog", key=key)


def expected(*traces: str) -> dict[str, list[tuple[str, str]]]:
    """Return the calls of requests whose key is their trace."""
    return {f"task of {name}": [(call, name) for call in SEEN] for name in traces}


async def test_each_poll_runs_in_the_context_of_its_request() -> None:
    """Five requests at once: each is submitted and polled in the context of its own caller."""
    provider = TracedProvider()

    async def create(session: CharacterSession, name: str) -> None:
        trace.set(name)
        await session.create(request_of(name))
        assert trace.get() == name

    names = [f"trace {number}" for number in range(5)]
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await asyncio.gather(*(create(session, name) for name in names))
    assert provider.calls == expected(*names)
    assert set(provider.deadlines) == {float("inf")}, "the deadline of a create is none of its polls'"


async def test_the_scheduler_has_an_empty_context() -> None:
    """The scheduler of a provider, which the first request starts, does not run in that request's context."""
    provider = TracedProvider()
    trace.set("first")
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await session.create(request_of("first"))
    assert set(provider.capacities) == {"none"}


async def test_a_resumed_task_is_polled_in_the_context_of_its_caller() -> None:
    """Polls of a task that was resumed by its id run in the context of the call."""
    provider = TracedProvider(calls={"task of resumed": [("submit", "elsewhere")]})
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        trace.set("resumed")
        handle = session.resume("task of resumed")
        trace.set("later")
        await handle
    assert provider.calls["task of resumed"][1:] == [("poll", "resumed")] * 3


async def test_a_repeated_write_has_an_empty_context() -> None:
    """A write to the ledger that is repeated in the background does not run in the context of a request."""

    @attrs.define(eq=False)
    class TracedStore(FaultyStore):
        writes: list[tuple[EntryState, str]] = attrs.field(factory=list)

        def _check(self, states: set[EntryState], entry: object) -> None:
            self.writes.append((entry.state, trace.get()))  # type: ignore[attr-defined]
            super()._check(states, entry)  # type: ignore[arg-type]

    store = TracedStore(full={EntryState.SUCCEEDED})
    trace.set("request")
    async with CharacterSession(TracedProvider(), ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        await session.create(request_of("request"))
        store.full = set()
        await asyncio.sleep(60)
    ends = [name for state, name in store.writes if state is EntryState.SUCCEEDED]
    assert ends[0] == "request"
    assert ends[-1] == "none"
