"""Paces: strategies that say when to look at a task next."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import attrs

from sora_chars.models import Eta
from sora_chars.protocols import PollingStrategy

from .durations import RUNGS, Curve, Durations, DurationStats

if TYPE_CHECKING:
    from sora_chars.models import TaskSnapshot

_SHORTEST, _LONGEST = 0.001, 86400.0  # seconds; any other duration comes of a clock gone wrong
_OLDEST = 1e9
_MOST_MODELS = 256
_JITTER = 0.2
_UNKNOWN_SCALE = 30.0  # seconds by which a task of an unknown model has ended as likely as not
_MOST_HAZARD = 50.0  # whose exp() can still be reckoned with
_LEAST_TO_EXPECT = 3  # durations; fewer make no range


@attrs.frozen
class SteppedInterval(PollingStrategy):
    """kie.ai's documented ladder: every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s.

    The delay is drawn evenly from the rung, so that tasks made together do not stay together.
    Source: kie.ai docs, "Get Task Details", best practices.
    """

    random: random.Random = attrs.field(factory=random.Random, repr=False)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        del snapshot
        low, high = next(((low, high) for until, low, high in RUNGS if age < until), RUNGS[-1][1:])
        return self.random.uniform(low, high)


@attrs.frozen
class FixedInterval(PollingStrategy):
    """A look every `seconds`.

    Raises:
        ValueError: `seconds` is not above 0.
    """

    seconds: float = attrs.field(validator=attrs.validators.gt(0))

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        del snapshot, age
        return self.seconds


@attrs.define(eq=False)
class AdaptiveInterval(PollingStrategy):
    """Looks where a task is likely to end: at a rate proportional to the square root of the learned hazard rate.

    It learns how long the tasks of each model take, from the provider's own times and from looks at those that still
    run, and forgets what has drifted away. A task costs `request_budget` times the looks that kie.ai's ladder would take at it.
    A model that is unknown is looked at as `SteppedInterval` does, and so is a task that runs longer than all that is known.
    `hazards.py` has the mathematics.

    Raises:
        ValueError: `request_budget` is not above 0, or not finite.
    """

    request_budget: float = attrs.field(
        default=1.0, kw_only=True, validator=[attrs.validators.gt(0), attrs.validators.lt(math.inf)]
    )
    random: random.Random = attrs.field(factory=random.Random, kw_only=True, repr=False)
    _ladder: SteppedInterval = attrs.field(init=False, repr=False)
    _models: dict[tuple[str, str | None], Durations] = attrs.field(
        factory=dict[tuple[str, "str | None"], Durations], init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        self._ladder = SteppedInterval(self.random)

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """See `PollingStrategy.observe_finished`. Times that cannot be are ignored."""
        self._hear(snapshot, 0.0)

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """See `PollingStrategy.saw`. That a task still runs is learned of too: `hazards.Durations` says why."""
        age = _sane(age)
        since = max(0.0, age - _sane(unseen))
        if snapshot.finished:
            self._hear(snapshot, since)
        else:
            self._durations(snapshot).observe_running(since, age)

    def _hear(self, snapshot: TaskSnapshot, since: float) -> None:
        """Hear of a task that has ended and was last seen to run at the age `since`."""
        seconds = snapshot.duration
        if seconds is not None and _SHORTEST <= seconds <= _LONGEST:
            self._durations(snapshot).observe_finished(seconds, since=since)

    def _durations(self, snapshot: TaskSnapshot) -> Durations:
        """What is known of the model of a task; the model heard of longest ago makes place for a new one."""
        model = (snapshot.provider, snapshot.model)
        durations = self._models.pop(model, None) or Durations()
        self._models[model] = durations
        if len(self._models) > _MOST_MODELS:
            del self._models[next(iter(self._models))]
        return durations

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        age = _sane(age)
        curve = self._curve(snapshot)
        if curve is None or age >= curve.last:
            return self._ladder.delay(snapshot, age)
        return curve.next_poll_age(age, self.random.uniform(1 - _JITTER, 1 + _JITTER)) - age

    def priority(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """See `PollingStrategy.priority`.

        If a look cost c seconds of waiting, looks would best lie sqrt(2c/h) apart, and living on one second would make
        what is still to come cheaper by sqrt(2ch) + ch. So one waits until y = p / (1 - p), the odds that the task has
        ended unseen, are that much. The c at which they are so by now is what a look is worth:
        c = (sqrt(1 + 2y) - 1)**2 / (2h), about h unseen**2 / 2 while little can have happened.
        """
        age = _sane(age)
        since = max(0.0, age - _sane(unseen))
        hazard, rate = math.log1p((age - since) / (since + _UNKNOWN_SCALE)), 1 / (age + _UNKNOWN_SCALE)
        if curve := self._curve(snapshot):
            learned, learned_rate = curve.hazard(age)
            hazard += curve.trust * (learned - curve.hazard(since)[0] - hazard)
            rate += curve.trust * (learned_rate - rate)
        odds = math.expm1(min(hazard, _MOST_HAZARD))
        return (2 * odds / (math.sqrt(1 + 2 * odds) + 1)) ** 2 / (2 * rate)

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """See `PollingStrategy.expect`. None while a model is hardly known, and for a task past all that is known."""
        age = _sane(age)
        curve = self._curve(snapshot, least=_LEAST_TO_EXPECT)
        if curve is None or age >= curve.last:
            return None
        low, median, high = (max(0.0, curve.age(part, after=age) - age) for part in (0.1, 0.5, 0.9))
        return Eta(low=low, median=median, high=high)

    def stats(self) -> list[DurationStats]:
        """What is known, by provider and model."""
        return [
            DurationStats(provider=provider, model=model, tasks=durations.count, curve=curve)
            for (provider, model), durations in sorted(self._models.items(), key=lambda item: str(item[0]))
            if (curve := durations.curve(self.request_budget))
        ]

    def _curve(self, snapshot: TaskSnapshot | None, *, least: int = 1) -> Curve | None:
        """What is known of the model of a task, if that is as many durations as `least`."""
        durations = self._models.get((snapshot.provider, snapshot.model)) if snapshot else None
        return durations.curve(self.request_budget) if durations and durations.count >= least else None


def _sane(seconds: float) -> float:
    """Any number as an age that can be reckoned with; NaN is 0."""
    return min(seconds, _OLDEST) if seconds > 0 else 0.0
