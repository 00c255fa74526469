"""What is learned of one model: how long its tasks take, and how dense looks should lie at each age.

With f the density of durations, S = P(longer) and h = f/S the hazard, looks at a rate n(t) cost P = integral of n S
looks a task and find its end L = integral of f/(2n) late. For a given P, L is least where n is proportional to sqrt(h)
(Lagrange), and then P x L = (integral of sqrt(f S))**2 / 2, against E[T]/2 for looks at even intervals.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNGS = ((30.0, 2.0, 3.0), (120.0, 5.0, 10.0), (math.inf, 15.0, 30.0))
"""kie.ai's ladder: until which age the gap is drawn from which range, all seconds."""

_WINDOW = 64  # durations kept of a model
_DECAY = 0.95  # what each newer one takes from the weight of an older: those of 14 tasks ago count half
_CELLS = 64  # of a curve
_REACH = 5.0  # how far a curve goes beyond all durations seen, in kernel widths
_CLOSEST = 0.5  # seconds between looks; but for the shortest tasks, an answer takes as long
_FEWEST = 1.0  # looks before the end, on average: a ladder's first look at a short task comes after it
_USUAL_SPREAD = 0.3  # of the logarithms of one model's durations, believed as if seen twice
_BELIEF = 2.0
_NARROWEST = 0.02
_LEAST_DENSE = 4  # durations
_DENSE_THIRD = 0.86  # a normal distribution has a third of itself within so many deviations


def ladder_looks(age: float) -> float:
    """How many looks the ladder has taken by `age`, on average."""
    looks = since = 0.0
    for until, low, high in RUNGS:
        looks += max(0.0, min(age, until) - since) * 2 / (low + high)
        since = until
    return looks


def ladder_age(looks: float) -> float:
    """The age by which the ladder has taken so many looks: the inverse of `ladder_looks`."""
    age = since = 0.0
    for until, low, high in RUNGS:
        here = min(looks, (until - since) * 2 / (low + high))
        age += here * (low + high) / 2
        looks -= here
        since = until
    return age


@attrs.define(eq=False, repr=False)
class Curve:
    """A distribution of durations and the looks at it, as tables over age, evenly spaced in its logarithm.

    `ages`, seconds; the first is 0. `hazards`: the hazard accumulated by then, -ln S. `looks`: how many looks are
    due by then. Between ages all are taken for linear; past the last one the ladder goes on.
    """

    ages: array[float]
    hazards: array[float]
    looks: array[float]
    tail: float  # past the last age, hazard accumulates by this for each e-fold of age
    trust: float  # 0 to 1, by the number of durations; the ladder's share in the looks is the rest

    def hazard(self, age: float) -> tuple[float, float]:
        """The hazard accumulated by `age`, and by how much it grows a second."""
        ages, hazards = self.ages, self.hazards
        right = bisect_right(ages, age)
        if right == len(ages):
            return hazards[-1] + self.tail * math.log(age / ages[-1]), self.tail / age
        rate = (hazards[right] - hazards[right - 1]) / (ages[right] - ages[right - 1])
        return hazards[right] - (ages[right] - age) * rate, rate

    def next_look(self, age: float, growth: float) -> float:
        """The age at which `growth` more looks are due than at `age`, which lies on the curve."""
        wanted = _between(age, self.ages, self.looks) + growth
        if wanted < self.looks[-1]:
            return _between(wanted, self.looks, self.ages)
        return ladder_age(ladder_looks(self.ages[-1]) + wanted - self.looks[-1])

    def age(self, part: float, *, after: float = 0.0) -> float:
        """The age by which `part`, from 0 to 1, of the tasks that outlive `after` have ended; at most the last one."""
        hazard = self.hazard(after)[0] - math.log1p(-part)
        if hazard >= self.hazards[-1]:
            return self.ages[-1]
        return _between(hazard, self.hazards, self.ages)

    def cost(self) -> tuple[float, float]:
        """How many looks a task takes on average, and by how many seconds its end is seen late."""
        return self._cost(self.looks)

    def ladder_cost(self) -> tuple[float, float]:
        """What `cost` would be with kie.ai's ladder."""
        return self._cost([ladder_looks(age) for age in self.ages])

    def _cost(self, looks: Sequence[float]) -> tuple[float, float]:
        surviving = [math.exp(-hazard) for hazard in self.hazards]
        cells = list(zip(pairwise(self.ages), pairwise(looks), pairwise(surviving), strict=True))
        before = sum((n1 - n0) * (s0 + s1) / 2 for _, (n0, n1), (s0, s1) in cells)
        late = sum((s0 - s1) * (t1 - t0) / (n1 - n0) / 2 for (t0, t1), (n0, n1), (s0, s1) in cells if n1 > n0)
        return before + 0.5, late  # the look that shows the end comes half a gap after it


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """`ys` at `x`, linear between neighbours; `xs[0] <= x < xs[-1]`."""
    right = bisect_right(xs, x)
    x0, y0 = xs[right - 1], ys[right - 1]
    return y0 + (ys[right] - y0) * (x - x0) / (xs[right] - x0)


@attrs.define(eq=False, repr=False)
class Durations:
    """The last durations of one model, as logarithms, and the curve made of them."""

    logs: array[float] = attrs.field(factory=lambda: array("f"))
    _fresh: int = 0
    _curve: Curve | None = None

    def add(self, seconds: float) -> None:
        """Learn one duration. The curve is made anew with every eighth of what is known, not with each."""
        self.logs.append(math.log(seconds))
        del self.logs[:-_WINDOW]
        self._fresh += 1
        if self._fresh * 8 > len(self.logs):
            self._curve = None

    def seconds(self) -> tuple[float, ...]:
        """The durations, the oldest first."""
        return tuple(map(math.exp, self.logs))

    def curve(self, scale: float) -> Curve:
        """The curve of what is known; `scale` as `LearnedPace` has it, the same each time."""
        if self._curve is None:
            self._curve, self._fresh = fit(self.logs, scale), 0
        return self._curve


@attrs.frozen(eq=False, kw_only=True, repr=False)
class Lesson:
    """What is known of one model: the last durations, the oldest first, and the curve made of them."""

    provider: str
    model: str | None
    seconds: tuple[float, ...]
    curve: Curve


def fit(logs: array[float], scale: float) -> Curve:
    """The curve of one or more durations, given by their logarithms, the oldest first."""
    weights = [_DECAY**age for age in range(len(logs) - 1, -1, -1)]
    total = sum(weights)
    width = _kernel_width(logs, [weight / total for weight in weights])
    low, high = min(logs) - _REACH * width, max(logs) + _REACH * width
    points = [low + (high - low) * cell / _CELLS for cell in range(_CELLS + 1)]
    # A logistic kernel: S is a sum of tanh, and its tails are as heavy as surprises are.
    surviving = [
        sum(w * (1 - math.tanh((x - log) / width / 2)) for log, w in zip(logs, weights, strict=True)) / total / 2
        for x in points
    ]
    ages = [0.0, *map(math.exp, points)]
    hazards = list(accumulate((-math.log(s) for s in surviving), max, initial=0.0))  # rounding must not turn it back
    trust = len(logs) / (len(logs) + 1)
    looks = _looks(ages, hazards, scale, trust)
    return Curve(array("f", ages), array("f", hazards), array("f", looks), tail=1 / width, trust=trust)


def _looks(ages: list[float], hazards: list[float], scale: float, trust: float) -> list[float]:
    """How many looks are due by each age: as many as the ladder takes by the end of a task, times `scale`."""
    seconds = [b - a for a, b in pairwise(ages)]
    alive = [(math.exp(-a) + math.exp(-b)) / 2 for a, b in pairwise(hazards)]
    ladder = [ladder_looks(b) - ladder_looks(a) for a, b in pairwise(ages)]
    shape = [math.sqrt((b - a) * dt) for (a, b), dt in zip(pairwise(hazards), seconds, strict=True)]
    shape[0] = 0.0  # nothing has ever ended so early
    wanted = max(_FEWEST, sum(n * s for n, s in zip(ladder, alive, strict=True)))
    factor = wanted / sum(n * s for n, s in zip(shape, alive, strict=True))
    learned = trust**2 * factor  # less than `trust`, as few durations know little of the slow ones yet
    closest = min(_CLOSEST, ages[len(ages) // 2] / 4)
    rates = zip(shape, ladder, seconds, strict=True)
    grown = [min(scale * (learned * n + (1 - trust) * rung), dt / closest) for n, rung, dt in rates]
    return list(accumulate(grown, initial=0.0))


def _kernel_width(logs: array[float], shares: list[float]) -> float:
    """Silverman's rule for a logistic kernel, with the usual spread mixed in while little is known."""
    known = 1 / sum(share * share for share in shares)  # how many equal weights would tell as much
    mean = sum(share * log for share, log in zip(shares, logs, strict=True))
    spread2 = sum(share * (log - mean) ** 2 for share, log in zip(shares, logs, strict=True))
    if len(logs) >= _LEAST_DENSE:
        spread2 = min(spread2, _dense_spread(logs) ** 2)
    spread = math.sqrt((spread2 * known + _USUAL_SPREAD**2 * _BELIEF) / (known + _BELIEF))
    return max(_NARROWEST, 0.6 * spread * math.pow(known, -0.2))


def _dense_spread(logs: array[float]) -> float:
    """The spread of one kind of tasks, if there are several: by the shortest stretch that holds a third of all."""
    ordered = sorted(logs)
    return min(b - a for a, b in zip(ordered, ordered[math.ceil(len(logs) / 3) :], strict=False)) / _DENSE_THIRD
