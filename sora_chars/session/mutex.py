"""A lock for the methods of one object that must not run at the same time in one event loop."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")


@attrs.define(eq=False)
class Mutex:
    """A lock that is not bound to an event loop: an object may be used in one loop after another."""

    _holder: asyncio.Future[None] | None = None
    _asyncio_task: asyncio.Task[Any] | None = None

    @property
    def is_held_here(self) -> bool:
        """Whether the present asyncio task holds the lock, and would wait for itself."""
        return self._holder is not None and self._asyncio_task is asyncio.current_task()

    async def acquire(self) -> asyncio.Future[None]:
        """Wait until the lock is free in this event loop, and take it. The result is passed to `release`."""
        loop = asyncio.get_running_loop()
        while self._holder and self._holder.get_loop() is loop:  # that of another loop is not waited for
            await asyncio.wait((self._holder,))
        self._holder = loop.create_future()
        self._asyncio_task = asyncio.current_task()
        return self._holder

    def release(self, holder: asyncio.Future[None]) -> None:
        """Free the lock."""
        if self._holder is holder:
            self._holder = self._asyncio_task = None
        if not holder.get_loop().is_closed():
            holder.set_result(None)


class HasMutex(Protocol):
    """An object with a lock for its exclusive methods."""

    _mutex: Mutex


S = TypeVar("S", bound=HasMutex)


def exclusive(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a method that first waits for the other exclusive methods of its object to end."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._mutex.is_held_here:  # such as a provider that closes the session when it is closed itself
            return await method(self, *args, **kwargs)
        holder = await self._mutex.acquire()
        try:
            return await method(self, *args, **kwargs)
        finally:
            self._mutex.release(holder)

    return call
