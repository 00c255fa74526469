"""What a polling strategy learns from a ledger when its session opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.ledger.queries import finished_tasks
from sora_chars.protocols import PollingStrategy

if TYPE_CHECKING:
    from sora_chars.ledger import Ledger

_MAX_OBSERVED = 2000  # finished tasks of the ledger from which a polling strategy learns


async def train(polling: PollingStrategy, ledger: Ledger) -> None:
    """Pass the finished tasks of a ledger to a polling strategy that learns."""
    learns = getattr(type(polling), "observe_finished", None) is not PollingStrategy.observe_finished
    if learns and hasattr(polling, "observe_finished"):
        for snapshot in await finished_tasks(ledger, limit=_MAX_OBSERVED):
            polling.observe_finished(snapshot)
