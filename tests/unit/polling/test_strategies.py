"""The polling strategies that learn nothing."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from sora_chars import FixedInterval, SteppedInterval, TaskSnapshot
from sora_chars.errors import ConfigurationError

SNAPSHOT = TaskSnapshot(task_id="t", provider="p", state="waiting")


@pytest.mark.parametrize(
    ("age", "low", "high"),
    [(0, 2, 3), (29.99, 2, 3), (30, 5, 10), (119.99, 5, 10), (120, 15, 30), (100_000, 15, 30)],
)
def test_stepped_delays_match_the_documentation(age: float, low: float, high: float) -> None:
    """A delay lies in the documented range for the age of the task, and the whole range is used."""
    stepped = SteppedInterval(random.Random(1))
    delays = [stepped.delay(snapshot, age) for snapshot in (None, SNAPSHOT) for _ in range(500)]
    assert low <= min(delays) < low + (high - low) / 10
    assert high - (high - low) / 10 < max(delays) <= high


def test_stepped_delays_are_random() -> None:
    """Two strategies draw different delays, which spreads the polls of tasks that were created together."""
    assert [SteppedInterval().delay(None, 0) for _ in range(5)] != [SteppedInterval().delay(None, 0) for _ in range(5)]


def test_fixed_delay_is_constant() -> None:
    """A fixed delay is the same at any age."""
    assert {FixedInterval(0.5).delay(snapshot, age) for snapshot in (None, SNAPSHOT) for age in (0.0, 1e6)} == {0.5}


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True, "a", None])
def test_rejects_a_delay_that_is_not_positive(seconds: Any) -> None:
    """A strategy that would poll without a delay cannot be made, and the error names what was given."""
    with pytest.raises(ConfigurationError, match=f"seconds must be a number above 0, got {seconds!r}"):
        FixedInterval(seconds)
