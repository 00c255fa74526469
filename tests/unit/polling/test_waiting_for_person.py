"""Tasks that wait for a person: what is learned of them, and what is shown."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import AdaptiveInterval
from sora_chars.polling.watcher import TaskWatcher
from tests.support.fake_providers import PolledProvider, script

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.looptime

NEW = TaskSnapshot(task_id="t1", provider="fake", state="waiting", model="m")
ASKED = attrs.evolve(NEW, state="pending_consent", waiting_for="https://fake.example/page?token=1", retry_after=60.0)
DONE = attrs.evolve(NEW, state="success", created_at=0.0, completed_at=7200.0)


class Recording(AdaptiveInterval):
    """A strategy that knows the durations of its model, and records what it observes."""

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.observed: list[str] = []
        for _ in range(10):
            self.observe_finished(attrs.evolve(DONE, completed_at=seconds))

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """See `PollingStrategy.observe`."""
        self.observed.append(snapshot.state)
        super().observe(snapshot, age, unseen)


@pytest.fixture
def snapshots() -> Callable[[float], TaskSnapshot | BaseException]:
    """Return the polls of a task that waits for a person for two hours."""
    return script(NEW, *[ASKED] * 120, NEW, DONE)


async def test_nothing_is_learned(snapshots: Callable[[float], TaskSnapshot | BaseException]) -> None:
    """How long a person takes is not learned as the duration of the model, and the polls are rare."""
    polling = Recording()
    provider = PolledProvider(snapshots)
    async with aclosing(TaskWatcher(polling=polling)) as watcher:
        await watcher.watch(provider, "t1", snapshot=NEW).future
    assert polling.observed == ["waiting"]
    (stats,) = polling.stats()
    assert stats.curve.last < 100
    gaps = [later - earlier for earlier, later in zip(provider.polls[1:120], provider.polls[2:121], strict=True)]
    assert min(gaps) == pytest.approx(60)


async def test_nothing_is_estimated(snapshots: Callable[[float], TaskSnapshot | BaseException]) -> None:
    """There is no estimate for a task that waits for a person, also after that."""
    async with aclosing(TaskWatcher(polling=Recording(5000.0))) as watcher:
        task = watcher.watch(PolledProvider(snapshots), "t1", snapshot=NEW)
        assert watcher.estimate(task) is not None
        await asyncio.sleep(3600)
        assert watcher.estimate(task) is None
