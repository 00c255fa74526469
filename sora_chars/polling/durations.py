"""How long the tasks of one model take, and how densely to poll them at each age.

With f the density of durations, S = P(longer) and h = f/S the hazard, polls at a rate n(t)
cost P = integral of n S polls per task and detect its end L = integral of f/(2n) late. For
a given P, L is smallest where n is proportional to sqrt(h) (Lagrange), and then
P x L = (integral of sqrt(f S))**2 / 2, against E[T]/2 for polls at even intervals.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise, repeat
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTED_INTERVALS = ((30.0, 2.0, 3.0), (120.0, 5.0, 10.0), (math.inf, 15.0, 30.0))
"""kie.ai's documented polling steps: up to an age, the shortest and longest delay, all in seconds."""

_MAX_COUNT = 64  # durations after which the counter of a model stops
_FIRST_AGE = 0.1  # seconds; where the cells of age begin
_CELL_WIDTH = 1 / 16  # in the logarithm of age
_MAX_CELLS = 240
_FORGETTING = 0.09  # of a cell's weight, per task that passes through it: a half-life of 7 tasks
_MIN_PART = 1e-3  # of all tasks; smaller parts are rounding errors, or long forgotten
_CURVE_CELLS = 32
_REACH = 5.0  # kernel widths by which a curve extends beyond the observed durations
_MIN_INTERVAL = 0.5  # minimum poll interval in seconds, about one round trip; less for the shortest tasks
_MIN_POLLS = 1.0  # minimum expected polls per task; the stepped interval may make only one, after a short task
_PRIOR_SPREAD = 0.3  # of the logarithms of one model's durations, before any is known
_PRIOR_WEIGHT = 2.0  # durations
_MIN_KERNEL_WIDTH = 0.02
_MIN_WEIGHT_OF_MODES = 4  # durations needed to distinguish several kinds of tasks
_DENSEST_THIRD = 0.86  # standard deviations in which a normal distribution has its densest third


def stepped_polls(age: float) -> float:
    """Return how many polls the stepped interval has made by `age`, on average."""
    polls = since = 0.0
    for until, shortest, longest in DOCUMENTED_INTERVALS:
        polls += max(0.0, min(age, until) - since) * 2 / (shortest + longest)
        since = until
    return polls


def stepped_age(polls: float) -> float:
    """Return the age by which the stepped interval has made this many polls: the inverse of `stepped_polls`."""
    age = since = 0.0
    for until, shortest, longest in DOCUMENTED_INTERVALS:
        made = min(polls, (until - since) * 2 / (shortest + longest))
        age += made * (shortest + longest) / 2
        polls -= made
        since = until
    return age


@attrs.define(eq=False, repr=False)
class Curve:
    """A distribution of durations and the polls that suit it, as tables over age.

    Index 0 of a table is the age 0. The other ages run from `first` to `last`, evenly
    spaced in their logarithm. Values between two ages are interpolated linearly. Past
    the last age the polls follow the stepped interval.

    Attributes:
        first: The first age after 0, in seconds.
        last: The last age, in seconds.
        hazards: The hazard accumulated by each age, -ln S.
        polls: The number of polls due by each age.
        tail: The hazard accumulated per e-fold of age past the last age.
        confidence: From 0 to 1, by the number of durations. At least the remaining part
            of the polls follows the stepped interval.
    """

    first: float
    last: float
    hazards: array[float]
    polls: array[float]
    tail: float
    confidence: float
    _step: float = attrs.field(init=False)  # between two ages, in their logarithm

    def __attrs_post_init__(self) -> None:
        self._step = math.log(self.last / self.first) / _CURVE_CELLS

    @property
    def ages(self) -> list[float]:
        """The ages of the tables, in seconds."""
        return [*map(self._age, range(len(self.polls)))]

    def hazard(self, age: float) -> tuple[float, float]:
        """Return the hazard accumulated by `age`, and its growth per second."""
        if age >= self.last:
            return self.hazards[-1] + self.tail * math.log(age / self.last), self.tail / age
        index = self._index(age)
        growth = self.hazards[int(index) + 1] - self.hazards[int(index)]
        cells_per_second = 1 / self.first if age < self.first else 1 / (age * self._step)
        return _value_at(index, self.hazards), growth * cells_per_second

    def next_poll_age(self, age: float, growth: float) -> float:
        """Return the age at which `growth` more polls are due than at `age`."""
        if age >= self.last:
            return stepped_age(stepped_polls(age) + growth)
        wanted = _value_at(self._index(age), self.polls) + growth
        if wanted < self.polls[-1]:
            return self._age(_index_of(wanted, self.polls))
        return stepped_age(stepped_polls(self.last) + wanted - self.polls[-1])

    def age(self, part: float, *, after: float = 0.0) -> float:
        """Return the age by which a part, from 0 to 1, of the tasks that outlive `after` has ended.

        It is never above `last`.
        """
        hazard = self.hazard(after)[0] - math.log1p(-part)
        return self.last if hazard >= self.hazards[-1] else self._age(_index_of(hazard, self.hazards))

    def cost(self) -> tuple[float, float]:
        """Return the mean polls per task, and the mean delay in seconds until its end is detected."""
        return self._cost(self.polls)

    def stepped_cost(self) -> tuple[float, float]:
        """Return what `cost` would be with the stepped interval."""
        return self._cost([*map(stepped_polls, self.ages)])

    def _cost(self, polls: Sequence[float]) -> tuple[float, float]:
        surviving = [math.exp(-hazard) for hazard in self.hazards]
        cells = list(zip(pairwise(self.ages), pairwise(polls), pairwise(surviving), strict=True))
        before = sum((n1 - n0) * (s0 + s1) / 2 for _, (n0, n1), (s0, s1) in cells)
        late = sum((s0 - s1) * (t1 - t0) / (n1 - n0) / 2 for (t0, t1), (n0, n1), (s0, s1) in cells if n1 > n0)
        return before + 0.5, late  # the poll that detects the end comes half an interval after it

    def _index(self, age: float) -> float:
        """Return the fractional index of an age below `last`."""
        index = age / self.first if age < self.first else 1 + math.log(age / self.first) / self._step
        return min(index, math.nextafter(_CURVE_CELLS + 1, 0))  # rounding must not reach the last index

    def _age(self, index: float) -> float:
        return self.first * (index if index < 1 else math.exp((index - 1) * self._step))


def _value_at(index: float, table: Sequence[float]) -> float:
    """Return the value of a table at a fractional index below its last one."""
    left = int(index)
    return table[left] + (table[left + 1] - table[left]) * (index - left)


def _index_of(value: float, table: Sequence[float]) -> float:
    """Return the fractional index of a value in a rising table; `table[0] <= value < table[-1]`."""
    right = bisect_right(table, value)
    return right - 1 + (value - table[right - 1]) / (table[right] - table[right - 1])


@attrs.define(eq=False, repr=False)
class Durations:
    """Learns how long the tasks of one model take, and makes a `Curve` of it.

    A running task counts, too: it takes longer than its present age. If only finished
    tasks counted, the first ones of a batch would suggest that all are short.

    Ages are divided into cells that are evenly spaced in their logarithm. A cell holds
    how many tasks have reached it and how many of these have ended in it, and forgets a
    little with each task that passes through it. A model that drifts is followed; of a
    thousand tasks that run at the same time, the last ones do not displace the first.

    Nothing is kept of a single running task, so a task that is no longer watched needs
    no clean-up. Cells below the shortest duration are not kept, since all tasks pass
    through them.
    """

    count: int = 0  # durations, up to `_MAX_COUNT`
    _start: int = 0  # the first cell that is kept; index 0 of the arrays
    _reached: array[float] = attrs.field(factory=lambda: array("f"))  # tasks that reached each cell
    _ended: array[float] = attrs.field(factory=lambda: array("f"))  # tasks that ended in each cell
    _arriving: array[float] = attrs.field(factory=lambda: array("f"))  # differences between neighbouring cells
    _ending: bytes = b""  # the cells of ends that `_ended` does not hold yet
    _curve: Curve | None = None

    def observe_running(self, since: float, until: float) -> None:
        """Learn that a task which ran at the age `since` still ran at the age `until`."""
        self._arrive(_cell(since), _cell(until))

    def observe_finished(self, seconds: float, *, since: float = 0.0) -> None:
        """Learn the duration of a task that was last seen running at the age `since`.

        The curve is not made again for every task, but whenever an eighth of what is
        known is new.
        """
        cell = int(_cell(seconds))
        if cell < self._start:
            self._prepend(self._start - cell)
        self._arrive(_cell(min(since, seconds)), cell + 1)
        self._ending += bytes([cell])
        self.count = min(self.count + 1, _MAX_COUNT)
        if len(self._ending) * 8 > self.count:
            self._absorb()
            self._curve = None

    def curve(self, request_budget: float) -> Curve | None:
        """Return the curve of what is known, or None if nothing is.

        `request_budget` is that of `AdaptiveInterval`, and must be the same at each call.
        """
        if self._curve is None and (ends := self._ends()):
            self._curve = fit(ends, self._weight(), self.count, request_budget)
        return self._curve

    def _prepend(self, cells: int) -> None:
        """Keep more cells before the first one. All known tasks have reached them, and none has ended there."""
        self._reached[:0] = array("f", [self._reached[0]]) * cells
        self._ended[:0] = array("f", [0.0]) * cells
        self._arriving[:0] = array("f", [0.0]) * cells
        self._start -= cells

    def _append(self, cells: int) -> None:
        for table in (self._reached, self._ended, self._arriving):
            table.extend(repeat(0.0, cells))

    def _arrive(self, low: float, high: float) -> None:
        """Count one more task in each cell from `low` to `high`, and a part of it in the outer cells.

        `_arriving` holds the difference to the previous cell: a task changes four values
        at most, however many cells it passes through.
        """
        low = max(0.0, low - self._start)
        high = max(0.0, high - self._start)
        arriving = self._arriving
        missing = int(high) + 2 - len(arriving)
        if missing > 0:
            self._append(missing)
        for position, sign in ((low, 1.0), (high, -1.0)):
            cell = int(position)
            part = position - cell
            arriving[cell] += sign * (1 - part)
            arriving[cell + 1] += sign * part

    def _absorb(self) -> None:
        """Move what has arrived into `_reached` and `_ended`. Each cell forgets in proportion to what arrived there."""
        for cell, arrived in enumerate(accumulate(self._arriving)):
            if arrived > 0:
                kept = (1 - _FORGETTING) ** arrived
                gained = (1 - kept) / _FORGETTING
                ending = self._ending.count(self._start + cell)
                self._reached[cell] = self._reached[cell] * kept + gained
                self._ended[cell] = self._ended[cell] * kept + gained * ending / arrived
        self._arriving = array("f", bytes(self._arriving.itemsize * len(self._arriving)))
        self._ending = b""
        cells = enumerate(zip(self._reached, self._ended, strict=True))
        unused = next((cell for cell, (reached, ended) in cells if ended > _MIN_PART * reached), 0)
        for table in (self._reached, self._ended, self._arriving):
            del table[:unused]
        self._start += unused

    def _ends(self) -> dict[float, float]:
        """Return the part of all tasks that ends at each logarithm of age, rising. The other tasks run longer.

        This is the Kaplan-Meier estimate: of the tasks that outlive all cells before, the
        part `ended / reached` ends in this one.
        """
        ends: dict[float, float] = {}
        alive = 1.0
        for cell, (reached, ended) in enumerate(zip(self._reached, self._ended, strict=True)):
            part = alive * min(1.0, ended / reached) if reached else 0.0
            if part > _MIN_PART:
                ends[math.log(_FIRST_AGE) + (self._start + cell + 0.5) * _CELL_WIDTH] = part
                alive -= part
        return ends

    def _weight(self) -> float:
        """Return the effective sample size of the exponentially weighted durations."""
        total = min(sum(self._ended), max(self._reached))
        return total * (2 - _FORGETTING) / (2 - total * _FORGETTING)


def _cell(age: float) -> float:
    """Return the fractional cell of an age."""
    return min(math.log(max(age, _FIRST_AGE) / _FIRST_AGE) / _CELL_WIDTH, _MAX_CELLS)


@attrs.frozen(eq=False, kw_only=True, repr=False)
class DurationStats:
    """What is known of the tasks of one model.

    Attributes:
        provider: The name of the provider.
        model: The model, None for tasks without one.
        tasks: How many of its last tasks the curve was learned from, 64 at most.
        curve: Its durations, and the polls that suit them.
    """

    provider: str
    model: str | None
    tasks: int
    curve: Curve


def fit(ends: Mapping[float, float], weight: float, count: int, request_budget: float) -> Curve:
    """Make a curve of observed durations.

    Args:
        ends: The part of all tasks that ends at each logarithm of age, rising. The
            other tasks run longer. Their ends are a guess, so their polls follow the
            stepped interval.
        weight: The effective sample size.
        count: The number of durations.
        request_budget: As in `AdaptiveInterval`.
    """
    known = sum(ends.values())
    unknown = max(0.0, 1 - known)
    width = _kernel_width({log: part / known for log, part in ends.items()}, weight)
    spread = _PRIOR_SPREAD if unknown > _MIN_PART else width
    last = max(ends)
    low = min(ends) - _REACH * width
    high = last + _REACH * spread
    points = [low + (high - low) * cell / _CURVE_CELLS for cell in range(_CURVE_CELLS + 1)]
    # A logistic kernel: S is a sum of tanh, and its heavy tails allow for surprises.
    ending = [sum(part * (1 - math.tanh((x - log) / width / 2)) for log, part in ends.items()) / 2 for x in points]
    guessed = [unknown * math.exp(min(0.0, last - x) / spread) for x in points]
    surviving = [observed + guess for observed, guess in zip(ending, guessed, strict=True)]
    ages = [0.0, *map(math.exp, points)]
    # Rounding must not make the hazard fall.
    hazards = list(accumulate((-math.log(s) for s in surviving), max, initial=0.0))
    confidence = count / (count + 1)
    polls = _polls(ages, hazards, [known, *ending], confidence, request_budget)
    return Curve(ages[1], ages[-1], array("f", hazards), array("f", polls), tail=1 / spread, confidence=confidence)


def _polls(
    ages: list[float], hazards: list[float], ending: list[float], confidence: float, request_budget: float
) -> list[float]:
    """Return the polls due by each age: as many per task as the stepped interval makes, times `request_budget`.

    `ending` is the part of all tasks that has not ended by each age, but will end where
    ends are known.
    """
    seconds = [b - a for a, b in pairwise(ages)]
    alive = [(a + b) / 2 for a, b in pairwise(ending)]
    surviving = [(math.exp(-a) + math.exp(-b)) / 2 for a, b in pairwise(hazards)]
    shares = [confidence * known / s for known, s in zip(alive, surviving, strict=True)]
    stepped = [stepped_polls(b) - stepped_polls(a) for a, b in pairwise(ages)]
    shape = [math.sqrt((b - a) * dt) for (a, b), dt in zip(pairwise(hazards), seconds, strict=True)]
    shape[0] = 0.0  # no task has ever ended so early
    wanted = max(_MIN_POLLS * ending[0], sum(n * s for n, s in zip(stepped, alive, strict=True)))
    factor = wanted / sum(n * s for n, s in zip(shape, alive, strict=True))
    learned = factor * confidence * ending[0]  # fewer at first: the slow tasks are not known yet
    min_interval = min(_MIN_INTERVAL, ages[len(ages) // 2] / 4)
    cells = zip(shape, stepped, seconds, shares, strict=True)
    growth = [
        min(request_budget * (share * learned * n + (1 - share) * step), dt / min_interval)
        for n, step, dt, share in cells
    ]
    return list(accumulate(growth, initial=0.0))


def _kernel_width(shares: Mapping[float, float], weight: float) -> float:
    """Return the width of a logistic kernel by Silverman's rule, mixed with the prior spread while little is known."""
    mean = sum(share * log for log, share in shares.items())
    variance = sum(share * (log - mean) ** 2 for log, share in shares.items())
    if weight >= _MIN_WEIGHT_OF_MODES:
        variance = min(variance, _densest_spread(shares) ** 2)
    spread = math.sqrt((variance * weight + _PRIOR_SPREAD**2 * _PRIOR_WEIGHT) / (weight + _PRIOR_WEIGHT))
    return max(_MIN_KERNEL_WIDTH, 0.6 * spread * math.pow(weight, -0.2))


def _densest_spread(shares: Mapping[float, float]) -> float:
    """Return the spread of one kind of tasks where there are several: by the shortest range with a third of all."""
    logs = list(shares)
    sums = list(accumulate(shares.values(), initial=0.0))
    rights = ((left, bisect_left(sums, sums[left] + 1 / 3)) for left in range(len(logs)))
    ranges = [
        (logs[right - 1] - logs[left] + _CELL_WIDTH) / (sums[right] - sums[left]) / 3
        for left, right in rights
        if right < len(sums)
    ]
    return min(ranges) / _DENSEST_THIRD
