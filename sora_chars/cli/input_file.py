"""The FILE of a command that reads one: a path, or - for stdin."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def open_input(file: str) -> Generator[BinaryIO]:
    """Open a file for reading, or give stdin for "-".

    Raises:
        click.BadParameter: The file cannot be read.
    """
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as stream:
            yield stream
    except OSError as error:
        raise click.BadParameter(
            f"{file} cannot be read: {os.strerror(error.errno or 0)}.", param_hint="FILE"
        ) from error
