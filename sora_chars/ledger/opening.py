"""The ledger at a URL, and the store that its scheme names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sora_chars.errors import ConfigurationError

from .ledger import Ledger
from .postgres_ledger import PostgresLedger
from .stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stores.protocol import LedgerStore


def open_ledger(url: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> Ledger:
    """Make the ledger at `url`; `async with` opens it.

    Processes of one machine may share an SQLite file. Processes of several machines may
    share a PostgreSQL database; there they also share the rate limits of an account.

        async with open_ledger("characters.db") as ledger:
            entry = await ledger.get("dog-1")

    Args:
        url: One of these:

            - `memory:`. It keeps all unfinished entries and the last 10,000 finished ones.
            - `sqlite:///relative/path`, `sqlite:////absolute/path`, or the path of an
              SQLite file.
            - `postgresql://...`, with the extra `postgres`.
        clock: Returns the present time in epoch seconds.

    Raises:
        ConfigurationError: The URL is invalid, or its kind of ledger needs a package or
            module that is not installed.
    """
    if isinstance(url, str) and url.partition(":")[0] in {"postgresql", "postgres"}:
        return PostgresLedger(url, clock=clock)
    return Ledger(_store(url) if isinstance(url, str) else _sqlite(os.fspath(url)), clock=clock)


def _store(url: str) -> LedgerStore:
    scheme, colon, rest = url.partition(":")
    if not colon or len(scheme) == 1:  # "C:\..." is a path
        return _sqlite(url)
    match scheme:
        case "memory" if not rest:
            return MemoryStore()
        case "sqlite" if rest.startswith("///") and rest != "///":
            return _sqlite(rest[3:])
        case _:
            raise ConfigurationError(
                f"ledger: this {scheme}: URL is not supported.",  # the rest may contain a password
                hint="Use memory:, sqlite:///PATH, postgresql://... or the path of an SQLite file.",
            )


def _sqlite(path: str) -> LedgerStore:
    try:
        from .stores.sqlite import SqliteStore  # noqa: PLC0415 # sqlite3 is not on every system
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: an SQLite file needs a module that this system does not have ({error}).",
            hint="Use memory: or postgresql://... instead.",
        ) from error
    return SqliteStore(Path(path))
