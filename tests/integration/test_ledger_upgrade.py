"""Ledgers written by earlier versions open, upgrade and read."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import CharacterSession, Entry, EntryState, KeyConflictError, Kie, Ledger, LedgerError, open_ledger
from sora_chars.ledger.serialize import rejection, to_record, to_request
from sora_chars.ledger.stores import postgres

if TYPE_CHECKING:
    from collections.abc import Callable

LEDGERS = Path(__file__).with_name("ledgers")
RENAMED = {"asked": "pending", "refused": "rejected"}
"""States as the stored ledgers name them, and as they read today."""
RENAMED_IN_ERRORS = {"RequestRefusedError": "RequestRejectedError", "passing": "transient"}
"""Types and facts of recorded errors, in the same way."""
NEWER = 1000


def expected() -> list[dict[str, Any]]:
    """The entries as they must read today, in the order in which they were recorded."""
    entries: list[dict[str, Any]] = json.loads((LEDGERS / "entries.json").read_text(encoding="utf-8"))
    for facts in entries:
        facts["state"] = RENAMED.get(facts["state"], facts["state"])
        if facts["error"]:
            facts["error"] = {RENAMED_IN_ERRORS.get(name, name): value for name, value in facts["error"].items()}
        if facts["error"] and "type" in facts["error"]:
            facts["error"]["type"] = RENAMED_IN_ERRORS.get(facts["error"]["type"], facts["error"]["type"])
    return entries


def shown(entry: Entry) -> dict[str, Any]:
    """The facts of an entry under the names of entries.json."""
    return {
        "key": entry.key,
        "provider": entry.provider,
        "kind": entry.kind,
        "state": entry.state.value,
        "request": entry.request,
        "token_digest": entry.token_digest,
        "task_id": entry.task_id,
        "holder": entry.owner,
        "result": entry.result,
        "error": entry.error,
        "credits": entry.credits,
        "created_at": entry.created_at,
        "updated_at": entry.updated_at,
        "version": entry.version,
    }


async def read(ledger: Ledger) -> list[dict[str, Any]]:
    """Every entry of a ledger, in the order in which the entries were recorded."""
    return [shown(entry) async for entry in ledger.entries()]


async def read_at(url: str) -> list[dict[str, Any]]:
    """Every entry of the ledger at a URL, which is opened and closed again."""
    async with open_ledger(url) as ledger:
        return await read(ledger)


async def entry_of(ledger: Ledger, key: str) -> Entry:
    """The entry of a key, which must be there."""
    entry = await ledger.get(key)
    assert entry is not None
    return entry


def stored_version(url: str, *, write: int | None = None) -> int:
    """The schema version that a store declares, after writing another one if `write` is given."""
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            if write is not None:
                file.execute(f"PRAGMA user_version = {write}")
            return int(file.execute("PRAGMA user_version").fetchone()[0])
    with psycopg.connect(url) as database:
        if write is not None:
            database.execute("UPDATE sora_chars_ledger SET version = %s", (write,))
        row = database.execute("SELECT version FROM sora_chars_ledger").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture(params=["version_1.sqlite", "version_2.sqlite", "version_2.postgres.sql", "version_4.postgres.sql"])
def old_url(request: pytest.FixtureRequest, make_url: Callable[[str], str]) -> str:
    """The URL of a copy of each stored ledger in turn."""
    stored = LEDGERS / request.param
    url = make_url("sqlite" if stored.suffix == ".sqlite" else "postgres")
    if stored.suffix == ".sqlite":
        shutil.copyfile(stored, url.removeprefix("sqlite:///"))
    else:
        with psycopg.connect(url) as database:
            database.execute(stored.read_bytes())
    return url


async def test_every_entry_reads(old_url: str) -> None:
    """Each entry reads as it was recorded, whatever its state, in the order of recording."""
    assert await read_at(old_url) == expected()


def test_all_states_are_covered() -> None:
    """The stored ledgers hold at least one entry in every state and of every kind."""
    later_states = {"deleted"}
    assert {facts["state"] for facts in expected()} == {state.value for state in EntryState} - later_states
    assert {facts["kind"] for facts in expected()} == {"character", "task", "omni"}


async def test_opening_twice_changes_nothing(old_url: str) -> None:
    """A ledger opened in three places at once, and once more later, has the same entries and the same version."""
    assert await asyncio.gather(*(read_at(old_url) for _ in range(3))) == [expected()] * 3
    version = stored_version(old_url)
    assert await read_at(old_url) == expected()
    assert stored_version(old_url) == version


@pytest.mark.parametrize("state", EntryState)
async def test_entries_are_found_by_state(state: EntryState, old_url: str) -> None:
    """A filter by state finds the entries that were recorded in it."""
    async with open_ledger(old_url) as ledger:
        found = [shown(entry) async for entry in ledger.entries(states={state})]
    assert found == [facts for facts in expected() if facts["state"] == state.value]


async def test_entries_are_found_by_task_and_token(old_url: str) -> None:
    """Task ids and token digests lead to their entries."""
    async with open_ledger(old_url) as ledger:
        for facts in expected():
            if facts["task_id"]:
                found = await ledger.by_task(facts["provider"], facts["task_id"])
                assert found is not None
                assert shown(found) == facts
            if facts["token_digest"]:
                found = await ledger.by_token(facts["token_digest"])
                assert found is not None
                assert shown(found) == facts


@pytest.mark.parametrize("key", ["asked/character", "asked/again", "asked/never-sent", "refused/content"])
async def test_entries_can_be_sent(key: str, old_url: str) -> None:
    """A pending or rejected entry can be sent, and the transition is recorded."""
    async with open_ledger(old_url) as ledger:
        before = await entry_of(ledger, key)
        sending = await ledger.transition(before, EntryState.SENDING)
    async with open_ledger(old_url) as ledger:
        assert await ledger.get(key) == sending
    assert (sending.state, sending.version) == (EntryState.SENDING, before.version + 1)
    assert sending.token_digest == before.token_digest


async def test_a_new_token_keeps_the_old_one(old_url: str) -> None:
    """An entry that is sent again after the upgrade is found by both of its tokens."""
    async with open_ledger(old_url) as ledger:
        before = await entry_of(ledger, "refused/content")
        sending = await ledger.transition(before, EntryState.SENDING, token_digest="d-2")
        assert [await ledger.by_token(digest) for digest in (before.token_digest or "", "d-2")] == [sending] * 2
        assert [one.error for one in await ledger.attempts(before.key)] == [before.error]


async def test_running_task_ends(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former owner of an entry is dead, and another process can record the result of its task."""
    monkeypatch.setattr(postgres, "OWNER_GRACE", 1.0)
    async with open_ledger(old_url) as ledger:
        before = await entry_of(ledger, "running/watched")
        assert await ledger.is_dead(before.owner or "")
        after = await ledger.transition(before, EntryState.SUCCEEDED, result={"words": "готово"}, credits=2.5)
        assert await ledger.get(before.key) == after


async def test_repeated_request_returns_its_entry(old_url: str) -> None:
    """Registering the same request again returns its entry, whatever the order of its fields; another one raises."""
    async with open_ledger(old_url) as ledger:
        for facts in expected():
            names = {name: facts[name] for name in ("key", "provider", "kind")}
            reordered = dict(reversed(facts["request"].items()))
            assert shown(await ledger.register(**names, request=reordered)) == facts
            with pytest.raises(KeyConflictError):
                await ledger.register(**names, request={"prompt": "something else"})
        assert len(await read(ledger)) == len(expected())


async def test_rejection_keeps_its_type(old_url: str) -> None:
    """The error of a rejected request is rebuilt with its type and its attributes."""
    async with open_ledger(old_url) as ledger:
        content, credit = await entry_of(ledger, "refused/content"), await entry_of(ledger, "refused/credits")
    errors = [rejection(content), rejection(credit)]
    names = [RENAMED_IN_ERRORS["RequestRefusedError"], "InsufficientCreditsError"]
    assert [type(error).__name__ for error in errors] == names
    assert [(error.code, error.provider) for error in errors] == [(422, "kie"), (402, "kie")]
    assert "запрещено" in errors[0].message


async def test_a_session_lists_saved_characters(old_url: str) -> None:
    """A session lists the characters that the old ledger holds, newest first."""
    async with CharacterSession(Kie("key", base_url="http://127.0.0.1:9"), ledger=old_url) as session:
        found = [saved async for saved in session.characters()]
    assert [saved.key for saved in found] == [
        "succeeded/kkiai",
        "succeeded/omni",
        "succeeded/video-ключ",
        "succeeded/from-task",
    ]
    assert [saved.character.name for saved in found] == ["asked", "Süß", None, "Рекс"]


async def test_every_request_is_read(old_url: str) -> None:
    """The request of each entry is a request of this version, which is recorded in its place without a conflict."""
    async with open_ledger(old_url) as ledger:
        for facts in expected():
            request = to_request(await entry_of(ledger, facts["key"]))
            kind, record = to_record(request)
            if facts["kind"] == "omni":
                entry = await ledger.register(key=facts["key"], provider=facts["provider"], kind=kind, request=record)
                assert shown(entry) == facts
            assert (request.key, kind) == (facts["key"], facts["kind"].replace("omni", "character"))


async def test_rejects_a_newer_schema(old_url: str) -> None:
    """Opening a ledger of a newer schema version raises every time and does not change it."""
    stored_version(old_url, write=NEWER)
    for _ in range(2):
        with pytest.raises(LedgerError, match=f"schema version {NEWER}"):
            await open_ledger(old_url).open()
    assert stored_version(old_url) == NEWER
