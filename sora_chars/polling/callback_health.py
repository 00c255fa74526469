"""Whether callbacks are arriving: while they do, polling may be rarer."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

_VOUCHED = 60.0  # seconds for which one callback vouches for the next


@attrs.define(eq=False, repr=False)
class CallbackHealth:
    """That callbacks arrive, for as long as they do. `ended` is called when it ends."""

    ended: Callable[[], object]
    _until: float = -math.inf
    _timer: asyncio.TimerHandle | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether callbacks are arriving."""
        return self._until > asyncio.get_running_loop().time()

    def record_success(self) -> None:
        """Note a callback."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + _VOUCHED
        if self._timer is None:
            self._timer = loop.call_at(self._until, self._end)

    def record_miss(self) -> None:
        """Note that one did not come."""
        self._until = -math.inf
        if self._timer:
            self._timer.cancel()
            self._end()

    def _end(self) -> None:
        self._timer = None
        if self.is_healthy:
            self._timer = asyncio.get_running_loop().call_at(self._until, self._end)
        else:
            self.ended()
