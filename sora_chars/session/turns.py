"""Lets the openings and closings of one session follow each other, whichever asyncio tasks ask for them."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="TakesTurns")


@attrs.define(eq=False)
class Turns:
    """The turn of an asyncio task, until it ends; the others wait."""

    _present: asyncio.Future[None] | None = None

    async def begin(self) -> asyncio.Future[None]:
        """Wait for the turns before, and begin one."""
        loop = asyncio.get_running_loop()
        while self._present and self._present.get_loop() is loop:  # that of another loop is not waited for
            await asyncio.wait((self._present,))
        self._present = loop.create_future()
        return self._present

    def end(self, turn: asyncio.Future[None]) -> None:
        """End a turn."""
        if self._present is turn:
            self._present = None
        turn.set_result(None)


class TakesTurns(Protocol):
    """What has turns."""

    _turns: Turns


def in_turn(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a method that waits until the other decorated methods of its object have ended."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        turn = await self._turns.begin()
        try:
            return await method(self, *args, **kwargs)
        finally:
            self._turns.end(turn)

    return call
