"""The order of requests that do not wait in a window's queue, but come back later.

A job engine calls again after a delay instead of waiting. Such a request keeps a
reservation: its order among the others, and the time at which it is expected back.
Until a moment after that time, a free slot is kept for it.

The order is the same in every process, so a request that comes back to another process
is served there in the same order. A reservation that it left behind expires.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRACE = 2.0  # seconds for which a slot is kept for a request that is late
_SHORT_DELAY = 0.1  # seconds, while the share of this process may grow
_MARGIN = 0.001  # seconds; a slot is free a moment after its time
_PROBE_DELAY = 0.5  # seconds for the probe after a cool-down


@attrs.frozen
class Patience:
    """How the requests of a context wait for a slot.

    Attributes:
        key: What identifies the request when it comes back.
        order: The place of the request among those that come back; the lowest is first.
        until: Loop time until which the request waits.
    """

    key: str
    order: float
    until: float


patience: ContextVar[Patience | None] = ContextVar("sora_chars_patience", default=None)
"""The patience of the requests that are sent in this context. None waits without a limit, in the window's queue."""


class NoSlotError(ProviderError):
    """No slot became free while the request was patient. `retry_after` is when one is expected. Nothing was sent."""


@attrs.define
class _Reservation:
    """A request that comes back: its order, and the loop time at which it is expected."""

    order: float
    due: float


@attrs.define(eq=False, repr=False)
class Reservations:
    """The requests that are expected back.

    Attributes:
        by_key: The reservations, by the keys of their requests.
    """

    by_key: dict[str, _Reservation] = attrs.field(factory=dict)

    def set(self, request: Patience, due: float) -> None:
        """Expect a request at a loop time."""
        self.by_key[request.key] = _Reservation(request.order, due)

    def remove(self, key: str) -> None:
        """Expect a request no longer."""
        self.by_key.pop(key, None)

    def ahead(self, now: float, *, before: Patience | None = None) -> tuple[int, int]:
        """Count the requests, or only those before `before`: those that are due, and those that are due later.

        Requests that did not come back in time are forgotten.
        """
        late = [key for key, reservation in self.by_key.items() if reservation.due + _GRACE < now]
        for key in late:
            del self.by_key[key]
        order = before.order if before else math.inf
        own = before.key if before else None
        dues = [each.due for key, each in self.by_key.items() if each.order <= order and key != own]
        due = sum(due <= now for due in dues)
        return due, len(dues) - due


def kept_slots(due: int, processes: int) -> int:
    """Return how many slots are kept for requests that are due here. Each may come back to any process instead."""
    return due // processes


@attrs.frozen
class WindowState:
    """What an estimate needs of a window.

    Attributes:
        now: The loop time.
        count: Slots of this process now.
        share: Slots of this process once it has its part of the limit; never fewer than `count`.
        capacity: Slots of the whole limit.
        seconds: The length of the window.
        freed: The loop times at which the used slots become free, in order.
        may_grow: Whether the share of this process may grow at once.
        cooldown: Seconds that the account still cools down.
        probing: Whether only one request may be sent until its response arrives.
    """

    now: float
    count: int
    share: int
    capacity: int
    seconds: float
    freed: Sequence[float]
    may_grow: bool
    cooldown: float
    probing: bool


def estimate(position: int, state: WindowState) -> float:
    """Return the seconds until the slot of a request is free; `position` counts the requests before it."""
    if state.cooldown > 0 or state.probing:
        delay = state.cooldown + (_PROBE_DELAY if position or state.probing else 0.0)
        return delay + position // max(1, state.share) * state.seconds
    if state.may_grow or state.count <= 0:
        return _SHORT_DELAY + position // state.capacity * state.seconds
    index = max(0, position - (state.count - len(state.freed)))
    rounds, place = divmod(index, state.share)
    # Slots that are free now are taken by the requests before this one.
    free_at = state.freed[place] if place < len(state.freed) else state.now + state.seconds
    if state.share < state.capacity:  # other processes begin, end or take requests from here: ask again halfway
        rounds //= 2
    return max(_SHORT_DELAY, free_at - state.now + _MARGIN) + rounds * state.seconds
