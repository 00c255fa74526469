"""What an SQLite ledger's threads run: each function takes several items, and gives as many answers."""

from __future__ import annotations

import json
import sqlite3
from functools import cache
from itertools import chain, compress
from typing import TYPE_CHECKING, TypeVar

from sora_chars.errors import LedgerError
from sora_chars.ledger.entry import COLUMNS, MOVING, NAMING, from_row, getter, to_row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sora_chars.ledger.entry import By, Entry

    from .sqlite_thread import Work

A = TypeVar("A")
T = TypeVar("T")

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
)
"""Each script takes the file from one version to the next; `user_version` counts those that were run."""

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE"  # noqa: S608 # our own names
_FIND: dict[By, str] = {
    "key": f"{_SELECT} key = ?",
    "task": f"{_SELECT} provider = ? AND task_id = ? LIMIT 1",
    "token": f"{_SELECT} token_digest = ? LIMIT 1",
}
_PAGE = (
    f"SELECT row_id, {', '.join(COLUMNS)} FROM entries"  # noqa: S608 # our own names
    " WHERE state IN (SELECT value FROM json_each(?)) AND row_id"
)
_PAGES = {False: f"{_PAGE} > ? ORDER BY row_id LIMIT ?", True: f"{_PAGE} < ? ORDER BY row_id DESC LIMIT ?"}
_VERSIONS = "SELECT json_group_object(key, version) FROM entries WHERE key IN (SELECT value FROM json_each(?))"
ROWS = 16 if sqlite3.sqlite_version_info >= (3, 33) else 1  # which knows UPDATE FROM
"""Entries a statement takes, since each gives the interpreter's lock away and waits for it again, twice."""


def _one_by_one(work: Callable[[sqlite3.Cursor, A], T]) -> Callable[[sqlite3.Cursor, Sequence[A]], list[T]]:
    return lambda cursor, items: [work(cursor, item) for item in items]


@_one_by_one
def upgrade(cursor: sqlite3.Cursor, _nothing: None) -> None:
    """Bring a file, also a new one, up to date."""
    cursor.execute("BEGIN IMMEDIATE")
    version: int = cursor.execute("PRAGMA user_version").fetchone()[0]
    if version > len(UPGRADES):
        raise LedgerError(f"The ledger is of version {version}, newer than this package knows ({len(UPGRADES)}).")
    for script in UPGRADES[version:]:
        for statement in script.split(";"):  # executescript would commit
            cursor.execute(statement)
    cursor.execute(f"PRAGMA user_version = {len(UPGRADES)}")
    cursor.execute("COMMIT")


def insert(cursor: sqlite3.Cursor, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Keep each whose key is new; the entry of each key as it is then."""
    kept: list[Entry] = []
    for some in _slices(entries):
        statement = _inserting(len(some))
        if cursor.execute(statement, [*chain.from_iterable(map(to_row, some))]).rowcount == len(some):
            kept += some
        else:
            kept += [from_row(cursor.execute(_FIND["key"], (entry.key,)).fetchone()) for entry in some]
    return kept


def replace(before: Entry, after: Entry) -> Work:
    """What puts the second of each pair in the place of the first, if it is there; the entry of each key as it is then.

    For pairs in which the same facts change as here.
    """
    return _replacing(after.token_digest != before.token_digest, after.task_id != before.task_id)


@cache
def _replacing(*named: bool) -> Work:
    columns = (*MOVING, *compress(NAMING, named))
    values = getter(columns)

    def is_written(cursor: sqlite3.Cursor, moves: Sequence[tuple[Entry, Entry]]) -> bool:
        rows = ((*values(after), after.key, before.version) for before, after in moves)
        return cursor.execute(_updating(columns, len(moves)), [*chain.from_iterable(rows)]).rowcount == len(moves)

    def kept(cursor: sqlite3.Cursor, move: tuple[Entry, Entry]) -> Entry | None:
        return move[1] if is_written(cursor, [move]) else _look_up(cursor, "key", move[1].key)

    def work(cursor: sqlite3.Cursor, moves: Sequence[tuple[Entry, Entry]]) -> list[Entry | None]:
        answers: list[Entry | None] = []
        for some in _slices(moves):
            together = is_written(cursor, some)
            answers += [move[1] if together else kept(cursor, move) for move in some]
        return answers

    return work


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ROWS] for start in range(0, len(items), ROWS))


@cache
def _inserting(rows: int) -> str:
    return (
        f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES {_places(len(COLUMNS), rows)} ON CONFLICT (key) DO NOTHING"  # noqa: S608 # our own names
    )


@cache
def _updating(columns: Sequence[str], rows: int) -> str:
    """For rows of the new values, the key and the version before: writes all or, where one of these is not so, none."""
    key, version = len(columns) + 1, len(columns) + 2
    if rows == 1:
        return f"UPDATE entries SET {', '.join(f'{name} = ?' for name in columns)} WHERE key = ? AND version = ?"  # noqa: S608 # our own names
    news = ", ".join(f"{name} = column{number}" for number, name in enumerate(columns, 1))
    same = f"key = column{key} AND version = column{version}"
    found = f"SELECT * FROM news WHERE {rows} = (SELECT count(DISTINCT key) FROM entries, news WHERE {same})"  # noqa: S608 # our own names
    return f"UPDATE entries SET {news} FROM (WITH news AS (VALUES {_places(version, rows)}) {found}) WHERE {same}"  # noqa: S608 # our own names


def _places(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _look_up(cursor: sqlite3.Cursor, by: By, *values: str) -> Entry | None:
    row = cursor.execute(_FIND[by], values).fetchone()
    return None if row is None else from_row(row)


@_one_by_one
def find(cursor: sqlite3.Cursor, wanted: tuple[By, Sequence[str]]) -> Entry | None:
    """The entry that has these values."""
    return _look_up(cursor, wanted[0], *wanted[1])


@_one_by_one
def page(cursor: sqlite3.Cursor, wanted: tuple[bool, Sequence[object]]) -> list[tuple[int, Entry]]:
    """A page, newest first or not, of some states (a JSON list), after a place, of a size."""
    newest_first, values = wanted
    return [(row[0], from_row(row[1:])) for row in cursor.execute(_PAGES[newest_first], values)]


@_one_by_one
def versions(cursor: sqlite3.Cursor, known: tuple[Collection[str], dict[str, int], int]) -> tuple[dict[str, int], int]:
    """The versions of the entries of some keys, and SQLite's mark that changes with every commit of others.

    Known are the versions seen before, and the mark.
    """
    keys, seen, mark = known
    now: int = cursor.execute("PRAGMA data_version").fetchone()[0]
    if now == mark and seen.keys() >= set(keys):
        return seen, mark
    found: str = cursor.execute(_VERSIONS, (json.dumps(list(keys)),)).fetchone()[0]  # a row each would be handed over
    return json.loads(found), now
