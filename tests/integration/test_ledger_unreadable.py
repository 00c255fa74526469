"""Rows of a ledger that a newer version of the package or another program has written."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import Character, CharacterSession, EntryState, Kie, UnreadableEntryError, open_ledger
from sora_chars.cli.render import entry_row
from sora_chars.ledger.serialize import to_request, to_snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars import Ledger

BROKEN = {
    "request is no JSON": {"request_json": "{"},
    "request is no object": {"request_json": "[]"},
    "request has another field": {"request_json": json.dumps({"from_task": "t-0", "clip": "1,3", "mood": "calm"})},
    "another kind": {"kind": "hologram"},
}
BROKEN_RESULTS = {
    "result is no JSON": {"result_json": "{"},
    "result has another field": {"result_json": json.dumps({"task_id": "t", "provider": "kie", "aura": 1})},
    "character has another field": {"result_json": json.dumps({"character": {"aura": 1}})},
    "no result": {"result_json": None},
    "clip is none": {"request_json": json.dumps({"clip": "x"})},
    "request is a list": {"request_json": "[]"},
}
RESULT = {
    "task_id": "t",
    "provider": "kie",
    "state": "success",
    "character": {"id": "ch_1", "provider": "kie", "name": "Rex"},
}


def edit(url: str, key: str, changes: dict[str, str | None]) -> None:
    """Change columns of an entry, as another program would."""
    names = ", ".join(f"{name} = ?" for name in changes)
    values = (*changes.values(), key)
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute(f"UPDATE entries SET {names} WHERE key = ?", values)
            file.commit()
        return
    with psycopg.connect(url) as database:
        database.execute(f"UPDATE sora_chars_entries SET {names} WHERE key = ?".replace("?", "%s").encode(), values)


async def write(ledger: Ledger, key: str, to: EntryState, result: Any = None) -> None:
    """Write an entry that is running or has ended, and that no process owns."""
    request = {"from_task": "t-0", "clip": "1,3"}
    entry = await ledger.register(key=key, provider="kie", kind="character", request=request)
    entry = await ledger.transition(entry, EntryState.SENDING)
    entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"t-{key}", claim=False)
    if to is not EntryState.RUNNING:
        await ledger.transition(entry, to, result=result)


@pytest.fixture
async def session(shared_url: str) -> AsyncIterator[CharacterSession]:
    """A session whose provider cannot be reached."""
    async with CharacterSession(Kie("key", base_url="http://127.0.0.1:9"), ledger=shared_url) as opened:
        yield opened


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
async def test_recover_skips_an_unreadable_entry(
    session: CharacterSession, shared_url: str, changes: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    """`recover` logs an entry that it cannot read, and yields those before and after it."""
    for key in ("a", "b", "c"):
        await write(session.ledger, key, EntryState.RUNNING)
    edit(shared_url, "b", changes)
    assert [handle.key async for handle in session.recover()] == ["a", "c"]
    [record] = [record for record in caplog.records if vars(record)["event"] == "recovery.unreadable"]
    assert record.__dict__["key"] == "b"


@pytest.mark.parametrize("changes", BROKEN_RESULTS.values(), ids=BROKEN_RESULTS)
async def test_characters_skip_an_unreadable_entry(
    session: CharacterSession, shared_url: str, changes: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    """`characters` logs an entry that it cannot read, and yields those before and after it; so does a search."""
    for key in ("a", "b", "c"):
        await write(session.ledger, key, EntryState.SUCCEEDED, RESULT)
    edit(shared_url, "b", changes)
    assert [saved.key async for saved in session.characters()] == ["c", "a"]
    assert [saved.key async for saved in session.characters("REX")] == ["c", "a"]
    assert "ledger.unreadable" in {vars(record)["event"] for record in caplog.records}


async def test_unreadable_entries_in_lists(shared_url: str) -> None:
    """A list shows an unreadable entry, and finds it by its key; reading its values raises."""
    async with open_ledger(shared_url) as ledger:
        await write(ledger, "needle", EntryState.SUCCEEDED, {"character": {"aura": 1}})
        edit(shared_url, "needle", {"request_json": "{"})
        [entry] = [entry async for entry in ledger.entries(query="needle")]
    assert entry_row(entry, 0.0)[-1] == "(unreadable)"
    for read in (to_request, to_snapshot, lambda entry: entry.request):
        with pytest.raises(UnreadableEntryError, match="entry of key needle cannot be read") as caught:
            read(entry)
        assert caught.value.key == "needle"


async def test_a_newer_state(shared_url: str) -> None:
    """An entry in a state that this version lacks counts as unknown, so that its key is never sent."""
    async with open_ledger(shared_url) as ledger:
        await write(ledger, "k-1", EntryState.RUNNING)
        edit(shared_url, "k-1", {"state": "paused"})
        entry = await ledger.get("k-1")
    assert entry is not None
    assert (entry.state, entry.error) == (
        EntryState.UNKNOWN,
        {"message": "this version does not know its state paused"},
    )


async def test_recovers_many_entries_together(
    session: CharacterSession, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of entries is claimed with few commits."""
    for number in range(50):
        await write(session.ledger, f"k-{number}", EntryState.RUNNING)
    store: Any = session.ledger._store
    sizes: list[int] = []
    if shared_url.startswith("sqlite:"):
        run_jobs = store._writer._run_jobs

        def counted(jobs: list[Any]) -> list[Any]:
            sizes.append(len(jobs))
            result: list[Any] = run_jobs(jobs)
            return result

        monkeypatch.setattr(store._writer, "_run_jobs", counted)
    handles = [handle async for handle in session.recover()]
    assert [handle.key for handle in handles] == [f"k-{number}" for number in range(50)]
    assert {type(handle.wants) for handle in handles} == {type(Character)}
    assert len(sizes) < 10
