"""The queue of due tasks, without a watcher."""

from __future__ import annotations

import asyncio
import gc

from sora_chars.polling.due_queue import DueQueue
from sora_chars.polling.watched_task import WatchedTask


def watched_tasks(count: int) -> list[WatchedTask]:
    """Return new tasks."""
    loop = asyncio.get_running_loop()
    return [WatchedTask(f"t-{number}", loop.create_future()) for number in range(count)]


def no_priority(_: WatchedTask) -> float:
    """Give every task the same priority."""
    return 0.0


async def test_reuses_heap_entries() -> None:
    """A popped entry is used again for the next task, whichever that is: polls leave no new objects."""
    queue = DueQueue()
    for due, task in enumerate(watched_tasks(100)):
        queue.add(task, float(due))
    gc.collect()
    known = {id(thing) for thing in gc.get_objects()}
    for due in range(100, 1000):
        assert queue.collect_due(float(due)) == 0.0
        queue.add(queue.pop(no_priority, 100), float(due))
    assert all(id(entry) in known for entry in (*queue._heap, *queue._due))
    assert len(queue) == 100


async def test_free_list_is_bounded() -> None:
    """After many tasks have ended, a thousand entries are kept for reuse, without their tasks."""
    queue = DueQueue()
    for task in watched_tasks(1500):
        queue.add(task, 0.0)
    assert queue.collect_due(0.0) == 0.0
    for _ in range(1500):
        queue.pop(no_priority, 2000)
    assert len(queue) == 0
    assert [len(entry) for entry in queue._free_list] == [2] * 1000
