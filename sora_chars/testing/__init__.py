"""A local emulator of the providers, and the tools that test against it.

`Emulator` is a real HTTP server that answers as kie.ai and kkiai.com are documented to.
It imports nothing else of this package, so an error in the SDK cannot hide behind the
same error in the emulator.

The pytest plugin lives here, and every pytest run imports it. Public names are therefore
loaded on first use.
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
