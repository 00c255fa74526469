"""The command line.

This module imports the standard library only. It can therefore report that the
packages of the extra `cli` are not installed.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from typing import NoReturn

_REQUIRED = ("click", "platformdirs", "rich")
_INTERRUPTED = 128 + signal.SIGINT


def main() -> NoReturn:
    """Run the console script `sora-chars` and exit with the status of `app.main`."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))  # during the imports there is nothing to lose
    if not all(map(importlib.util.find_spec, _REQUIRED)):
        sys.stderr.write('The command line needs click, platformdirs and rich: pip install "sora-chars[cli]"\n')
        sys.exit(2)
    from .app import main as run  # noqa: PLC0415 # imports the packages checked above
    from .streams import prepare  # noqa: PLC0415 # not needed to report a missing package

    prepare()
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, while the first was reported
        status = _INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # or one during the exit prints a traceback
    sys.exit(status)
