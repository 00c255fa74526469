"""Searches find the same entries in every store, with and without an index."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import Entry, EntryState, Ledger, open_ledger
from sora_chars.ledger.stores import postgres, postgres_statements, sqlite, sqlite_search, sqlite_statements

if TYPE_CHECKING:
    from collections.abc import Iterable

WORDS = ["Straße", "STRASSE", 'say "hi"', "100%", "a_b", "back\\slash", "\x00nul", "\ud800half", "Ключ", "dog", "DOGS"]
QUERIES = [*WORDS, "d", "do", "og", "og s", "rass", "0%", "%", "_", "\\", "ключ", "lu", "nothing at all", "ss", "  "]


def register(ledger: Ledger, key: str, text: str) -> Any:
    """Register a request with some text."""
    return ledger.register(key=key, provider="kie", kind="character", request={"prompt": text})


async def to_state(ledger: Ledger, entry: Entry, to: EntryState, text: str) -> Entry:
    """Take a pending entry to a state, with some text in its result."""
    if to is EntryState.PENDING:
        return entry
    entry = await ledger.transition(entry, EntryState.SENDING, token_digest=f"d-{entry.key}-{entry.version}")
    if to in {EntryState.UNKNOWN, EntryState.REJECTED}:
        return await ledger.transition(entry, to)
    if to is not EntryState.SENDING:
        entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"t-{entry.key}")
    if to in {EntryState.SUCCEEDED, EntryState.FAILED}:
        entry = await ledger.transition(entry, to, result={"words": [text]})
    return entry


async def keys(ledger: Ledger, query: str, **options: Any) -> list[str]:
    """List the keys of the entries that mention a text."""
    return [entry.key async for entry in ledger.entries(query=query, **options)]


async def fill(ledger: Ledger, numbers: Iterable[int]) -> None:
    """Write entries in every state, the same for the same numbers."""
    for number in numbers:
        chosen = random.Random(number)
        entry = await register(ledger, f"k-{number}", " ".join(chosen.choices(WORDS, k=2)))
        to = chosen.choice([*EntryState])
        await to_state(ledger, entry, to, chosen.choice(WORDS))


async def send_again(ledger: Ledger) -> None:
    """Send every third rejected request again, with a new text in its result."""
    rejected = [entry async for entry in ledger.entries(states={EntryState.REJECTED})]
    for entry in rejected[::3]:
        await to_state(ledger, entry, EntryState.SUCCEEDED, f"again {entry.key}")


async def test_searches_find_what_a_scan_finds(shared_url: str) -> None:
    """Before and after entries change, every query finds the entries that a comparison with each of them finds."""
    async with open_ledger(shared_url) as ledger, open_ledger("memory:") as memory:
        for numbers in (range(120), range(120, 200)):
            for each in (ledger, memory):
                await fill(each, numbers)
            for query in QUERIES:
                assert await keys(ledger, query) == await keys(memory, query), query
            for each in (ledger, memory):
                await send_again(each)
            for query in (*QUERIES, "again k-1"):
                options = {"states": {EntryState.SUCCEEDED, EntryState.PENDING}, "newest_first": True}
                assert await keys(ledger, query, **options) == await keys(memory, query, **options), query


async def test_pages_of_a_search(shared_url: str) -> None:
    """A search yields all of several pages in order, with any states, and stops at its limit."""
    async with open_ledger(shared_url) as ledger:
        for number in range(450):
            entry = await register(ledger, f"k-{number:03}", "a friendly dog" if number % 10 else "a cat")
            if number % 3:
                await to_state(ledger, entry, EntryState.REJECTED, "")
        dogs = [number for number in range(450) if number % 10]
        assert await keys(ledger, "friendly dog") == [f"k-{number:03}" for number in dogs]
        newest = await keys(ledger, "DOG", newest_first=True, states={EntryState.REJECTED}, limit=250)
        assert newest == [f"k-{number:03}" for number in dogs[::-1] if number % 3][:250]
        assert await keys(ledger, "friendly dog", states=()) == []


async def test_rejected_without_a_token(shared_url: str) -> None:
    """An entry without a token that is sent again is indexed again."""
    async with open_ledger(shared_url) as ledger:
        rejected = await ledger.transition(await register(ledger, "k-1", "dog"), EntryState.REJECTED)
        assert await keys(ledger, "dog") == ["k-1"]
        sending = await ledger.transition(rejected, EntryState.SENDING)
        run = await ledger.transition(sending, EntryState.RUNNING, task_id="t-1")
        await ledger.transition(run, EntryState.SUCCEEDED, result={"name": "Rex the dog"})
        assert await keys(ledger, "rex") == await keys(ledger, "dog") == ["k-1"]


@pytest.mark.parametrize("shared_url", ["sqlite"], indirect=True)
async def test_deleted_rows(shared_url: str) -> None:
    """A row that was deleted after it was indexed is not found."""
    async with open_ledger(shared_url) as ledger:
        for key in ("k-1", "k-2"):
            await to_state(ledger, await register(ledger, key, "dog"), EntryState.SUCCEEDED, "")
        assert await keys(ledger, "dog") == ["k-1", "k-2"]
        with closing(sqlite3.connect(shared_url.removeprefix("sqlite:///"))) as other:
            other.execute("DELETE FROM entries WHERE key = 'k-1'")
            other.commit()
        assert await keys(ledger, "dog") == ["k-2"]


async def test_many_entries_are_logged(
    shared_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before many entries are indexed, their number is logged, and afterwards the time that it took."""
    for module in (sqlite, postgres):
        monkeypatch.setattr(module, "_MANY_ENTRIES", 5)
    monkeypatch.setattr(sqlite_search, "GROUP_SIZE", 2)
    monkeypatch.setattr(postgres, "_INDEXED_GROUP", 2)
    async with open_ledger(shared_url) as ledger:
        for number in range(5):
            await ledger.transition(await register(ledger, f"k-{number}", "dog"), EntryState.REJECTED)
        for _ in range(2):
            assert len(await keys(ledger, "dog")) == 5
    logged = [(vars(record)["event"], record.__dict__["entries"]) for record in caplog.records]
    assert logged == [("ledger.indexing", 5), ("ledger.indexed", 5)]


async def test_without_an_index(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that cannot index trigrams compares every entry, with the same result."""
    monkeypatch.setattr(sqlite_search, "has_trigrams", lambda: False)
    monkeypatch.setattr(postgres_statements, "CREATE_SEARCH_INDEX", "CREATE EXTENSION no_such_extension")
    async with open_ledger(shared_url) as ledger, open_ledger("memory:") as memory:
        for each in (ledger, memory):
            await fill(each, range(60))
        for query in QUERIES:
            assert await keys(ledger, query) == await keys(memory, query), query


def test_detects_trigrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQLite without the tokenizer has no index."""
    detect = sqlite_search.has_trigrams.__wrapped__
    assert detect()
    monkeypatch.setattr(sqlite_search, "_CREATE", "CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'none')")
    assert not detect()


async def test_sqlite_reads_pages_by_index(tmp_path: Any) -> None:
    """A page of any states reads no row that it does not need."""
    path = tmp_path / "characters.db"
    async with open_ledger(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        for count in (0, 1, 3):
            statement = sqlite_statements._page_statement(count, newest_first=True)
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * statement.count("?")).fetchall()
            steps = [row[3] for row in plan]
            assert not any(step.startswith("SCAN entries") for step in steps), steps
            assert sum("entries_state (state=? AND rowid<?)" in step for step in steps) == count, steps


async def test_postgres_searches_by_index(postgres_url: str) -> None:
    """A search of many entries uses the index of trigrams, and a page by state that of states."""
    async with open_ledger(postgres_url):
        pass
    insert = """
        INSERT INTO sora_chars_entries (key, provider, kind, state, request_json, created_at, updated_at, version,
            search_text)
        SELECT i, 'kie', 'task', 'succeeded', '{}', 0, 0, 1, md5(i::text) FROM generate_series(1, 20000) i
    """
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute(insert)
        await connection.execute("ANALYZE sora_chars_entries")
        search = f"EXPLAIN {postgres_statements.SEARCHES[True]}".encode()
        plan = await (await connection.execute(search, (["succeeded"], "%needle%", 2**62, 200))).fetchall()
        assert any("sora_chars_entries_search" in row[0] for row in plan), plan
        page = f"EXPLAIN {postgres_statements.PAGES[True]}".encode()
        plan = await (await connection.execute(page, (["running"], 2**62, 200, 200))).fetchall()
        assert any("sora_chars_entries_state_row_id_idx" in row[0] for row in plan), plan
