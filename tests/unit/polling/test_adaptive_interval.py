"""What `AdaptiveInterval` does with what it has learned. The costs are ratios in virtual time, from fixed seeds."""

from __future__ import annotations

import heapq
import math
import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sora_chars import AdaptiveInterval, Eta, PollingStrategy, SteppedInterval, TaskSnapshot
from tests.support.simulated_tasks import cost, draws, poll_ages, running, see, taught, teach

ANY = st.floats()  # NaN and infinities too
SECONDS = st.floats(min_value=0.001, max_value=86400)
HISTORY = st.lists(SECONDS | ANY, max_size=70)


def bound(median: float, spread: float) -> float:
    """Return the smallest product of polls and detection delay, (integral of sqrt(f S))**2 / 2."""
    total = 0.0
    for z in (k / 100 for k in range(-800, 801)):
        normal = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * math.erfc(z / math.sqrt(2)) / 2
        total += math.sqrt(normal * spread * median * math.exp(spread * z)) / 100
    return total * total / 2


def batch(strategy: PollingStrategy, durations: list[float]) -> tuple[float, float]:
    """Return what `cost` does, for tasks that start at the same time while the strategy learns."""
    due = [(strategy.delay(running(), 0.0), 0.0, seconds) for seconds in durations]
    heapq.heapify(due)
    polls = 0
    late: list[float] = []
    while due:
        age, seen, ends = heapq.heappop(due)
        polls += 1
        see(strategy, age, age - seen, ended_at=ends if ends <= age else None)
        if ends <= age:
            late.append(age - ends)
        else:
            heapq.heappush(due, (age + strategy.delay(running(), age), age, ends))
    return polls / len(durations), fmean(late)


class Plain(PollingStrategy):
    """A strategy that defines nothing but `delay`."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Every second."""
        del snapshot, age
        return 1.0


def test_a_strategy_needs_only_a_delay() -> None:
    """The other methods have defaults: learn nothing, prefer the longest unseen task, estimate nothing."""
    strategy = Plain()
    teach(strategy, 3.0)
    assert strategy.priority(running(), 10.0, 4.0) == 4.0
    assert strategy.estimate(running(), 10.0) is None


def test_observe_finished_is_called_for_ends() -> None:
    """A strategy that does not define `observe` learns from the polls that show an end."""
    observed: list[float | None] = []

    class Learner(Plain):
        def observe_finished(self, snapshot: TaskSnapshot) -> None:
            observed.append(snapshot.duration)

    see(Learner(), 2.0, 1.0)
    see(Learner(), 4.0, 2.0, ended_at=3.0)
    assert observed == [3.0]


@pytest.mark.parametrize("snapshot", [None, running(), running("other"), running(None), running(provider="other")])
def test_an_unknown_model_follows_the_stepped_interval(snapshot: TaskSnapshot | None) -> None:
    """An unknown model gets exactly the delays of `SteppedInterval`, whatever is known of others."""
    known = () if snapshot == running() else (10.0,) * 30
    ages = [0.0, 1.0, 29.0, 31.0, 119.0, 500.0]
    strategy = taught(*known)
    stepped = SteppedInterval(random.Random(1))
    assert [strategy.delay(snapshot, age) for age in ages] == [stepped.delay(snapshot, age) for age in ages]


def test_polls_most_densely_where_tasks_end() -> None:
    """The first poll of a model of 46 s comes after 20 s; polls are dense around 46 s, and rarer again later."""
    strategy = taught(*draws(46, 0.15, 40))
    ages = poll_ages(strategy, 200)
    assert ages[0] > 20
    around = [age for age in ages if 38 < age < 54]
    assert len(around) > 10
    assert all(b - a > 14 for a, b in pairwise(ages) if a > 130)


def test_polls_densely_at_both_of_two_modes() -> None:
    """If a model has short and long tasks, fewer polls lie between the two than at either."""
    strategy = taught(*(seconds * (1 if k % 2 else 10) for k, seconds in enumerate(draws(10, 0.1, 64))))
    ages = poll_ages(strategy, 150)
    rates = [sum(low <= age < high for age in ages) / (high - low) for low, high in ((8, 13), (20, 70), (85, 115))]
    assert rates[1] < rates[0] / 2
    assert rates[1] < rates[2] / 2


def test_follows_the_stepped_interval_past_the_longest_task() -> None:
    """A task ten times as long as any other is polled as by `SteppedInterval`, without end."""
    strategy = taught(*[46.0] * 40)
    stepped = SteppedInterval(random.Random(1))
    for age in (460.0, 1e4, 1e8):
        strategy.random.seed(7)
        stepped.random.seed(7)
        assert strategy.delay(running(), age) == stepped.delay(running(), age)


def test_minimum_interval() -> None:
    """Also for tasks of equal duration and a high budget, polls are half a second apart, less the jitter."""
    ages = poll_ages(taught(*[46.0] * 64, request_budget=100), 60)
    assert len(ages) > 20
    assert min(b - a for a, b in pairwise([0.0, *ages])) > 0.5 * 0.79


def test_delays_are_random() -> None:
    """Two tasks of the same age are not polled at the same time."""
    strategy = taught(*[46.0] * 40)
    assert len({strategy.delay(running(), 0.0) for _ in range(20)}) == 20


def test_polls_short_tasks_earlier_than_the_stepped_interval() -> None:
    """The stepped interval's first poll comes after 2 s; tasks of 0.3 s are polled by then."""
    assert cost(taught(*[0.3] * 20), [0.3] * 20)[1] < 0.3


@example(history=[46.0] * 64, age=math.inf, unseen=math.inf, request_budget=1.0)
@example(history=[46.0] * 64, age=1e9, unseen=1e9, request_budget=1e6)
@example(history=[100.0] * 20 + [20.0] * 300, age=20.0, unseen=20.0, request_budget=1.0)
@given(history=HISTORY, age=ANY, unseen=ANY, request_budget=st.floats(min_value=1e-6, max_value=1e6))
def test_accepts_any_number(history: list[float], age: float, unseen: float, request_budget: float) -> None:
    """Whatever was learned, a delay is above 0, a priority is not negative, and an estimate is in order."""
    strategy = taught(*history, request_budget=request_budget)
    for ended_at in (None, *history[:9]):
        see(strategy, age, unseen, ended_at=ended_at)
    assert 0 < strategy.delay(running(), age) < 1e9
    assert 0 <= strategy.priority(running(), age, unseen) < math.inf
    eta = strategy.estimate(running(), age)
    if eta is not None:
        assert 0 <= eta.low <= eta.median <= eta.high < math.inf
    for stats in strategy.stats():
        assert all(0 <= number < math.inf for number in (*stats.curve.cost(), *stats.curve.stepped_cost()))


@given(history=st.lists(SECONDS, max_size=70), age=st.floats(0, 1e6))
def test_priority_grows_with_the_time_unseen(history: list[float], age: float) -> None:
    """It rises from 0 with the time since the last poll, so no task starves."""
    strategy = taught(*history)
    priorities = [strategy.priority(running(), age, age * part) for part in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert priorities[0] == 0.0
    assert priorities == sorted(priorities)
    if age > 0.01:
        assert priorities[1] > 0


@pytest.mark.parametrize("count", [20, 200, 1000])
@pytest.mark.parametrize("spread", [None, 0.25])
def test_a_first_batch_is_no_worse_than_with_the_stepped_interval(count: int, spread: float | None) -> None:
    """If all tasks start together, the first to end do not suggest that the rest are late."""
    generator = random.Random(4)
    costs: list[tuple[float, ...]] = []
    for seed in range(1000 // count):
        tasks = [
            generator.uniform(5, 20) if spread is None else 46 * math.exp(generator.gauss(0, spread))
            for _ in range(count)
        ]
        strategy = taught(seed=seed)
        costs.append(
            (*batch(SteppedInterval(random.Random(seed)), tasks), *batch(strategy, tasks), *batch(strategy, tasks))
        )
    polls, late, first_polls, first_late, polls_again, late_again = map(fmean, zip(*costs, strict=True))
    assert first_polls < polls * 1.1
    assert first_late < late
    assert polls_again < polls * 1.1
    assert late_again < late * (0.8 if spread is None else 0.3)


def test_priority_follows_the_odds_of_an_end() -> None:
    """A task that cannot have ended comes last although it was unseen longest; one that surely has comes first."""
    strategy = taught(*draws(46, 0.15, 64))
    early, now, over = (
        strategy.priority(running(), age, unseen) for age, unseen in ((20.0, 20.0), (46.0, 5.0), (80.0, 50.0))
    )
    assert early < now < over


def test_an_overdue_task_precedes_an_unknown_one() -> None:
    """All known tasks of its model had ended by that age, so it probably has, too."""
    assert taught(*[46.0] * 64).priority(running(), 460.0, 46.0) > taught().priority(running(), 460.0, 46.0) * 2


def test_priority_after_a_short_time() -> None:
    """It is h u**2 / 2 after a short time u; at 70 s an unknown model has h = 1 / 100 s."""
    assert taught().priority(running(), 70.0, 0.1) == pytest.approx(0.1**2 / 100 / 2, rel=0.01)


def test_eta_is_the_range_of_time_left() -> None:
    """At first it covers all durations, then those that are still possible; past them there is none."""
    durations = sorted(draws(46, 0.25, 64))
    random.Random(3).shuffle(durations)
    strategy = taught(*durations)
    eta = strategy.estimate(running(), 0.0)
    assert eta is not None
    assert (eta.low, eta.median, eta.high) == pytest.approx((34, 46, 63), rel=0.2)
    later = strategy.estimate(running(), 45.0)
    assert later is not None
    assert 0 < later.low < later.median < eta.median - 30
    assert strategy.estimate(running(), 1000.0) is None


def test_eta_is_bounded_by_the_curve() -> None:
    """Shortly before the last age of the curve, the estimate is the time until that age."""
    strategy = taught(*[46.0] * 20)
    curve = strategy._curve(running())
    assert curve
    last = curve.last
    assert strategy.estimate(running(), last - 2**-20) == Eta(low=2**-20, median=2**-20, high=2**-20)


@pytest.mark.parametrize(("count", "known"), [(0, False), (2, False), (3, True)])
def test_eta_needs_three_tasks(count: int, known: bool) -> None:  # noqa: FBT001 # a parameter of pytest
    """One or two durations make no range."""
    assert (taught(*[46.0] * count).estimate(running(), 1.0) is not None) is known


def test_the_number_of_models_is_bounded() -> None:
    """If there are too many models, the least recently used ones are forgotten."""
    strategy = taught()
    for number in range(300):
        teach(strategy, 10.0, f"m{number}")
        teach(strategy, 10.0, "m0")
    known = {stats.model: stats.tasks for stats in strategy.stats()}
    assert len(known) == 256
    assert (known["m0"], known["m299"]) == (64, 1)
    assert "m1" not in known


@pytest.mark.parametrize("request_budget", [0.0, -1.0, math.inf, math.nan])
def test_rejects_an_impossible_budget(request_budget: float) -> None:
    """A strategy that would never poll, or always, cannot be made."""
    with pytest.raises(ValueError, match="request_budget"):
        AdaptiveInterval(request_budget=request_budget)


@pytest.mark.parametrize("spread", [0.15, 0.25, 0.4])
@pytest.mark.parametrize("median", [13.0, 46.0, 127.0])
def test_20_tasks_are_enough(median: float, spread: float) -> None:
    """Then polls times delay is at most 1.2 x the smallest product, with no more polls than the stepped interval."""
    new = draws(median, spread, 100, seed=4)
    costs = [cost(taught(*draws(median, spread, 20, seed=seed)), new) for seed in range(10)]
    polls = fmean(polls for polls, _ in costs)
    late = fmean(late for _, late in costs)
    assert polls * late < 1.2 * bound(median, spread)
    assert polls < cost(SteppedInterval(random.Random(1)), new)[0] * 1.02


@pytest.mark.parametrize("known", [1, 2, 5, 10])
def test_few_tasks_help(known: int) -> None:
    """From the first task on, the delay is at most 2/3 of the stepped interval's, for at most 1.1 x its polls."""
    new = draws(46, 0.25, 100, seed=4)
    costs = [cost(taught(*draws(46, 0.25, known, seed=seed)), new) for seed in range(10)]
    polls, late = cost(SteppedInterval(random.Random(1)), new)
    assert fmean(late for _, late in costs) < late * 2 / 3
    assert fmean(polls for polls, _ in costs) < polls * 1.1


def test_twice_the_budget_halves_the_delay() -> None:
    """Twice the polls detect an end in half the time."""
    known = draws(127, 0.25, 64)
    new = draws(127, 0.25, 200, seed=4)
    (polls, late), (more, sooner) = (
        cost(taught(*known, request_budget=request_budget), new) for request_budget in (1.0, 2.0)
    )
    assert more == pytest.approx(2 * polls, rel=0.1)
    assert sooner == pytest.approx(late / 2, rel=0.1)


def crowd(strategy: PollingStrategy, count: int = 100, every: float = 0.5) -> float:
    """Return the mean detection delay if 100 tasks wait at all times, and one may be polled each half second."""
    generator = random.Random(5)
    medians = {"a": 13.0, "b": 46.0, "c": 127.0}

    def fresh(now: float) -> list[float | str]:
        model = generator.choice(list(medians))
        return [now, now + medians[model] * math.exp(generator.gauss(0, 0.2)), now, model]

    tasks = [fresh(0.0) for _ in range(count)]
    late: list[float] = []
    for now in (step * every for step in range(1, 1600)):
        priorities = [
            strategy.priority(running(str(model)), now - float(made), now - float(seen))
            for made, _, seen, model in tasks
        ]
        best = priorities.index(max(priorities))
        if float(tasks[best][1]) > now:
            tasks[best][2] = now
            continue
        late += [now - float(tasks[best][1])] * (now > 200)
        teach(strategy, float(tasks[best][1]) - float(tasks[best][0]), str(tasks[best][3]))
        tasks[best] = fresh(now)
    return fmean(late)


def test_priorities_halve_the_delay_under_limits() -> None:
    """With few polls for many tasks, the highest priority detects ends in half the time of round-robin, or less."""
    assert crowd(taught()) < crowd(Plain()) / 2
