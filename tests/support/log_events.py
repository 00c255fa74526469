"""The events of captured log records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable


def event_of(record: logging.LogRecord) -> str:
    """Return the name of a record's event; for records of other packages their message."""
    event: str = vars(record).get("event") or record.getMessage()
    return event


def events(records: Iterable[logging.LogRecord]) -> list[str]:
    """Return the names of all records."""
    return [event_of(record) for record in records]
