"""Which entries of an SQLite ledger other connections have changed, for those who follow all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from .sqlite_statements import VERSIONS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

_UNFINISHED = (
    "SELECT json_group_object(key, version) FROM entries WHERE state IN ('pending', 'sending', 'running', 'unknown')"
)
_NEWER = "SELECT json_group_object(key, version) FROM entries WHERE row_id > ?"
_NEWEST = "SELECT coalesce(max(row_id), 0) FROM entries"


@attrs.frozen
class Changes:
    """What `changes` has read.

    Attributes:
        changed: The versions of the entries that have changed since the last call, by key.
        unfinished: The versions of all unfinished entries, by key.
        newest: The newest row id; None before the first call.
        data_version: SQLite's `data_version`, which changes with every commit of another
            connection.
    """

    changed: Mapping[str, int] = attrs.field(factory=dict)
    unfinished: Mapping[str, int] = attrs.field(factory=dict)
    newest: int | None = None
    data_version: int = -1


def changes(cursor: sqlite3.Cursor, lasts: Sequence[Changes]) -> list[Changes]:
    """Read which entries have changed since each last call. The first call reads what later ones compare with.

    An entry that was finished at the last call, and still is, counts as unchanged, as does a new one (version 1).
    """
    return [_changes(cursor, last) for last in lasts]


def _changes(cursor: sqlite3.Cursor, last: Changes) -> Changes:
    data_version: int = cursor.execute("PRAGMA data_version").fetchone()[0]
    if data_version == last.data_version:
        return attrs.evolve(last, changed={})
    newest: int = cursor.execute(_NEWEST).fetchone()[0]
    unfinished = _versions(cursor, _UNFINISHED)
    if last.newest is None:
        return Changes({}, unfinished, newest, data_version)
    ended = json.dumps([*(last.unfinished.keys() - unfinished.keys())])
    found = _versions(cursor, _NEWER, last.newest) | _versions(cursor, VERSIONS, ended) | unfinished
    changed = {key: version for key, version in found.items() if last.unfinished.get(key, 1) != version}
    return Changes(changed, unfinished, newest, data_version)


def _versions(cursor: sqlite3.Cursor, statement: str, *values: object) -> dict[str, int]:
    found: dict[str, int] = json.loads(cursor.execute(statement, values).fetchone()[0])  # one row releases the GIL once
    return found
