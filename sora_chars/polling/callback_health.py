"""Whether callbacks are arriving. While they are, tasks are polled less often."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

_HEALTHY_SECONDS = 60.0  # how long callbacks count as healthy after one has arrived
_STRETCH = 5.0  # interval multiplier while callbacks are healthy


@attrs.define(eq=False, repr=False)
class CallbackHealth:
    """Tracks whether callbacks are arriving.

    Args:
        on_unhealthy: Called when callbacks stop arriving or one is missed.
    """

    on_unhealthy: Callable[[], object]
    _healthy_until: float = -math.inf  # loop time
    _timer: asyncio.TimerHandle | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether a callback has arrived lately and none was missed since."""
        return self._healthy_until > asyncio.get_running_loop().time()

    def stretched(self, interval: float) -> float:
        """Return the interval between the polls of a task that expects a callback."""
        return interval * _STRETCH if self.is_healthy else interval

    def record_success(self) -> None:
        """Record that a callback has arrived."""
        loop = asyncio.get_running_loop()
        self._healthy_until = loop.time() + _HEALTHY_SECONDS
        if self._timer is None:
            self._timer = loop.call_at(self._healthy_until, self._check, context=Context())

    def record_miss(self) -> None:
        """Record that an expected callback did not arrive, or that callbacks no longer count."""
        self._healthy_until = -math.inf
        if self._timer:
            self._timer.cancel()
            self._check()

    def _check(self) -> None:
        """Start the timer again if a callback has arrived since, else report the end of healthy callbacks."""
        self._timer = None
        if self.is_healthy:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._healthy_until, self._check, context=Context())
        else:
            self.on_unhealthy()
