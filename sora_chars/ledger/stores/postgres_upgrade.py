"""Creates and upgrades the tables of a PostgreSQL ledger."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, UndefinedFile, UndefinedObject

from sora_chars.errors import LedgerError, printable
from sora_chars.logs import event_logger

from . import postgres_statements as statements
from .postgres_listener import lock_id

if TYPE_CHECKING:
    from .postgres_listener import Connection

log = event_logger("sora_chars.ledger")


async def upgrade(connection: Connection, *, schema: str | None) -> None:
    """Run the scripts that the database lacks, all or none. They use the schema, which is created if necessary.

    Raises:
        LedgerError: A newer version of this package has upgraded the database.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock_id("upgrade"),))
        if schema:
            await _create_schema(connection, schema)
        await connection.execute("CREATE TABLE IF NOT EXISTS sora_chars_ledger (version integer NOT NULL)")
        row = await (await connection.execute("DELETE FROM sora_chars_ledger RETURNING version")).fetchone()
        version: int = row[0] if row else 0
        if version > len(statements.UPGRADES):
            raise LedgerError(
                f"The ledger has schema version {version}, but this package supports versions up to"
                f" {len(statements.UPGRADES)}.",
                hint="Open it with a newer version of sora-chars.",
            )
        began = time.monotonic()
        entries = 0
        if 0 < version < len(statements.UPGRADES):
            entries = await _count_entries(connection)
            log.warning("ledger.upgrading", extra={"from": version, "to": len(statements.UPGRADES), "entries": entries})
        for script in statements.UPGRADES[version:]:
            await connection.execute(script)
        await _create_search_index(connection)
        if entries:
            log.warning("ledger.upgraded", extra={"seconds": round(time.monotonic() - began, 1)})
        await connection.execute(statements.FORGET_PROCESSES)
        await connection.execute("INSERT INTO sora_chars_ledger VALUES (%s)", (len(statements.UPGRADES),))


async def _count_entries(connection: Connection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM sora_chars_entries")).fetchone()
    assert row is not None  # noqa: S101 # the statement returns one row
    count: int = row[0]
    return count


async def _create_search_index(connection: Connection) -> None:
    """Create the index of texts, unless it exists or the database lacks the extension for it.

    Then the database searches every text, and the next opening tries again.
    """
    row = await (await connection.execute("SELECT to_regclass(%s)", (statements.SEARCH_INDEX,))).fetchone()
    if row != (None,):
        return
    try:
        async with connection.transaction():
            await connection.execute(statements.CREATE_SEARCH_INDEX)
    except (FeatureNotSupported, InsufficientPrivilege, UndefinedFile, UndefinedObject) as error:
        log.info("ledger.no_search_index", extra={"error": printable(error)})


async def _create_schema(connection: Connection, schema: str) -> None:
    """Create the schema unless it exists: a role may be allowed to use it only."""
    row = await (await connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))).fetchone()
    if row is None:
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
