"""A thread that runs the event loop of `sora_chars.sync`. Each process has its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import select
import selectors
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakSet

from .errors import SessionClosedError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

T = TypeVar("T")

_WAKE_UP_INTERVAL = 0.5 if sys.platform == "win32" else None  # seconds; there a waiting thread sees no Ctrl-C


class Closes(Protocol):
    """What is closed before the thread ends."""

    def close(self) -> None:
        """Close it."""
        ...


class LoopThread:
    """A thread that runs one event loop until the interpreter exits."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.has_ended = False
        self.sessions: WeakSet[Closes] = WeakSet()
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)  # the default one of Windows does not work with psycopg
        # A daemon: the interpreter joins other threads before it calls `close`, which ends this one.
        self._thread = threading.Thread(target=self._loop.run_forever, name="sora_chars sync", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the context of the caller, and return its result."""
        if self.is_current():
            coroutine.close()
            raise WrongLoopError(
                "A call of sora_chars.sync would wait for the event loop that it runs in.",
                hint="Use `await` and the session of sora_chars there, such as in an observer or a polling strategy.",
            )
        if self.has_ended:
            coroutine.close()
            raise SessionClosedError(
                "The interpreter is exiting, and all sessions of sora_chars.sync are closed.",
                hint="Register the `atexit` function that uses one after the first call of the session.",
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return _result(future)
        finally:
            future.cancel()  # of a call that was interrupted; the others have ended

    def is_current(self) -> bool:
        """Whether the caller runs in this thread, where it cannot wait for the event loop."""
        return threading.current_thread() is self._thread

    def let_go(self) -> None:
        """In a forked process, replace the parent's epoll object and connections, which it shares.

        A process that ends closes its connections. Here that would tell the parent's epoll object to ignore those of
        the parent, which would then wait for responses in vain, and could write to them.
        """
        if sys.platform == "linux":  # pragma: no branch # a forked process does not inherit the kqueue of macOS
            with select.epoll() as own:
                os.dup2(own.fileno(), self._selector.fileno(), inheritable=False)
        with open(os.devnull) as nothing:  # noqa: PTH123 # only its file descriptor is of interest
            for registered in self._selector.get_map().values():
                os.dup2(nothing.fileno(), registered.fd, inheritable=False)

    def close(self) -> None:
        """Close the open sessions and end the thread. Does nothing in a forked process, which has no such thread."""
        if self.process != os.getpid():
            return
        try:
            with ExitStack() as stack:  # an error of one does not keep the others open
                for session in list(self.sessions):
                    stack.callback(session.close)
        finally:
            self.has_ended = True
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_all() -> None:
    """End the asyncio tasks that are left, as `asyncio.run` does."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for asyncio_task in others:
        asyncio_task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _result(future: Future[T]) -> T:
    while True:
        with suppress(TimeoutError):
            return future.result(_WAKE_UP_INTERVAL)
        if future.done():  # the coroutine itself raised a TimeoutError
            return future.result()


threads: dict[int, LoopThread] = {}
"""The threads by process id: a fork does not copy threads."""
opening = threading.Lock()
"""Held while a session is opened, and during a fork."""


def _let_go() -> None:
    for thread in threads.values():
        thread.let_go()
    opening.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch # Windows does not fork
    os.register_at_fork(before=opening.acquire, after_in_parent=opening.release, after_in_child=_let_go)


def loop_thread() -> LoopThread:
    """Return the thread of this process; the caller holds `opening`."""
    thread = threads.get(os.getpid())
    if thread is None:
        thread = threads[os.getpid()] = LoopThread()
    return thread
