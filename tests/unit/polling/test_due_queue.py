"""Whose turn it is, without a watcher."""

from __future__ import annotations

import asyncio
import gc

from sora_chars.polling.due_queue import DueQueue
from sora_chars.polling.watched_task import WatchedTask


def watches(count: int) -> list[WatchedTask]:
    """Tasks that are waited for."""
    loop = asyncio.get_running_loop()
    return [WatchedTask(f"t-{number}", loop.create_future()) for number in range(count)]


def worth_nothing(_: WatchedTask) -> float:
    """No look is worth more than another."""
    return 0.0


async def test_looks_make_nothing_that_stays() -> None:
    """What a turn was kept in serves for the next one, whichever task that is."""
    queue = DueQueue()
    for due, watch in enumerate(watches(100)):
        queue.add(watch, float(due))
    gc.collect()
    known = {id(each) for each in gc.get_objects()}
    for due in range(100, 1000):
        assert queue.collect_due(float(due)) == 0.0
        queue.add(queue.pop(worth_nothing, 100), float(due))
    assert all(id(turn) in known for turn in (*queue._heap, *queue._due))
    assert len(queue) == 100


async def test_little_is_kept_for_use() -> None:
    """After many tasks have ended, a thousand queue wait to be used again, and no task with them."""
    queue = DueQueue()
    for watch in watches(1500):
        queue.add(watch, 0.0)
    assert queue.collect_due(0.0) == 0.0
    for _ in range(1500):
        queue.pop(worth_nothing, 2000)
    assert len(queue) == 0
    assert [len(turn) for turn in queue._free_list] == [2] * 1000
