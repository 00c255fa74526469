"""Opening and closing sessions, in one event loop and in several."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Self

import attrs
import pytest

from sora_chars.errors import SessionClosedError, WatcherStoppedError, WrongLoopError
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from types import TracebackType

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


@attrs.define(eq=False)
class CountingProvider(FakeProvider):
    """Provider that responds at once and counts how often it is open."""

    before: float = 0.0
    after: float = 0.0
    entered: int = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.entered -= 1


def session_of(*providers: FakeProvider) -> CharacterSession:
    """Return a session that polls every millisecond."""
    return CharacterSession(*providers, polling=FixedInterval(0.001))


async def test_using_a_closed_session_raises() -> None:
    """The error of every use outside the block shows how to open the session."""
    provider = CountingProvider()
    session = session_of(provider)
    await session.aclose()
    for _ in range(2):
        with pytest.raises(SessionClosedError, match=r"not open.*async with"):
            await session.create(**REQUEST)
        with pytest.raises(SessionClosedError):
            session.resume("t1")
        for call in (session.submit(**REQUEST), session.credit(), session.models()):
            with pytest.raises(SessionClosedError):
                await call
        async with session:
            assert provider.entered == 1
        await session.aclose()
    assert (provider.entered, provider.posts) == (0, [])


async def test_reopens_only_after_closing() -> None:
    """Opening an open session raises, and a closed session can be opened again."""
    provider = CountingProvider()
    session = await session_of(provider).open()
    with pytest.raises(SessionClosedError, match="open already"):
        await session.open()
    await session.aclose()
    async with session:
        assert (await session.create(**REQUEST)).id == "ch_1"
    assert provider.entered == 0


async def test_failed_open_closes_the_other_providers() -> None:
    """If a provider cannot be opened, the others are closed, and the session stays closed."""

    class UnopenableProvider(CountingProvider):
        async def __aenter__(self) -> Self:
            raise WrongLoopError("elsewhere")

    first = CountingProvider("a")
    session = session_of(first, UnopenableProvider("b"))
    with pytest.raises(WrongLoopError):
        await session.open()
    assert first.entered == 0
    with pytest.raises(SessionClosedError):
        session.resume("t1")


def test_rejects_use_in_another_event_loop() -> None:
    """Every use of a session that another event loop has open raises before anything is sent."""
    provider = CountingProvider()
    session = session_of(provider)
    asyncio.run(_open(session))

    async def use() -> None:
        calls = (
            session.create(**REQUEST),
            session.submit(**REQUEST),
            session.credit(),
            session.open(),
            session.aclose(),
        )
        for call in calls:
            with pytest.raises(WrongLoopError, match="another event loop"):
                await call
        with pytest.raises(WrongLoopError):
            session.resume("t1")

    asyncio.run(use())
    assert provider.posts == []


async def _open(session: CharacterSession) -> None:
    await session.open()


def test_reopens_in_another_event_loop() -> None:
    """A session that was closed in one `asyncio.run` works in the next."""
    session = session_of(CountingProvider())

    async def use() -> str:
        async with session:
            return (await session.create(**REQUEST)).id

    assert [asyncio.run(use()) for _ in range(2)] == ["ch_1", "ch_1"]


async def test_closing_leaves_no_asyncio_task() -> None:
    """Closing ends every wait with its reason and leaves no asyncio task."""
    async with session_of(CountingProvider(end=math.inf)) as session:
        handle = await session.submit(**REQUEST)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
    with pytest.raises(WatcherStoppedError, match="closed"):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_error_in_the_block_is_not_wrapped() -> None:
    """An error raised inside the block is not wrapped in an exception group."""

    async def program() -> None:
        async with session_of(CountingProvider(end=math.inf)) as session:
            await session.submit(**REQUEST)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await program()
