"""Tasks with known durations, and strategies that have observed them, without an event loop."""

from __future__ import annotations

import math
import random
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

from sora_chars import AdaptiveInterval, TaskSnapshot

if TYPE_CHECKING:
    from sora_chars import PollingStrategy


def running(model: str | None = "m", provider: str = "kie") -> TaskSnapshot:
    """Return a snapshot of a running task."""
    return TaskSnapshot(task_id="t", provider=provider, state="generating", model=model)


def taught(*durations: float, request_budget: float = 1.0, model: str | None = "m", seed: int = 1) -> AdaptiveInterval:
    """Return a strategy that has observed finished tasks with these durations."""
    strategy = AdaptiveInterval(request_budget=request_budget, random=random.Random(seed))
    for seconds in durations:
        teach(strategy, seconds, model)
    return strategy


def teach(strategy: PollingStrategy, seconds: float, model: str | None = "m") -> None:
    """Let a strategy observe one finished task."""
    strategy.observe_finished(
        TaskSnapshot(task_id="t", provider="kie", state="success", model=model, created_at=0.0, completed_at=seconds)
    )


def draws(median: float, spread: float, count: int, seed: int = 2) -> list[float]:
    """Draw log-normal durations of one model."""
    generator = random.Random(seed)
    return [median * math.exp(generator.gauss(0, spread)) for _ in range(count)]


def poll_ages(strategy: PollingStrategy, until: float) -> list[float]:
    """Return the ages at which a task is polled, up to the first one at or after `until`."""
    ages = [0.0]
    while ages[-1] < until:
        ages.append(ages[-1] + strategy.delay(running(), ages[-1]))
    return ages[1:]


def cost(strategy: PollingStrategy, durations: list[float]) -> tuple[float, float]:
    """Return the mean polls per task, and the mean seconds until its end is detected; nothing is learned."""
    seen = [poll_ages(strategy, seconds) for seconds in durations]
    late = [ages[-1] - seconds for ages, seconds in zip(seen, durations, strict=True)]
    return fmean(map(len, seen)), fmean(late)


def see(strategy: PollingStrategy, age: float, unseen: float, *, ended_at: float | None = None) -> None:
    """Let a strategy observe a poll of a task."""
    snapshot = running()
    if ended_at is not None:
        snapshot = attrs.evolve(snapshot, state="success", created_at=0.0, completed_at=ended_at)
    strategy.observe(snapshot, age, unseen)
