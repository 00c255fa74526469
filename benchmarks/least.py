"""Part B: the minimum mean detection delay of any rule, where many tasks wait for few GETs.

The GETs are limited on average only, which is the easier problem. Each task is then independent of the others, at a
price c for a GET (Lagrange; for indices, Whittle 1988). A poll of a running task shows only that it is running, so the
best plan is a list of ages, fixed from the start (Barlow, Hunter and Proschan 1963, "Optimum checking procedures").
With F the distribution of durations, the cost that follows a poll at the age a, as a part of all tasks, is

    W(a) = min over b > a of  c (1 - F(a)) + integral from a to b of (F(t) - F(a)) dt + W(b)

which is computed backwards over a grid of ages. With N tasks waiting at all times and R GETs per second, the GETs per
task are R / N x (mean duration + detection delay); the c with this number of GETs gives the tightest bound. Unlike
(integral of sqrt(f S))**2 / 2, it counts whole polls, of which a task gets one or two. It knows F from the start; a
rule that learns does not.
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
    """Log-normal durations in units of their median.

    Attributes:
        ages: The ages of the grid, from 0.
        ended: F at each age.
        waited: The integral of F up to each age.
    """

    ages: list[float]
    ended: list[float]
    waited: list[float]

    @classmethod
    def of(cls, spread: float) -> Grid:
        """Return the grid for a spread of the logarithms."""
        deviations = [LOWEST + (HIGHEST - LOWEST) * cell / CELLS for cell in range(CELLS + 1)]
        ages = [math.exp(spread * z) for z in deviations]
        ended = [_normal(z) for z in deviations]
        mean = math.exp(spread**2 / 2)
        waited = [age * f - mean * _normal(z - spread) for age, f, z in zip(ages, ended, deviations, strict=True)]
        return cls([0.0, *ages], [0.0, *ended], [0.0, *waited])

    def plan(self, price: float) -> tuple[float, float]:
        """Return the GETs per task and the detection delay of the best plan at a price of a GET, in medians."""
        count = len(self.ages)
        cost = [0.0] * count
        gets = [0.0] * count
        late = [0.0] * count
        furthest = count - 1
        for here in range(count - 2, -1, -1):
            # a later poll is followed by a later one, so `furthest` only falls
            waits = [self._wait(here, there) for there in range(here + 1, furthest + 1)]
            costs = [wait + after for wait, after in zip(waits, cost[here + 1 : furthest + 1], strict=True)]
            best = costs.index(min(costs))
            furthest = here + 1 + best
            alive = 1 - self.ended[here]
            cost[here] = price * alive + costs[best]
            gets[here] = alive + gets[furthest]
            late[here] = waits[best] + late[furthest]
        return gets[0], late[0]

    def _wait(self, here: int, there: int) -> float:
        span = self.ages[there] - self.ages[here]
        return self.waited[there] - self.waited[here] - self.ended[here] * span


def least(medians: Sequence[float], spread: float, *, waiting: int, gets: float) -> tuple[float, float]:
    """Return the GETs per task and the minimum mean detection delay in seconds.

    Args:
        medians: The medians of the models, in seconds. A new task is of any model with
            the same probability.
        spread: The spread of the logarithms of their durations.
        waiting: The number of tasks that wait at all times.
        gets: GETs per second.
    """
    grid = Grid.of(spread)
    mean = fmean(medians) * math.exp(spread**2 / 2)
    each = gets / waiting
    low = 0.01  # seconds for a GET
    high = 1000.0
    late = 0.0
    for _ in range(HALVINGS):
        price = math.sqrt(low * high)
        plans = [(median, *grid.plan(price / median)) for median in medians]
        polls = fmean(polls for _, polls, _ in plans)
        delay = fmean(median * wait for median, _, wait in plans)
        # For any rule, late + price * polls is at least delay + price * polls of this plan, and its
        # polls are each * (mean + late).
        late = (delay + price * (polls - each * mean)) / (1 + price * each)
        if polls > each * (mean + delay):
            low = price
        else:
            high = price
    return each * (mean + late), late


def _normal(deviations: float) -> float:
    return math.erfc(-deviations / math.sqrt(2)) / 2
