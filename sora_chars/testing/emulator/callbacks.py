"""Sends callbacks: when they are due, how they are signed, and how they are retried."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import attrs
from yarl import URL

from .faults import KINDS, FaultRegistry, PlannedPost
from .responses import compact, encoded
from .tasks import Delivery, EmulatedTask

if TYPE_CHECKING:
    from .counters import Counts
    from .faults import Fault

logger = logging.getLogger(__name__)

RETRY_DELAYS = (1.0, 2.0, 4.0)
"""Emulated seconds; "after 3 failed retries it stops" (contracts: kie.ai, Callback)."""


@attrs.define(eq=False)
class CallbackSender:
    """Sends the callback of every finished task that has a callback URL.

    The sender owns its timers, asyncio tasks and connections.

    Attributes:
        faults: Consulted for faults of callbacks.
        counts: Counts the callbacks sent and accepted.
        speed: Emulated seconds per real second; divides the retry delays.
        hmac_key: Signs callbacks; None sends them unsigned.
        timeout: Real seconds that a receiver has to respond.
    """

    faults: FaultRegistry
    counts: Counts
    speed: float
    hmac_key: str | None = attrs.field(repr=False)
    timeout: float = 15.0
    _client: aiohttp.ClientSession | None = attrs.field(default=None, init=False)
    _timers: dict[str, asyncio.TimerHandle] = attrs.field(factory=dict, init=False)
    _running: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _faults_by_task: dict[str, list[Fault]] = attrs.field(factory=dict, init=False)

    def add_task_fault(self, task: EmulatedTask, fault: Fault) -> None:
        """Apply a fault to the callback of this task only."""
        self._faults_by_task.setdefault(task.task_id, []).append(fault)

    def schedule(self, task: EmulatedTask) -> None:
        """Send the task's callback when the task ends.

        Call it again when the end of the task has changed.
        """
        if task.callback_url is None:
            return
        if (timer := self._timers.pop(task.task_id, None)) is not None:
            timer.cancel()
        if task.ends_at != float("inf"):
            loop = asyncio.get_running_loop()
            self._timers[task.task_id] = loop.call_at(task.ends_at, self._start, task)

    async def deliver(self, task: EmulatedTask) -> None:
        """Send every planned POST of the task's callback, with retries.

        Only the first call for a task sends anything.
        """
        if task.callback_started:
            return
        task.callback_started = True
        posts = [PlannedPost()]
        for fault in [*self._faults_by_task.pop(task.task_id, []), *self.faults.take("callback")]:
            plan = KINDS[fault.kind].plan
            posts = posts if plan is None else plan(posts, fault)
        for post in posts:
            await asyncio.sleep(post.delay)
            await self._post_with_retries(task, post)

    async def aclose(self) -> None:
        """Drop the callbacks that are not delivered yet, and close the connections."""
        for timer in self._timers.values():
            timer.cancel()
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def _start(self, task: EmulatedTask) -> None:
        del self._timers[task.task_id]
        task.end()  # the timer may fire one clock tick before the task's end
        running = asyncio.create_task(self.deliver(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _post_with_retries(self, task: EmulatedTask, post: PlannedPost) -> None:
        attempt = 1
        while not await self._post(task, post, attempt) and attempt <= len(RETRY_DELAYS) and not post.forged:
            await asyncio.sleep(RETRY_DELAYS[attempt - 1] / self.speed)
            attempt += 1

    async def _post(self, task: EmulatedTask, post: PlannedPost, attempt: int) -> bool:
        self.counts.callbacks_sent += 1
        body = encoded(envelope(task, forged=post.forged is not None))
        text = str(task.callback_url)
        url = URL(wrong_token(text) if post.forged == "token" else text, encoded=True)  # sent verbatim
        status: int | None = None
        try:
            async with self._session().post(
                url, data=body, headers=self._headers(task, post), allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.info("emulator_callback_failed", extra={"task_id": task.task_id, "error": type(error).__name__})
        task.deliveries.append(Delivery(attempt, status, forged=post.forged is not None))
        self.counts.callbacks_accepted += status == HTTPStatus.OK
        return status == HTTPStatus.OK

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))
        return self._client

    def _headers(self, task: EmulatedTask, post: PlannedPost) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        key = "forged" if post.forged == "signature" else self.hmac_key
        if key is not None:
            timestamp = str(int(time.time()))
            headers |= {
                "X-Webhook-Timestamp": timestamp,
                "X-Webhook-Signature": sign(key, task.task_id, timestamp),
            }
        return headers


def sign(key: str, task_id: str, timestamp: str) -> str:
    """Return base64(HMAC-SHA256(key, task id + "." + Unix seconds)).

    The body is not signed (contracts: kie.ai).
    """
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def envelope(task: EmulatedTask, *, forged: bool = False) -> dict[str, object]:
    """Return the body of a callback.

    A forged callback claims success, with a character id that does not exist.
    """
    data = task.data()
    if forged:
        data |= {"state": "success", "resultJson": compact({"character_id": "ch_forged"}), "failCode": None}
    if data["state"] == "success":
        return {"code": 200, "msg": "Playground task completed successfully.", "data": data}
    return {"code": 501, "msg": "Playground task failed.", "data": data | {"resultJson": None}}


def wrong_token(url: str) -> str:
    """Return the URL with every part that may be a token reversed."""
    return re.sub(r"[\w-]{16,}", lambda match: match[0][::-1], url)
