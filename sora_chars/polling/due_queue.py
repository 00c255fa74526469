"""Whose turn it is to be looked at."""

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

    HeapEntry = list[Any]  # when a task is due, the number of this turn, its `WatchedTask`

TICK = 0.001
"""Seconds by which a look may be early: a clock ticks in steps, and may never reach a time in between."""

_MOST_WEIGHED = 64  # tasks; the best of so many, drawn from a crowd, is hardly worse than the best of all
_MOST_SPARE = 1000


@attrs.define(eq=False, repr=False)
class DueQueue:
    """The tasks of a poller in the order in which they are due. Of a task the last turn counts, as `WatchedTask.entry` says.

    What a turn was kept in is used again for the next one. Python's garbage collector starts when more objects were
    made than have gone; new ones in the place of old ones would gather until it goes through 100,000 at once.
    """

    _heap: list[HeapEntry] = attrs.field(factory=list["HeapEntry"])
    _due: deque[HeapEntry] = attrs.field(factory=deque["HeapEntry"])
    _free_list: list[HeapEntry] = attrs.field(factory=list["HeapEntry"])
    _last_heap_id: int = 0

    def __len__(self) -> int:
        """How many turns are kept, with those that do not count any more."""
        return len(self._heap) + len(self._due)

    def add(self, watch: WatchedTask, due: float) -> bool:
        """Give a task its turn, at a loop time; whether that is the first one now."""
        self._last_heap_id += 1
        watch.due, watch.heap_id = due, self._last_heap_id
        turn = self._free_list.pop() if self._free_list else []
        turn[:] = due, self._last_heap_id, watch
        heapq.heappush(self._heap, turn)
        return self._heap[0] is turn

    def wait(self, now: float) -> float:
        """Seconds until something is due; moves what is due out of the heap, and drops turns that do not count."""
        while self._heap and (self._heap[0][0] - now <= TICK or self._heap[0][1] != self._heap[0][2].heap_id):
            turn = heapq.heappop(self._heap)
            _, heap_id, watch = turn
            if watch.heap_id == heap_id:
                (self._due.appendleft if watch.nudged else self._due.append)(turn)
        while self._due and self._due[0][1] != self._due[0][2].heap_id:
            self._due.popleft()
        if self._due:
            return 0.0
        return self._heap[0][0] - now if self._heap else math.inf

    def take(self, priority: Callable[[WatchedTask], float], room: int) -> WatchedTask:
        """Take the task that was due first; if more are due than there is room for, the one with the largest priority."""
        best = 0
        if len(self._due) > room:
            crowd = range(1, len(self._due))
            drawn = crowd if len(crowd) < _MOST_WEIGHED else random.sample(crowd, _MOST_WEIGHED - 1)
            best = max((0, *drawn), key=lambda place: _priority(self._due[place], priority))
        turn = self._due[best]
        del self._due[best]
        watch: WatchedTask = turn.pop()
        if len(self._free_list) < _MOST_SPARE:
            self._free_list.append(turn)
        return watch


def _priority(turn: HeapEntry, priority: Callable[[WatchedTask], float]) -> float:
    _, heap_id, watch = turn
    return priority(watch) if heap_id == watch.heap_id else -math.inf
