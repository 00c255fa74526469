"""Bounds how often the callbacks of one entry make the provider confirm a task."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import InvalidCallbackError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MIN_INTERVAL = 1.0  # seconds between the confirmations of one entry
_MAX_PER_ENTRY = 2  # one in progress, and one that waits for it


@attrs.define(eq=False)
class _Queue:
    """The confirmations of one entry, by the task id that the callback names."""

    results: dict[str, asyncio.Future[InvalidCallbackError | None]] = attrs.field(factory=dict)
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    ended: float = -math.inf  # loop time


@attrs.define(eq=False)
class Confirmations:
    """Confirms the callbacks of an entry one after the other, at most one a second.

    Callbacks that name the same task share one confirmation. A callback that names a third
    task is rejected with 503, and its sender may repeat it.
    """

    _queues: dict[str, _Queue] = attrs.field(factory=dict)

    async def run(self, key: str, task_id: str, confirm: Callable[[], Awaitable[None]]) -> None:
        """Confirm the callback of the entry `key`, or wait for a confirmation of the same task.

        Raises:
            InvalidCallbackError: What `confirm` raised, or too many tasks wait for their confirmation.
        """
        queue = self._queues.setdefault(key, _Queue())
        if result := queue.results.get(task_id):
            if error := await asyncio.shield(result):
                raise InvalidCallbackError(error.message, status=error.status)
            return
        if len(queue.results) == _MAX_PER_ENTRY:
            raise _busy()
        await self._confirm(key, task_id, confirm)

    async def _confirm(self, key: str, task_id: str, confirm: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        queue = self._queues[key]
        result = queue.results[task_id] = loop.create_future()
        error: InvalidCallbackError | None = _busy()  # for those that share it, if this caller is cancelled
        try:
            async with queue.lock:
                await asyncio.sleep(max(0.0, queue.ended + _MIN_INTERVAL - loop.time()))
                try:
                    await confirm()
                finally:
                    queue.ended = loop.time()
            error = None
        except InvalidCallbackError as rejected:
            error = rejected
            raise
        finally:
            del queue.results[task_id]
            result.set_result(error)
            error = None  # an error refers to this frame by its traceback: a reference cycle
            loop.call_later(_MIN_INTERVAL, self._forget, key, queue)

    def _forget(self, key: str, queue: _Queue) -> None:
        """Forget an entry whose next confirmation need not wait."""
        if not queue.results and asyncio.get_running_loop().time() >= queue.ended + _MIN_INTERVAL:
            self._queues.pop(key, None)


def _busy() -> InvalidCallbackError:
    return InvalidCallbackError("Callback rejected: others of its entry are being confirmed.", status=503)
