"""The emulator: a real local server that answers as the providers are documented to. And its fixtures.

It imports nothing else of the package, so that it can disagree with it. Names are loaded on first use: the
pytest plugin lives here and is imported by every pytest run of whoever has the package installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .counts import Counts
    from .emulator import Emulator
    from .faults import Fault
    from .tasks import EmulatedTask

__all__ = ["Counts", "EmulatedTask", "Emulator", "Fault"]

_HOMES = {"Counts": "counts", "EmulatedTask": "tasks", "Emulator": "emulator", "Fault": "faults"}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
