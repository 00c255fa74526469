from __future__ import annotations

import random

import pytest

from sora_chars import FixedInterval, SteppedInterval, TaskSnapshot

SNAPSHOT = TaskSnapshot(task_id="t", provider="p", state="waiting")


@pytest.mark.parametrize(
    ("age", "low", "high"),
    [(0, 2, 3), (29.99, 2, 3), (30, 5, 10), (119.99, 5, 10), (120, 15, 30), (100_000, 15, 30)],
)
def test_the_ladder_is_the_documented_one(age: float, low: float, high: float) -> None:
    """The delay lies in the documented range of the task's age, and uses the whole of it."""
    pace = SteppedInterval(random.Random(1))
    delays = [pace.delay(snapshot, age) for snapshot in (None, SNAPSHOT) for _ in range(500)]
    assert low <= min(delays) < low + (high - low) / 10
    assert high - (high - low) / 10 < max(delays) <= high


def test_two_ladders_do_not_keep_step() -> None:
    """Tasks made together do not stay together: each session draws its own delays."""
    assert [SteppedInterval().delay(None, 0) for _ in range(5)] != [SteppedInterval().delay(None, 0) for _ in range(5)]


def test_a_fixed_pace_never_changes() -> None:
    """A fixed pace is the same at any age."""
    assert {FixedInterval(0.5).delay(snapshot, age) for snapshot in (None, SNAPSHOT) for age in (0.0, 1e6)} == {0.5}


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_pace_without_pauses_is_refused(seconds: float) -> None:
    """A pace that would poll without a pause is refused when it is made."""
    with pytest.raises(ValueError, match="seconds"):
        FixedInterval(seconds)
