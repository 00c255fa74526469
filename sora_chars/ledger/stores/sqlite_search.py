"""The search index of an SQLite ledger.

The index holds the trigrams of ended entries. A search first indexes what has ended
since the last one, so that recording an entry costs nothing more. The table
`search_progress` holds the last row that was considered, and `search_later` the rows
before it that had not ended then, or are sent again.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING

import attrs

from sora_chars.ledger.entry import COLUMNS, from_row
from sora_chars.ledger.search import searchable_text, trigrams
from sora_chars.ledger.states import ENDED

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sora_chars.ledger.entry import Entry

_MANY_ROWS = 1000  # for a trigram
_RARE_PARTS = 4  # trigrams of a query that are compared, if they are rare
GROUP_SIZE = 500  # entries that are indexed in one transaction
_CREATE = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS {}search USING"
    " fts5 (text, content = '', columnsize = 0, detail = none, tokenize = 'trigram case_sensitive 1')"
)
_COLUMNS = ", ".join(COLUMNS)
_STATE = 1 + COLUMNS.index("state")  # its place in a row that begins with the row id
_ENDED = ", ".join(f"'{state.value}'" for state in ENDED)
_NEW_ROWS = (
    f"SELECT row_id, {_COLUMNS} FROM entries WHERE row_id > (SELECT indexed_to FROM search_progress)"  # noqa: S608 # our own names
    f" ORDER BY row_id LIMIT ?"
)
_LATE_ROWS = (  # CROSS JOIN keeps SQLite from reading all ended entries first
    f"SELECT row_id, {_COLUMNS} FROM search_later CROSS JOIN entries USING (row_id) WHERE state IN ({_ENDED})"  # noqa: S608 # our own names
    " LIMIT ?"
)
_ROWS = f"SELECT row_id, {_COLUMNS} FROM entries WHERE row_id IN (SELECT value FROM json_each(?))"  # noqa: S608 # our own names
_INDEXED = "SELECT rowid FROM search WHERE search MATCH ? AND rowid "
_COUNT = "SELECT count(*) FROM (SELECT rowid FROM search WHERE search MATCH ? LIMIT ?)"
_LATER = "SELECT row_id FROM search_later WHERE row_id "
_WAITING = "SELECT max(row_id) - (SELECT indexed_to FROM search_progress) FROM entries"
NOTE_CHANGE = (
    "INSERT OR IGNORE INTO search_later"
    " SELECT row_id FROM entries, search_progress WHERE key = ? AND row_id <= indexed_to"
)
"""Has an entry indexed again once it has ended again."""


@cache
def has_trigrams() -> bool:
    """True if this SQLite, 3.34 or newer, can index trigrams."""
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(_CREATE.format(""))
        except sqlite3.OperationalError:
            return False
    return True


def waiting(cursor: sqlite3.Cursor, items: Sequence[None]) -> list[int]:
    """Return about how many entries no search has considered yet."""
    return [cursor.execute(_WAITING).fetchone()[0] or 0 for _ in items]


def index_group(cursor: sqlite3.Cursor, items: Sequence[None]) -> list[bool]:
    """Index a group of entries. True if there may be more of them."""
    return [_index_group(cursor) for _ in items]


def _index_group(cursor: sqlite3.Cursor) -> bool:
    cursor.execute("SAVEPOINT search")  # this job may run without a transaction around it
    cursor.execute(_CREATE.format(""))
    new = cursor.execute(_NEW_ROWS, (GROUP_SIZE,)).fetchall()
    late = cursor.execute(_LATE_ROWS, (GROUP_SIZE,)).fetchall()
    ended = {row[0]: row for row in (*new, *late) if row[_STATE] in ENDED}
    texts = [(row_id, searchable_text(from_row(row[1:]))) for row_id, row in ended.items()]
    cursor.executemany("INSERT INTO search (rowid, text) VALUES (?, ?)", texts)
    cursor.executemany("DELETE FROM search_later WHERE row_id = ?", [(row[0],) for row in late])
    cursor.executemany("INSERT INTO search_later VALUES (?)", [(row[0],) for row in new if row[0] not in ended])
    if new:
        cursor.execute("UPDATE search_progress SET indexed_to = ?", (new[-1][0],))
    cursor.execute("RELEASE search")
    return len(new) == GROUP_SIZE or len(late) == GROUP_SIZE


@attrs.frozen
class Search:
    """A page of the entries that may match a query of three characters or more; see `LedgerStore.page`."""

    query: str
    states: Collection[str]
    newest_first: bool
    after: int
    size: int

    def match(self, cursor: sqlite3.Cursor) -> str:
        """Return the expression that the index is searched for.

        SQLite reads the whole list of rows of every trigram in it. If some are rare, they
        are enough.
        """
        parts = ['"{}"'.format(part.replace('"', '""')) for part in trigrams(self.query)]
        counts = {part: cursor.execute(_COUNT, (part, _MANY_ROWS)).fetchone()[0] for part in parts}
        rare = sorted((part for part in parts if counts[part] < _MANY_ROWS), key=counts.__getitem__)
        return " AND ".join(rare[:_RARE_PARTS] or parts)

    def row_ids(self, cursor: sqlite3.Cursor, match: str, after: int) -> list[int]:
        """Return the row ids of the next candidates, in any state."""
        limits = "< ? ORDER BY 1 DESC LIMIT ?" if self.newest_first else "> ? ORDER BY 1 LIMIT ?"
        indexed = cursor.execute(_INDEXED + limits, (match, after, self.size)).fetchall()
        later = cursor.execute(_LATER + limits, (after, self.size)).fetchall()
        return sorted({row[0] for row in (*indexed, *later)}, reverse=self.newest_first)[: self.size]


def search(cursor: sqlite3.Cursor, searches: Sequence[Search]) -> list[list[tuple[int, Entry]]]:
    """Read a page of the entries that may match."""
    return [_search(cursor, one) for one in searches]


def _search(cursor: sqlite3.Cursor, wanted: Search) -> list[tuple[int, Entry]]:
    page: list[tuple[int, Entry]] = []
    after = wanted.after
    match = wanted.match(cursor)
    while len(page) < wanted.size:
        row_ids = wanted.row_ids(cursor, match, after)
        rows = {row[0]: row for row in cursor.execute(_ROWS, (json.dumps(row_ids),))}
        found = [rows[row_id] for row_id in row_ids if row_id in rows]  # a row may have been deleted
        page += [(row[0], from_row(row[1:])) for row in found if row[_STATE] in wanted.states]
        if len(row_ids) < wanted.size:
            break
        after = row_ids[-1]
    return page[: wanted.size]
