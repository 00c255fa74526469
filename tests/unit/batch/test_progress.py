from __future__ import annotations

import pytest

from sora_chars.batch.progress import Meter, Progress
from sora_chars.ledger import EntryState


def test_the_counts_add_up() -> None:
    """Every request that was taken up is in one of five counts; what goes on unwaited for still runs."""
    meter = Meter(began=0.0, total=10)
    for _ in range(7):
        meter.count_registered(0.0)
    for state in (EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED, EntryState.UNKNOWN, EntryState.RUNNING):
        meter.end(state, 1.5 if state is EntryState.SUCCEEDED else None, began=0.0, now=10.0)
    seen = meter.progress(10.0)
    assert (seen.registered, seen.remaining, seen.credits) == (7, 3, 1.5)
    assert (seen.running, seen.succeeded, seen.failed, seen.rejected, seen.unknown) == (3, 1, 1, 1, 1)
    assert seen.ended == 4
    assert seen == Progress(
        registered=7,
        running=3,
        succeeded=1,
        failed=1,
        rejected=1,
        unknown=1,
        remaining=3,
        credits=1.5,
        rate=9.0,
        eta=None,
    )


def test_the_rate_is_that_of_the_last_minute() -> None:
    """It counts from the beginning while that is nearer, and an idle batch comes to a stop."""
    meter = Meter(began=100.0, total=None)
    assert meter.progress(100.0).rate == 0.0
    for second in range(120):
        meter.count_registered(100.0 + second)
        meter.end(EntryState.SUCCEEDED, None, began=100.0, now=100.0 + second)
        if second == 9:
            assert meter.progress(110.0).rate == 1.0
    assert meter.progress(219.0).rate == pytest.approx(1.0, abs=0.02)
    assert meter.progress(249.0).rate == pytest.approx(0.5, abs=0.02)
    assert meter.progress(999.0).rate == 0.0
    assert len(meter._recent) <= 61


def test_the_eta_is_the_rest_at_the_rate_and_then_one_task() -> None:
    """With 40 s for each and one end a second, 20 that are left take 20 s, and the last of them 40 s."""
    meter = Meter(began=0.0, total=90)
    for second in range(70):
        meter.count_registered(float(second))
        if second >= 40:
            meter.end(EntryState.SUCCEEDED, None, began=second - 40.0, now=float(second))
    seen = meter.progress(70.0)
    assert seen.remaining == 20
    assert seen.eta == pytest.approx(40 + 20 / seen.rate)


def test_the_eta_of_a_small_batch_is_that_of_its_youngest() -> None:
    """When none is left, the youngest is taken to last as long as the others; beyond that the rate tells."""
    meter = Meter(began=0.0, total=3)
    for second in (0.0, 1.0, 5.0):
        meter.count_registered(second)
    assert meter.progress(30.0).eta is None
    meter.end(EntryState.SUCCEEDED, None, began=0.0, now=30.0)
    assert meter.progress(31.0).eta == 4.0
    assert meter.progress(40.0).eta == 2 / (1 / 40)
    assert meter.progress(500.0).eta is None
    meter.end(EntryState.FAILED, None, began=1.0, now=501.0)
    meter.end(EntryState.UNKNOWN, None, began=5.0, now=501.0)
    assert meter.progress(502.0).eta == 0.0


def test_the_eta_takes_what_was_learned() -> None:
    """What is known of the youngest task counts for more than how long the others took, and before one has ended."""
    meter = Meter(began=0.0, total=2)
    meter.count_registered(0.0)
    assert meter.progress(1.0, last=9.0).eta is None
    meter.count_registered(1.0)
    assert meter.progress(2.0, last=9.0).eta == 9.0
    meter.end(EntryState.SUCCEEDED, None, began=0.0, now=3.0)
    assert (meter.progress(3.0, last=9.0).eta, meter.progress(3.0).eta) == (9.0, 1.0)


def test_no_eta_is_made_up() -> None:
    """While nobody knows how many are left, or nothing ends any more, there is none."""
    endless = Meter(began=0.0, total=None)
    endless.count_registered(0.0)
    endless.end(EntryState.SUCCEEDED, None, began=0.0, now=5.0)
    assert endless.progress(6.0).eta is None
    stuck = Meter(began=0.0, total=9)
    stuck.count_registered(0.0)
    stuck.end(EntryState.SUCCEEDED, None, began=0.0, now=5.0)
    assert stuck.progress(6.0).eta is not None
    assert stuck.progress(99.0).eta is None


def test_an_iterable_may_give_more_than_it_said() -> None:
    """Then nothing is left."""
    meter = Meter(began=0.0, total=1)
    meter.count_registered(0.0)
    meter.count_registered(0.0)
    assert meter.progress(1.0).remaining == 0
