"""Kling's callbacks: one for every change of a task's state (contracts: Kling, Callback)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Literal

import attrs

from .element_callbacks import ElementCallbacks
from .responses import encoded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .kling_tasks import KlingTask


@attrs.define(eq=False)
class KlingCallbacks(ElementCallbacks):
    """Sends each callback once: no retry policy is published.

    Attributes:
        form: "record" sends the bare record of a poll, "event" the newer form.
        old_secret: An earlier secret that still signs too, during a rotation.
    """

    form: Literal["record", "event"] = "record"
    old_secret: str | None = attrs.field(default=None, repr=False)

    def times(self, task: KlingTask) -> Iterable[float]:
        """Return the present, and each later change of the task's state."""
        return (asyncio.get_running_loop().time(), task.processing_at, task.ends_at)

    def content(self, task: KlingTask) -> bytes:
        """Return the record or the event of the task."""
        return encoded(task.record() if self.form == "record" else task.event())

    def signature(self, task: KlingTask, body: bytes) -> dict[str, str]:
        """Return the headers of Standard Webhooks, if there is a secret."""
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
