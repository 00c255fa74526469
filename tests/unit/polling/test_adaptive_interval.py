"""What a pace makes of what it learns. The goals of cost are ratios in virtual time, from fixed seeds."""

from __future__ import annotations

import heapq
import math
import random
from itertools import pairwise
from statistics import fmean

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sora_chars import AdaptiveInterval, Eta, PollingStrategy, SteppedInterval, TaskSnapshot
from sora_chars.polling.durations import Durations, ladder_age, ladder_polls

ANY = st.floats()  # NaN and infinities too
SECONDS = st.floats(min_value=0.001, max_value=86400)
HISTORY = st.lists(SECONDS | ANY, max_size=70)


def waiting(model: str | None = "m", provider: str = "kie") -> TaskSnapshot:
    """A task that runs."""
    return TaskSnapshot(task_id="t", provider=provider, state="generating", model=model)


def taught(*durations: float, request_budget: float = 1.0, model: str | None = "m", seed: int = 1) -> AdaptiveInterval:
    """A pace that has heard of tasks that took so long."""
    pace = AdaptiveInterval(request_budget=request_budget, random=random.Random(seed))
    for seconds in durations:
        teach(pace, seconds, model)
    return pace


def teach(pace: PollingStrategy, seconds: float, model: str | None = "m") -> None:
    """Tell of one task."""
    pace.observe_finished(
        TaskSnapshot(task_id="t", provider="kie", state="success", model=model, created_at=0.0, completed_at=seconds)
    )


def draws(median: float, spread: float, count: int, seed: int = 2) -> list[float]:
    """Durations of one model."""
    dice = random.Random(seed)
    return [median * math.exp(dice.gauss(0, spread)) for _ in range(count)]


def looks(pace: PollingStrategy, until: float) -> list[float]:
    """The ages at which a task is looked at that does not end."""
    ages = [0.0]
    while ages[-1] < until:
        ages.append(ages[-1] + pace.delay(waiting(), ages[-1]))
    return ages[1:]


def cost(pace: PollingStrategy, durations: list[float]) -> tuple[float, float]:
    """GETs a task, and seconds until the end is seen; nothing is learned."""
    seen = [looks(pace, seconds) for seconds in durations]
    late = [ages[-1] - seconds for ages, seconds in zip(seen, durations, strict=True)]
    return fmean(map(len, seen)), fmean(late)


def bound(median: float, spread: float) -> float:
    """The least product of GETs and lateness, (integral of sqrt(f S))**2 / 2."""
    total = 0.0
    for z in (k / 100 for k in range(-800, 801)):
        normal = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * math.erfc(z / math.sqrt(2)) / 2
        total += math.sqrt(normal * spread * median * math.exp(spread * z)) / 100
    return total * total / 2


def see(pace: PollingStrategy, age: float, unseen: float, *, ended_at: float | None = None) -> None:
    """Show a look at a task of the model."""
    snapshot = waiting()
    if ended_at is not None:
        snapshot = attrs.evolve(snapshot, state="success", created_at=0.0, completed_at=ended_at)
    pace.observe(snapshot, age, unseen)


def batch(pace: PollingStrategy, durations: list[float]) -> tuple[float, float]:
    """GETs a task, and seconds until the end is seen, of tasks that begin all at once; the pace learns meanwhile."""
    due = [(pace.delay(waiting(), 0.0), 0.0, seconds) for seconds in durations]
    heapq.heapify(due)
    gets, late = 0, list[float]()
    while due:
        age, seen, ends = heapq.heappop(due)
        gets += 1
        see(pace, age, age - seen, ended_at=ends if ends <= age else None)
        if ends <= age:
            late.append(age - ends)
        else:
            heapq.heappush(due, (age + pace.delay(waiting(), age), age, ends))
    return gets / len(durations), fmean(late)


class Plain(PollingStrategy):
    """Somebody's pace that only says when."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Every second."""
        del snapshot, age
        return 1.0


def test_a_pace_needs_no_more_than_a_delay() -> None:
    """What a pace does not write has a default: it learns nothing, gains by time unseen, expects nothing."""
    pace = Plain()
    teach(pace, 3.0)
    assert pace.priority(waiting(), 10.0, 4.0) == 4.0
    assert pace.estimate(waiting(), 10.0) is None


def test_a_pace_that_only_learns_hears_of_the_looks_that_show_an_end() -> None:
    """What does not care for looks at tasks that go on need not write `saw`."""
    told = list[float | None]()

    class Pupil(Plain):
        def observe_finished(self, snapshot: TaskSnapshot) -> None:
            told.append(snapshot.duration)

    see(Pupil(), 2.0, 1.0)
    see(Pupil(), 4.0, 2.0, ended_at=3.0)
    assert told == [3.0]


@pytest.mark.parametrize("snapshot", [None, waiting(), waiting("other"), waiting(None), waiting(provider="other")])
def test_what_is_unknown_is_looked_at_by_the_ladder(snapshot: TaskSnapshot | None) -> None:
    """A model that nothing is known of gets exactly the delays of kie.ai's ladder, whatever else is known."""
    known = () if snapshot == waiting() else (10.0,) * 30
    ages = [0.0, 1.0, 29.0, 31.0, 119.0, 500.0]
    pace, ladder = taught(*known), SteppedInterval(random.Random(1))
    assert [pace.delay(snapshot, age) for age in ages] == [ladder.delay(snapshot, age) for age in ages]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 86401.0, 1e300, math.nan, math.inf, 1e-9])
def test_durations_that_cannot_be_teach_nothing(seconds: float) -> None:
    """A clock gone wrong leaves no trace, nor does a task whose times are missing."""
    pace = taught(seconds)
    pace.observe_finished(waiting())
    assert pace.stats() == []


def test_looks_lie_where_tasks_end() -> None:
    """Half a minute passes before the first look at a model of 46 s; then they are close, and later rarer again."""
    pace = taught(*draws(46, 0.15, 40))
    ages = looks(pace, 200)
    assert ages[0] > 20
    around = [age for age in ages if 38 < age < 54]
    assert len(around) > 10
    assert all(b - a > 14 for a, b in pairwise(ages) if a > 130)


def test_two_kinds_of_tasks_are_both_met() -> None:
    """Between the short and the long tasks of a model there are fewer looks than at either."""
    pace = taught(*(seconds * (1 if k % 2 else 10) for k, seconds in enumerate(draws(10, 0.1, 64))))
    ages = looks(pace, 150)
    rates = [sum(low <= age < high for age in ages) / (high - low) for low, high in ((8, 13), (20, 70), (85, 115))]
    assert rates[1] < rates[0] / 2
    assert rates[1] < rates[2] / 2


def test_past_everything_seen_the_ladder_goes_on() -> None:
    """A task that has run ten times as long as any other is looked at as rarely as the ladder does, without end."""
    pace, ladder = taught(*[46.0] * 40), SteppedInterval(random.Random(1))
    for age in (460.0, 1e4, 1e8):
        pace.random.seed(7)
        ladder.random.seed(7)
        assert pace.delay(waiting(), age) == ladder.delay(waiting(), age)


def test_no_two_looks_are_closer_than_an_answer_takes() -> None:
    """Also at tasks that all take the same, and with looks to spend: half a second, less the jitter."""
    ages = looks(taught(*[46.0] * 64, request_budget=100), 60)
    assert len(ages) > 20
    assert min(b - a for a, b in pairwise([0.0, *ages])) > 0.5 * 0.79


def test_tasks_made_together_do_not_stay_together() -> None:
    """Two tasks of one age are not looked at at one time."""
    pace = taught(*[46.0] * 40)
    assert len({pace.delay(waiting(), 0.0) for _ in range(20)}) == 20


def test_a_task_of_a_moment_is_not_waited_for_as_long_as_the_ladder_does() -> None:
    """The ladder's first look comes after 2 s; what takes 0.3 s is known to, and is looked at by then."""
    assert cost(taught(*[0.3] * 20), [0.3] * 20)[1] < 0.3


@example(history=[46.0] * 64, age=math.inf, unseen=math.inf, request_budget=1.0)
@example(history=[46.0] * 64, age=1e9, unseen=1e9, request_budget=1e6)
@example(history=[100.0] * 20 + [20.0] * 300, age=20.0, unseen=20.0, request_budget=1.0)
@given(history=HISTORY, age=ANY, unseen=ANY, request_budget=st.floats(min_value=1e-6, max_value=1e6))
def test_no_number_upsets_a_pace(history: list[float], age: float, unseen: float, request_budget: float) -> None:
    """Whatever it was told and is asked, a delay is some time, a gain no less than nothing, and an ETA in order."""
    pace = taught(*history, request_budget=request_budget)
    for ended_at in (None, *history[:9]):
        see(pace, age, unseen, ended_at=ended_at)
    delay, gain, eta = pace.delay(waiting(), age), pace.priority(waiting(), age, unseen), pace.estimate(waiting(), age)
    assert 0 < delay < 1e9
    assert 0 <= gain < math.inf
    if eta is not None:
        assert 0 <= eta.low <= eta.median <= eta.high < math.inf
    for lesson in pace.stats():
        assert all(0 <= number < math.inf for number in (*lesson.curve.cost(), *lesson.curve.ladder_cost()))


@given(history=st.lists(SECONDS, max_size=70), age=st.floats(0, 1e6))
def test_a_task_grows_more_urgent_the_longer_it_was_not_seen(history: list[float], age: float) -> None:
    """The gain rises from nothing with the time since the last look, so that no task starves."""
    pace = taught(*history)
    gains = [pace.priority(waiting(), age, age * part) for part in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert gains[0] == 0.0
    assert gains == sorted(gains)
    if age > 0.01:
        assert gains[1] > 0


@pytest.mark.parametrize("count", [20, 200, 1000])
@pytest.mark.parametrize("spread", [None, 0.25])
def test_a_first_batch_is_looked_at_as_by_the_ladder_or_better(count: int, spread: float | None) -> None:
    """Where all begin at once, the first to end do not teach that the others are late; the next batch gains by all."""
    dice = random.Random(4)
    costs = list[tuple[float, ...]]()
    for seed in range(1000 // count):
        tasks = [dice.uniform(5, 20) if spread is None else 46 * math.exp(dice.gauss(0, spread)) for _ in range(count)]
        pace = taught(seed=seed)
        costs.append((*batch(SteppedInterval(random.Random(seed)), tasks), *batch(pace, tasks), *batch(pace, tasks)))
    gets, late, first_gets, first_late, gets_again, late_again = map(fmean, zip(*costs, strict=True))
    assert first_gets < gets * 1.1
    assert first_late < late
    assert gets_again < gets * 1.1
    assert late_again < late * (0.8 if spread is None else 0.3)


def test_tasks_that_run_count_among_those_that_end() -> None:
    """Of 40 tasks 10 end at 10 s and 30 go on: half take longer than all that have ended, and looks come as before."""
    pace = taught()
    for _ in range(10):
        for _ in range(3):
            see(pace, 12.0, 12.0)
        see(pace, 11.0, 11.0, ended_at=10.0)
    (lesson,) = pace.stats()
    assert lesson.curve.age(0.2) == pytest.approx(10, rel=0.1)
    assert lesson.curve.age(0.5) > 11
    ladder = SteppedInterval(random.Random(1))
    assert fmean(pace.delay(waiting(), 12.0) for _ in range(99)) == pytest.approx(ladder.delay(None, 12.0), rel=0.3)


def test_what_looks_show_adds_up_to_a_duration() -> None:
    """A task that is looked at ten times teaches what one does of which only the record is read."""
    watched, read = taught(), taught()
    for seconds in draws(46, 0.25, 40):
        for age in range(4, int(seconds), 4):
            see(watched, age, 4.0)
        see(watched, seconds + 3, seconds + 3 - (int(seconds) - 1) // 4 * 4, ended_at=seconds)
        teach(read, seconds)
    (one,), (other,) = watched.stats(), read.stats()
    assert list(one.curve.polls) == pytest.approx(list(other.curve.polls), rel=0.01)
    assert one.tasks == other.tasks == 40


def test_tasks_that_nobody_watches_any_longer_are_forgotten() -> None:
    """A hundred waits that were given up at 30 s stand for nothing once other tasks came by that age."""
    pace = taught()
    for _ in range(100):
        see(pace, 30.0, 30.0)
    for _ in range(60):
        teach(pace, 20.0)
    (lesson,) = pace.stats()
    assert lesson.curve.age(0.9) == pytest.approx(20, rel=0.1)


def test_one_end_among_thousands_that_go_on_teaches_nothing_yet() -> None:
    """Until more have ended, the model counts as unknown."""
    pace = taught()
    for _ in range(5000):
        see(pace, 12.0, 12.0)
    see(pace, 11.0, 11.0, ended_at=10.0)
    assert pace.stats() == []
    assert pace.delay(waiting(), 12.0) == SteppedInterval(random.Random(1)).delay(None, 12.0)
    assert pace.estimate(waiting(), 12.0) is None


def test_an_end_without_its_times_teaches_nothing() -> None:
    """Of a task that failed with no times it is known how long it ran, but not when it ended."""
    pace = taught()
    pace.observe(attrs.evolve(waiting(), state="fail"), 10.0, 4.0)
    assert pace.stats() == []


@given(history=st.lists(SECONDS, min_size=1, max_size=70))
def test_curves_only_rise(history: list[float]) -> None:
    """Ages, hazards and looks never fall along a curve, and hazards and looks start at nothing."""
    (lesson,) = taught(*history).stats()
    for table in (lesson.curve.ages, lesson.curve.hazards, lesson.curve.polls):
        assert table[0] == 0.0
        assert list(table) == sorted(table)


@given(looked=st.floats(0, 1e6))
def test_the_ladder_can_be_read_both_ways(looked: float) -> None:
    """The age of so many looks has so many looks."""
    assert ladder_polls(ladder_age(looked)) == pytest.approx(looked, rel=1e-9, abs=1e-9)


def test_a_look_goes_where_a_task_may_have_ended() -> None:
    """Not to the one that cannot have ended yet, though it waits longer; and to the one that surely has before all."""
    pace = taught(*draws(46, 0.15, 64))
    early, now, over = (
        pace.priority(waiting(), age, unseen) for age, unseen in ((20.0, 20.0), (46.0, 5.0), (80.0, 50.0))
    )
    assert early < now < over


def test_a_task_long_past_its_time_is_more_urgent_than_an_unknown_one() -> None:
    """Tasks of its model have always ended by now, so that it is likely to have."""
    assert taught(*[46.0] * 64).priority(waiting(), 460.0, 46.0) > taught().priority(waiting(), 460.0, 46.0) * 2


def test_the_gain_of_a_short_while_is_half_its_square_times_the_hazard() -> None:
    """Where little can have happened, c = h u**2 / 2: of an unknown model at 70 s, h = 1 / 100 s."""
    assert taught().priority(waiting(), 70.0, 0.1) == pytest.approx(0.1**2 / 100 / 2, rel=0.01)


def test_an_eta_is_the_range_of_what_is_left() -> None:
    """At first it is that of all durations, then that of those which are not over; past them nothing is expected."""
    durations = sorted(draws(46, 0.25, 64))
    random.Random(3).shuffle(durations)
    pace = taught(*durations)
    eta = pace.estimate(waiting(), 0.0)
    assert eta is not None
    assert (eta.low, eta.median, eta.high) == pytest.approx((34, 46, 63), rel=0.2)
    later = pace.estimate(waiting(), 45.0)
    assert later is not None
    assert 0 < later.low < later.median < eta.median - 30
    assert pace.estimate(waiting(), 1000.0) is None


def test_an_eta_ends_with_what_is_known() -> None:
    """Shortly before the longest duration that is reckoned with, no more than the rest of that is expected."""
    pace = taught(*[46.0] * 20)
    curve = pace._curve(waiting())
    assert curve
    last = curve.last
    assert pace.estimate(waiting(), last - 2**-20) == Eta(low=2**-20, median=2**-20, high=2**-20)


@pytest.mark.parametrize("times", [1.0, 3.0])
def test_looks_go_on_past_all_that_is_known(times: float) -> None:
    """From the last age of a curve on, the next look is the ladder's, and always a later one."""
    curve = taught(*[46.0] * 20)._curve(waiting())
    assert curve
    age = times * curve.last
    assert curve.next_poll_age(age, 1.0) == ladder_age(ladder_polls(age) + 1.0) > age


@pytest.mark.parametrize(("count", "known"), [(0, False), (2, False), (3, True)])
def test_an_eta_takes_three_tasks(count: int, known: bool) -> None:  # noqa: FBT001 # pytest gives it
    """One or two durations make no range."""
    assert (taught(*[46.0] * count).estimate(waiting(), 1.0) is not None) is known


def test_a_model_that_has_changed_is_learned_anew() -> None:
    """After as many tasks as are kept, nothing is left of how it was; after half of them, little."""
    pace = taught(*[20.0] * 64, *[100.0] * 32)
    assert pace.stats()[0].curve.age(0.5) == pytest.approx(100, rel=0.1)
    for _ in range(32):
        teach(pace, 100.0)
    (lesson,) = pace.stats()
    assert lesson.tasks == 64
    assert lesson.curve.age(0.01) == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("median", [0.3, 46.0, 5000.0])
def test_a_model_takes_a_few_hundred_bytes(median: float) -> None:
    """However long its tasks take, and whether looks show them running or not."""
    durations = Durations()
    for seconds in draws(median, 0.3, 200):
        durations.observe_running(0.0, seconds / 2)
        durations.observe_finished(seconds, since=seconds / 2)
    curve = durations.curve(1.0)
    assert curve
    tables = (durations._reached, durations._ended, durations._arriving, curve.hazards, curve.polls)
    assert sum(memoryview(table).nbytes for table in tables) < 800


def test_a_model_that_grows_faster_is_followed() -> None:
    """Tasks that end before any other did are learned of like any, and as ones that most others came past."""
    pace = taught(*[100.0] * 20, 10.0)
    (lesson,) = pace.stats()
    assert lesson.curve.hazard(50)[0] == pytest.approx(0.09, rel=0.3)
    assert taught(*[100.0] * 20, *[10.0] * 30).stats()[0].curve.age(0.5) == pytest.approx(10, rel=0.2)


def test_models_are_bounded() -> None:
    """Of too many models those are forgotten that were heard of longest ago."""
    pace = taught()
    for number in range(300):
        teach(pace, 10.0, f"m{number}")
        teach(pace, 10.0, "m0")
    known = {lesson.model: lesson.tasks for lesson in pace.stats()}
    assert len(known) == 256
    assert (known["m0"], known["m299"]) == (64, 1)
    assert "m1" not in known


def test_a_curve_is_made_with_every_eighth_of_what_is_known() -> None:
    """One more of 64 durations changes nothing yet, so that learning costs little; eight more do."""
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


@pytest.mark.parametrize("request_budget", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_must_be_one(request_budget: float) -> None:
    """A pace that would never look, or always, is refused when it is made."""
    with pytest.raises(ValueError, match="request_budget"):
        AdaptiveInterval(request_budget=request_budget)


@pytest.mark.parametrize("spread", [0.15, 0.25, 0.4])
@pytest.mark.parametrize("median", [13.0, 46.0, 127.0])
def test_20_tasks_teach_enough(median: float, spread: float) -> None:
    """Then the product of GETs and lateness is at most 1.2 x the least there is, with no more GETs than the ladder."""
    new = draws(median, spread, 100, seed=4)
    costs = [cost(taught(*draws(median, spread, 20, seed=seed)), new) for seed in range(10)]
    gets, late = fmean(gets for gets, _ in costs), fmean(late for _, late in costs)
    assert gets * late < 1.2 * bound(median, spread)
    assert gets < cost(SteppedInterval(random.Random(1)), new)[0] * 1.02


@pytest.mark.parametrize("known", [1, 2, 5, 10])
def test_few_tasks_teach_something(known: int) -> None:
    """From the first one on, ends of tasks are seen in two thirds of the ladder's time, for at most 1.1 x its GETs."""
    new = draws(46, 0.25, 100, seed=4)
    costs = [cost(taught(*draws(46, 0.25, known, seed=seed)), new) for seed in range(10)]
    gets, late = cost(SteppedInterval(random.Random(1)), new)
    assert fmean(late for _, late in costs) < late * 2 / 3
    assert fmean(gets for gets, _ in costs) < gets * 1.1


@pytest.mark.parametrize("median", [13.0, 46.0, 127.0])
def test_what_looks_cost_is_known(median: float) -> None:
    """The costs that a curve tells are those that it leads to, its own and the ladder's."""
    known = draws(median, 0.25, 64)
    pace = taught(*known)
    (lesson,) = pace.stats()
    again = known * 10
    assert lesson.curve.cost() == pytest.approx(cost(pace, again), rel=0.15)
    assert lesson.curve.ladder_cost() == pytest.approx(cost(SteppedInterval(random.Random(1)), again), rel=0.15)


def test_a_scale_buys_time_with_looks() -> None:
    """Twice the looks for half the wait."""
    known, new = draws(127, 0.25, 64), draws(127, 0.25, 200, seed=4)
    (gets, late), (more, sooner) = (
        cost(taught(*known, request_budget=request_budget), new) for request_budget in (1.0, 2.0)
    )
    assert more == pytest.approx(2 * gets, rel=0.1)
    assert sooner == pytest.approx(late / 2, rel=0.1)


def crowd(pace: PollingStrategy, count: int = 100, every: float = 0.5) -> float:
    """How late ends are seen where 100 tasks wait at all times and one GET is free each half second."""
    dice = random.Random(5)
    medians = {"a": 13.0, "b": 46.0, "c": 127.0}

    def fresh(now: float) -> list[float | str]:
        model = dice.choice(list(medians))
        return [now, now + medians[model] * math.exp(dice.gauss(0, 0.2)), now, model]

    tasks, late = [fresh(0.0) for _ in range(count)], list[float]()
    for now in (turn * every for turn in range(1, 1600)):
        gains = [
            pace.priority(waiting(str(model)), now - float(made), now - float(seen)) for made, _, seen, model in tasks
        ]
        best = gains.index(max(gains))
        if float(tasks[best][1]) > now:
            tasks[best][2] = now
            continue
        late += [now - float(tasks[best][1])] * (now > 200)
        teach(pace, float(tasks[best][1]) - float(tasks[best][0]), str(tasks[best][3]))
        tasks[best] = fresh(now)
    return fmean(late)


def test_in_a_crowd_ends_are_seen_in_half_the_time() -> None:
    """With few GETs for many tasks, taking the largest gain sees ends in half the time of taking turns, or less."""
    assert crowd(taught()) < crowd(Plain()) / 2
