"""A server of a folder's files on loopback, which logs nothing."""

from __future__ import annotations

from http.server import SimpleHTTPRequestHandler
from typing import Any


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the name of the base class
        """Log nothing."""
