"""Paces: strategies that say when to look at a task next."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import attrs

from .hazards import RUNGS, Curve, Durations
from .models import Eta
from .protocols import Pace

if TYPE_CHECKING:
    from .models import TaskSnapshot

_LONGEST = 86400.0  # seconds; a longer duration is a clock gone wrong, or no longer of interest
_OLDEST = 1e9
_MOST_MODELS = 256
_JITTER = 0.2
_UNKNOWN_SCALE = 30.0  # seconds by which a task of an unknown model has ended as likely as not
_LEAST_TO_EXPECT = 3  # durations; fewer make no range
_LEAST_GROWN, _MOST_GROWN = 1e-6, 50.0  # between which exp() is exact enough
_LOW, _MEDIAN, _HIGH = (-math.log(1 - part) for part in (0.1, 0.5, 0.9))


@attrs.frozen
class LadderPace(Pace):
    """kie.ai's documented ladder: every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s.

    The delay is drawn evenly from the rung, so that tasks made together do not stay together.
    Source: kie.ai docs, "Get Task Details", best practices.
    """

    random: random.Random = attrs.field(factory=random.Random, repr=False)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `Pace.delay`."""
        del snapshot
        low, high = next(((low, high) for until, low, high in RUNGS if age < until), RUNGS[-1][1:])
        return self.random.uniform(low, high)


@attrs.frozen
class FixedPace(Pace):
    """A look every `seconds`.

    Raises:
        ValueError: `seconds` is not above 0.
    """

    seconds: float = attrs.field(validator=attrs.validators.gt(0))

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `Pace.delay`."""
        del snapshot, age
        return self.seconds


@attrs.define(eq=False)
class LearnedPace(Pace):
    """Looks where a task is likely to end: at a rate proportional to the square root of the learned hazard rate.

    It learns how long the tasks of each model take, from the provider's own times, and forgets what has drifted away.
    A task costs `scale` times the looks that kie.ai's ladder would take at it. A model that is unknown is looked at as
    `LadderPace` does, and so is a task that runs longer than all that is known. `hazards.py` has the mathematics.

    Raises:
        ValueError: `scale` is not above 0.
    """

    scale: float = attrs.field(default=1.0, kw_only=True, validator=attrs.validators.gt(0))
    random: random.Random = attrs.field(factory=random.Random, kw_only=True, repr=False)
    _ladder: LadderPace = attrs.field(init=False, repr=False)
    _models: dict[tuple[str, str | None], Durations] = attrs.field(
        factory=dict[tuple[str, "str | None"], Durations], init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        self._ladder = LadderPace(self.random)

    def learn(self, snapshot: TaskSnapshot) -> None:
        """See `Pace.learn`. Times that cannot be are ignored; the model heard of longest ago makes place for a new."""
        seconds = snapshot.duration
        if seconds is None or not 0 < seconds <= _LONGEST:
            return
        model = (snapshot.provider, snapshot.model)
        durations = self._models.pop(model, None) or Durations()
        self._models[model] = durations
        durations.add(seconds)
        if len(self._models) > _MOST_MODELS:
            del self._models[next(iter(self._models))]

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `Pace.delay`."""
        age = _sane(age)
        curve = self._curve(snapshot)
        if curve is None or age >= curve.ages[-1]:
            return self._ladder.delay(snapshot, age)
        return curve.next_look(age, self.random.uniform(1 - _JITTER, 1 + _JITTER)) - age

    def gain(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """See `Pace.gain`.

        With hazard h since the last look u seconds ago, the task waits unseen with p = 1 - exp(-hu). The price of a
        look at which looking now and a moment later cost the same, p**2 / (h (1 - p)) - integral of p, is with g = hu
        u (exp(g) - 1 - g) / g: about h u**2 / 2 while little can have happened, and growing without end.
        """
        age, unseen = _sane(age), _sane(unseen)
        since = max(0.0, age - unseen)
        grown = math.log((age + _UNKNOWN_SCALE) / (since + _UNKNOWN_SCALE))
        if curve := self._curve(snapshot):
            grown += curve.trust * (curve.hazard(age) - curve.hazard(since) - grown)
        grown = min(max(grown, _LEAST_GROWN), _MOST_GROWN)
        return unseen * (math.expm1(grown) / grown - 1)

    def expect(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """See `Pace.expect`. None while a model is hardly known, and for a task past all that is known."""
        age = _sane(age)
        curve = self._curve(snapshot, least=_LEAST_TO_EXPECT)
        if curve is None or age >= curve.ages[-1]:
            return None
        now = curve.hazard(age)
        low, median, high = (curve.quantile(now + part) - age for part in (_LOW, _MEDIAN, _HIGH))
        return Eta(low=low, median=median, high=high)

    def _curve(self, snapshot: TaskSnapshot | None, *, least: int = 1) -> Curve | None:
        """What is known of the model of a task, if that is as many durations as `least`."""
        durations = self._models.get((snapshot.provider, snapshot.model)) if snapshot else None
        return durations.curve(self.scale) if durations and len(durations.logs) >= least else None


def _sane(seconds: float) -> float:
    """Any number as an age that can be reckoned with; NaN is 0."""
    return min(seconds, _OLDEST) if seconds > 0 else 0.0
