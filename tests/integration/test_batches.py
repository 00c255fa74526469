"""Batches against the emulator, with faults, interruptions and rate limits."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sora_chars import CharacterSession, EntryState, FixedInterval, Kie, Kkiai, Limits, RowFields, open_ledger
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from pathlib import Path

SOURCE: RowFields = {"from_task": "a" * 32, "clip": "1,3", "provider": "kie"}


def session_at(emulator: Emulator, *, ledger: str | Path = "memory:", limits: Limits | None = None) -> CharacterSession:
    """Return a session with both providers that polls every 10 ms."""
    kie = Kie("kie-key", base_url=emulator.url, limits=limits, timeout=5.0)
    return CharacterSession(kie, Kkiai("kkiai-key", base_url=emulator.url), ledger=ledger, polling=FixedInterval(0.01))


def make_rows(count: int) -> list[RowFields]:
    """Return rows whose prompt repeats their key."""
    return [{**SOURCE, "key": f"key {index}", "prompt": f"key {index}"} for index in range(count)]


def count_tasks(emulator: Emulator) -> Counter[str]:
    """Count the tasks that the server created for each key."""
    return Counter(str(task.input["character_prompt"]) for task in emulator.tasks.values())


async def test_every_row_has_outcome_despite_faults(emulator: Emulator) -> None:
    """Each of 200 keys has one outcome that agrees with the server, and at most one task."""
    emulator.fault("lost_response", on="create", rate=0.1, times=None)
    emulator.fault("status", on="create", rate=0.1, times=None, status=200, code=422, message="no cats")
    emulator.fault("fail_task", rate=0.1, times=None)
    emulator.fault("http_500", on="poll", rate=0.05, times=None)
    async with session_at(emulator) as session:
        outcomes = await session.create_all(make_rows(200), concurrency=50)
    tasks = count_tasks(emulator)
    ends = Counter(outcome.state for outcome in outcomes)
    assert [outcome.index for outcome in outcomes] == list(range(200))
    assert set(ends) == {EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED, EntryState.UNKNOWN}
    assert max(tasks.values()) == 1
    assert {str(outcome.key) for outcome in outcomes if outcome.state is not EntryState.REJECTED} == set(tasks)
    for outcome in outcomes:
        if outcome.task_id:
            assert emulator.tasks[outcome.task_id].input["character_prompt"] == outcome.key


async def test_interrupted_batch_is_resumed(emulator: Emulator, tmp_path: Path) -> None:
    """After an early exit and lost responses, the next session resumes running tasks and pays only for the rest."""
    emulator.fault("lost_response", on="create", times=3)
    lost: set[str | None] = set()
    async with session_at(emulator, ledger=tmp_path / "ledger.db") as session:
        async with session.create_many(make_rows(60), concurrency=10) as batch:
            for _ in range(25):
                outcome = await anext(batch)
                lost |= {outcome.key} if outcome.state is EntryState.UNKNOWN else set()
        assert batch.progress.remaining
    before = count_tasks(emulator)
    assert 25 <= len(before) <= 25 + 10 + 10  # in flight, and unread
    async with session_at(emulator, ledger=tmp_path / "ledger.db") as session:
        waiting = [handle async for handle in session.recover()]
        assert all(handle.key in before for handle in waiting)
        again = await session.create_all(make_rows(60))
        assert {outcome.key for outcome in again if outcome.state is EntryState.UNKNOWN} == lost
        assert {outcome.state for outcome in again if outcome.key not in lost} == {EntryState.SUCCEEDED}
        counted = emulator.counts.creates
        await session.create_all(make_rows(60))
    assert emulator.counts.creates == counted
    assert count_tasks(emulator) == Counter(str(row.get("key")) for row in make_rows(60))
    assert len(lost) == 3


@pytest.mark.parametrize("kind", ["credits", "credits_500", "cap", "unauthorized"])
async def test_account_rejection_stops_batch(emulator: Emulator, tmp_path: Path, kind: str) -> None:
    """No further row is sent, even to another provider; once the fault is removed, the same rows each cost once."""
    rows = make_rows(150)
    rows[100:] = [{**row, "provider": "kkiai", "prompt": None} for row in rows[100:]]
    async with session_at(emulator, ledger=tmp_path / "ledger.db") as session:
        fault = emulator.fault(kind, on="create", times=None)
        async with session.create_many(rows, concurrency=10) as batch:
            ended = [outcome async for outcome in batch]
        assert batch.stopped == "account"
        assert (batch.rejection, batch.progress.remaining) == (ended[-1].error, 140)
        assert {outcome.state for outcome in ended} == {EntryState.REJECTED}
        assert sum(emulator.request_counts.values()) == len(ended) == 10
        fault.remove()
    async with session_at(emulator, ledger=tmp_path / "ledger.db") as session:
        again = await session.create_all(rows)
    assert {outcome.state for outcome in again} == {EntryState.SUCCEEDED}
    assert (emulator.counts.creates, emulator.counts.characters) == (100, 50)


async def test_cancelled_batch_pays_nothing_twice(emulator: Emulator) -> None:
    """Requests sent before the cancellation are found by key, and no asyncio task of the batch remains."""
    rows = make_rows(8 * 40)
    cancelled = 0
    async with session_at(emulator) as session:
        for number in range(40):
            batch = asyncio.create_task(session.create_all(rows[8 * number : 8 * number + 8], concurrency=4))
            for _ in range(3 * number):
                await asyncio.sleep(0)
            batch.cancel()
            await asyncio.wait([batch])
            cancelled += batch.cancelled()
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert not [name for name in names if name.startswith("sora_chars batch")]
        assert cancelled > 20  # a slow machine may have finished some of them first
        outcomes = await session.create_all(rows)
    assert {outcome.state for outcome in outcomes} == {EntryState.SUCCEEDED}
    assert count_tasks(emulator) == Counter(str(row.get("key")) for row in rows)


async def test_synchronous_provider_uses_full_concurrency(emulator: Emulator) -> None:
    """A response takes as long as its character, so all requests are sent before the first response."""
    emulator.fault("delay", on="character", times=None, seconds=2.0)
    rows: list[RowFields] = [{**SOURCE, "key": str(index), "provider": "kkiai"} for index in range(40)]
    async with session_at(emulator) as session, session.create_many(rows, concurrency=40) as batch:
        await emulator.until(lambda: emulator.request_counts["POST", "/sora/v1/characters"] == 40)
        assert batch.progress.ended == 0
        ends = Counter([(outcome.state, outcome.provider) async for outcome in batch])
    assert ends == {(EntryState.SUCCEEDED, "kkiai"): 40}


async def test_slow_provider_does_not_delay_others(emulator: Emulator, tmp_path: Path) -> None:
    """Requests that wait for a connection of one provider are pending, and do not delay another provider."""
    emulator.fault("delay", on="character", times=None, seconds=60.0)
    slow = [SOURCE | {"key": f"slow {index}", "provider": "kkiai"} for index in range(120)]
    kie = Kie("kie-key", base_url=emulator.url, limits=None)
    kkiai = Kkiai("kkiai-key", base_url=emulator.url)
    ledger = open_ledger(tmp_path / "ledger.db")
    async with (
        ledger,
        CharacterSession(kie, kkiai, ledger=ledger, polling=FixedInterval(0.01), shutdown_timeout=0.0) as session,
    ):
        async with session.create_many(slow + make_rows(10), concurrency=200) as batch:
            ends = [(await anext(batch)).provider for _ in range(10)]
            assert ends == ["kie"] * 10
            await emulator.until(lambda: emulator.request_counts["POST", "/sora/v1/characters"] == 100)
            found = Counter([entry.state async for entry in ledger.entries()])
        assert found == {EntryState.SUCCEEDED: 10, EntryState.SENDING: 100, EntryState.PENDING: 20}
        await session.aclose()
        found = Counter([entry.state async for entry in ledger.entries()])
    assert found == {EntryState.SUCCEEDED: 10, EntryState.UNKNOWN: 100, EntryState.PENDING: 20}


async def test_batches_together_stay_under_limit() -> None:
    """Two batches at once share the limit of creates, and a strict server rejects none."""
    async with Emulator(durations=(0.02, 0.1), speed=50.0, strict_limits=True) as emulator:
        emulator.add_origin("a" * 32)
        limits = Limits(creates=(20, 0.25), polls=(10, 0.05))
        async with session_at(emulator, limits=limits) as session:
            rows: list[RowFields] = [{**SOURCE, "prompt": "a dog"}] * 300
            async with session.create_many(rows) as large:
                await anext(large)
                small = await session.create_all(rows[:10])
                assert large.progress.remaining
    assert {outcome.state for outcome in small} == {EntryState.SUCCEEDED}
    assert (emulator.counts.rate_limited["create"], emulator.counts.creates > 20) == (0, True)
