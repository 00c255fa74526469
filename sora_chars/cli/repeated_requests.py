"""Shows on the status line why a request is sent again, and when."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from .output import StatusLine

_LOGGER = logging.getLogger("sora_chars.transport")
_SHOWN_FROM = 1.0  # seconds; a shorter wait ends before its text is read


class _StatusHandler(logging.Handler):
    def __init__(self, line: StatusLine) -> None:
        super().__init__(logging.INFO)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Show a wait that is long enough to be noticed."""
        facts = vars(record)
        if facts.get("event") == "request.repeated" and facts["seconds"] >= _SHOWN_FROM:
            self._line.update("{provider}: sending again in {seconds:g} s: {error}".format(**facts))


@contextmanager
def repeated_requests_shown(line: StatusLine) -> Generator[None]:
    """Show repeated requests on the status line."""
    handler = _StatusHandler(line)
    level = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(min(_LOGGER.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
