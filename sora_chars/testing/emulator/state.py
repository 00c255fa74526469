"""What the emulator holds: its tasks and files, its faults, and what it has seen. The routes read and change it."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

import attrs

from .files import FileStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .callbacks import Courier
    from .counters import Counts
    from .faults import Fault, FaultBox
    from .tasks import EmulatedTask, TaskBook

REQUESTS_KEPT = 1000


class Seen(NamedTuple):
    """A request as the log keeps it; `status` is the server's own, whatever a fault did to the answer."""

    method: str
    path: str
    status: int
    fault: str | None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class World:
    """All that one emulator knows. `seen` counts the requests of each route, by method and path."""

    models: Mapping[str, str]
    kkiai_model: str | None
    book: TaskBook
    faults: FaultBox
    courier: Courier
    counts: Counts
    files: FileStore = attrs.field(factory=FileStore)
    requests: deque[Seen] = attrs.field(factory=lambda: deque[Seen](maxlen=REQUESTS_KEPT))
    seen: Counter[tuple[str, str]] = attrs.field(factory=Counter[tuple[str, str]])
    url: str = ""

    @property
    def tasks(self) -> Mapping[str, EmulatedTask]:
        """Every task by its id, oldest first."""
        return self.book.tasks

    def fault(
        self,
        kind: str,
        *,
        on: str | None = None,
        times: int | None = 1,
        rate: float = 1.0,
        **settings: object,
    ) -> Fault:
        """Let something go wrong. `faults.KINDS` is the table of kinds, their places and settings.

        Args:
            kind: A row of the table.
            on: create, poll, callback, upload, character, omni, other or any; None is the kind's own place.
            times: How often it consecutive_429s before it is spent; None is without end.
            rate: The share of the requests that it consecutive_429s.
            settings: The kind's own, such as `seconds=0.1`.

        Raises:
            ValueError: no such kind, place or setting.
        """
        return self.faults.add(kind, on=on, times=times, rate=rate, settings=settings)
