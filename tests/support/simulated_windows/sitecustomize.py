"""Takes away from a process what Windows lacks. Python imports this module at its start, if its folder is on the path.

There is no fcntl, no fork, and no event loop that handles signals.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import NoReturn


def _missing(*_: object) -> NoReturn:
    raise NotImplementedError


sys.modules["fcntl"] = None  # type: ignore[assignment] # importing it raises an ImportError
del os.fork, os.register_at_fork
asyncio.SelectorEventLoop.add_signal_handler = _missing  # type: ignore[assignment,method-assign]
