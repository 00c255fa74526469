"""Requests that are recorded in a transaction of the application's, and ledgers on its pool and schema."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from sora_chars import (
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    EntryState,
    InvalidRequestError,
    KeyConflictError,
    Kie,
    LedgerError,
    PostgresLedger,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the fields of the request, some of them changed."""
    return {**REQUEST, **fields}


@asynccontextmanager
async def session_of(url: str, **options: Any) -> AsyncGenerator[CharacterSession, None]:
    """Open a session on a PostgreSQL ledger."""
    async with CharacterSession(Kie(api_key="key"), ledger=PostgresLedger(url, **options)) as session:
        yield session


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """Connect to a database, as an application does."""
    return psycopg.connect(url, **options)


async def test_an_order_and_its_request_are_recorded_together(postgres_url: str) -> None:
    """A transaction that is rolled back leaves neither; one that is committed leaves both."""
    async with session_of(postgres_url) as session, await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("CREATE TABLE orders (id integer)")
        await connection.commit()
        for fails in (True, False):
            entry = None
            with suppress(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO orders VALUES (17)")
                    entry = await session.register(key="order-17", connection=connection, meta={"order": 17}, **REQUEST)
                    assert await session.entry("order-17") is None
                    if fails:
                        raise ZeroDivisionError
            orders = await (await connection.execute("SELECT * FROM orders")).fetchall()
            await connection.commit()
            stored = await session.entry("order-17")
            assert (orders, stored) == (([], None) if fails else ([(17,)], entry))
        assert stored
        assert (stored.meta, stored.state) == ({"order": 17}, EntryState.PENDING)


@pytest.mark.parametrize("kind", ["connection", "cursor", "async cursor"])
async def test_every_kind_of_connection_records(postgres_url: str, kind: str) -> None:
    """A connection may be sync or async, or a cursor, whatever rows it makes; the same key is the same request."""
    async with session_of(postgres_url) as session:
        if kind == "async cursor":
            async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
                cursor = connection.cursor(row_factory=dict_row)
                first = await session.register(key="k", connection=cursor, **REQUEST)
                assert await session.register(key="k", connection=cursor, **REQUEST) == first
        else:
            with connect(postgres_url, row_factory=dict_row) as database:
                given = database.cursor() if kind == "cursor" else database
                first = await session.register(key="k", connection=given, **REQUEST)
                assert await session.register(key="k", connection=given, meta={"other": 1}, **REQUEST) == first
                with pytest.raises(KeyConflictError):
                    await session.register(key="k", connection=given, **changed(clip="2,3"))
        assert await session.entry("k") == first


async def test_rejects_what_cannot_record(postgres_url: str, tmp_path: Any) -> None:
    """The error says whether the connection, the ledger or the transaction is wrong."""
    async with session_of(postgres_url) as session:
        with pytest.raises(InvalidRequestError, match="connection must be one of psycopg or its cursor, got str"):
            await session.register(connection="postgresql://db", **REQUEST)  # type: ignore[arg-type]
        with connect(postgres_url) as database:
            database.execute("SET search_path = nowhere")
            with pytest.raises(LedgerError, match=r"could not be recorded on this connection: .* Open the ledger once"):
                await session.register(connection=database, **REQUEST)
        with connect(postgres_url) as database:
            database.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            database.execute("SELECT 1 FROM sora_chars_entries")
            await session.register(key="k", **REQUEST)
            with pytest.raises(LedgerError, match=r"could not serialize access .* Repeat the transaction"):
                await session.register(key="k", connection=database, **REQUEST)
        with connect(postgres_url) as database:
            database.read_only = True
            with pytest.raises(
                LedgerError, match=r"read-only transaction\. Use a connection that is open and may write"
            ):
                await session.register(connection=database, **REQUEST)
            database.rollback()
            database.read_only = False
            database.execute("CREATE ROLE shop; GRANT INSERT, SELECT ON sora_chars_entries TO shop; SET ROLE shop")
            with pytest.raises(LedgerError, match=r"permission denied .* SELECT on sora_chars_processes"):
                await session.register(connection=database, **REQUEST)
            database.rollback()
            database.execute("CREATE ROLE shop; GRANT INSERT, SELECT ON sora_chars_entries TO shop")
            database.execute("GRANT SELECT ON sora_chars_processes TO shop; SET ROLE shop")
            assert (await session.register(connection=database, **REQUEST)).key
            database.close()
            with pytest.raises(
                LedgerError, match=r"connection is closed\. Use a connection that is open and may write"
            ):
                await session.register(connection=database, **REQUEST)
    async with CharacterSession(Kie(api_key="key"), ledger=tmp_path / "ledger.db") as session:
        with pytest.raises(ConfigurationError, match="only a PostgreSQL ledger records"):
            await session.register(connection=database, **REQUEST)
        with pytest.raises(ConfigurationError, match="only a PostgreSQL ledger records"):
            session.registering(**REQUEST)


@pytest.mark.parametrize("elsewhere", ["database", "schema"])
async def test_a_connection_to_another_ledger_records_nothing(postgres_url: str, postgres: Any, elsewhere: str) -> None:
    """A request that no worker of this ledger would find is an error, also if the other ledger has its key."""
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {}
        url = postgres_url
        if elsewhere == "database":
            postgres.sql("CREATE DATABASE other")
            stack.callback(postgres.sql, "DROP DATABASE other WITH (FORCE)")
            url = postgres.url("other")
        else:
            options = {"schema": "other"}
        other = await stack.enter_async_context(session_of(url, **options))
        session = await stack.enter_async_context(session_of(postgres_url))
        await other.register(key="k", **REQUEST)
        database = stack.enter_context(connect(url, autocommit=True))
        database.execute("SET search_path = other, public")
        for key in ("k", "new"):
            with pytest.raises(LedgerError, match="leads to another ledger") as caught:
                await session.register(key=key, connection=database, **REQUEST)
            assert caught.value.key == key
            new = session.registering(**changed(key=key))
            with pytest.raises(psycopg.errors.NotNullViolation):
                database.execute(new.statement.encode(), new.values)
        assert [entry.key async for entry in other.ledger.entries()] == ["k"]
        assert [entry.key async for entry in session.ledger.entries()] == []


async def test_the_statement_serves_every_driver(postgres_url: str) -> None:
    """The statement comes with the placeholders of psycopg and Django, asyncpg, and SQLAlchemy."""
    async with session_of(postgres_url, schema="shop") as session:
        with connect(postgres_url) as database:
            for key in "abc":
                new = session.registering(CharacterRequest(**REQUEST), key=key, meta={"order": key})
                assert new.key == key
                if key == "a":
                    row = database.execute(new.statement.encode(), new.values).fetchone()
                elif key == "b":
                    row = psycopg.RawCursor(database).execute(new.numbered.encode(), new.values).fetchone()
                else:
                    named = re.sub(r":(\w+)", r"%(\1)s", new.named)
                    row = database.execute(named.encode(), new.parameters).fetchone()
                assert row == (key,)
                assert database.execute(new.statement.encode(), new.values).fetchone() is None
        entries = [entry async for entry in session.ledger.entries()]
        assert [(entry.key, entry.meta, entry.state) for entry in entries] == [
            (key, {"order": key}, EntryState.PENDING) for key in "abc"
        ]
        assert "a dog" not in repr(session.registering(**REQUEST))


async def test_a_schema_of_its_own(postgres_url: str) -> None:
    """Ledgers in two schemas of one database have nothing in common; searches and limits work in both."""
    async with session_of(postgres_url, schema='the "shop"') as session, session_of(postgres_url) as other:
        await session.register(key="k", meta={"tenant": "Zoo"}, **REQUEST)
        assert await other.entry("k") is None
        assert [entry.key async for entry in session.ledger.entries(query="zoo")] == ["k"]
        with connect(postgres_url) as database:
            await session.register(key="k-2", connection=database, **REQUEST)
        assert await session.entry("k-2")
        assert session.ledger.quota_store
    async with session_of(postgres_url, schema='the "shop"') as session:
        assert await session.entry("k")


@pytest.mark.parametrize("schema", [None, "shop"])
@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_pool_of_the_application(postgres_url: str, schema: str | None, autocommit: bool) -> None:  # noqa: FBT001 # a parameter
    """The statements run on the application's pool, whatever its connections are like; it stays open."""
    kwargs = {"autocommit": autocommit, "row_factory": dict_row}
    async with AsyncConnectionPool(postgres_url, kwargs=kwargs, min_size=1, max_size=2, open=False) as pool:
        async with CharacterSession(Kie(api_key="key"), ledger=PostgresLedger(pool=pool, schema=schema)) as session:
            entry = await session.register(key="k", **REQUEST)
            assert await session.entry("k") == entry
            assert [found.key async for found in session.ledger.entries(query="dog")] == ["k"]
        async with pool.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            row = await (await cursor.execute("SELECT current_setting('search_path') AS path")).fetchone()
        assert row == {"path": '"$user", public'}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of url and pool"),
        ({"url": "postgresql://db", "pool": object()}, "exactly one of url and pool"),
        ({"pool": object()}, "pool must be an AsyncConnectionPool"),
        ({"url": "postgresql://db", "schema": ""}, "schema must be a name, got ''"),
    ],
)
def test_rejects_other_arguments(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument that is wrong."""
    with pytest.raises(ConfigurationError, match=message):
        PostgresLedger(**arguments)


@pytest.mark.parametrize(
    ("meta", "message"),
    [([1], "a JSON object, got list"), ({"a": object()}, "must be JSON: "), ({"a": float("nan")}, "must be JSON: ")],
)
async def test_rejects_other_facts(meta: Any, message: str) -> None:
    """The user's own facts are a JSON object."""
    async with CharacterSession(Kie(api_key="key")) as session:
        with pytest.raises(InvalidRequestError, match=message):
            await session.register(meta=meta, **REQUEST)


async def test_a_whole_request_is_given_its_key() -> None:
    """A request without a key may be given one; two keys are refused."""
    async with CharacterSession(Kie(api_key="key")) as session:
        entry = await session.register(CharacterRequest(**REQUEST), key="k")
        assert entry.key == "k"
        with pytest.raises(InvalidRequestError, match="the request has the key k already"):
            await session.register(CharacterRequest(**REQUEST, key="k"), key="other")
