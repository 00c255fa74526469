"""What is learned of the durations of one model, and the curves made of it."""

from __future__ import annotations

import math
import random
from statistics import fmean

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars import SteppedInterval
from sora_chars.polling.durations import Durations, stepped_age, stepped_polls
from tests.support.simulated_tasks import cost, draws, running, see, taught, teach

SECONDS = st.floats(min_value=0.001, max_value=86400)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 86401.0, 1e300, math.nan, math.inf, 1e-9])
def test_ignores_impossible_durations(seconds: float) -> None:
    """A wrong clock leaves no trace, nor does a task without timestamps."""
    strategy = taught(seconds)
    strategy.observe_finished(running())
    assert strategy.stats() == []


def test_running_tasks_count() -> None:
    """Of 40 tasks 10 end at 10 s and 30 go on: over half take longer than any that has ended."""
    strategy = taught()
    for _ in range(10):
        for _ in range(3):
            see(strategy, 12.0, 12.0)
        see(strategy, 11.0, 11.0, ended_at=10.0)
    (stats,) = strategy.stats()
    assert stats.curve.age(0.2) == pytest.approx(10, rel=0.1)
    assert stats.curve.age(0.5) > 11
    stepped = SteppedInterval(random.Random(1))
    mean = fmean(strategy.delay(running(), 12.0) for _ in range(99))
    assert mean == pytest.approx(stepped.delay(None, 12.0), rel=0.3)


def test_partial_observations_add_up() -> None:
    """A task that is polled ten times counts as much as one of which only the record is read."""
    watched = taught()
    read = taught()
    for seconds in draws(46, 0.25, 40):
        for age in range(4, int(seconds), 4):
            see(watched, age, 4.0)
        see(watched, seconds + 3, seconds + 3 - (int(seconds) - 1) // 4 * 4, ended_at=seconds)
        teach(read, seconds)
    (one,) = watched.stats()
    (other,) = read.stats()
    assert list(one.curve.polls) == pytest.approx(list(other.curve.polls), rel=0.01)
    assert one.tasks == other.tasks == 40


def test_forgets_abandoned_tasks() -> None:
    """A hundred waits that were given up at 30 s count for nothing once other tasks have passed that age."""
    strategy = taught()
    for _ in range(100):
        see(strategy, 30.0, 30.0)
    for _ in range(60):
        teach(strategy, 20.0)
    (stats,) = strategy.stats()
    assert stats.curve.age(0.9) == pytest.approx(20, rel=0.1)


def test_one_end_among_thousands_is_not_enough() -> None:
    """Until more tasks have ended, the model counts as unknown."""
    strategy = taught()
    for _ in range(5000):
        see(strategy, 12.0, 12.0)
    see(strategy, 11.0, 11.0, ended_at=10.0)
    assert strategy.stats() == []
    assert strategy.delay(running(), 12.0) == SteppedInterval(random.Random(1)).delay(None, 12.0)
    assert strategy.estimate(running(), 12.0) is None


def test_ignores_an_end_without_timestamps() -> None:
    """Of a failed task without timestamps only the time until the last poll is known, not its duration."""
    strategy = taught()
    strategy.observe(attrs.evolve(running(), state="fail"), 10.0, 4.0)
    assert strategy.stats() == []


@given(history=st.lists(SECONDS, min_size=1, max_size=70))
def test_curves_rise(history: list[float]) -> None:
    """Ages, hazards and polls start at 0 and never fall along a curve."""
    (stats,) = taught(*history).stats()
    for table in (stats.curve.ages, stats.curve.hazards, stats.curve.polls):
        assert table[0] == 0.0
        assert list(table) == sorted(table)


@given(polls=st.floats(0, 1e6))
def test_stepped_age_inverts_stepped_polls(polls: float) -> None:
    """The age by which a number of polls is made has that number of polls."""
    assert stepped_polls(stepped_age(polls)) == pytest.approx(polls, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("times", [1.0, 3.0])
def test_the_curve_continues_with_the_stepped_interval(times: float) -> None:
    """From the last age of a curve on, the next poll is that of the stepped interval, and always a later one."""
    curve = taught(*[46.0] * 20)._curve(running())
    assert curve
    age = times * curve.last
    assert curve.next_poll_age(age, 1.0) == stepped_age(stepped_polls(age) + 1.0) > age


def test_forgets_old_durations() -> None:
    """After 64 tasks nothing is left of a model's old durations; after 32, little."""
    strategy = taught(*[20.0] * 64, *[100.0] * 32)
    assert strategy.stats()[0].curve.age(0.5) == pytest.approx(100, rel=0.1)
    for _ in range(32):
        teach(strategy, 100.0)
    (stats,) = strategy.stats()
    assert stats.tasks == 64
    assert stats.curve.age(0.01) == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("median", [0.3, 46.0, 5000.0])
def test_a_model_takes_less_than_800_bytes(median: float) -> None:
    """However long its tasks take, and whether polls show them running or not."""
    durations = Durations()
    for seconds in draws(median, 0.3, 200):
        durations.observe_running(0.0, seconds / 2)
        durations.observe_finished(seconds, since=seconds / 2)
    curve = durations.curve(1.0)
    assert curve
    tables = (durations._reached, durations._ended, durations._arriving, curve.hazards, curve.polls)
    assert sum(memoryview(table).nbytes for table in tables) < 800


def test_follows_a_model_that_becomes_faster() -> None:
    """Tasks that end before any other did are learned, and count as few among those that passed that age."""
    strategy = taught(*[100.0] * 20, 10.0)
    (stats,) = strategy.stats()
    assert stats.curve.hazard(50)[0] == pytest.approx(0.09, rel=0.3)
    assert taught(*[100.0] * 20, *[10.0] * 30).stats()[0].curve.age(0.5) == pytest.approx(10, rel=0.2)


def test_renews_the_curve_after_an_eighth_of_the_durations() -> None:
    """One more of 64 durations changes nothing yet, which keeps learning cheap; eight more do."""
    durations = Durations()
    for _ in range(64):
        durations.observe_finished(46.0)
    curve = durations.curve(1.0)
    for _ in range(2):
        durations.observe_finished(46.0)
        assert durations.curve(1.0) is curve
    for _ in range(8):
        durations.observe_finished(46.0)
    assert durations.curve(1.0) is not curve


@pytest.mark.parametrize("median", [13.0, 46.0, 127.0])
def test_a_curve_predicts_its_costs(median: float) -> None:
    """The predicted costs are those that follow, for the curve and for the stepped interval."""
    known = draws(median, 0.25, 64)
    strategy = taught(*known)
    (stats,) = strategy.stats()
    again = known * 10
    assert stats.curve.cost() == pytest.approx(cost(strategy, again), rel=0.15)
    assert stats.curve.stepped_cost() == pytest.approx(cost(SteppedInterval(random.Random(1)), again), rel=0.15)
