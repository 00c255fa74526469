"""The emulator's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .replies import HTML, Reply

if TYPE_CHECKING:
    from .emulator import Emulator


def render(emulator: Emulator) -> Reply:
    """The page as of now."""
    return Reply(
        200, f"<!doctype html><title>Emulator</title><pre>{len(emulator.tasks)} tasks</pre>".encode(), HTML
    )
