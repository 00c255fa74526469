"""The SQL of an SQLite ledger for idle entries and for old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.ledger.entry import COLUMNS, from_row
from sora_chars.ledger.states import ENDED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sora_chars.ledger.entry import Entry

IDLE = (
    f"SELECT {', '.join(COLUMNS)} FROM entries INDEXED BY entries_idle"  # noqa: S608 # our own names
    " WHERE state IN ('pending', 'sending', 'running') AND updated_at < ? AND (updated_at, key) > (?, ?)"
    " ORDER BY updated_at, key LIMIT ?"
)
"""The states as the partial index has them: the planner compares the text. By itself it takes the index of states."""
_ENDED = ", ".join(f"'{state.value}'" for state in sorted(ENDED))
_OLD = (
    f"FROM entries WHERE state IN ({_ENDED}) AND updated_at < ?"  # noqa: S608 # our own names
    """ AND NOT (state = 'rejected' AND coalesce(error_json LIKE '%"charged":"%', 0))"""
    " AND row_id < (SELECT max(row_id) FROM entries)"
)
"""A rejection records `charged` only if it may have been paid. The last row stays: its row id would be used again."""


def idle_page(
    cursor: sqlite3.Cursor, pages: Sequence[tuple[float, tuple[float, str] | None, int]]
) -> list[list[Entry]]:
    """Read pages of unfinished entries: each before a time, after a time and key, and of a size."""
    return [
        [from_row(row) for row in cursor.execute(IDLE, (before, *(after or (-1.0, "")), size))]
        for before, after, size in pages
    ]


def count_old(cursor: sqlite3.Cursor, times: Sequence[float]) -> list[int]:
    """Return how many entries `prune` would remove before each time."""
    return [cursor.execute(f"SELECT count(*) {_OLD}", (before,)).fetchone()[0] for before in times]


def prune(cursor: sqlite3.Cursor, groups: Sequence[tuple[float, int]]) -> list[int]:
    """Remove groups of entries that have ended: each before a time, and of a size."""
    return [_prune(cursor, before, size) for before, size in groups]


def _prune(cursor: sqlite3.Cursor, before: float, size: int) -> int:
    cursor.execute("SAVEPOINT prune")  # this job may run without a transaction around it
    cursor.execute("UPDATE pruning SET before = max(before, ?)", (before,))
    rows = cursor.execute(f"SELECT row_id, key {_OLD} LIMIT ?", (before, size)).fetchall()
    for row_id, key in rows:
        cursor.execute("DELETE FROM attempts WHERE key = ?", (key,))
        cursor.execute("DELETE FROM entries WHERE row_id = ?", (row_id,))
    cursor.execute("RELEASE prune")
    return len(rows)
