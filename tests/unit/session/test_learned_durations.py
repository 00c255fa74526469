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
from sora_chars.ledger.queries import finished_tasks
from sora_chars.ledger.serialize import to_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sora_chars import Ledger

SEEDREAM = "bytedance/seedream"


class Bare(Provider):
    """A provider that is never asked."""

    name = "kie"


@attrs.define(eq=False)
class Pupil(PollingStrategy):
    """Somebody's pace that writes down what it is told."""

    told: list[str] = attrs.field(factory=list[str])

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Every second."""
        del snapshot, age
        return 1.0

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """Keep the id."""
        self.told.append(snapshot.task_id)


def ended(number: int, seconds: float = 46.0, model: str | None = SEEDREAM, state: str = "success") -> TaskSnapshot:
    """A task that took so long."""
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
    """Give an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


async def test_endings_come_oldest_first_and_bounded(ledger: Ledger) -> None:
    """The last that ended, well or not; what runs is not among them."""
    for number in range(3):
        await put(ledger, number, to_result(ended(number)))
    await put(ledger, 3, to_result(ended(3, state="fail")), EntryState.FAILED)
    await ledger.register(key="k4", provider="kie", kind="task", request={})
    assert [snapshot.task_id for snapshot in await finished_tasks(ledger, limit=9)] == ["t0", "t1", "t2", "t3"]
    assert [snapshot.task_id for snapshot in await finished_tasks(ledger, limit=2)] == ["t2", "t3"]
    assert await finished_tasks(ledger, limit=0) == []


@pytest.mark.parametrize(
    "result",
    [
        *(None, 1, [], "x", {}),
        *({"created_at": "soon"}, {"completed_at": math.nan}, {"completed_at": math.inf}, {"completed_at": 10**400}),
        *({"model": ["m"]}, {"model": 1}, {"provider": ["kie"]}, {"provider": "other"}, {"more": 1}),
        *({"character": {"who": "x"}}, {"failure": [1]}, {"failure": 1}),
    ],
)
async def test_rows_that_others_wrote_do_no_harm(ledger: Ledger, result: Any) -> None:
    """What cannot be read is left out; the rest is learned and the session opens."""
    row = to_result(ended(1)) | result if isinstance(result, dict) and len(result) == 1 else result
    await put(ledger, 1, row)
    await put(ledger, 2, to_result(ended(2)))
    async with CharacterSession(Bare(), ledger=ledger) as session:  # type: ignore[abstract]  # it is never asked
        assert isinstance(session.watcher.polling, AdaptiveInterval)
        (lesson,) = session.watcher.polling.stats()
    assert (lesson.provider, lesson.model) == ("kie", SEEDREAM)
    assert lesson.tasks == 1
    assert lesson.curve.age(0.5) == pytest.approx(46.0, rel=0.1)


async def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    """A session on an old ledger looks at its first task as if it had never been closed."""
    path = tmp_path / "a.db"
    async with open_ledger(path) as ledger:
        for number in range(30):
            await put(ledger, number, to_result(ended(number)))
    async with CharacterSession(Bare(), ledger=path) as session:  # type: ignore[abstract]  # as above
        assert (
            session.watcher.polling.delay(TaskSnapshot(task_id="t", provider="kie", state="", model=SEEDREAM), 0.0) > 20
        )


async def test_every_pace_that_learns_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody's pace hears of what is on record; for one that does not learn, nothing is read."""
    await put(ledger, 1, to_result(ended(1)))
    pupil = Pupil()
    async with CharacterSession(Bare(), ledger=ledger, polling=pupil):  # type: ignore[abstract]  # as above
        assert pupil.told == ["t1"]
    monkeypatch.setattr("sora_chars.session.dispatcher.finished_tasks", None)
    async with CharacterSession(Bare(), ledger=ledger, polling=SteppedInterval()) as session:  # type: ignore[abstract]  # as above
        assert session.watcher.polling.estimate(None, 0.0) is None
