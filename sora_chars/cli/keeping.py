"""Where a command's ledger is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click
from click.core import ParameterSource
from platformdirs import user_data_path

from sora_chars.errors import ConfigurationError
from sora_chars.ledger import open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.ledger import Ledger

C = TypeVar("C", bound="Callable[..., Any]")

_DATABASES = ("postgresql:", "postgres:")


@attrs.frozen
class Place:
    """A ledger's URL or path as the user gave it, else the file in the user's data folder.

    `str(place)` names it without its password. `typed`: it stood on the command line.
    """

    url: str | None = attrs.field(default=None, repr=False)
    typed: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """What leads another command here."""
        return ("--ledger", str(self)) if self.typed else ()

    def make(self) -> Ledger:
        """The ledger, which is made where there is none.

        Raises:
            ConfigurationError: the URL is of no known kind, or the user's data folder cannot be made.
        """
        if self.url is None:
            folder = _own_file().parent
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"The ledger's folder {folder} cannot be made: {os.strerror(error.errno or 0)}.",
                    hint="Name another place with --ledger.",
                ) from error
        return open_ledger(_own_file() if self.url is None else self.url)

    def find(self) -> Ledger:
        """The ledger, if there is one.

        Raises:
            ConfigurationError: the URL is of no known kind, or there is no such file.
        """
        ledger = open_ledger(_own_file() if self.url is None else self.url)
        path = str(self).removeprefix("sqlite:///")
        if not path.startswith((*_DATABASES, "memory:")) and not Path(path).exists():
            raise ConfigurationError(f"There is no ledger at {path} yet.", hint="`sora-chars create` makes one.")
        return ledger

    def __str__(self) -> str:
        if self.url is None:
            return str(_own_file())
        return "postgresql://..." if self.url.startswith(_DATABASES) else self.url


def _own_file() -> Path:
    return user_data_path("sora-chars", appauthor=False) / "ledger.db"


def keeping(command: C) -> C:
    """Give a command the option of a ledger."""
    return click.option(
        "--ledger",
        "place",
        envvar="SORA_CHARS_LEDGER",
        show_envvar=True,
        metavar="PATH_OR_URL",
        callback=_place,
        help="The record of what was asked: an SQLite file, postgresql://... or memory:. "
        "[default: ledger.db in your data folder]",
    )(command)


def _place(context: click.Context, parameter: click.Parameter, value: str | None) -> Place:
    typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    return Place(value, typed)
