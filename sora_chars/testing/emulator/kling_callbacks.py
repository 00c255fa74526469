"""Sends Kling's callbacks: one for every change of a task's state (contracts: Kling, Callback)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import time
from typing import TYPE_CHECKING, Literal

import aiohttp
import attrs
from yarl import URL

from .responses import encoded

if TYPE_CHECKING:
    from .counters import Counts
    from .kling_tasks import KlingTask


@attrs.define(eq=False)
class KlingCallbacks:
    """Sends the callbacks of tasks that have a callback URL, once each: no retry policy is published.

    Attributes:
        counts: Counts the callbacks sent and accepted.
        form: "record" sends the bare record of a poll, "event" the newer form.
        secret: The webhook secret, "whsec_..."; None sends callbacks unsigned.
        old_secret: An earlier secret that still signs too, during a rotation.
        lost: Whether callbacks get lost.
        timeout: Real seconds that a receiver has to respond.
    """

    counts: Counts
    form: Literal["record", "event"] = "record"
    secret: str | None = attrs.field(default=None, repr=False)
    old_secret: str | None = attrs.field(default=None, repr=False)
    lost: bool = False
    timeout: float = 15.0
    _client: aiohttp.ClientSession | None = attrs.field(default=None, init=False)
    _timers: list[asyncio.TimerHandle] = attrs.field(factory=list, init=False)
    _running: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    def schedule(self, task: KlingTask) -> None:
        """Send a callback now, and at each later change of the task's state."""
        if task.callback_url is None or self.lost:
            return
        loop = asyncio.get_running_loop()
        times = (loop.time(), task.processing_at, task.ends_at)
        self._timers += [loop.call_at(when, self._start, task) for when in times if when < math.inf]

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
        running = asyncio.create_task(self._post(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _post(self, task: KlingTask) -> None:
        body = encoded(task.record() if self.form == "record" else task.event())
        self.counts.callbacks_sent += 1
        status: int | None = None
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))
        headers = {"Content-Type": "application/json"} | self._signature(task, body)
        url = URL(str(task.callback_url), encoded=True)  # sent verbatim
        try:
            async with self._client.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        task.callbacks.append(status)
        self.counts.callbacks_accepted += status == 200  # noqa: PLR2004 - HTTP

    def _signature(self, task: KlingTask, body: bytes) -> dict[str, str]:
        secrets = [secret for secret in (self.old_secret, self.secret) if secret]
        if not secrets:
            return {}
        timestamp = str(int(time.time()))
        signatures = [sign(secret, task.task_id, timestamp, body) for secret in secrets]
        return {
            "webhook-id": task.task_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(signatures),
        }


def sign(secret: str, id_: str, timestamp: str, body: bytes) -> str:
    """Return a signature of Standard Webhooks: "v1," and base64 of the HMAC-SHA256 over id, timestamp and body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
