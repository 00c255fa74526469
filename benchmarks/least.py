"""The least lateness there is where many tasks wait for few GETs (part B): what no rule can better.

Let the GETs be limited on average only, which makes it easier. Then each task is on its own, at a price c for a GET
(Lagrange; for indices, Whittle 1988). All that a look tells of a task that goes on is that it does, so the best plan is
a list of ages, fixed from the start (Barlow, Hunter and Proschan 1963, "Optimum checking procedures"). With F the
distribution of durations, the cost of what comes after a look at the age a, as a part of all tasks, is

    W(a) = min over b > a of  c (1 - F(a)) + integral from a to b of (F(t) - F(a)) dt + W(b)

which is reckoned backwards over a grid of ages. With N tasks waiting at all times and R GETs a second, GETs a task are
R / N x (mean duration + lateness); the c that leads there tells the most. Unlike (integral of sqrt(f S))**2 / 2, this
takes looks for what they are, one or two a task. It knows F from the start, which a rule that learns does not.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

CELLS = 200
LOWEST, HIGHEST = -5.0, 6.0  # deviations from the median, of the logarithm
HALVINGS = 15


@attrs.frozen
class Grid:
    """Log-normal durations in units of their median, at ages from 0 on: F, and the integral of F up to there."""

    ages: list[float]
    ended: list[float]
    waited: list[float]

    @classmethod
    def of(cls, spread: float) -> Grid:
        """The grid for a spread of the logarithms."""
        places = [LOWEST + (HIGHEST - LOWEST) * cell / CELLS for cell in range(CELLS + 1)]
        ages, ended = [math.exp(spread * z) for z in places], [_normal(z) for z in places]
        mean = math.exp(spread**2 / 2)
        waited = [age * f - mean * _normal(z - spread) for age, f, z in zip(ages, ended, places, strict=True)]
        return cls([0.0, *ages], [0.0, *ended], [0.0, *waited])

    def plan(self, price: float) -> tuple[float, float]:
        """GETs a task and lateness of the best plan at a price of a GET, in medians."""
        count = len(self.ages)
        cost, gets, late = [0.0] * count, [0.0] * count, [0.0] * count
        furthest = count - 1
        for here in range(count - 2, -1, -1):
            # the next look after a later one is no earlier, so the search goes down with it
            waits = [self._wait(here, there) for there in range(here + 1, furthest + 1)]
            costs = [wait + after for wait, after in zip(waits, cost[here + 1 : furthest + 1], strict=True)]
            best = costs.index(min(costs))
            furthest, alive = here + 1 + best, 1 - self.ended[here]
            cost[here] = price * alive + costs[best]
            gets[here] = alive + gets[furthest]
            late[here] = waits[best] + late[furthest]
        return gets[0], late[0]

    def _wait(self, here: int, there: int) -> float:
        span = self.ages[there] - self.ages[here]
        return self.waited[there] - self.waited[here] - self.ended[here] * span


def least(medians: Sequence[float], spread: float, *, waiting: int, gets: float) -> tuple[float, float]:
    """GETs a task and the least mean lateness, in seconds: so many tasks waiting at all times, so many GETs a second.

    Each new task is of one of the models, all as likely.
    """
    grid = Grid.of(spread)
    mean, each = fmean(medians) * math.exp(spread**2 / 2), gets / waiting
    low, high = 0.01, 1000.0  # seconds for a GET
    late = 0.0
    for _ in range(HALVINGS):
        price = math.sqrt(low * high)
        plans = [(median, *grid.plan(price / median)) for median in medians]
        looks, plain = fmean(looks for _, looks, _ in plans), fmean(median * wait for median, _, wait in plans)
        # Any rule has: late + price * looks no less than here, and looks = each * (mean + late).
        late = (plain + price * (looks - each * mean)) / (1 + price * each)
        low, high = (price, high) if looks > each * (mean + plain) else (low, price)
    return each * (mean + late), late


def _normal(deviations: float) -> float:
    return math.erfc(-deviations / math.sqrt(2)) / 2
