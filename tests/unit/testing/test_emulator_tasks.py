"""The states of emulated tasks over time, on a manual clock."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from sora_chars.testing.emulator.counters import Counts
from sora_chars.testing.emulator.tasks import (
    RAW_SHAPES,
    RESULT_SHAPES,
    EmulatedTask,
    TaskStore,
    never_end,
    set_result_shape,
)


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the task store."""
    return Clock()


@pytest.fixture
def task_store(clock: Clock) -> TaskStore:
    """A task store in which every task takes ten seconds and costs half a credit."""
    return TaskStore(2.0, (20.0, 20.0), 0.5, 10.0, random.Random(0), clock=clock)


def create(task_store: TaskStore, *, callback_url: str | None = None) -> EmulatedTask:
    """Start a task."""
    return task_store.create(model="m", inputs={"prompt": "ä"}, callback_url=callback_url, result={"resultUrls": []})


def test_task_ends_at_its_time(task_store: TaskStore, clock: Clock) -> None:
    """A task succeeds exactly at its end, and reports times in the recorded units."""
    task = create(task_store)
    clock.now += 9.999
    assert (task.state, task.data()["resultJson"], task.completed_ms) == ("generating", "", None)
    clock.now += 0.001
    data = task.data()
    assert (data["state"], data["resultJson"], data["costTime"]) == ("success", '{"resultUrls":[]}', 10)
    assert data["completeTime"] == task.created_ms + 10_000
    assert data["creditsConsumed"] == 0.5


def test_record_has_the_recorded_keys(task_store: TaskStore) -> None:
    """A record has the recorded keys in the recorded order, and the newer `creditsConsumed` at the end."""
    keys = "taskId model state param resultJson failCode failMsg costTime completeTime createTime creditsConsumed"
    assert list(create(task_store).data()) == keys.split()


def test_param_is_encoded_twice(task_store: TaskStore) -> None:
    """`param` is JSON text whose `input` is JSON text; it repeats the callback URL, if any."""
    plain = json.loads(create(task_store).param)
    assert (list(plain), json.loads(plain["input"])) == (["input", "model"], {"prompt": "ä"})
    assert json.loads(create(task_store, callback_url="http://x/").param)["callBackUrl"] == "http://x/"


def test_some_tasks_report_every_state(task_store: TaskStore, clock: Clock) -> None:
    """Some tasks report waiting, queuing and generating; the others wait until their end."""
    counts: Counter[tuple[str, ...]] = Counter()
    for _ in range(40):
        task = create(task_store)
        states: list[str] = []
        for _ in range(11):
            if task.state not in states:
                states.append(task.state)
            clock.now += 1.0
        counts[tuple(states)] += 1
    assert set(counts) == {("waiting", "success"), ("waiting", "queuing", "generating", "success")}
    assert counts["waiting", "success"] > 20


def test_failed_task_costs_nothing(task_store: TaskStore, clock: Clock) -> None:
    """A failing task runs for its time, then reports code and message, and its price is refunded."""
    task = create(task_store)
    assert task_store.credits == 9.5
    task_store.mark_failed(task, code="501", message="broken")
    assert (task.state, task.data()["failCode"]) == ("waiting", None)
    clock.now += 10.0
    data = task.data()
    assert (data["state"], data["failCode"], data["failMsg"], data["resultJson"]) == ("fail", "501", "broken", "")
    assert (data["creditsConsumed"], task_store.credits) == (0.0, 10.0)


def test_stuck_task_never_ends_by_itself(task_store: TaskStore, clock: Clock) -> None:
    """A stuck task makes no progress, and can still be finished by a call."""
    task = create(task_store)
    never_end(task)
    clock.now += 1e9
    assert (task.state, task.progress) == ("waiting", 0.0)
    task_store.finish(task.task_id, {})
    assert (task.state, task.result_json) == ("success", '{"resultUrls":[]}')


def test_task_ends_only_once(task_store: TaskStore) -> None:
    """Finishing a task can replace its result; ending a finished task is an error."""
    task = create(task_store)
    task_store.finish(task.task_id, {"characterId": "ch_1"})
    assert (task.progress, task.data()["resultJson"]) == (1.0, '{"characterId":"ch_1"}')
    with pytest.raises(ValueError, match="has ended already"):
        task_store.fail(task.task_id, code="500", message="late")


def test_same_seed_makes_same_tasks(clock: Clock) -> None:
    """Ids and durations depend only on the seed; durations keep to their bounds."""

    def tasks(seed: int) -> list[tuple[str, float]]:
        task_store = TaskStore(1.0, (5.0, 20.0), 0.0, 0.0, random.Random(seed), clock=clock)
        return [(task.task_id, task.ends_at - task.created) for task in (create(task_store) for _ in range(50))]

    assert tasks(1) == tasks(1) != tasks(2)
    assert all(5.0 <= seconds <= 20.0 for _, seconds in tasks(1))
    assert len({task_id for task_id, _ in tasks(1)}) == 50
    assert all(len(task_id) == 32 for task_id, _ in tasks(1))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("character_id", {"character_id": "ch_1"}),
        ("character_id_list", {"character_id_list": ["ch_1"]}),
        ("character_id_list_str", {"character_id_list": "ch_1"}),
        ("characterId", {"characterId": "ch_1"}),
        ("resultUrls", {"resultUrls": ["https://tempfile.invalid/ch_1.mp4"]}),
        ("resultObject", {"resultObject": {"character_id": "ch_1", "character_user_name": "user.ch_1"}}),
        ("empty_id", {"character_id": ""}),
        ("none", {}),
        ("array", []),
    ],
)
def test_result_shapes_are_json(task_store: TaskStore, shape: str, expected: object) -> None:
    """Each shape contains the id at its place."""
    task = create(task_store)
    set_result_shape(task, shape, "ch_1")
    assert json.loads(str(task.result_json)) == expected


def test_raw_result_shapes(task_store: TaskStore) -> None:
    """The raw shapes are the empty string, null and truncated JSON."""
    task = create(task_store)
    shapes: list[str | None] = []
    for shape in RAW_SHAPES:
        set_result_shape(task, shape, "ch_1")
        shapes.append(task.result_json)
    assert shapes == ["", None, '{"character_id": "ch_']
    assert not RAW_SHAPES.keys() & RESULT_SHAPES.keys()


def test_detection_delay(task_store: TaskStore, clock: Clock) -> None:
    """The delay runs from a task's end to the first poll after it, once per task."""
    counts = Counts()
    task = create(task_store)
    for step in (5.0, 7.0, 1.0):
        clock.now += step
        counts.record_poll(task)
    assert task.polls == counts.polls_by_task[task.task_id] == 3
    assert counts.detection_delays == [2.0]


def test_snapshot_is_json() -> None:
    """A snapshot of the counts is JSON, with a summary of the detection delays."""
    counts = Counts(creates=3, detection_delays=[4.0, 1.0, 1.0])
    counts.rate_limited["poll"] += 2
    snapshot = json.loads(json.dumps(counts.snapshot()))
    assert (snapshot["creates"], snapshot["rate_limited"]) == (3, {"poll": 2})
    assert snapshot["detection_delay"] == {"count": 3, "mean": 2.0, "p99": 1.0, "max": 4.0}
    assert Counts().snapshot()["detection_delay"] == {"count": 0}
