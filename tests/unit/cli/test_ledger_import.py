"""Reading an export of a ledger back: which lines are broken, and which entries are inserted."""

from __future__ import annotations

import io
import json
from typing import Any

import attrs
import pytest

from sora_chars.cli.ledger_import import copy_checked, insert_entries, read_line
from sora_chars.cli.render import entry_json
from sora_chars.ledger import Entry, EntryState, open_ledger

REQUEST = {"from_task": "t0", "clip": "1,3", "prompt": "A dog"}
ATTEMPT = {"provider": "kie", "state": "failed", "request": REQUEST, "task_id": "t1", "ended_at": 5.0}
CHARACTER = {"id": "ch_1", "provider": "kie", "username": "rex"}


def entry(key: str = "dog", state: EntryState = EntryState.RUNNING, **more: Any) -> Entry:
    """Return an entry of every field."""
    values: dict[str, Any] = {"task_id": f"task-{key}", "token_digest": f"digest-{key}", "owner": "a0", "credits": 1.5}
    values |= {"request_json": '{"clip":"1,3","from_task":"t0","prompt":"A dog"}', "error_json": '{"message":"x"}'}
    values |= {"created_at": 1000.25, "updated_at": 2000.5, "version": 3}
    return Entry(key=key, provider="kie", kind="character", state=state, **values | more)


def line(of: Entry) -> bytes:
    """Return an entry as `sora-chars ledger export` writes it."""
    return json.dumps(entry_json(of)).encode() + b"\n"


def done(key: str = "dog") -> Entry:
    """Return an entry with a result."""
    result = {"task_id": "t1", "provider": "kie", "state": "success", "character": CHARACTER}
    return entry(key, EntryState.SUCCEEDED, owner=None, error_json=None, result_json=json.dumps(result, sort_keys=True))


def test_entries_are_read_as_they_were() -> None:
    """State, task id, digest, times and version are those of the export."""
    assert read_line(line(entry()))[0] == entry()
    assert attrs.evolve(read_line(line(done()))[0], result_json=None) == attrs.evolve(done(), result_json=None)
    assert read_line(line(done()))[0].result == done().result


def test_absent_fields_have_their_defaults() -> None:
    """An export of an earlier version may lack a field that has a default."""
    facts = entry_json(entry("dog", EntryState.PENDING))
    for name in ("token_digest", "task_id", "owner", "result", "error", "credits", "version"):
        del facts[name]
    assert read_line(json.dumps(facts).encode())[0].version == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": ""}, "key must be printable text without blanks at its ends, got ''"),
        ({"key": 7}, "key must be printable text without blanks at its ends, got 7"),
        ({"provider": None}, "provider is missing"),
        ({"task_id": "a\x1bb"}, r"task_id must be printable text, got 'a\x1bb'"),
        (
            {"state": "lost"},
            "state must be one of pending, sending, running, succeeded, failed, rejected, unknown, deleted, got 'lost'",
        ),
        ({"request": []}, "request must be a JSON object, got []"),
        ({"request": {"promt": 1}}, "request or result is not one of kind character: "),
        ({"kind": "song"}, "request or result is not one of kind song: 'song'"),
        ({"version": 0}, "version must be a whole number above 0, got 0"),
        ({"version": 1.5}, "version must be a whole number above 0, got 1.5"),
        ({"credits": "1"}, "credits must be a number, got '1'"),
        ({"created_at": True}, "created_at must be epoch seconds, got True"),
        ({"updated_at": -1.0}, "updated_at must be epoch seconds, got -1.0"),
        ({"created_at": 1e300}, "created_at must be epoch seconds, got 1e+300"),
        ({"key": " dog"}, "key must be printable text without blanks at its ends, got ' dog'"),
        ({"error": "boom"}, "error must be a JSON object, got 'boom'"),
        ({"state": "failed"}, "request or result is not one of kind character: "),
        ({"colour": 2}, "unknown field 'colour'; was it exported by a later version?"),
        ({"attempts": 2}, "attempts must be a list, got 2"),
        ({"attempts": [2]}, "attempt 1 must be a JSON object, got 2"),
        ({"attempts": [{"provider": "kie"}]}, "attempt 1: state is missing"),
        ({"attempts": [ATTEMPT, ATTEMPT | {"ended_at": "x"}]}, "attempt 2: ended_at must be epoch seconds, got 'x'"),
        ({"attempts": [ATTEMPT | {"number": 1}]}, "attempt 1: unknown field 'number'"),
        ({"task_id": None}, "task_id is missing, although the state is running"),
        ({"state": "succeeded"}, "request or result is not one of kind character: "),
        ({"state": "succeeded", "result": {"character": {}}}, "request or result is not one of kind character: "),
    ],
)
def test_names_what_is_wrong(change: dict[str, Any], problem: str) -> None:
    """A line that is not an entry, or that no session could use, is rejected with the field and the value."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # its text is compared
        read_line(json.dumps(entry_json(entry()) | change).encode())
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "invalid JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"[]", "the line must be a JSON object"),
        (b"NaN", "NaN is no JSON"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_names_what_is_no_object(content: bytes, problem: str) -> None:
    """A line that is no JSON object is rejected with the reason."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # its text is compared
        read_line(content)
    assert str(caught.value).startswith(problem)


def test_broken_lines_are_numbered() -> None:
    """Blank lines count; every broken line is named."""
    problems = copy_checked([b"\n", line(entry()), b"{\n", b"  \r\n", b"7"], io.BytesIO())
    assert [number for number, _ in problems] == [3, 5]


async def test_only_missing_entries_are_inserted() -> None:
    """A recorded entry is skipped if it is the same, and reported and kept if it differs."""
    copy = io.BytesIO()
    running = attrs.evolve(entry("cat"), version=2)
    assert copy_checked([line(entry()), line(entry("cat")), line(done("rex")), line(entry())], copy) == []
    async with open_ledger("memory:") as ledger:
        await ledger.insert(running)
        copy.seek(0)
        counts = await insert_entries(ledger, copy)

        assert (counts.inserted, counts.skipped, counts.different) == (2, 1, 1)
        assert counts.examples == [
            "key cat differs, and was kept: recorded as running, version 2; imported: running, version 3"
        ]
        assert await ledger.get("cat") == running
        assert await ledger.by_task("kie", "task-dog") == entry()
        assert await ledger.by_token("digest-dog") == entry()
        assert [each.key async for each in ledger.entries(states={EntryState.SUCCEEDED})] == ["rex"]


async def test_earlier_attempts_are_inserted_once() -> None:
    """An entry is inserted with its earlier attempts; importing it again adds those that are missing, and no others."""
    attempts = [ATTEMPT, ATTEMPT | {"task_id": "t2"}]
    lines = [json.dumps(entry_json(entry()) | {"attempts": attempts[:count]}).encode() for count in (1, 2, 2)]
    async with open_ledger("memory:") as ledger:
        counts = [await insert_entries(ledger, [one]) for one in lines]
        stored = await ledger.attempts("dog")

        assert [(one.inserted, one.skipped) for one in counts] == [(1, 0), (0, 1), (0, 1)]
        assert [(one.number, one.task_id, one.state) for one in stored] == [(1, "t1", "failed"), (2, "t2", "failed")]
        assert (await ledger.by_task("kie", "t1")) == entry()


async def test_attempts_of_another_entry_are_not_inserted() -> None:
    """A recorded entry that differs keeps its own attempts."""
    async with open_ledger("memory:") as ledger:
        await ledger.insert(attrs.evolve(entry(), version=2))
        await insert_entries(ledger, [json.dumps(entry_json(entry()) | {"attempts": [ATTEMPT]}).encode()])
        assert await ledger.attempts("dog") == []


async def test_differences_are_listed_up_to_a_number() -> None:
    """Every entry that differs is counted, and the first twenty are named."""
    async with open_ledger("memory:") as ledger:
        entries = [entry(f"k{number}") for number in range(300)]
        assert (await insert_entries(ledger, map(line, entries))).inserted == 300
        counts = await insert_entries(ledger, (line(attrs.evolve(each, credits=2.5)) for each in entries))
        assert (counts.inserted, counts.different, len(counts.examples)) == (0, 300, 20)
