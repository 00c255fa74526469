"""Whose turn it is, without a watcher."""

from __future__ import annotations

import asyncio
import gc

from sora_chars.polling.due_queue import Turns
from sora_chars.polling.watched_task import Watch


def watches(count: int) -> list[Watch]:
    """Tasks that are waited for."""
    loop = asyncio.get_running_loop()
    return [Watch(f"t-{number}", loop.create_future()) for number in range(count)]


def worth_nothing(_: Watch) -> float:
    """No look is worth more than another."""
    return 0.0


async def test_looks_make_nothing_that_stays() -> None:
    """What a turn was kept in serves for the next one, whichever task that is."""
    turns = Turns()
    for due, watch in enumerate(watches(100)):
        turns.add(watch, float(due))
    gc.collect()
    known = {id(each) for each in gc.get_objects()}
    for due in range(100, 1000):
        assert turns.wait(float(due)) == 0.0
        turns.add(turns.take(worth_nothing, 100), float(due))
    assert all(id(turn) in known for turn in (*turns._heap, *turns._due))
    assert len(turns) == 100


async def test_little_is_kept_for_use() -> None:
    """After many tasks have ended, a thousand turns wait to be used again, and no task with them."""
    turns = Turns()
    for watch in watches(1500):
        turns.add(watch, 0.0)
    assert turns.wait(0.0) == 0.0
    for _ in range(1500):
        turns.take(worth_nothing, 2000)
    assert len(turns) == 0
    assert [len(turn) for turn in turns._spare] == [2] * 1000
