"""The version, from Python and from the command line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import sora_chars

PRINTED = f"sora-chars, version {version('sora-chars')}\n"


def test_version_is_the_distributions() -> None:
    """`__version__` is the version of the installed distribution, and `dir` lists it."""
    assert sora_chars.__version__ == version("sora-chars")
    assert "__version__" in dir(sora_chars)


def test_import_reads_no_metadata() -> None:
    """Importing the package does not import `importlib.metadata`, which takes longer than the package itself."""
    code = "import sys; sys.modules.pop('importlib.metadata', None); import sora_chars; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sora_chars" in ended.stdout.split()
    assert "importlib.metadata" not in ended.stdout.split()


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_options_print_the_version(script: str, option: str) -> None:
    """The script and `python -m sora_chars` print the same."""
    for command in ([script], [sys.executable, "-m", "sora_chars"]):
        ended = subprocess.run([*command, option], capture_output=True, text=True, check=True)
        assert ended.stdout == PRINTED
