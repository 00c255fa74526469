"""Sends the callbacks of tasks that make elements, for Kling and for its gateways."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import attrs
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .counters import Counts
    from .kling_tasks import KlingTask


@attrs.define(eq=False)
class ElementCallbacks(ABC):
    """Sends the callbacks of tasks that have a callback URL. A provider's class states when, what and how.

    Attributes:
        counts: Counts the callbacks sent and accepted.
        secret: The webhook secret, "whsec_..."; None sends callbacks unsigned.
        lost: Whether callbacks get lost.
        copies: How often each callback is sent.
        timeout: Real seconds that a receiver has to respond.
        retry_delays: Real seconds before each further attempt, after one that was not accepted.
    """

    counts: Counts
    secret: str | None = attrs.field(default=None, kw_only=True, repr=False)
    lost: bool = attrs.field(default=False, kw_only=True)
    copies: int = attrs.field(default=1, kw_only=True)
    timeout: float = attrs.field(default=15.0, kw_only=True)
    retry_delays: tuple[float, ...] = attrs.field(default=(), kw_only=True)
    _client: aiohttp.ClientSession | None = attrs.field(default=None, init=False)
    _timers: list[asyncio.TimerHandle] = attrs.field(factory=list, init=False)
    _running: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    def times(self, task: KlingTask) -> Iterable[float]:
        """Return when callbacks are due, on the event loop's clock: here at the end of the task."""
        return (task.ends_at,)

    @abstractmethod
    def content(self, task: KlingTask) -> bytes:
        """Return the body of a callback."""
        ...

    def signature(self, task: KlingTask, body: bytes) -> dict[str, str]:
        """Return the headers that sign a callback: here none."""
        del task, body
        return {}

    def schedule(self, task: KlingTask) -> None:
        """Send the callbacks of a task when they are due."""
        if task.callback_url is None or self.lost:
            return
        loop = asyncio.get_running_loop()
        self._timers += [loop.call_at(when, self._start, task) for when in self.times(task) if when < math.inf]

    async def deliver(self, task: KlingTask) -> None:
        """Send the callback of a task now."""
        for _ in range(self.copies):
            accepted = await self._post(task)
            for delay in self.retry_delays:
                if accepted:
                    break
                await asyncio.sleep(delay)
                accepted = await self._post(task)

    async def aclose(self) -> None:
        """Drop the callbacks that are not delivered yet, and close the connections."""
        for timer in self._timers:
            timer.cancel()
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def _start(self, task: KlingTask) -> None:
        running = asyncio.create_task(self.deliver(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _post(self, task: KlingTask) -> bool:
        body = self.content(task)
        self.counts.callbacks_sent += 1
        status: int | None = None
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))
        headers = {"Content-Type": "application/json"} | self.signature(task, body)
        url = URL(str(task.callback_url), encoded=True)  # sent verbatim
        try:
            # The receivers of tests have certificates of their own.
            async with self._client.post(url, data=body, headers=headers, allow_redirects=False, ssl=False) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        task.callbacks.append(status)
        self.counts.callbacks_accepted += status == HTTPStatus.OK
        return status is not None and status < HTTPStatus.MULTIPLE_CHOICES
