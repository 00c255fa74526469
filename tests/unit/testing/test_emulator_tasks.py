"""The emulator's tasks in time, on a clock of the test's own."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from sora_chars.testing.emulator.counters import Counts
from sora_chars.testing.emulator.tasks import RAW_SHAPES, RESULT_SHAPES, EmulatedTask, TaskBook, reshape, stick


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the book."""
    return Clock()


@pytest.fixture
def book(clock: Clock) -> TaskBook:
    """A book in which every task takes ten seconds and costs half a credit."""
    return TaskBook(2.0, (20.0, 20.0), 0.5, 10.0, random.Random(0), clock=clock)


def opened(book: TaskBook, *, callback_url: str | None = None) -> EmulatedTask:
    """A task that was just started."""
    return book.open(model="m", inputs={"prompt": "ä"}, callback_url=callback_url, result={"resultUrls": []})


def test_a_task_ends_when_its_time_has_passed(book: TaskBook, clock: Clock) -> None:
    """A task succeeds at the very end of its time and not before, with its times in the units kie.ai records."""
    task = opened(book)
    clock.now += 9.999
    assert (task.state, task.data()["resultJson"], task.completed_ms) == ("generating", "", None)
    clock.now += 0.001
    data = task.data()
    assert (data["state"], data["resultJson"], data["costTime"]) == ("success", '{"resultUrls":[]}', 10)
    assert data["completeTime"] == task.created_ms + 10_000
    assert data["creditsConsumed"] == 0.5


def test_the_keys_of_a_record_stand_in_the_recorded_order(book: TaskBook) -> None:
    """A record has the recorded keys in the recorded order, and the newer `creditsConsumed` at the end."""
    keys = "taskId model state param resultJson failCode failMsg costTime completeTime createTime creditsConsumed"
    assert list(opened(book).data()) == keys.split()


def test_param_is_encoded_twice_and_repeats_the_callback(book: TaskBook) -> None:
    """`param` is JSON text whose `input` is JSON text again, with the callback URL only where there is one."""
    plain = json.loads(opened(book).param)
    assert (list(plain), json.loads(plain["input"])) == (["input", "model"], {"prompt": "ä"})
    assert json.loads(opened(book, callback_url="http://x/").param)["callBackUrl"] == "http://x/"


def test_a_lively_task_goes_through_every_state(book: TaskBook, clock: Clock) -> None:
    """Some tasks say waiting, queuing and generating on their way; the rest wait until the end."""
    seen: Counter[tuple[str, ...]] = Counter()
    for _ in range(40):
        task, states = opened(book), list[str]()
        for _ in range(11):
            if task.state not in states:
                states.append(task.state)
            clock.now += 1.0
        seen[tuple(states)] += 1
    assert set(seen) == {("waiting", "success"), ("waiting", "queuing", "generating", "success")}
    assert seen["waiting", "success"] > 20


def test_a_spoilt_task_fails_in_its_time_and_costs_nothing(book: TaskBook, clock: Clock) -> None:
    """A task that will fail runs as any other, then shows code and text, no result, and its price is given back."""
    task = opened(book)
    assert book.credits == 9.5
    book.spoil(task, code="501", message="broken")
    assert (task.state, task.data()["failCode"]) == ("waiting", None)
    clock.now += 10.0
    data = task.data()
    assert (data["state"], data["failCode"], data["failMsg"], data["resultJson"]) == ("fail", "501", "broken", "")
    assert (data["creditsConsumed"], book.credits) == (0.0, 10.0)


def test_a_stuck_task_never_ends_by_itself(book: TaskBook, clock: Clock) -> None:
    """A stuck task makes no progress however long one waits, and can still be finished by hand."""
    task = opened(book)
    stick(task)
    clock.now += 1e9
    assert (task.state, task.progress) == ("waiting", 0.0)
    book.finish(task.task_id, {})
    assert (task.state, task.result_json) == ("success", '{"resultUrls":[]}')


def test_a_task_that_ended_cannot_be_ended_again(book: TaskBook) -> None:
    """Finishing replaces the result when one is given; doing it twice is an error, and so is failing afterwards."""
    task = opened(book)
    book.finish(task.task_id, {"characterId": "ch_1"})
    assert (task.progress, task.data()["resultJson"]) == (1.0, '{"characterId":"ch_1"}')
    with pytest.raises(ValueError, match="has ended already"):
        book.fail(task.task_id, code="500", message="late")


def test_the_same_seed_makes_the_same_tasks(clock: Clock) -> None:
    """Ids and durations follow from the seed alone, within the given bounds."""

    def drawn(seed: int) -> list[tuple[str, float]]:
        book = TaskBook(1.0, (5.0, 20.0), 0.0, 0.0, random.Random(seed), clock=clock)
        return [(task.task_id, task.done_at - task.created) for task in (opened(book) for _ in range(50))]

    assert drawn(1) == drawn(1) != drawn(2)
    assert all(5.0 <= seconds <= 20.0 for _, seconds in drawn(1))
    assert len({task_id for task_id, _ in drawn(1)}) == 50
    assert all(len(task_id) == 32 for task_id, _ in drawn(1))


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
def test_every_result_shape_is_json(book: TaskBook, shape: str, expected: object) -> None:
    """Each shape holds the id where its source says."""
    task = opened(book)
    reshape(task, shape, "ch_1")
    assert json.loads(str(task.result_json)) == expected


def test_the_raw_result_shapes_are_no_json(book: TaskBook) -> None:
    """The raw shapes are the empty string, null and text that breaks off; together with the others they are all."""
    task = opened(book)
    shapes: list[str | None] = []
    for shape in RAW_SHAPES:
        reshape(task, shape, "ch_1")
        shapes.append(task.result_json)
    assert shapes == ["", None, '{"character_id": "ch_']
    assert not RAW_SHAPES.keys() & RESULT_SHAPES.keys()


def test_the_first_look_after_the_end_is_the_detection(book: TaskBook, clock: Clock) -> None:
    """Detection is measured once per task, from its end to the first poll that saw it ended."""
    counts, task = Counts(), opened(book)
    for step in (5.0, 7.0, 1.0):
        clock.now += step
        counts.saw(task)
    assert (task.polls, counts.polls_by_task[task.task_id], counts.detections) == (3, 3, [2.0])


def test_a_snapshot_is_json() -> None:
    """A snapshot of the counts survives JSON, and says how the detections are spread."""
    counts = Counts(creates=3, detections=[4.0, 1.0, 1.0])
    counts.rejected["poll"] += 2
    snapshot = json.loads(json.dumps(counts.snapshot()))
    assert (snapshot["creates"], snapshot["rejected"]) == (3, {"poll": 2})
    assert snapshot["detection"] == {"count": 3, "mean": 2.0, "p99": 1.0, "max": 4.0}
    assert Counts().snapshot()["detection"] == {"count": 0}
