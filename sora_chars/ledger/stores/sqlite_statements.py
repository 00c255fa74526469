"""The SQL of an SQLite ledger.

The threads of the store run these functions. Each takes a cursor and several items, and
returns one result per item.
"""

from __future__ import annotations

import json
import sqlite3
import time
from functools import cache
from itertools import chain, compress
from typing import TYPE_CHECKING, TypeVar

from sora_chars.errors import LedgerError
from sora_chars.ledger.entry import (
    ATTEMPT_COLUMNS,
    COLUMNS,
    OCCASIONAL_COLUMNS,
    TRANSITION_COLUMNS,
    column_getter,
    from_attempt_row,
    from_row,
    to_attempt_row,
    to_row,
)
from sora_chars.ledger.states import EntryState
from sora_chars.logs import event_logger

from .sqlite_search import NOTE_CHANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sora_chars.ledger.entry import Attempt, Entry, Lookup

    from .sqlite_thread import Work

A = TypeVar("A")
T = TypeVar("T")

log = event_logger("sora_chars.ledger")

UPGRADES = (
    """
    CREATE TABLE entries (
        place INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        provider TEXT NOT NULL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        request_json TEXT NOT NULL,
        token_digest TEXT,
        task_id TEXT,
        holder TEXT,
        result_json TEXT,
        error_json TEXT,
        credits REAL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        version INTEGER NOT NULL
    );
    CREATE INDEX entries_task ON entries (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX entries_token ON entries (token_digest) WHERE token_digest IS NOT NULL;
    """,
    """
    ALTER TABLE entries RENAME COLUMN place TO row_id;
    ALTER TABLE entries RENAME COLUMN holder TO owner;
    UPDATE entries SET state = 'pending' WHERE state = 'asked';
    UPDATE entries SET state = 'rejected' WHERE state = 'refused';
    UPDATE entries SET error_json = replace(
        replace(error_json, '"type":"RequestRefusedError"', '"type":"RequestRejectedError"'),
        '"passing":', '"transient":'
    ) WHERE error_json IS NOT NULL;
    """,
    """
    CREATE TABLE attempts (
        key TEXT NOT NULL,
        number INTEGER NOT NULL,
        token_digest TEXT,
        task_id TEXT,
        provider TEXT NOT NULL,
        state TEXT NOT NULL,
        request_json TEXT NOT NULL,
        result_json TEXT,
        error_json TEXT,
        credits REAL,
        ended_at REAL NOT NULL,
        PRIMARY KEY (key, number)
    );
    CREATE INDEX attempts_token ON attempts (token_digest) WHERE token_digest IS NOT NULL;
    CREATE INDEX attempts_task ON attempts (provider, task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX entries_state ON entries (state);
    CREATE TABLE search_progress (indexed_to INTEGER NOT NULL);
    INSERT INTO search_progress VALUES (0);
    CREATE TABLE search_later (row_id INTEGER PRIMARY KEY);
    """,
    """
    ALTER TABLE entries ADD COLUMN meta_json TEXT;
    CREATE TABLE pruning (before REAL NOT NULL);
    INSERT INTO pruning VALUES (0);
    CREATE INDEX entries_idle ON entries (updated_at, key) WHERE state IN ('pending', 'sending', 'running');
    """,
)
"""Each script upgrades the file by one version; `user_version` counts those that have run."""

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE"  # noqa: S608 # our own names
_FIND: dict[Lookup, str] = {
    "key": f"{_SELECT} key = ?",
    "task": f"{_SELECT} provider = ? AND task_id = ? LIMIT 1",
    "token": f"{_SELECT} token_digest = ? LIMIT 1",
}
ALL_BY_TASK = f"{_SELECT} provider = ? AND task_id = ? ORDER BY row_id"  # our own names
_FIND_BY_ATTEMPT: dict[Lookup, str] = {
    "task": f"{_SELECT} key = (SELECT key FROM attempts WHERE provider = ? AND task_id = ? LIMIT 1)",  # noqa: S608 # our own names
    "token": f"{_SELECT} key = (SELECT key FROM attempts WHERE token_digest = ? LIMIT 1)",  # noqa: S608 # our own names
}
_ARCHIVE = (
    f"INSERT INTO attempts ({', '.join(ATTEMPT_COLUMNS)})"  # noqa: S608 # our own names
    f" SELECT {', '.join(f':{name}' for name in ATTEMPT_COLUMNS)}"
    " WHERE NOT EXISTS (SELECT 1 FROM attempts WHERE key = :key AND token_digest = :token_digest"
    " AND task_id IS :task_id)"
).replace(":number", "(SELECT coalesce(max(number), 0) + 1 FROM attempts WHERE key = :key)")
_ATTEMPTS = f"SELECT {', '.join(ATTEMPT_COLUMNS)} FROM attempts WHERE key IN ({{}}) ORDER BY key, number"  # noqa: S608 # our own names
VERSIONS = "SELECT json_group_object(key, version) FROM entries WHERE key IN (SELECT value FROM json_each(?))"
ROWS_PER_STATEMENT = 16 if sqlite3.sqlite_version_info >= (3, 33) else 1  # 3.33 introduced UPDATE FROM
"""Rows per statement: each statement releases and re-acquires the GIL twice."""


def _one_by_one(work: Callable[[sqlite3.Cursor, A], T]) -> Callable[[sqlite3.Cursor, Sequence[A]], list[T]]:
    return lambda cursor, items: [work(cursor, item) for item in items]


@_one_by_one
def upgrade(cursor: sqlite3.Cursor, _nothing: None) -> None:
    """Run the scripts that the file, which may be new, lacks.

    Raises:
        LedgerError: A newer version of this package has upgraded the file.
    """
    cursor.execute("BEGIN IMMEDIATE")
    version: int = cursor.execute("PRAGMA user_version").fetchone()[0]
    if version > len(UPGRADES):
        raise LedgerError(
            f"The ledger has schema version {version}, but this package supports versions up to {len(UPGRADES)}.",
            hint="Open it with a newer version of sora-chars.",
        )
    began = time.monotonic()
    entries = 0
    if 0 < version < len(UPGRADES):
        entries = cursor.execute("SELECT count(*) FROM entries").fetchone()[0]
        log.warning("ledger.upgrading", extra={"from": version, "to": len(UPGRADES), "entries": entries})
    for script in UPGRADES[version:]:
        for statement in script.split(";"):  # executescript would commit
            cursor.execute(statement)
    cursor.execute(f"PRAGMA user_version = {len(UPGRADES)}")
    cursor.execute("COMMIT")
    if entries:
        log.warning("ledger.upgraded", extra={"seconds": round(time.monotonic() - began, 1)})


def insert(cursor: sqlite3.Cursor, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Store the entries with new keys; return the stored entry of every key."""
    stored: list[Entry] = []
    for batch in _batches(entries):
        statement = _insert_statement(len(batch))
        if cursor.execute(statement, [*chain.from_iterable(map(to_row, batch))]).rowcount == len(batch):
            stored += batch
        else:
            stored += [from_row(cursor.execute(_FIND["key"], (entry.key,)).fetchone()) for entry in batch]
    return stored


def replace(before: Entry, after: Entry) -> Work:
    """Return the function that replaces entries in which the same columns change as here.

    It takes pairs of the version before and the version after, and returns the stored
    entry of every pair.
    """
    return _replace_function(*(getattr(after, name) != getattr(before, name) for name in OCCASIONAL_COLUMNS))


@cache
def _replace_function(*changed: bool) -> Work:
    """Return the function for changes of those occasional columns that are marked."""
    columns = (*TRANSITION_COLUMNS, *compress(OCCASIONAL_COLUMNS, changed))
    values = column_getter(columns)

    def update(cursor: sqlite3.Cursor, pairs: Sequence[tuple[Entry, Entry]]) -> bool:
        rows = ((*values(after), after.key, before.version) for before, after in pairs)
        statement = _update_statement(columns, len(pairs))
        return cursor.execute(statement, [*chain.from_iterable(rows)]).rowcount == len(pairs)

    def update_one(cursor: sqlite3.Cursor, pair: tuple[Entry, Entry]) -> Entry | None:
        return pair[1] if update(cursor, [pair]) else _find_one(cursor, "key", pair[1].key)

    def work(cursor: sqlite3.Cursor, pairs: Sequence[tuple[Entry, Entry]]) -> list[Entry | None]:
        stored: list[Entry | None] = []
        for batch in _batches(pairs):
            all_updated = update(cursor, batch)
            stored += [pair[1] if all_updated else update_one(cursor, pair) for pair in batch]
        return stored

    return work


@_one_by_one
def replace_and_archive(cursor: sqlite3.Cursor, change: tuple[Entry, Entry, Attempt | None]) -> Entry | None:
    """Replace an entry, and store an earlier attempt of it, if there is one, in the same transaction."""
    before, after, attempt = change
    cursor.execute("SAVEPOINT archive")  # this job may run without a transaction around it
    stored: Entry | None
    [stored] = replace(before, after)(cursor, [(before, after)])
    if stored is after:
        cursor.execute(NOTE_CHANGE, (after.key,))
        if attempt:
            cursor.execute(_ARCHIVE, dict(zip(ATTEMPT_COLUMNS, to_attempt_row(attempt), strict=True)))
    cursor.execute("RELEASE archive")
    return stored


@_one_by_one
def all_by_task(cursor: sqlite3.Cursor, names: tuple[str, str]) -> list[Entry]:
    """Read every entry of a provider with one task."""
    return [from_row(row) for row in cursor.execute(ALL_BY_TASK, names)]


@_one_by_one
def attempts(cursor: sqlite3.Cursor, keys: Sequence[str]) -> list[Attempt]:
    """Read the earlier attempts of entries."""
    statement = _ATTEMPTS.format(", ".join("?" * len(keys)))
    return [from_attempt_row(row) for row in cursor.execute(statement, keys)]


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ROWS_PER_STATEMENT] for start in range(0, len(items), ROWS_PER_STATEMENT))


@cache
def _insert_statement(rows: int) -> str:
    return (
        f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES {_placeholders(len(COLUMNS), rows)}"  # noqa: S608 # our own names
        " ON CONFLICT (key) DO NOTHING"
    )


@cache
def _update_statement(columns: Sequence[str], rows: int) -> str:
    """Build an UPDATE with these parameters per row: the new values, the key, the old version.

    It writes all rows, or none if one of the keys has another version.
    """
    if rows == 1:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        return f"UPDATE entries SET {assignments} WHERE key = ? AND version = ?"  # noqa: S608 # our own names
    key = len(columns) + 1  # SQLite names the columns of VALUES column1, column2, ...
    version = len(columns) + 2
    assignments = ", ".join(f"{name} = column{number}" for number, name in enumerate(columns, 1))
    same = f"key = column{key} AND version = column{version}"
    matching = f"SELECT * FROM news WHERE {rows} = (SELECT count(DISTINCT key) FROM entries, news WHERE {same})"  # noqa: S608 # our own names
    news = f"WITH news AS (VALUES {_placeholders(version, rows)}) {matching}"
    return f"UPDATE entries SET {assignments} FROM ({news}) WHERE {same}"  # noqa: S608 # our own names


def _placeholders(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _find_one(cursor: sqlite3.Cursor, by: Lookup, *values: str) -> Entry | None:
    row = cursor.execute(_FIND[by], values).fetchone()
    if row is None and by in _FIND_BY_ATTEMPT:
        row = cursor.execute(_FIND_BY_ATTEMPT[by], values).fetchone()
    return None if row is None else from_row(row)


@_one_by_one
def find(cursor: sqlite3.Cursor, lookup: tuple[Lookup, Sequence[str]]) -> Entry | None:
    """Find an entry by what kind of values, and by which values."""
    return _find_one(cursor, lookup[0], *lookup[1])


@_one_by_one
def page(cursor: sqlite3.Cursor, arguments: tuple[Collection[str], bool, int, int]) -> list[tuple[int, Entry]]:
    """Read a page of row ids and entries.

    The arguments are the states, whether the newest entry comes first, the row id to begin
    after, and the size.
    """
    states, newest_first, after, size = arguments
    if len(states) == len(EntryState):
        rows = cursor.execute(_page_statement(0, newest_first=newest_first), (after, size))
    elif states:
        values = [*chain.from_iterable((state, after, size) for state in states), size]
        rows = cursor.execute(_page_statement(len(states), newest_first=newest_first), values)
    else:
        return []
    return [(row[0], from_row(row[1:])) for row in rows]


@cache
def _page_statement(states: int, *, newest_first: bool) -> str:
    """Build the statement of a page. Its parameters are the state, the row id and the size for each state; the size.

    Each state is read in the order of its index. 0 stands for all states, without a
    parameter for the state and the second size.
    """
    limits = f"row_id {'<' if newest_first else '>'} ? ORDER BY row_id {'DESC' if newest_first else 'ASC'} LIMIT ?"
    if states == 0:
        return f"SELECT row_id, {', '.join(COLUMNS)} FROM entries WHERE {limits}"  # noqa: S608 # our own names
    one = f"SELECT row_id FROM (SELECT row_id FROM entries WHERE state = ? AND {limits})"  # noqa: S608 # our own names
    order = limits.partition("?")[2]
    return (
        f"SELECT row_id, {', '.join(COLUMNS)} FROM entries"  # noqa: S608 # our own names
        f" WHERE row_id IN ({' UNION ALL '.join([one] * states)}){order}"
    )


@_one_by_one
def versions(
    cursor: sqlite3.Cursor, last: tuple[Collection[str], dict[str, int], int]
) -> tuple[dict[str, int], int, float]:
    """Read the versions of some keys, with SQLite's `data_version` and the seconds of CPU time that this took.

    `data_version` changes with every commit of another connection. `last` holds the keys,
    and the versions and the `data_version` of the last call. If that is unchanged, no
    entry is read.
    """
    began = time.thread_time()
    keys, found, last_data_version = last
    data_version: int = cursor.execute("PRAGMA data_version").fetchone()[0]
    if data_version != last_data_version or not found.keys() >= set(keys):
        # One JSON object: fetching a row per key would release the GIL for each.
        found = json.loads(cursor.execute(VERSIONS, (json.dumps(list(keys)),)).fetchone()[0])
    return found, data_version, time.thread_time() - began
