"""Callbacks whose body is the record that a poll returns: one event for all providers that send them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import InvalidCallbackError, MissingCharacterError, printable
from sora_chars.responses import parse_json

from .kie_callback import CallbackEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sora_chars.models import TaskSnapshot

    Claimed = Callable[[Any], tuple[str, Mapping[str, Any]] | None]
    """Returns the task id and the record in a parsed body; None if it holds none."""
    ReadSnapshot = Callable[[Mapping[str, Any]], TaskSnapshot]
    """Returns the snapshot in a record."""


@attrs.frozen(kw_only=True)
class RecordCallbackEvent(CallbackEvent):
    """A callback with the record of a task. `raw` is the whole body."""

    record: Mapping[str, Any] = attrs.field(repr=False)
    read: ReadSnapshot = attrs.field(repr=False, eq=False)

    @cached_property
    def snapshot(self) -> TaskSnapshot | None:
        """The unconfirmed claim of the sender; None if it claims a success without a character."""
        try:
            return self.read(self.record)
        except MissingCharacterError:
            return None


def read_event(body: bytes, *, claimed: Claimed, read: ReadSnapshot, provider: str) -> CallbackEvent:
    """Parse the body of a callback, with every digit of its integers.

    Raises:
        InvalidCallbackError: Status 400. It is not JSON, or holds no task id.
    """
    try:
        content = parse_json(body, exact_integers=True)
    except ValueError as error:
        raise InvalidCallbackError("Callback rejected: the body is not JSON.") from error
    claim = claimed(content)
    if claim is None:
        raise InvalidCallbackError("Callback rejected: the body holds no task id.")
    task_id, record = claim
    message = record.get("task_status_msg") or record.get("error") or ""
    if isinstance(message, dict):
        message = message.get("message")
    return RecordCallbackEvent(
        task_id=task_id,
        provider=provider,
        code=None,
        message=printable(message) if isinstance(message, str) else "",
        raw=content,
        record=record,
        read=read,
    )
