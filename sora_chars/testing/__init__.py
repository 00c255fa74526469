"""The emulator: a real local server that answers as the providers are documented to. And its fixtures.

It imports nothing else of the package, so that it can disagree with it. Names are loaded on first use: the
pytest plugin lives here and is imported by every pytest run of whoever has the package installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .emulator.counters import Counts
    from .emulator.faults import Fault
    from .emulator.server import Emulator
    from .emulator.tasks import EmulatedTask

__all__ = ["Counts", "EmulatedTask", "Emulator", "Fault"]

_MODULES = {
    "Counts": "emulator.counters",
    "EmulatedTask": "emulator.tasks",
    "Emulator": "emulator.server",
    "Fault": "emulator.faults",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
