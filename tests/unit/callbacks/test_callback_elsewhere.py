"""A callback of a task that another process owned, which was killed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.ledger import Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}
OWNER_CHECK = 15.0  # seconds that PostgreSQL takes to find out that an owner was killed


async def is_dead(_store: FaultyStore, _owner: str) -> bool:
    """Return what a store returns of an owner that was killed."""
    await asyncio.sleep(OWNER_CHECK)
    return True


async def test_is_answered_and_polled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback of a task that has ended leads to its result, and does not wait for the check of the owner."""
    monkeypatch.setattr(FaultyStore, "is_dead", is_dead)
    store = FaultyStore()
    provider = FakeProvider(callback_url="https://example.com/hooks")
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        task_id = (await session.submit(**REQUEST)).task_id
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        loop = asyncio.get_running_loop()
        began = loop.time()
        body = json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()
        path = f"/hooks/{provider.posts[0].rpartition('/')[2]}"
        status, _ = await CallbackReceiver(session).handle("POST", path, {}, body)
        assert (status, loop.time() - began < 1.0) == (200, True)
        assert (await session.wait("mine")).id
        assert loop.time() - began < OWNER_CHECK
    assert len(provider.polls) == 1


async def test_the_task_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback of a task that still runs: once the owner is known to be dead, the task is polled here."""
    monkeypatch.setattr(FaultyStore, "is_dead", is_dead)
    store = FaultyStore()
    provider = FakeProvider(callback_url="https://example.com/hooks", end=3)
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        task_id = (await session.submit(**REQUEST)).task_id
    async with CharacterSession(provider, ledger=Ledger(store), polling=FixedInterval(10.0)) as session:
        body = json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()
        path = f"/hooks/{provider.posts[0].rpartition('/')[2]}"
        status, _ = await CallbackReceiver(session).handle("POST", path, {}, body)
        entry = await session.entry("mine")
        assert entry
        assert (status, entry.owner == session.ledger.owner) == (200, False)
        assert (await session.wait("mine", timeout=200.0)).id
    assert len(provider.polls) == 3
