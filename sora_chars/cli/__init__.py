"""The command line.

This module imports the standard library only. It can therefore report that the
packages of the extra `cli` are not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn

_REQUIRED = ("click", "platformdirs", "rich")


def main() -> NoReturn:
    """Run the console script `sora-chars` and exit with the status of `app.main`."""
    if not all(map(importlib.util.find_spec, _REQUIRED)):
        sys.stderr.write('The command line needs click, platformdirs and rich: pip install "sora-chars[cli]"\n')
        sys.exit(2)
    from .app import main as run  # noqa: PLC0415 # imports the packages checked above

    sys.exit(run(sys.argv[1:]))
