"""The command line. This module imports only the standard library, so that it can say what is not installed."""

from __future__ import annotations

import sys
from typing import NoReturn

_NEEDED = {"click", "platformdirs", "rich"}


def main() -> NoReturn:
    """Run the console script `sora-chars` and exit; `app.main` says with which status."""
    try:
        from .app import main as run  # noqa: PLC0415 # imports what may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write('The command line needs click, platformdirs and rich: pip install "sora-chars[cli]"\n')
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
