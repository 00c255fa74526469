"""Polling strategies: fixed intervals, kie.ai's documented steps, and intervals learned from finished tasks."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import Eta
from sora_chars.protocols import PollingStrategy

from .durations import DOCUMENTED_INTERVALS, Curve, Durations, DurationStats

if TYPE_CHECKING:
    from sora_chars.models import TaskSnapshot

_MIN_SECONDS = 0.001  # a duration outside these bounds comes from a wrong clock
_MAX_SECONDS = 86400.0
_MAX_AGE = 1e9  # seconds
_MAX_MODELS = 256
_JITTER = 0.2
_UNKNOWN_MEDIAN = 30.0  # seconds by which half the tasks of an unknown model have ended
_MAX_HAZARD = 50.0  # keeps exp() within a float
_MIN_DURATIONS_OF_ETA = 3  # fewer make no range


@attrs.frozen
class SteppedInterval(PollingStrategy):
    """kie.ai's documented intervals: every 2-3 s for 30 s, every 5-10 s to 2 min, then every 15-30 s.

    A delay is drawn evenly from its step, which spreads the polls of tasks that were
    created together. Source: kie.ai docs, "Get Task Details", best practices.

    Args:
        random: The random generator that draws the delays.
    """

    random: random.Random = attrs.field(factory=random.Random, repr=False)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        del snapshot
        steps = DOCUMENTED_INTERVALS
        bounds = next(((shortest, longest) for until, shortest, longest in steps if age < until), steps[-1][1:])
        return self.random.uniform(*bounds)


@attrs.frozen
class FixedInterval(PollingStrategy):
    """A poll every `seconds`.

    Raises:
        ConfigurationError: `seconds` is not a number above 0.
    """

    seconds: float = attrs.field()

    def __attrs_post_init__(self) -> None:
        given: object = self.seconds  # callers without a type checker pass anything
        if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf:
            shown = printable(repr(given), limit=60)
            raise ConfigurationError(f"FixedInterval: seconds must be a number above 0, got {shown}.")

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        del snapshot, age
        return self.seconds


@attrs.define(eq=False)
class AdaptiveInterval(PollingStrategy):
    """Polls most densely where tasks of the same model usually end.

    It learns how long the tasks of each model take, from the provider's timestamps and
    from polls of running tasks, and forgets old durations as a model drifts. The poll
    rate is proportional to the square root of the learned hazard rate; `durations.py`
    explains why.

    Tasks of an unknown model are polled as by `SteppedInterval`, and so are tasks that
    run longer than all known ones.

    Args:
        request_budget: How many polls a task may cost, as a multiple of the polls that
            `SteppedInterval` would make.
        random: The random generator of the jitter.

    Raises:
        ValueError: `request_budget` is not above 0, or not finite.
    """

    request_budget: float = attrs.field(
        default=1.0, kw_only=True, validator=[attrs.validators.gt(0), attrs.validators.lt(math.inf)]
    )
    random: random.Random = attrs.field(factory=random.Random, kw_only=True, repr=False)
    _stepped: SteppedInterval = attrs.field(init=False, repr=False)
    _models: dict[tuple[str, str | None], Durations] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._stepped = SteppedInterval(self.random)

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """See `PollingStrategy.observe_finished`. Impossible durations are ignored."""
        self._learn(snapshot, 0.0)

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """See `PollingStrategy.observe`. Running tasks count, too; `Durations` explains why."""
        age = _finite(age)
        since = max(0.0, age - _finite(unseen))
        if snapshot.finished:
            self._learn(snapshot, since)
        else:
            self._durations(snapshot).observe_running(since, age)

    def _learn(self, snapshot: TaskSnapshot, since: float) -> None:
        """Learn from a finished task that was last seen running at the age `since`."""
        seconds = snapshot.duration
        if seconds is not None and _MIN_SECONDS <= seconds <= _MAX_SECONDS:
            self._durations(snapshot).observe_finished(seconds, since=since)

    def _durations(self, snapshot: TaskSnapshot) -> Durations:
        """Return what is known of the model of a task. The least recently used model makes room for a new one."""
        model = (snapshot.provider, snapshot.model)
        durations = self._models.pop(model, None) or Durations()
        self._models[model] = durations
        if len(self._models) > _MAX_MODELS:
            del self._models[next(iter(self._models))]
        return durations

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy.delay`."""
        age = _finite(age)
        curve = self._curve(snapshot)
        if curve is None or age >= curve.last:
            return self._stepped.delay(snapshot, age)
        return curve.next_poll_age(age, self.random.uniform(1 - _JITTER, 1 + _JITTER)) - age

    def priority(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """See `PollingStrategy.priority`.

        If a poll cost c seconds of waiting, the best interval would be sqrt(2c/h), and
        each second without an end would make the future cheaper by sqrt(2ch) + ch. So
        the best time for a poll is when y = p / (1 - p), the odds that the task has
        ended since the previous poll, have risen to that value. The priority is the c
        for which that time is now: c = (sqrt(1 + 2y) - 1)**2 / (2h), or about
        h unseen**2 / 2 while y is small.
        """
        age = _finite(age)
        since = max(0.0, age - _finite(unseen))
        hazard = math.log1p((age - since) / (since + _UNKNOWN_MEDIAN))
        rate = 1 / (age + _UNKNOWN_MEDIAN)
        if curve := self._curve(snapshot):
            learned, learned_rate = curve.hazard(age)
            hazard += curve.confidence * (learned - curve.hazard(since)[0] - hazard)
            rate += curve.confidence * (learned_rate - rate)
        odds = math.expm1(min(hazard, _MAX_HAZARD))
        return (2 * odds / (math.sqrt(1 + 2 * odds) + 1)) ** 2 / (2 * rate)

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """See `PollingStrategy.estimate`. None with fewer than 3 known tasks, and past the longest one."""
        age = _finite(age)
        curve = self._curve(snapshot, min_count=_MIN_DURATIONS_OF_ETA)
        if curve is None or age >= curve.last:
            return None
        low, median, high = (max(0.0, curve.age(part, after=age) - age) for part in (0.1, 0.5, 0.9))
        return Eta(low=low, median=median, high=high)

    def stats(self) -> list[DurationStats]:
        """Return what is known, sorted by provider and model."""
        return [
            DurationStats(provider=provider, model=model, tasks=durations.count, curve=curve)
            for (provider, model), durations in sorted(self._models.items(), key=lambda item: str(item[0]))
            if (curve := durations.curve(self.request_budget))
        ]

    def _curve(self, snapshot: TaskSnapshot | None, *, min_count: int = 1) -> Curve | None:
        """Return the curve of the model of a task, if it was learned from at least `min_count` durations."""
        durations = self._models.get((snapshot.provider, snapshot.model)) if snapshot else None
        return durations.curve(self.request_budget) if durations and durations.count >= min_count else None


def _finite(seconds: float) -> float:
    """Return any number as an age from 0 to 1e9 s; NaN becomes 0."""
    return min(seconds, _MAX_AGE) if seconds > 0 else 0.0
