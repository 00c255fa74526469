"""The order in which the tasks of one provider are polled."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from .watched_task import WatchedTask

    HeapEntry = list[Any]  # due time, heap id, `WatchedTask`

TICK = 0.001
"""Seconds by which a poll may be early. Clocks advance in steps and may skip a due time."""

_MAX_COMPARED = 64  # tasks; the best of a random sample this large is hardly worse than the best of all
_MAX_FREE = 1000  # heap entries kept for reuse


@attrs.define(eq=False, repr=False)
class DueQueue:
    """The tasks of a poller, ordered by due time.

    Only a task's newest heap entry is valid; `WatchedTask.heap_id` identifies it.

    Heap entries are recycled. Python's garbage collector starts once the objects
    created outnumber the objects freed by some threshold, so a new entry per poll
    would make it scan all entries of 100,000 tasks again and again.
    """

    _heap: list[HeapEntry] = attrs.field(factory=list)
    _due: deque[HeapEntry] = attrs.field(factory=deque)
    _free_list: list[HeapEntry] = attrs.field(factory=list)
    _last_heap_id: int = 0

    def __len__(self) -> int:
        """Return the number of entries, including stale ones."""
        return len(self._heap) + len(self._due)

    def add(self, task: WatchedTask, due: float) -> bool:
        """Make a task due at a loop time. Return whether it is now the first in the heap."""
        self._last_heap_id += 1
        task.due = due
        task.heap_id = self._last_heap_id
        entry = self._free_list.pop() if self._free_list else []
        entry[:] = (due, self._last_heap_id, task)
        heapq.heappush(self._heap, entry)
        return self._heap[0] is entry

    def collect_due(self, now: float) -> float:
        """Move due entries out of the heap and drop stale ones. Return the seconds until a task is due."""
        while self._heap and (self._heap[0][0] - now <= TICK or self._heap[0][1] != self._heap[0][2].heap_id):
            entry = heapq.heappop(self._heap)
            _, heap_id, task = entry
            if task.heap_id == heap_id:
                (self._due.appendleft if task.nudged else self._due.append)(entry)
        while self._due and self._due[0][1] != self._due[0][2].heap_id:
            self._due.popleft()
        if self._due:
            return 0.0
        return self._heap[0][0] - now if self._heap else math.inf

    def pop(self, priority: Callable[[WatchedTask], float], capacity: int) -> WatchedTask:
        """Remove and return the next task to poll.

        That is the task that became due first or, if more than `capacity` tasks are
        due, the one with the highest priority.
        """
        best = 0
        if len(self._due) > capacity:
            others = range(1, len(self._due))
            compared = others if len(others) < _MAX_COMPARED else random.sample(others, _MAX_COMPARED - 1)
            best = max((0, *compared), key=lambda index: _priority(self._due[index], priority))
        entry = self._due[best]
        del self._due[best]
        task: WatchedTask = entry.pop()
        if len(self._free_list) < _MAX_FREE:
            self._free_list.append(entry)
        return task


def _priority(entry: HeapEntry, priority: Callable[[WatchedTask], float]) -> float:
    _, heap_id, task = entry
    return priority(task) if heap_id == task.heap_id else -math.inf
