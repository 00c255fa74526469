"""The transport's retry loop with either package that installs `backoff`."""

from __future__ import annotations

import subprocess
import sys

# Python 3.14 and 3.15 warn so, and name the caller; what aiohttp and attrs call while they are imported is not ours.
CODE = """
import aiohttp, asyncio, attrs, backoff, inspect, warnings

def iscoroutinefunction(function):
    calls.append(function)
    message = "'asyncio.iscoroutinefunction' is deprecated and slated for removal in Python 3.16"
    warnings.warn(f"{message}; use inspect.iscoroutinefunction() instead", DeprecationWarning, stacklevel=2)
    return inspect.iscoroutinefunction(function)

calls = []
filters = list(warnings.filters)
asyncio.iscoroutinefunction = iscoroutinefunction
from sora_chars import Kie
from sora_chars.transport import Transport
Kie("key")
assert Transport._attempt in calls or backoff.__version__ != "2.2.1"
assert warnings.filters == filters
"""


def test_import_shows_no_warning_of_backoff() -> None:
    """Importing the package succeeds where every warning is an error and backoff calls a deprecated function."""
    command = [sys.executable, "-W", "error", "-c", CODE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
