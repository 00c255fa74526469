"""Callbacks of Kling: parsing and verification as plain functions. No network, no clock.

Kling posts at every change of a task's state, so most callbacks are not final. Elements
send the bare record of a poll, and newer routes another form. Both are read. Callbacks
are signed, by Standard Webhooks, once the account has a webhook secret.

Source: Kling docs, "Callback" (September 2026).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .kling_codec import claimed_task, read_snapshot
from .record_callback import read_event
from .standard_webhooks import check_signature, webhook_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .kie_callback import CallbackEvent

__all__ = ["read_callback", "webhook_key"]


def read_callback(
    headers: Mapping[str, str], body: bytes, *, now: float, key: bytes | None, tolerance: float, provider: str
) -> CallbackEvent:
    """Parse a callback, and check its signature if there is a key.

    Raises:
        InvalidCallbackError: Status 400 if the body is not a callback, 401 if the signature or the
            timestamp is wrong.
    """
    if key is not None:
        check_signature(headers, body, key=key, now=now, tolerance=tolerance)
    return read_event(body, claimed=claimed_task, read=partial(read_snapshot, provider=provider), provider=provider)
