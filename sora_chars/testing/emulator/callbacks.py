"""Callbacks: when they come, how they are signed, and the retries when a receiver does not answer 200."""

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

from .faults import KINDS, FaultBox, Post
from .responses import compact, encoded
from .tasks import Delivery, EmulatedTask

if TYPE_CHECKING:
    from .counters import Counts
    from .faults import Fault

logger = logging.getLogger(__name__)

RETRY_DELAYS = (1.0, 2.0, 4.0)
"""Emulated seconds; "after 3 failed retries it stops" (contracts: kie.ai, Callback)."""


@attrs.define(eq=False)
class Courier:
    """Delivers callbacks, of final states only; owns its timers, asyncio tasks and connections."""

    faults: FaultBox
    counts: Counts
    speed: float
    hmac_key: str | None = attrs.field(repr=False)
    timeout: float = 15.0
    """Real seconds that a receiver has to answer."""
    _client: aiohttp.ClientSession | None = attrs.field(default=None, init=False)
    _timers: dict[str, asyncio.TimerHandle] = attrs.field(factory=dict, init=False)
    _running: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _bound: dict[str, list[Fault]] = attrs.field(factory=dict, init=False)

    def bind(self, task: EmulatedTask, fault: Fault) -> None:
        """Let a fault strike the callback of this task alone."""
        self._bound.setdefault(task.task_id, []).append(fault)

    def expect(self, task: EmulatedTask) -> None:
        """Deliver the task's callback when it ends; called again when its end has moved."""
        if task.callback_url is None:
            return
        if (timer := self._timers.pop(task.task_id, None)) is not None:
            timer.cancel()
        if task.done_at != float("inf"):
            loop = asyncio.get_running_loop()
            self._timers[task.task_id] = loop.call_at(task.done_at, self._start, task)

    async def deliver(self, task: EmulatedTask) -> None:
        """Make every planned POST of the task's callback, in order, with retries; once, whoever asks."""
        if task.notified:
            return
        task.notified = True
        posts = [Post()]
        for fault in [*self._bound.pop(task.task_id, []), *self.faults.take("callback")]:
            plan = KINDS[fault.kind].plan
            posts = posts if plan is None else plan(posts, fault)
        for post in posts:
            await asyncio.sleep(post.delay)
            await self._insist(task, post)

    async def aclose(self) -> None:
        """Drop what is not delivered yet."""
        for timer in self._timers.values():
            timer.cancel()
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def _start(self, task: EmulatedTask) -> None:
        del self._timers[task.task_id]
        task.end()  # a timer may fire a clock tick early
        running = asyncio.create_task(self.deliver(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _insist(self, task: EmulatedTask, post: Post) -> None:
        attempt = 1
        while not await self._post(task, post, attempt) and attempt <= len(RETRY_DELAYS) and not post.forged:
            await asyncio.sleep(RETRY_DELAYS[attempt - 1] / self.speed)
            attempt += 1

    async def _post(self, task: EmulatedTask, post: Post, attempt: int) -> bool:
        self.counts.callbacks_sent += 1
        body = encoded(envelope(task, forged=post.forged is not None))
        text = str(task.callback_url)
        url = URL(wrong_token(text) if post.forged == "token" else text, encoded=True)  # comes back verbatim
        status: int | None = None
        try:
            async with self._session().post(
                url, data=body, headers=self._headers(task, post), allow_redirects=False
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.info("emulator_callback_failed", extra={"task_id": task.task_id, "error": type(error).__name__})
        task.deliveries.append(Delivery(attempt, status, forged=post.forged is not None))
        self.counts.callbacks_accepted += status == HTTPStatus.OK
        return status == HTTPStatus.OK

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))
        return self._client

    def _headers(self, task: EmulatedTask, post: Post) -> dict[str, str]:
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
    """base64(HMAC-SHA256(key, task id + "." + unix seconds)). The body is not signed (contracts: kie.ai)."""
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def envelope(task: EmulatedTask, *, forged: bool = False) -> dict[str, object]:
    """The body of a callback. A forged one claims success with a character that is not there."""
    data = task.data()
    if forged:
        data |= {"state": "success", "resultJson": compact({"character_id": "ch_forged"}), "failCode": None}
    if data["state"] == "success":
        return {"code": 200, "msg": "Playground task completed successfully.", "data": data}
    return {"code": 501, "msg": "Playground task failed.", "data": data | {"resultJson": None}}


def wrong_token(url: str) -> str:
    """The URL with everything that could be an unguessable token turned around."""
    return re.sub(r"[\w-]{16,}", lambda match: match[0][::-1], url)
