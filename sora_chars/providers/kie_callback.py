"""Callbacks of kie.ai: parsing and verification as plain functions. No network, no clock.

kie.ai posts the envelope of its job API, `{"code", "msg", "data"}`, when a task has
ended; `data` is a record as recordInfo returns it. The signature covers the task id and
the timestamp, and not the body. A callback therefore only triggers a poll, and the
polled record decides.

Source: kie.ai docs, createTask with `callBackUrl`, and the signature with a
webhookHmacKey.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidCallbackError, MissingCharacterError, printable
from sora_chars.ids import as_id
from sora_chars.redaction import masked_repr
from sora_chars.responses import parse_json

from .kie_codec import read_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.models import TaskSnapshot


@attrs.frozen(kw_only=True)
class CallbackEvent:
    """A callback that was accepted, as its sender wrote it.

    Attributes:
        task_id: The provider's id of the task.
        provider: Name of the provider.
        code: Code of the envelope. It does not decide how the task ended; see `snapshot`.
        message: Message of the envelope.
        raw: The whole body, parsed from JSON.
    """

    task_id: str
    provider: str
    code: int | None
    message: str = attrs.field(repr=masked_repr)
    raw: Mapping[str, Any] = attrs.field(repr=False)

    @cached_property
    def snapshot(self) -> TaskSnapshot | None:
        """The unconfirmed claim of the sender; `handle.result()` returns the confirmed result.

        None if the record is malformed, or claims a success without a character.
        """
        try:
            record = {**_record(self.raw), "taskId": self.task_id}
            return read_snapshot(record, provider=self.provider, wrong=ValueError)
        except (MissingCharacterError, ValueError, RecursionError):
            return None  # the poll that follows reports the error to the waiters


def verify(
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    hmac_key: str | bytes | None,
    tolerance: float = 300.0,
    provider: str = "kie",
) -> CallbackEvent:
    """Parse a callback, and check its signature if there is a key.

    Args:
        headers: Names in lower case, or a mapping that ignores case.
        body: The whole body.
        now: Current time in seconds since the epoch.
        hmac_key: The webhookHmacKey of the kie.ai account; None skips the check.
        tolerance: Seconds by which the signed timestamp may differ from `now`.
        provider: Name of the provider, for the event.

    Raises:
        InvalidCallbackError: Status 400 if the body is not a callback, 401 if the signature or the
            timestamp is wrong.
    """
    try:
        envelope = parse_json(body)
    except ValueError as error:
        raise InvalidCallbackError("Callback rejected: the body is not JSON.") from error
    if not isinstance(envelope, dict):
        raise InvalidCallbackError("Callback rejected: the body is not a JSON object.")
    task_id = _task_id(_record(envelope)) or _task_id(envelope)
    if task_id is None:
        raise InvalidCallbackError("Callback rejected: the body holds no task id.")
    if hmac_key is not None:
        _check_signature(headers, task_id, now=now, hmac_key=hmac_key, tolerance=tolerance)
    code = envelope.get("code")
    return CallbackEvent(
        task_id=task_id,
        provider=provider,
        code=code if isinstance(code, int) else None,
        message=_message(envelope),
        raw=envelope,
    )


def _record(envelope: Mapping[str, Any]) -> Mapping[str, Any]:
    data = envelope.get("data")
    return data if isinstance(data, dict) else envelope


def _task_id(record: Mapping[str, Any]) -> str | None:
    """Return `taskId`, or `task_id` as in kie.ai's own samples, if it is valid in a signature and printable."""
    return as_id(record.get("taskId")) or as_id(record.get("task_id"))


def _message(envelope: Mapping[str, Any]) -> str:
    message = envelope.get("msg") or envelope.get("message")
    return printable(message) if isinstance(message, str) else ""


def _check_signature(
    headers: Mapping[str, str], task_id: str, *, now: float, hmac_key: str | bytes, tolerance: float
) -> None:
    """Check `X-Webhook-Signature`: base64(HMAC-SHA256(key, task id + "." + timestamp)), in constant time."""
    timestamp = headers.get("x-webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise InvalidCallbackError("Callback rejected: it has no timestamp.", status=401)
    key = hmac_key.encode() if isinstance(hmac_key, str) else hmac_key
    digest = hmac.digest(key, f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    # Compared as bytes: compare_digest raises TypeError for text that is not ASCII.
    given = headers.get("x-webhook-signature", "").encode(errors="replace")
    if not hmac.compare_digest(base64.b64encode(digest), given):
        raise InvalidCallbackError("Callback rejected: its signature is wrong.", status=401)
    if not abs(now - int(timestamp)) <= tolerance:  # also rejects a `now` that is NaN
        raise InvalidCallbackError("Callback rejected: its timestamp is too old or too far ahead.", status=401)
