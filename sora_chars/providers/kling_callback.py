"""Callbacks of Kling: parsing and verification as plain functions. No network, no clock.

Kling posts at every change of a task's state, so most callbacks are not final. Elements
send the bare record of a poll, and newer routes another form. Both are read. Callbacks
are signed, by Standard Webhooks, once the account has a webhook secret.

Source: Kling docs, "Callback" (September 2026).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidCallbackError, MissingCharacterError, printable
from sora_chars.responses import parse_json

from .kie_callback import CallbackEvent
from .kling_codec import claimed_task, read_snapshot
from .standard_webhooks import check_signature, webhook_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.models import TaskSnapshot

__all__ = ["read_callback", "webhook_key"]


@attrs.frozen(kw_only=True)
class KlingCallbackEvent(CallbackEvent):
    """A callback of Kling. `raw` is the whole body."""

    record: Mapping[str, Any] = attrs.field(repr=False)

    @cached_property
    def snapshot(self) -> TaskSnapshot | None:
        """The unconfirmed claim of the sender; None if it claims a success without an element."""
        try:
            return read_snapshot(self.record, provider=self.provider)
        except MissingCharacterError:
            return None


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
    try:
        content = parse_json(body, exact_integers=True)
    except ValueError as error:
        raise InvalidCallbackError("Callback rejected: the body is not JSON.") from error
    claim = claimed_task(content)
    if claim is None:
        raise InvalidCallbackError("Callback rejected: the body holds no task id.")
    task_id, record = claim
    message = record.get("task_status_msg")
    return KlingCallbackEvent(
        task_id=task_id,
        provider=provider,
        code=None,
        message=printable(message) if isinstance(message, str) else "",
        raw=content,
        record=record,
    )
