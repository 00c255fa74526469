"""Paces: strategies that say when to look at a task next."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .models import TaskSnapshot

_RUNGS = ((30.0, 2.0, 3.0), (120.0, 5.0, 10.0))
_LAST_RUNG = (15.0, 30.0)


@attrs.frozen
class LadderPace:
    """kie.ai's documented ladder: every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s.

    The delay is drawn evenly from the rung, so that tasks made together do not stay together.
    Source: kie.ai docs, "Get Task Details", best practices.
    """

    random: random.Random = attrs.field(factory=random.Random, repr=False)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `Pace.delay`."""
        del snapshot
        for until, low, high in _RUNGS:
            if age < until:
                return self.random.uniform(low, high)
        return self.random.uniform(*_LAST_RUNG)


@attrs.frozen
class FixedPace:
    """A look every `seconds`.

    Raises:
        ValueError: `seconds` is not above 0.
    """

    seconds: float = attrs.field(validator=attrs.validators.gt(0))

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `Pace.delay`."""
        del snapshot, age
        return self.seconds
