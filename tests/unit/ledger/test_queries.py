"""What is read from a ledger: saved characters, and finished tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.ledger import EntryState, open_ledger
from sora_chars.ledger.queries import SavedCharacter, characters, finished_tasks
from sora_chars.ledger.serialize import to_record
from sora_chars.ledger.transitions import end_state
from sora_chars.models import Character, Clip, TaskSnapshot
from tests.support.recorded_requests import REQUESTS, URL, record_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Return an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


async def record_success(
    ledger: Ledger, key: str, request: Request, character: Character | None, **facts: Any
) -> Entry:
    """Record a request whose task succeeded."""
    snapshot = TaskSnapshot(task_id=f"t-{key}", provider="kie", state="success", character=character, **facts)
    kind, _ = to_record(request)
    state, ended = end_state(snapshot, kind)
    return await record_request(ledger, key, EntryState.SENDING, state, request=request, **ended)


async def test_characters_newest_first(ledger: Ledger) -> None:
    """Every character is listed with its source; other tasks and failures are not."""
    character = Character(id="ch_1", provider="kie", task_id="t-old")
    old = await record_success(ledger, "old", REQUESTS[0], character, credits=7.5)
    await record_success(ledger, "task", REQUESTS[2], None)
    await record_success(ledger, "bad", REQUESTS[1], None)
    await record_success(ledger, "video", REQUESTS[1], attrs.evolve(character, name="bello"))
    await record_success(ledger, "omni", REQUESTS[3], character)
    omni, video, first = [saved async for saved in characters(ledger)]
    assert first == SavedCharacter(
        character=attrs.evolve(character, name="rex"),
        source="t0",
        clip=Clip(1, 3),
        prompt="a dog",
        key="old",
        credits=7.5,
        created_at=old.created_at,
    )
    assert (video.source, video.clip, video.prompt, video.character.name) == (URL, None, None, "bello")
    assert (omni.source, omni.prompt) == ("HTTPS://a.invalid/dog.png", "a dog")


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"limit": 2}, ["k-3", "k-2"]),
        ({"limit": 0}, []),
        ({"limit": 9}, ["k-3", "k-2", "k-1"]),
        ({"query": "REX"}, ["k-3", "k-1"]),
        ({"query": "rex", "limit": 1}, ["k-3"]),
    ],
)
async def test_characters_by_query_and_limit(ledger: Ledger, options: dict[str, Any], keys: list[str]) -> None:
    """`query` ignores case, and only characters count towards `limit`."""
    character = Character(id="ch_1", provider="kie")
    for key, request in (("k-1", REQUESTS[0]), ("k-2", REQUESTS[1]), ("k-3", REQUESTS[0])):
        await record_success(ledger, key, request, character)
    await record_success(ledger, "task rex", REQUESTS[2], None)
    assert [saved.key async for saved in characters(ledger, **options)] == keys


async def test_finished_tasks_oldest_first(ledger: Ledger) -> None:
    """The last `limit` tasks that ended are returned, the oldest first, and no running task."""
    for number in range(3):
        await record_success(ledger, str(number), REQUESTS[2], None)
    failed = TaskSnapshot(task_id="t-3", provider="kie", state="fail")
    state, facts = end_state(failed, "task")
    await record_request(ledger, "3", EntryState.SENDING, state, request=REQUESTS[2], **facts)
    await record_request(ledger, "4", EntryState.SENDING, EntryState.RUNNING, request=REQUESTS[2], task_id="t-4")
    assert [task.task_id for task in await finished_tasks(ledger, limit=9)] == ["t-0", "t-1", "t-2", "t-3"]
    assert [task.task_id for task in await finished_tasks(ledger, limit=2)] == ["t-2", "t-3"]
    assert await finished_tasks(ledger, limit=0) == []
