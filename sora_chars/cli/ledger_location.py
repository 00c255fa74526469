"""The ledger that a command uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from platformdirs import user_data_path

from sora_chars.errors import ConfigurationError
from sora_chars.ledger import open_ledger

if TYPE_CHECKING:
    from sora_chars.ledger import Ledger

_DATABASE_SCHEMES = ("postgresql:", "postgres:")


@attrs.frozen
class LedgerLocation:
    """The ledger of a command: `url`, or a file in the user's data folder.

    `str(location)` contains no password.

    Attributes:
        url: A path or URL as the user gave it; None selects the default file.
        explicit: Whether `url` was given by `--ledger`, not by the environment.
    """

    url: str | None = attrs.field(default=None, repr=False)
    explicit: bool = False

    @property
    def args(self) -> tuple[str, ...]:
        """The arguments that select this ledger in another command. None can select a ledger in memory."""
        return ("--ledger", str(self)) if self.explicit and not self.in_memory else ()

    @property
    def in_memory(self) -> bool:
        """Whether the ledger ends with the command."""
        return self.url == "memory:"

    def open(self) -> Ledger:
        """Return the ledger, and create the user's data folder if it is needed.

        Raises:
            ConfigurationError: The URL's scheme is unknown, or the folder cannot be
                created.
        """
        if self.url is None:
            folder = _default_file().parent
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"The ledger's folder {folder} cannot be created: {os.strerror(error.errno or 0)}.",
                    hint="Choose another location with --ledger.",
                ) from error
        return self._ledger()

    def open_existing(self) -> Ledger:
        """Return the ledger without creating one.

        Raises:
            ConfigurationError: The URL's scheme is unknown, or the file does not exist.
        """
        ledger = self._ledger()
        path = str(self).removeprefix("sqlite:///")
        if not path.startswith((*_DATABASE_SCHEMES, "memory:")) and not Path(path).exists():
            raise ConfigurationError(f"No ledger exists at {path}.", hint="`sora-chars create` creates one.")
        return ledger

    def _ledger(self) -> Ledger:
        return open_ledger(_default_file() if self.url is None else self.url)

    def __str__(self) -> str:
        if self.url is None:
            return str(_default_file())
        return "postgresql://..." if self.url.startswith(_DATABASE_SCHEMES) else self.url


def _default_file() -> Path:
    return user_data_path("sora-chars", appauthor=False) / "ledger.db"
