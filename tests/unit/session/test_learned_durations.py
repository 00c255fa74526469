"""What a polling strategy learns from the ledger."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars import (
    AdaptiveInterval,
    CharacterSession,
    EntryState,
    PollingStrategy,
    Provider,
    SteppedInterval,
    TaskSnapshot,
    open_ledger,
)
from sora_chars.ledger.serialize import to_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sora_chars import Ledger

SEEDREAM = "bytedance/seedream"


class UnusedProvider(Provider):
    """Provider that is never called."""

    name = "kie"


@attrs.define(eq=False)
class ObservingStrategy(PollingStrategy):
    """Custom polling strategy that records the tasks it observes."""

    observed: list[str] = attrs.field(factory=list)

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """See `PollingStrategy`."""
        del snapshot, age
        return 1.0

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """See `PollingStrategy`."""
        self.observed.append(snapshot.task_id)


def ended(number: int, seconds: float = 46.0, model: str | None = SEEDREAM, state: str = "success") -> TaskSnapshot:
    """Return a task that took this many seconds."""
    return TaskSnapshot(
        task_id=f"t{number}", provider="kie", state=state, model=model, created_at=1.7e9, completed_at=1.7e9 + seconds
    )


async def put(ledger: Ledger, number: int, result: Any, to: EntryState = EntryState.SUCCEEDED) -> None:
    """Record a task that has ended."""
    entry = await ledger.register(key=f"k{number}", provider="kie", kind="task", request={"model": "m"})
    entry = await ledger.transition(entry, EntryState.SENDING)
    entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"t{number}")
    await ledger.transition(entry, to, result=result)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Return an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


@pytest.mark.parametrize(
    "result",
    [
        *(None, 1, [], "x", {}),
        *({"created_at": "soon"}, {"completed_at": math.nan}, {"completed_at": math.inf}, {"completed_at": 10**400}),
        *({"model": ["m"]}, {"model": 1}, {"provider": ["kie"]}, {"provider": "other"}, {"more": 1}),
        *({"character": {"who": "x"}}, {"failure": [1]}, {"failure": 1}),
    ],
)
async def test_skips_unreadable_results(ledger: Ledger, result: Any) -> None:
    """Results that cannot be read are skipped, and the strategy learns from the rest."""
    row = to_result(ended(1)) | result if isinstance(result, dict) and len(result) == 1 else result
    await put(ledger, 1, row)
    await put(ledger, 2, to_result(ended(2)))
    async with CharacterSession(UnusedProvider(), ledger=ledger) as session:  # type: ignore[abstract]  # it is never called
        assert isinstance(session.watcher.polling, AdaptiveInterval)
        (stats,) = session.watcher.polling.stats()
    assert (stats.provider, stats.model) == ("kie", SEEDREAM)
    assert stats.tasks == 1
    assert stats.curve.age(0.5) == pytest.approx(46.0, rel=0.1)


async def test_learns_from_an_existing_ledger(tmp_path: Path) -> None:
    """A session that opens an existing ledger schedules its first poll by the recorded durations."""
    path = tmp_path / "a.db"
    async with open_ledger(path) as ledger:
        for number in range(30):
            await put(ledger, number, to_result(ended(number)))
    async with CharacterSession(UnusedProvider(), ledger=path) as session:  # type: ignore[abstract]  # as above
        assert (
            session.watcher.polling.delay(TaskSnapshot(task_id="t", provider="kie", state="", model=SEEDREAM), 0.0) > 20
        )


async def test_custom_strategies_observe_finished_tasks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded tasks are read for a custom strategy that learns, and for no other."""
    await put(ledger, 1, to_result(ended(1)))
    strategy = ObservingStrategy()
    async with CharacterSession(UnusedProvider(), ledger=ledger, polling=strategy):  # type: ignore[abstract]  # as above
        assert strategy.observed == ["t1"]
    monkeypatch.setattr("sora_chars.session.learning.finished_tasks", None)
    async with CharacterSession(UnusedProvider(), ledger=ledger, polling=SteppedInterval()) as session:  # type: ignore[abstract]  # as above
        assert session.watcher.polling.estimate(None, 0.0) is None
