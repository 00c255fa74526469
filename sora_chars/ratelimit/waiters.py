"""The requests that wait for a slot in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque

import attrs


@attrs.define(eq=False, repr=False)
class WaiterQueue:
    """Waiters of one event loop. One is at the head; the flows take it round-robin."""

    flows: dict[object, deque[asyncio.Future[None]]] = attrs.field(factory=dict)  # next flow first
    has_head: bool = False
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def wait_for_head(self, flow_id: object) -> None:
        """Wait to become the head, until `release_head` is called."""
        if self.has_head:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.flows.setdefault(flow_id, deque()).append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():  # it became the head just before the cancellation
                    self.release_head()
                raise
        self.has_head = True

    def release_head(self) -> None:
        """Make the oldest waiter of the next flow the head."""
        self.has_head = False
        while self.flows and not self.has_head:
            flow_id = next(iter(self.flows))
            waiters = self.flows.pop(flow_id)
            while waiters and not self.has_head:
                waiter = waiters.popleft()
                if not waiter.cancelled():
                    waiter.set_result(None)
                    self.has_head = True
            if waiters:
                self.flows[flow_id] = waiters
