"""Counts, rate and ETA of a batch."""

from __future__ import annotations

import pytest

from sora_chars.batch.progress import Progress, ProgressCounter
from sora_chars.ledger import EntryState


def test_counts_add_up() -> None:
    """Every registered request is in one of five counts; one that timed out counts as running."""
    counter = ProgressCounter(began=0.0, total=10)
    for _ in range(7):
        counter.count_registered(0.0)
    for state in (EntryState.SUCCEEDED, EntryState.FAILED, EntryState.REJECTED, EntryState.UNKNOWN, EntryState.RUNNING):
        counter.count_ended(state, 1.5 if state is EntryState.SUCCEEDED else None, began=0.0, now=10.0)
    seen = counter.progress(10.0)
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


def test_rate_covers_last_minute() -> None:
    """A younger batch is averaged since its start, and the rate of an idle batch falls to 0."""
    counter = ProgressCounter(began=100.0, total=None)
    assert counter.progress(100.0).rate == 0.0
    for second in range(120):
        counter.count_registered(100.0 + second)
        counter.count_ended(EntryState.SUCCEEDED, None, began=100.0, now=100.0 + second)
        if second == 9:
            assert counter.progress(110.0).rate == 1.0
    assert counter.progress(219.0).rate == pytest.approx(1.0, abs=0.02)
    assert counter.progress(249.0).rate == pytest.approx(0.5, abs=0.02)
    assert counter.progress(999.0).rate == 0.0
    assert len(counter._recent) <= 61


def test_eta_is_remaining_at_rate_plus_one_task() -> None:
    """With tasks of 40 s and one end a second, 20 remaining requests take 20 s, and the last of them 40 s."""
    counter = ProgressCounter(began=0.0, total=90)
    for second in range(70):
        counter.count_registered(float(second))
        if second >= 40:
            counter.count_ended(EntryState.SUCCEEDED, None, began=second - 40.0, now=float(second))
    seen = counter.progress(70.0)
    assert seen.remaining == 20
    assert seen.eta == pytest.approx(40 + 20 / seen.rate)


def test_eta_of_registered_batch_is_that_of_newest_task() -> None:
    """The newest task is expected to last as long as the others did; after that the rate determines the ETA."""
    counter = ProgressCounter(began=0.0, total=3)
    for second in (0.0, 1.0, 5.0):
        counter.count_registered(second)
    assert counter.progress(30.0).eta is None
    counter.count_ended(EntryState.SUCCEEDED, None, began=0.0, now=30.0)
    assert counter.progress(31.0).eta == 4.0
    assert counter.progress(40.0).eta == 2 / (1 / 40)
    assert counter.progress(500.0).eta is None
    counter.count_ended(EntryState.FAILED, None, began=1.0, now=501.0)
    counter.count_ended(EntryState.UNKNOWN, None, began=5.0, now=501.0)
    assert counter.progress(502.0).eta == 0.0


def test_eta_prefers_estimate_of_newest_task() -> None:
    """The estimate applies before any task has ended, and instead of the mean duration."""
    counter = ProgressCounter(began=0.0, total=2)
    counter.count_registered(0.0)
    assert counter.progress(1.0, newest_eta=9.0).eta is None
    counter.count_registered(1.0)
    assert counter.progress(2.0, newest_eta=9.0).eta == 9.0
    counter.count_ended(EntryState.SUCCEEDED, None, began=0.0, now=3.0)
    assert (counter.progress(3.0, newest_eta=9.0).eta, counter.progress(3.0).eta) == (9.0, 1.0)


def test_eta_is_none_without_data() -> None:
    """There is no ETA while the number of requests is unknown, or once nothing ends any more."""
    endless = ProgressCounter(began=0.0, total=None)
    endless.count_registered(0.0)
    endless.count_ended(EntryState.SUCCEEDED, None, began=0.0, now=5.0)
    assert endless.progress(6.0).eta is None
    stuck = ProgressCounter(began=0.0, total=9)
    stuck.count_registered(0.0)
    stuck.count_ended(EntryState.SUCCEEDED, None, began=0.0, now=5.0)
    assert stuck.progress(6.0).eta is not None
    assert stuck.progress(99.0).eta is None


def test_remaining_is_never_negative() -> None:
    """An iterable may yield more requests than its length."""
    counter = ProgressCounter(began=0.0, total=1)
    counter.count_registered(0.0)
    counter.count_registered(0.0)
    assert counter.progress(1.0).remaining == 0


def test_answers_of_the_ledger_have_no_rate() -> None:
    """Requests whose end was recorded already take no time: only the others count in rate and ETA."""
    counter = ProgressCounter(began=0.0, total=100)
    for _ in range(50):
        counter.count_registered(0.0)
        counter.count_ended(EntryState.SUCCEEDED, None, began=None, now=0.0)
    assert (counter.progress(1.0).rate, counter.progress(1.0).eta) == (0.0, None)
    counter.count_registered(1.0)
    counter.count_ended(EntryState.SUCCEEDED, None, began=1.0, now=10.0)
    seen = counter.progress(10.0)
    assert (seen.succeeded, seen.rate, seen.eta) == (51, 0.1, 9.0 + 49 / 0.1)
