from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

from sora_chars import (
    Character,
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    FixedInterval,
    InvalidRequestError,
    NoAnswerError,
    Provider,
    TaskSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request


class Studio(Provider):
    """A provider of somebody else: three coroutines' worth of code, and no network."""

    name = "studio"

    def __init__(self) -> None:
        self.polls: dict[str, int] = {}

    def check(self, request: Request) -> Sequence[str]:
        """Take anything that has a clip."""
        clip = isinstance(request, CharacterRequest) and request.clip is not None
        return [] if clip else ["clip: is required"]

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """Start a task."""
        del callback_url
        async with on_send():
            task_id = f"task-{len(self.polls)}"
            self.polls[task_id] = 0
        return TaskSnapshot(task_id=task_id, provider=self.name, state="waiting", raw=request)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Be done at the third look."""
        self.polls[task_id] += 1
        if self.polls[task_id] == 2:
            raise NoAnswerError("the studio is having lunch")
        if self.polls[task_id] < 3:
            return TaskSnapshot(task_id=task_id, provider=self.name, state="rehearsing")
        made = Character(id="c-1", provider=self.name, username="a.b", task_id=task_id)
        return TaskSnapshot(task_id=task_id, provider=self.name, state="success", character=made)


class Bare(Provider):
    """A provider that writes nothing of its own."""

    name = "bare"


@pytest.mark.looptime
async def test_anybody_can_write_a_provider() -> None:
    """A provider in under 40 lines makes characters through a session, with its limits checked first."""
    assert len(inspect.getsource(Studio).splitlines()) < 40
    studio = Studio()
    async with CharacterSession(studio, polling=FixedInterval(5.0)) as session:
        with pytest.raises(InvalidRequestError, match="studio: clip: is required"):
            await session.create(from_task="t")
        assert studio.polls == {}
        handle = await session.submit(from_task="t", clip="1,3", name="rex")
        states = [snapshot.state async for snapshot in handle.updates()]
        character = await handle
    assert states == ["waiting", "rehearsing", "success"]
    assert (character.mention, character.name, character.task_id) == ("@a.b", "rex", "task-0")
    assert studio.polls == {"task-0": 3}


async def test_what_a_provider_has_not_says_so() -> None:
    """Credit, models and looks that a provider does not offer are errors that name it; the rest does no harm."""
    async with Bare() as bare:  # type: ignore[abstract]  # what a caller without a type checker may do
        for asked in (bare.credit(), bare.models(), bare.fetch("t")):
            with pytest.raises(ConfigurationError, match="bare"):
                await asked
        await bare.poll_capacity()
        assert (bare.synchronous, bare.callback_url) == (False, None)
        assert bare.check(CharacterRequest(from_task="t")) == ()
