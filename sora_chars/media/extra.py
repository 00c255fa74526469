"""Whether PyAV is there, which decodes and encodes videos."""

from __future__ import annotations

from importlib.util import find_spec

from sora_chars.errors import ConfigurationError

EXTRA = "pip install 'sora-chars[media]'"
"""The command that installs PyAV."""


def is_installed() -> bool:
    """Return whether videos can be cut in this installation."""
    return find_spec("av") is not None


def require_extra() -> None:
    """Check that PyAV is there.

    Raises:
        ConfigurationError: It is not; the error names the command that installs it.
    """
    if not is_installed():
        raise ConfigurationError("Cutting a video needs PyAV, which is not installed.", hint=f"Run: {EXTRA}")
