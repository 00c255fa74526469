"""A provider of your own: what it must write, and what the defaults do."""

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
    """A provider as a user would write it, without a network."""

    name = "studio"

    def __init__(self) -> None:
        self.polls: dict[str, int] = {}

    def check(self, request: Request) -> Sequence[str]:
        """Accept every request with a clip."""
        clip = isinstance(request, CharacterRequest) and request.clip is not None
        return [] if clip else ["clip: is required"]

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Start a task."""
        del key, callback_url
        async with on_send():
            task_id = f"task-{len(self.polls)}"
            self.polls[task_id] = 0
        return TaskSnapshot(task_id=task_id, provider=self.name, state="waiting", raw=request)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Finish at the third poll."""
        self.polls[task_id] += 1
        if self.polls[task_id] == 2:
            raise NoAnswerError("the studio is having lunch")
        if self.polls[task_id] < 3:
            return TaskSnapshot(task_id=task_id, provider=self.name, state="rehearsing")
        made = Character(id="c-1", provider=self.name, username="a.b", task_id=task_id)
        return TaskSnapshot(task_id=task_id, provider=self.name, state="success", character=made)


class Bare(Provider):
    """A provider that writes nothing but its name."""

    name = "bare"


@pytest.mark.looptime
async def test_a_provider_takes_less_than_40_lines() -> None:
    """Such a provider makes characters through a session, which checks its limits first."""
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


async def test_defaults_of_a_provider() -> None:
    """Credits, models and polls that a provider does not offer raise an error with its name; the rest is harmless."""
    async with Bare() as bare:  # type: ignore[abstract]  # what a caller without a type checker may do
        for call in (bare.credit(), bare.models(), bare.fetch("t"), bare.lookup("k"), bare.delete("c")):
            with pytest.raises(ConfigurationError, match="bare"):
                await call
        await bare.poll_capacity()
        assert (bare.synchronous, bare.callback_url, bare.accepts, bare.settles) == (False, None, None, None)
        assert bare.check(CharacterRequest(from_task="t")) == ()
