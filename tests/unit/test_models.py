"""Requests, clips, characters and task snapshots."""

from __future__ import annotations

import math
import pickle
import uuid
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars import (
    Character,
    CharacterRequest,
    Clip,
    EntryState,
    InvalidRequestError,
    ModelInfo,
    TaskFailedError,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
)
from sora_chars.ids import new_key
from sora_chars.models import TaskStatus, is_url

SOURCES = "exactly one of from_task, video and images"


def problems(kind: type[Any], **fields: object) -> list[str]:
    """Return the fields that a request of this kind is rejected for."""
    with pytest.raises(InvalidRequestError) as caught:
        kind(**fields)
    assert all(line in str(caught.value) for line in caught.value.problems)
    return [line.partition(" must ")[0] for line in caught.value.problems]


# Clips


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (Clip(1, 3), "1,3"),
        (Clip(3.55, 5.55), "3.55,5.55"),
        (Clip(0, 2.5), "0,2.5"),
        (Clip(0.1 + 0.2, 1.5), "0.30000000000000004,1.5"),
        (Clip(1e-7, 2), "0.0000001,2"),
        (Clip(1e16, 2e16), "10000000000000000,20000000000000000"),
        (Clip(-0.0, 2), "0,2"),
        (Clip.parse(" 1 , 3.0 "), "1,3"),
        (Clip.parse("3.550,5.55"), "3.55,5.55"),
        (Clip.parse("1e0,30e-1"), "1,3"),
    ],
)
def test_clip_notation(clip: Clip, text: str) -> None:
    """A clip reads "start,end" without spaces, exponents or trailing zeros."""
    assert str(clip) == text


@given(start=st.floats(0, 1e6), length=st.floats(0.001, 1e6))
def test_clip_round_trip(start: float, length: float) -> None:
    """The notation of a clip parses to an equal clip."""
    clip = Clip(start, start + length)
    assert Clip.parse(str(clip)) == clip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.3,3.3", 1.0), ("3.55,5.55", 2.0), ("0.1,0.3", 0.2), ("1,4", 3.0), ("0,0.99", 0.99)],
)
def test_clip_seconds(text: str, seconds: float) -> None:
    """The length is exact: 2.3,3.3 is one second and not a little less."""
    assert Clip.parse(text).seconds == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "1,", ",3", "1,2,3", "a,b", "1;3", "1:00,2:00", "nan,3", "snan,3", "0,inf", "0,1e999", "1\x00,3"]
)
def test_clip_rejects_junk(text: str) -> None:
    """Text that is not two finite numbers of seconds is rejected."""
    with pytest.raises(InvalidRequestError, match="clip must "):
        Clip.parse(text)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (3, 1),
        (2, 2),
        (-0.01, 2),
        (math.nan, 2),
        (0, math.inf),
        ("one", 2),
        (None, 2),
        (0, 10**400),
        (0, [1]),
    ],
)
def test_clip_bounds(start: Any, end: Any) -> None:
    """Bounds that are not finite numbers, or not 0 <= start < end, are rejected."""
    with pytest.raises(InvalidRequestError) as caught:
        Clip(start, end)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("clip must ")


# Requests


@pytest.mark.parametrize("clip", ["3.55,5.55", (3.55, 5.55), [3.55, 5.55], ("3.55", "5.55"), Clip(3.55, 5.55)])
def test_clip_forms(clip: Any) -> None:
    """Text, a pair and a `Clip` give the same clip."""
    assert CharacterRequest(from_task="t", clip=clip).clip == Clip(3.55, 5.55)


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({}, [SOURCES]),
        ({"from_task": "t", "video": "https://a/b.mp4"}, [SOURCES]),
        ({"from_task": ""}, ["from_task"]),
        ({"from_task": " "}, ["from_task"]),
        ({"video": " "}, ["video"]),
        ({"video": 5}, ["video"]),
        ({"video": "https://"}, ["video"]),
        ({"video": "http:///dog.mp4"}, ["video"]),
        ({"video": "https://host.example/a dog.mp4"}, ["video"]),
        ({"from_task": 5}, ["from_task"]),
        ({"from_task": "t", "clip": 5}, ["clip"]),
        ({"from_task": "t", "clip": (1, 2, 3)}, ["clip"]),
        ({"from_task": "t", "clip": ("a", 2)}, ["clip"]),
        ({"from_task": "t", "name": 1, "prompt": b"", "safety": []}, ["name", "prompt", "safety"]),
        ({"from_task": "t", "key": ""}, ["key"]),
        ({"from_task": "t", "key": "x" * 201}, ["key"]),
        ({"from_task": "t", "key": "a\nb"}, ["key"]),
        ({"from_task": "t", "key": 7}, ["key"]),
    ],
)
def test_character_request_rules(fields: dict[str, object], rejected: list[str]) -> None:
    """No source, two sources and fields of a wrong type are rejected by name."""
    assert problems(CharacterRequest, **fields) == rejected


def test_all_problems_in_one_error() -> None:
    """One error lists every broken rule of a request."""
    assert problems(CharacterRequest, name=1, prompt=2, safety=3, clip=4, key="") == [
        "name",
        "prompt",
        "safety",
        SOURCES,
        "clip",
        "key",
    ]


@pytest.mark.parametrize(
    ("video", "url", "path"),
    [
        ("https://host/a.mp4", "https://host/a.mp4", None),
        ("HTTP://host/a.mp4", "HTTP://host/a.mp4", None),
        ("clips/a.mp4", None, Path("clips/a.mp4")),
        (Path("clips/a.mp4"), None, Path("clips/a.mp4")),
        ("file:///clips/a%20b.mp4", None, Path("/clips/a b.mp4")),
        ("FILE://localhost/a.mp4", None, Path("/a.mp4")),
        ("~/a.mp4", None, Path("~/a.mp4").expanduser()),
        (Path("~/a.mp4"), None, Path("~/a.mp4").expanduser()),
        ("~clip.mp4", None, Path("~clip.mp4")),
    ],
)
def test_video_url_or_path(video: str | Path, url: str | None, path: Path | None) -> None:
    """A video is a URL if it starts with http(s), and a local path otherwise."""
    request = CharacterRequest(video=video)
    assert (request.video_url, request.video_path) == (url, path)
    assert is_url(video) == (url is not None)


def test_no_video() -> None:
    """A request from a finished task has neither a video URL nor a path."""
    request = CharacterRequest(from_task="t", key="x" * 200)
    assert (request.video_url, request.video_path) == (None, None)


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"model": ""}, ["model"]),
        ({"model": 5}, ["model"]),
        ({"model": "m", "input": []}, ["input"]),
        ({"model": "m", "input": None}, ["input"]),
        ({"model": "m", "input": {"a": {1}}}, ["input"]),
        ({"model": "m", "input": {"a": math.nan}}, ["input"]),
        ({"model": "m", "input": {("a",): 1}}, ["input"]),
        ({"model": "", "input": "{}", "key": ""}, ["key", "model", "input"]),
    ],
)
def test_task_request_rules(fields: dict[str, object], rejected: list[str]) -> None:
    """A missing model, and an input that is not a JSON object, are rejected."""
    assert problems(TaskRequest, **fields) == rejected


def test_recursive_input() -> None:
    """An input that contains itself is rejected."""
    loop: dict[str, object] = {}
    loop["again"] = loop
    assert problems(TaskRequest, model="m", input=loop) == ["input"]


def test_input_defaults_to_empty() -> None:
    """A model may take no input."""
    assert TaskRequest(model="m").input == {}


# Values


def test_keys_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys are UUIDs of version 7: later keys sort after earlier ones."""
    keys: list[str] = []
    for nanoseconds in (0, 1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 2**48 * 1_000_000 - 1):
        monkeypatch.setattr("time.time_ns", lambda now=nanoseconds: now)
        keys += [new_key()]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    for key in map(uuid.UUID, keys):
        assert (key.version, key.variant) == (7, uuid.RFC_4122)


def test_keys_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys made within one millisecond differ."""
    monkeypatch.setattr("time.time_ns", lambda: 1)
    assert new_key() != new_key()


def test_mention() -> None:
    """A mention is "@" and the user name; without a user name there is none."""
    assert Character(id="ch_1", provider="p", username="hfspncadz.mooflapand").mention == "@hfspncadz.mooflapand"
    assert Character(id="ch_1", provider="p").mention is None


def test_repr_hides_signed_links() -> None:
    """The repr of a character, a snapshot and a model holds no signed link."""
    character = Character(id="c", provider="p", picture_url="https://x/?sig=secret", raw={"u": "https://x/?sig=secret"})
    assert "secret" not in repr(character)
    snapshot = TaskSnapshot(
        task_id="t", provider="p", state="success", character=character, result="secret", raw="secret"
    )
    assert "secret" not in repr(snapshot)
    assert "secret" not in repr(ModelInfo("m", raw={"x": "secret"}))


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("waiting", "running"),
        ("queuing", "running"),
        ("generating", "running"),
        ("success", "succeeded"),
        ("fail", "failed"),
        ("dreaming", "running"),
        ("", "running"),
    ],
)
def test_finished(state: str, status: str) -> None:
    """Only the states "success" and "fail" are final; an unknown state counts as running."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state=state)
    assert (snapshot.status, snapshot.finished) == (status, status != "running")


def test_status_words() -> None:
    """A status and the state of a ledger entry have the same words."""
    words = get_args(TaskStatus)
    assert set(words) <= {state.value for state in EntryState}
    assert len(words) == 3


@pytest.mark.parametrize(
    ("created", "completed", "duration"),
    [(10.0, 22.5, 12.5), (None, 22.5, None), (10.0, None, None), (22.5, 10.0, 0.0)],
)
def test_duration(created: float | None, completed: float | None, duration: float | None) -> None:
    """The duration needs both times and is never negative."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="success", created_at=created, completed_at=completed)
    assert snapshot.duration == duration


def test_equality_ignores_raw() -> None:
    """Snapshots that differ only in `raw` are equal, so listeners get no update."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="waiting", raw={"updateTime": 1})
    assert snapshot == attrs.evolve(snapshot, raw={"updateTime": 2})
    assert snapshot != attrs.evolve(snapshot, progress=5.0)


def test_outcome_of_success() -> None:
    """A finished task gives its character, or itself for a model without characters."""
    character = Character(id="c", provider="p")
    assert TaskSnapshot(task_id="t", provider="p", state="success", character=character).outcome() is character
    plain = TaskSnapshot(task_id="t", provider="p", state="success", result={"resultUrls": []})
    assert plain.outcome() is plain


def test_outcome_of_a_failure_without_a_task() -> None:
    """A request that a person gave up has no task, and the message names none."""
    snapshot = TaskSnapshot(task_id="", provider="p", state="fail", failure=TaskFailure("given_up", "given up"))
    with pytest.raises(TaskFailedError, match=r"^The request failed at p with code given_up: given up$") as caught:
        snapshot.outcome()
    assert caught.value.task_id is None


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (TaskFailure("501", "it broke"), "501", "Task t failed at p with code 501: it broke"),
        (TaskFailure("SENSITIVE_WORD_ERROR", ""), "SENSITIVE_WORD_ERROR", "SENSITIVE_WORD_ERROR: no reason was given"),
        (TaskFailure(None, "it broke"), None, "Task t failed at p: it broke"),
        (None, None, "Task t failed at p: no reason was given"),
    ],
)
def test_outcome_of_failure(failure: TaskFailure | None, code: str | None, text: str) -> None:
    """A failed task raises an error with its code, its reason and the last snapshot."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="fail", failure=failure)
    with pytest.raises(TaskFailedError) as caught:
        snapshot.outcome()
    error = caught.value
    assert (error.provider, error.task_id, error.code, error.snapshot) == ("p", "t", code, snapshot)
    assert text in str(error)


def test_pickle() -> None:
    """Requests and snapshots can be pickled."""
    for value in (
        CharacterRequest(from_task="t", clip="1,3"),
        TaskRequest(model="m", input={"a": 1}),
        CharacterRequest(images=["https://a/b.png", Path("c.png")], voice="v"),
        TaskSnapshot(task_id="t", provider="p", state="fail", failure=TaskFailure("1", "x")),
    ):
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("blanks", [" {}", "{} ", "\u00a0{}\u00a0", "{}\n", "\t{}\r\n"])
def test_blanks_around_keys_and_ids_mean_nothing(blanks: str) -> None:
    """A key or a task id that was copied with blanks or a line end is the same key or id without them."""
    request = CharacterRequest(from_task=blanks.format("7118f712"), key=blanks.format("rex"))
    assert (request.from_task, request.key) == ("7118f712", "rex")
    assert TaskRequest(model="m", key=blanks.format("rex")).key == "rex"


@pytest.mark.parametrize(
    "task_id", ["7118 f712", '"7118f712"', "'7118'", "https://kie.ai/task/7118f712", "a\\b", "a\u00a0b"]
)
def test_rejects_what_is_no_task_id(task_id: str) -> None:
    """A task id with inner blanks, quotes or slashes, such as a whole URL, is rejected before anything is sent."""
    with pytest.raises(InvalidRequestError, match="from_task must be the id of a task, without spaces"):
        CharacterRequest(from_task=task_id)


@pytest.mark.parametrize("key", [" ", "\n", "\u00a0"])
def test_rejects_a_blank_key(key: str) -> None:
    """A key of nothing but blanks is no key."""
    with pytest.raises(InvalidRequestError, match="key must be 1 to 200 printable characters"):
        CharacterRequest(from_task="7118f712", key=key)
