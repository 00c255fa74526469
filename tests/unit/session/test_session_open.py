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

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


@attrs.define(eq=False)
class Counted(FakeProvider):
    """A provider that answers at once, and counts who has it open."""

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
    """A session that looks every millisecond."""
    return CharacterSession(*providers, polling=FixedInterval(0.001))


async def test_a_closed_session_says_how_to_open_it() -> None:
    """Before and after its block every use of a session is an error, and closing twice is none."""
    provider = Counted()
    session = session_of(provider)
    await session.aclose()
    for _ in range(2):
        with pytest.raises(SessionClosedError, match=r"not open.*async with"):
            await session.create(**WISH)
        with pytest.raises(SessionClosedError):
            session.resume("t1")
        for use in (session.submit(**WISH), session.credit(), session.models()):
            with pytest.raises(SessionClosedError):
                await use
        async with session:
            assert provider.entered == 1
        await session.aclose()
    assert (provider.entered, provider.posts) == (0, [])


async def test_a_session_opens_once_at_a_time() -> None:
    """Opening an open session is an error; one that was closed opens again."""
    provider = Counted()
    session = await session_of(provider).open()
    with pytest.raises(SessionClosedError, match="open already"):
        await session.open()
    await session.aclose()
    async with session:
        assert (await session.create(**WISH)).id == "ch_1"
    assert provider.entered == 0


async def test_a_provider_that_does_not_open_closes_the_others() -> None:
    """When one provider cannot be entered, those that were are left, and the session stays closed."""

    class Stuck(Counted):
        async def __aenter__(self) -> Self:
            raise WrongLoopError("elsewhere")

    first = Counted("a")
    session = session_of(first, Stuck("b"))
    with pytest.raises(WrongLoopError):
        await session.open()
    assert first.entered == 0
    with pytest.raises(SessionClosedError):
        session.resume("t1")


def test_a_second_event_loop_is_told_before_anything_is_sent() -> None:
    """A session left open by one `asyncio.run` says in the next one whose it is, at every use."""
    provider = Counted()
    session = session_of(provider)
    asyncio.run(_only_open(session))

    async def use() -> None:
        calls = (session.create(**WISH), session.submit(**WISH), session.credit(), session.open(), session.aclose())
        for call in calls:
            with pytest.raises(WrongLoopError, match="another event loop"):
                await call
        with pytest.raises(WrongLoopError):
            session.resume("t1")

    asyncio.run(use())
    assert provider.posts == []


async def _only_open(session: CharacterSession) -> None:
    await session.open()


def test_a_session_opens_in_each_event_loop_in_turn() -> None:
    """Closed in one `asyncio.run`, a session works in the next."""
    session = session_of(Counted())

    async def use() -> str:
        async with session:
            return (await session.create(**WISH)).id

    assert [asyncio.run(use()) for _ in range(2)] == ["ch_1", "ch_1"]


async def test_closing_leaves_no_task_behind() -> None:
    """After the block there is no asyncio task but this one, and every wait has ended with why."""
    async with session_of(Counted(end=math.inf)) as session:
        handle = await session.submit(**WISH)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
    with pytest.raises(WatcherStoppedError, match="closed"):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    """The caller's own error is wrapped in no group."""

    async def program() -> None:
        async with session_of(Counted(end=math.inf)) as session:
            await session.submit(**WISH)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await program()
