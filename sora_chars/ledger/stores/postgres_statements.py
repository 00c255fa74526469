"""The SQL of a PostgreSQL ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

from sora_chars.ledger.entry import ATTEMPT_COLUMNS, COLUMNS, TRANSITION_COLUMNS, column_getter

from . import postgres_quota

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.ledger.entry import Lookup

UPGRADES: tuple[LiteralString, ...] = (
    """
    CREATE TABLE sora_chars_entries (
        place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        key text NOT NULL UNIQUE,
        provider text NOT NULL,
        kind text NOT NULL,
        state text NOT NULL,
        request_json text NOT NULL,
        token_digest text,
        task_id text,
        holder text,
        result_json text,
        error_json text,
        credits double precision,
        created_at double precision NOT NULL,
        updated_at double precision NOT NULL,
        version integer NOT NULL
    );
    CREATE INDEX ON sora_chars_entries (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX ON sora_chars_entries (token_digest) WHERE token_digest IS NOT NULL;
    """,
    postgres_quota.TABLES,
    """
    ALTER TABLE sora_chars_entries RENAME COLUMN place TO row_id;
    ALTER TABLE sora_chars_entries RENAME COLUMN holder TO owner;
    UPDATE sora_chars_entries SET state = 'pending' WHERE state = 'asked';
    UPDATE sora_chars_entries SET state = 'rejected' WHERE state = 'refused';
    UPDATE sora_chars_entries SET error_json = replace(
        replace(error_json, '"type":"RequestRefusedError"', '"type":"RequestRejectedError"'),
        '"passing":', '"transient":'
    ) WHERE error_json IS NOT NULL;
    """,
    postgres_quota.RENAMES,
    """
    CREATE TABLE sora_chars_attempts (
        key text NOT NULL,
        number integer NOT NULL,
        token_digest text,
        task_id text,
        provider text NOT NULL,
        state text NOT NULL,
        request_json text NOT NULL,
        result_json text,
        error_json text,
        credits double precision,
        ended_at double precision NOT NULL,
        PRIMARY KEY (key, number)
    );
    CREATE INDEX ON sora_chars_attempts (token_digest) WHERE token_digest IS NOT NULL;
    CREATE INDEX ON sora_chars_attempts (provider, task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX ON sora_chars_entries (state, row_id);
    ALTER TABLE sora_chars_entries ADD COLUMN search_text text;
    CREATE INDEX ON sora_chars_entries (row_id) WHERE search_text IS NULL;
    CREATE TABLE sora_chars_processes (
        owner text PRIMARY KEY,
        connections integer NOT NULL,
        left_at timestamptz
    );
    """,
    """
    ALTER TABLE sora_chars_entries ADD COLUMN meta_json text;
    CREATE INDEX ON sora_chars_entries (updated_at, key) WHERE state IN ('pending', 'sending', 'running');
    """,
)
"""Each script upgrades the tables by one version, which the table `sora_chars_ledger` holds."""

CHANNEL = "sora_chars_ledger"
_TYPES = {"number": "integer", "credits": "double precision", "ended_at": "double precision"}


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def _typed(column: str) -> str:
    """Return the placeholder of a column; PostgreSQL takes one without a type for text."""
    return f"%s::{_TYPES.get(column, 'text')}"


_UPDATED_COLUMNS = (*TRANSITION_COLUMNS, "token_digest", "task_id")
_UPDATED_WITH_REQUEST = (*_UPDATED_COLUMNS, "request_json")
to_updated = column_getter(_UPDATED_COLUMNS)
to_updated_with_request = column_getter(_UPDATED_WITH_REQUEST)
INSERT = (
    f"INSERT INTO sora_chars_entries ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"  # noqa: S608 # our own names
    " ON CONFLICT (key) DO NOTHING RETURNING key"
)
REGISTER = (
    f"INSERT INTO sora_chars_entries ({', '.join(COLUMNS)}) VALUES"  # noqa: S608 # our own names
    " (CASE WHEN EXISTS (SELECT FROM sora_chars_processes WHERE owner = %s) THEN %s END"
    f"{', %s' * (len(COLUMNS) - 1)}) ON CONFLICT (key) DO NOTHING RETURNING key"
)
"""`INSERT` on a connection of the caller's, after the name of this process. In another ledger, which does not have that
name, the key is null, and the statement fails."""


def _update(columns: Sequence[str]) -> str:
    assignments = ", ".join(f"{name} = %s" for name in columns)
    return (
        f"WITH updated AS (UPDATE sora_chars_entries SET {assignments}, search_text = NULL"  # noqa: S608 # our own names
        " WHERE key = %s AND version = %s RETURNING key, version)"
    )


_NOTIFY = f" SELECT pg_notify('{CHANNEL}', version || ' ' || key) FROM updated"  # noqa: S608 # our own names
REPLACE = _update(_UPDATED_COLUMNS) + _NOTIFY
REPLACE_WITH_REQUEST = _update(_UPDATED_WITH_REQUEST) + _NOTIFY
REPLACE_AND_ARCHIVE = (
    f"{_update(_UPDATED_WITH_REQUEST)}, attempt ({', '.join(ATTEMPT_COLUMNS)})"  # noqa: S608 # our own names
    f" AS (VALUES ({', '.join(map(_typed, ATTEMPT_COLUMNS))})),"
    f" archived AS (INSERT INTO sora_chars_attempts ({', '.join(ATTEMPT_COLUMNS)})"
    f" SELECT {', '.join(ATTEMPT_COLUMNS)} FROM attempt WHERE EXISTS (SELECT FROM updated) AND NOT EXISTS"
    " (SELECT FROM sora_chars_attempts AS stored"
    " WHERE stored.key = attempt.key AND stored.token_digest = attempt.token_digest"
    " AND stored.task_id IS NOT DISTINCT FROM attempt.task_id))"
    f"{_NOTIFY}"
).replace(
    "SELECT key, number,",
    "SELECT key, (SELECT coalesce(max(number), 0) + 1 FROM sora_chars_attempts AS stored"
    " WHERE stored.key = attempt.key),",
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM sora_chars_entries WHERE"  # noqa: S608 # our own names
FIND: dict[Lookup, str] = {
    "key": f"{_SELECT} key = %s",
    "task": f"{_SELECT} provider = %s AND task_id = %s LIMIT 1",
    "token": f"{_SELECT} token_digest = %s LIMIT 1",
}
ALL_BY_TASK = f"{_SELECT} provider = %s AND task_id = %s ORDER BY row_id"  # our own names
FIND_BY_ATTEMPT: dict[Lookup, str] = {
    "task": f"{_SELECT} key = (SELECT key FROM sora_chars_attempts WHERE provider = %s AND task_id = %s LIMIT 1)",  # noqa: S608 # our own names
    "token": f"{_SELECT} key = (SELECT key FROM sora_chars_attempts WHERE token_digest = %s LIMIT 1)",  # noqa: S608 # our own names
}
ATTEMPTS = f"SELECT {', '.join(ATTEMPT_COLUMNS)} FROM sora_chars_attempts WHERE key = ANY(%s) ORDER BY key, number"  # noqa: S608 # our own names
_ROW = f"row_id, {', '.join(COLUMNS)}"
_ORDERS = {False: "row_id > %s ORDER BY row_id LIMIT %s", True: "row_id < %s ORDER BY row_id DESC LIMIT %s"}
_STATE_ORDERS = {
    False: "state <= wanted AND (state, row_id) > (wanted, %s) ORDER BY state, row_id LIMIT %s",
    True: "state >= wanted AND (state, row_id) < (wanted, %s) ORDER BY state DESC, row_id DESC LIMIT %s",
}
"""The rows of one state. With `state = wanted` the planner might read all rows in the order of the primary key."""
PAGES = {
    newest_first: f"SELECT {_ROW} FROM unnest(%s::text[]) AS wanted, LATERAL"  # noqa: S608 # our own names
    f" (SELECT * FROM sora_chars_entries WHERE {order}) AS entries{_ORDERS[newest_first].partition('%s')[2]}"
    for newest_first, order in _STATE_ORDERS.items()
}
SEARCHES = {
    newest_first: f"SELECT {_ROW} FROM sora_chars_entries"  # noqa: S608 # our own names
    f" WHERE state = ANY(%s) AND (search_text LIKE %s OR search_text IS NULL) AND {order}"
    for newest_first, order in _ORDERS.items()
}
UNINDEXED = (
    f"SELECT {_ROW} FROM sora_chars_entries WHERE search_text IS NULL AND state = ANY(%s)"  # noqa: S608 # our own names
    " AND row_id > %s ORDER BY row_id LIMIT %s"
)
COUNT_UNINDEXED = "SELECT count(*) FROM sora_chars_entries WHERE search_text IS NULL AND state = ANY(%s)"
SET_SEARCH_TEXTS = (
    "UPDATE sora_chars_entries AS stored SET search_text = new.text"
    " FROM unnest(%s::bigint[], %s::integer[], %s::text[]) AS new (row_id, version, text)"
    " WHERE stored.row_id = new.row_id AND stored.version = new.version RETURNING stored.row_id"
)
_UNFINISHED = "state IN ('pending', 'sending', 'running')"
"""As the partial index has it: the planner compares the text."""
IDLE = {
    False: f"{_SELECT} {_UNFINISHED} AND updated_at < %s ORDER BY updated_at, key LIMIT %s",
    True: f"{_SELECT} {_UNFINISHED} AND updated_at < %s AND (updated_at, key) > (%s, %s)"
    " ORDER BY updated_at, key LIMIT %s",
}
"""By whether the page begins after a time and a key."""
_OLD = (
    "FROM sora_chars_entries WHERE state = ANY(%s) AND updated_at < %s AND NOT"
    """ (state = 'rejected' AND coalesce(error_json LIKE '%%"charged":"%%', false))"""
)
"""A rejection records `charged` only if it may have been paid."""
COUNT_OLD = f"SELECT count(*) {_OLD}"
PRUNE = (
    f"WITH old AS (SELECT row_id {_OLD} LIMIT %s),"  # noqa: S608 # our own names
    " removed AS (DELETE FROM sora_chars_entries USING old WHERE sora_chars_entries.row_id = old.row_id"
    " RETURNING sora_chars_entries.key),"
    " attempts AS (DELETE FROM sora_chars_attempts USING removed WHERE sora_chars_attempts.key = removed.key)"
    " SELECT count(*) FROM removed"
)
ANALYZE = "ANALYZE sora_chars_entries"
"""Until then the planner expects no text. Autovacuum does the same some time later."""
SEARCH_INDEX = "sora_chars_entries_search"
CREATE_SEARCH_INDEX: LiteralString = """
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE INDEX sora_chars_entries_search ON sora_chars_entries USING gin (search_text gin_trgm_ops);
"""
ARRIVE = (
    "INSERT INTO sora_chars_processes AS stored VALUES (%s, 1, NULL)"
    " ON CONFLICT (owner) DO UPDATE SET connections = stored.connections + 1, left_at = NULL"
)
LEAVE = "UPDATE sora_chars_processes SET left_at = clock_timestamp() WHERE owner = %s"
FOUND_DEAD = (
    "INSERT INTO sora_chars_processes AS stored VALUES (%s, %s, clock_timestamp())"
    " ON CONFLICT (owner) DO UPDATE SET left_at = clock_timestamp() WHERE stored.connections = EXCLUDED.connections"
    " RETURNING owner"
)
PRESENCE = (
    "SELECT pg_try_advisory_xact_lock_shared(%s), coalesce(connections, 0), left_at IS NOT NULL"
    " FROM (SELECT) AS one LEFT JOIN sora_chars_processes ON owner = %s"
)
"""The lock is shared: two processes that check at once must not take each other for the owner."""
FORGET_PROCESSES: LiteralString = (
    "DELETE FROM sora_chars_processes WHERE left_at < clock_timestamp() - interval '1 day'"
)
