"""What is learned of one model: how long its tasks take, and how dense polls should lie at each age.

With f the density of durations, S = P(longer) and h = f/S the hazard, polls at a rate n(t) cost P = integral of n S
polls a task and find its end L = integral of f/(2n) late. For a given P, L is least where n is proportional to sqrt(h)
(Lagrange), and then P x L = (integral of sqrt(f S))**2 / 2, against E[T]/2 for polls at even intervals.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise, repeat
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RUNGS = ((30.0, 2.0, 3.0), (120.0, 5.0, 10.0), (math.inf, 15.0, 30.0))
"""kie.ai's ladder: until which age the gap is drawn from which range, all seconds."""

_WINDOW = 64  # durations that are counted of a model
_FIRST = 0.1  # seconds, where the cells of age begin
_WIDE = 1 / 16  # a cell, in the logarithm of age
_MOST_CELLS = 240
_FORGOTTEN = 0.09  # of what a cell knows, with each task that comes through: what was 7 tasks ago counts half
_LEAST = 1e-3  # of all tasks; smaller parts are rounding, or long forgotten
_CELLS = 32  # of a curve
_REACH = 5.0  # how far a curve goes beyond all durations seen, in kernel widths
_CLOSEST = 0.5  # seconds between polls; but for the shortest tasks, an answer takes as long
_FEWEST = 1.0  # polls before the end, on average: a ladder's first poll at a short task comes after it
_USUAL_SPREAD = 0.3  # of the logarithms of one model's durations, believed as if seen twice
_BELIEF = 2.0
_NARROWEST = 0.02
_LEAST_DENSE = 4  # durations
_DENSE_THIRD = 0.86  # a normal distribution has a third of itself within so many deviations


def ladder_polls(age: float) -> float:
    """How many polls the ladder has taken by `age`, on average."""
    polls = since = 0.0
    for until, low, high in RUNGS:
        polls += max(0.0, min(age, until) - since) * 2 / (low + high)
        since = until
    return polls


def ladder_age(polls: float) -> float:
    """The age by which the ladder has taken so many polls: the inverse of `ladder_polls`."""
    age = since = 0.0
    for until, low, high in RUNGS:
        here = min(polls, (until - since) * 2 / (low + high))
        age += here * (low + high) / 2
        polls -= here
        since = until
    return age


@attrs.define(eq=False, repr=False)
class Curve:
    """A distribution of durations and the polls at it, as tables over age.

    Their first place is the age 0, the others are ages from `first` to `last`, in seconds, evenly spaced in their
    logarithm. `hazards`: the hazard accumulated by then, -ln S. `polls`: how many polls are due by then. Between places
    all are taken for linear; past the last one the ladder goes on.
    """

    first: float
    last: float
    hazards: array[float]
    polls: array[float]
    tail: float  # past the last age, hazard accumulates by this for each e-fold of age
    trust: float  # 0 to 1, by the number of durations; of the polls, the rest at least is the ladder's
    _step: float = attrs.field(init=False)  # between two ages, in their logarithm

    def __attrs_post_init__(self) -> None:
        self._step = math.log(self.last / self.first) / _CELLS

    @property
    def ages(self) -> list[float]:
        """The ages of the tables."""
        return [*map(self._age, range(len(self.polls)))]

    def hazard(self, age: float) -> tuple[float, float]:
        """The hazard accumulated by `age`, and by how much it grows a second."""
        if age >= self.last:
            return self.hazards[-1] + self.tail * math.log(age / self.last), self.tail / age
        place = self._place(age)
        growth = self.hazards[int(place) + 1] - self.hazards[int(place)]
        places = 1 / self.first if age < self.first else 1 / (age * self._step)  # a second
        return _at(place, self.hazards), growth * places

    def next_poll_age(self, age: float, growth: float) -> float:
        """The age at which `growth` more polls are due than at `age`."""
        if age >= self.last:
            return ladder_age(ladder_polls(age) + growth)
        wanted = _at(self._place(age), self.polls) + growth
        if wanted < self.polls[-1]:
            return self._age(_place_of(wanted, self.polls))
        return ladder_age(ladder_polls(self.last) + wanted - self.polls[-1])

    def age(self, part: float, *, after: float = 0.0) -> float:
        """The age by which `part`, from 0 to 1, of the tasks that outlive `after` have ended; at most the last one."""
        hazard = self.hazard(after)[0] - math.log1p(-part)
        return self.last if hazard >= self.hazards[-1] else self._age(_place_of(hazard, self.hazards))

    def cost(self) -> tuple[float, float]:
        """How many polls a task takes on average, and by how many seconds its end is seen late."""
        return self._cost(self.polls)

    def ladder_cost(self) -> tuple[float, float]:
        """What `cost` would be with kie.ai's ladder."""
        return self._cost([*map(ladder_polls, self.ages)])

    def _cost(self, polls: Sequence[float]) -> tuple[float, float]:
        surviving = [math.exp(-hazard) for hazard in self.hazards]
        cells = list(zip(pairwise(self.ages), pairwise(polls), pairwise(surviving), strict=True))
        before = sum((n1 - n0) * (s0 + s1) / 2 for _, (n0, n1), (s0, s1) in cells)
        late = sum((s0 - s1) * (t1 - t0) / (n1 - n0) / 2 for (t0, t1), (n0, n1), (s0, s1) in cells if n1 > n0)
        return before + 0.5, late  # the poll that shows the end comes half a gap after it

    def _place(self, age: float) -> float:
        """Where on the tables an age before the last one lies."""
        place = age / self.first if age < self.first else 1 + math.log(age / self.first) / self._step
        return min(place, math.nextafter(_CELLS + 1, 0))  # which rounding must not reach

    def _age(self, place: float) -> float:
        return self.first * (place if place < 1 else math.exp((place - 1) * self._step))


def _at(place: float, table: Sequence[float]) -> float:
    """What stands at a place of a table before its last one."""
    left = int(place)
    return table[left] + (table[left + 1] - table[left]) * (place - left)


def _place_of(number: float, table: Sequence[float]) -> float:
    """Where in a rising table a number stands; `table[0] <= number < table[-1]`."""
    right = bisect_right(table, number)
    return right - 1 + (number - table[right - 1]) / (table[right] - table[right - 1])


@attrs.define(eq=False, repr=False)
class Durations:
    """What is known of how long the tasks of one model take, and the curve made of it.

    A task that still runs tells something too: that it takes longer. If only those counted that have ended, the first
    ones of a batch would teach that all are short. So ages are divided into cells, evenly spaced in their logarithm,
    and a cell holds how many tasks were seen to reach it, and how many of these ended in it. A cell forgets a little
    with each task that comes through it: thus a model that drifts is followed, and of a thousand tasks that run
    together the first to end are not forgotten for the last. Nothing is kept of a single task that runs, so that
    nobody has to say when it is watched no longer; nor of the cells before any task ends, which all tasks come through.
    """

    count: int = 0  # durations, up to `_WINDOW`
    _start: int = 0  # the first cell that is kept
    _cells: array[float] = attrs.field(factory=lambda: array("f"))  # reached, ended, coming; reached, ended, coming;...
    _ending: bytes = b""  # the cells in which those ended that are not yet among `ended`
    _curve: Curve | None = None

    def observe_running(self, since: float, until: float) -> None:
        """Learn that a task which ran at the age `since` still did so at the age `until`."""
        self._come(_cell(since), _cell(until))

    def observe_finished(self, seconds: float, *, since: float = 0.0) -> None:
        """Learn the duration of a task that was last seen to run at the age `since`.

        The curve is made anew with every eighth of what is known, not with each.
        """
        cell = int(_cell(seconds))
        if cell < self._start:
            self._cells[:0] = array("f", [self._cells[0], 0.0, 0.0] * (self._start - cell))
            self._start = cell
        self._come(_cell(min(since, seconds)), cell + 1)
        self._ending += bytes([cell])
        self.count = min(self.count + 1, _WINDOW)
        if len(self._ending) * 8 > self.count:
            self._settle()
            self._curve = None

    def _come(self, low: float, high: float) -> None:
        """Count one more task in each cell that it came through, and the part of a cell that it did.

        What is coming to a cell is kept less what is to the one before, so that only two change.
        """
        low, high = max(0.0, low - self._start), max(0.0, high - self._start)
        self._cells.extend(repeat(0.0, 3 * (int(high) + 2) - len(self._cells)))
        for place, sign in ((low, 1.0), (high, -1.0)):
            cell, part = int(place), place - int(place)
            self._cells[3 * cell + 2] += sign * (1 - part)
            self._cells[3 * cell + 5] += sign * part

    def _settle(self) -> None:
        """Take those in who came of late; each cell forgets as much as that is."""
        cells = self._cells
        for cell, came in enumerate(accumulate(cells[2::3])):
            if came > 0:
                kept = (1 - _FORGOTTEN) ** came
                new = (1 - kept) / _FORGOTTEN
                ending = self._ending.count(self._start + cell)
                cells[3 * cell] = cells[3 * cell] * kept + new
                cells[3 * cell + 1] = cells[3 * cell + 1] * kept + new * ending / came
        cells[2::3] = array("f", bytes(len(cells) // 3 * 4))
        self._ending = b""
        before = next((cell for cell, (reached, ended) in self._known() if ended > _LEAST * reached), 0)
        del cells[: 3 * before]
        self._start += before

    def _known(self) -> Iterable[tuple[int, tuple[float, float]]]:
        """How many have reached each cell and ended in it, by its place among those that are kept."""
        return enumerate(zip(self._cells[::3], self._cells[1::3], strict=True))

    def curve(self, request_budget: float) -> Curve | None:
        """The curve of what is known, if anything is; `request_budget` as `AdaptiveInterval` has it, the same each time."""
        if self._curve is None and (ends := self._ends()):
            self._curve = fit(ends, self._weight(), self.count, request_budget)
        return self._curve

    def _ends(self) -> dict[float, float]:
        """Which part of all tasks ends where: logarithms of ages, rising. Of the others it is not known.

        Kaplan and Meier's estimate: so many of those who outlive all cells before end in this one.
        """
        ends, alive = dict[float, float](), 1.0
        for cell, (reached, ended) in self._known():
            part = alive * min(1.0, ended / reached) if reached else 0.0
            if part > _LEAST:
                ends[math.log(_FIRST) + (self._start + cell + 0.5) * _WIDE] = part
                alive -= part
        return ends

    def _weight(self) -> float:
        """How many durations, each counting as much, would tell as much."""
        sums = min(sum(self._cells[1::3]), max(self._cells[::3]))
        return sums * (2 - _FORGOTTEN) / (2 - sums * _FORGOTTEN)


def _cell(age: float) -> float:
    """Where among the cells an age lies."""
    return min(math.log(max(age, _FIRST) / _FIRST) / _WIDE, _MOST_CELLS)


@attrs.frozen(eq=False, kw_only=True, repr=False)
class DurationStats:
    """What is known of one model: the curve of what was learned from its last tasks, 64 at most."""

    provider: str
    model: str | None
    tasks: int
    curve: Curve


def fit(ends: Mapping[float, float], weight: float, count: int, request_budget: float) -> Curve:
    """The curve of `count` durations that weigh as `weight` equal ones.

    `ends`: which part of all tasks ends where, logarithms of ages, rising. The others outlive these; where they end is
    a guess, so that polls at them follow the ladder.
    """
    whole = sum(ends.values())
    others = max(0.0, 1 - whole)
    width = _kernel_width({log: part / whole for log, part in ends.items()}, weight)
    spread = _USUAL_SPREAD if others > _LEAST else width
    last = max(ends)
    low, high = min(ends) - _REACH * width, last + _REACH * spread
    points = [low + (high - low) * cell / _CELLS for cell in range(_CELLS + 1)]
    # A logistic kernel: S is a sum of tanh, and its tails are as heavy as surprises are.
    ending = [sum(part * (1 - math.tanh((x - log) / width / 2)) for log, part in ends.items()) / 2 for x in points]
    guessed = [others * math.exp(min(0.0, last - x) / spread) for x in points]
    surviving = [known + guess for known, guess in zip(ending, guessed, strict=True)]
    ages = [0.0, *map(math.exp, points)]
    hazards = list(accumulate((-math.log(s) for s in surviving), max, initial=0.0))  # rounding must not turn it back
    trust = count / (count + 1)
    polls = _polls(ages, hazards, [whole, *ending], trust, request_budget)
    return Curve(ages[1], ages[-1], array("f", hazards), array("f", polls), tail=1 / spread, trust=trust)


def _polls(
    ages: list[float], hazards: list[float], ending: list[float], trust: float, request_budget: float
) -> list[float]:
    """How many polls are due by each age: as many as the ladder takes by the end of a task, times `request_budget`.

    `ending`: which part of all tasks has not ended by each age, but will where ends are known.
    """
    seconds = [b - a for a, b in pairwise(ages)]
    alive = [(a + b) / 2 for a, b in pairwise(ending)]
    surviving = [(math.exp(-a) + math.exp(-b)) / 2 for a, b in pairwise(hazards)]
    shares = [trust * known / s for known, s in zip(alive, surviving, strict=True)]
    ladder = [ladder_polls(b) - ladder_polls(a) for a, b in pairwise(ages)]
    shape = [math.sqrt((b - a) * dt) for (a, b), dt in zip(pairwise(hazards), seconds, strict=True)]
    shape[0] = 0.0  # nothing has ever ended so early
    wanted = max(_FEWEST * ending[0], sum(n * s for n, s in zip(ladder, alive, strict=True)))
    factor = wanted / sum(n * s for n, s in zip(shape, alive, strict=True))
    learned = factor * trust * ending[0]  # fewer at first, as what is known by then misses the slow ones
    closest = min(_CLOSEST, ages[len(ages) // 2] / 4)
    rates = zip(shape, ladder, seconds, shares, strict=True)
    grown = [
        min(request_budget * (share * learned * n + (1 - share) * rung), dt / closest) for n, rung, dt, share in rates
    ]
    return list(accumulate(grown, initial=0.0))


def _kernel_width(shares: Mapping[float, float], known: float) -> float:
    """Silverman's rule for a logistic kernel, with the usual spread mixed in while little is known."""
    mean = sum(share * log for log, share in shares.items())
    spread2 = sum(share * (log - mean) ** 2 for log, share in shares.items())
    if known >= _LEAST_DENSE:
        spread2 = min(spread2, _dense_spread(shares) ** 2)
    spread = math.sqrt((spread2 * known + _USUAL_SPREAD**2 * _BELIEF) / (known + _BELIEF))
    return max(_NARROWEST, 0.6 * spread * math.pow(known, -0.2))


def _dense_spread(shares: Mapping[float, float]) -> float:
    """The spread of one kind of tasks, if there are several: by the shortest stretch that holds a third of all."""
    logs = list(shares)
    sums = list(accumulate(shares.values(), initial=0.0))
    rights = ((left, bisect_left(sums, sums[left] + 1 / 3)) for left in range(len(logs)))
    stretches = [
        (logs[right - 1] - logs[left] + _WIDE) / (sums[right] - sums[left]) / 3
        for left, right in rights
        if right < len(sums)
    ]
    return min(stretches) / _DENSE_THIRD
