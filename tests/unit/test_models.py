from __future__ import annotations

import math
import pickle
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars import (
    Character,
    CharacterRequest,
    Clip,
    InvalidRequestError,
    ModelInfo,
    OmniCharacterRequest,
    TaskFailedError,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
)
from sora_chars.ids import new_key
from sora_chars.models import is_url


def problems(kind: type[Any], **fields: object) -> list[str]:
    """Which fields a request of this kind is refused for."""
    with pytest.raises(InvalidRequestError) as caught:
        kind(**fields)
    assert all(line in str(caught.value) for line in caught.value.problems)
    return [line.partition(":")[0] for line in caught.value.problems]


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
def test_a_clip_is_written_as_providers_want_it(clip: Clip, text: str) -> None:
    """A clip reads "start,end" without spaces, exponents or trailing zeros."""
    assert str(clip) == text


@given(start=st.floats(0, 1e6), length=st.floats(0.001, 1e6))
def test_a_clip_reads_back(start: float, length: float) -> None:
    """What a clip is written as reads back to the same clip."""
    clip = Clip(start, start + length)
    assert Clip.parse(str(clip)) == clip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.3,3.3", 1.0), ("3.55,5.55", 2.0), ("0.1,0.3", 0.2), ("1,4", 3.0), ("0,0.99", 0.99)],
)
def test_a_clip_spans_exactly_what_is_written(text: str, seconds: float) -> None:
    """The span is exact, so that 2.3,3.3 is one second and not a little less."""
    assert Clip.parse(text).seconds == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "1,", ",3", "1,2,3", "a,b", "1;3", "1:00,2:00", "nan,3", "snan,3", "0,inf", "0,1e999", "1\x00,3"]
)
def test_junk_is_no_clip(text: str) -> None:
    """Text that is not two finite numbers of seconds is refused as a clip."""
    with pytest.raises(InvalidRequestError, match="clip: "):
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
def test_a_clip_has_an_order_and_finite_bounds(start: Any, end: Any) -> None:
    """A clip whose bounds are no finite numbers, or not 0 <= start < end, is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        Clip(start, end)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("clip: ")


# Requests


@pytest.mark.parametrize("clip", ["3.55,5.55", (3.55, 5.55), [3.55, 5.55], ("3.55", "5.55"), Clip(3.55, 5.55)])
def test_a_clip_is_given_in_any_of_its_forms(clip: Any) -> None:
    """Text, a pair and a `Clip` ask for the same clip."""
    assert CharacterRequest(from_task="t", clip=clip).clip == Clip(3.55, 5.55)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, ["from_task, video"]),
        ({"from_task": "t", "video": "https://a/b.mp4"}, ["from_task, video"]),
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
def test_a_character_request_keeps_its_own_rules(fields: dict[str, object], refused: list[str]) -> None:
    """A request with no source, both, or a field of the wrong type is refused by that field's name."""
    assert problems(CharacterRequest, **fields) == refused


def test_all_that_is_wrong_is_said_at_once() -> None:
    """One error names every broken rule of a request."""
    assert problems(CharacterRequest, name=1, prompt=2, safety=3, clip=4, key="") == [
        "name",
        "prompt",
        "safety",
        "from_task, video",
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
        ("file:///a.mp4", None, Path("file:///a.mp4")),
    ],
)
def test_a_video_is_a_url_or_a_path(video: str | Path, url: str | None, path: Path | None) -> None:
    """A video is a URL when it is http(s), and a local path otherwise."""
    request = CharacterRequest(video=video)
    assert (request.video_url, request.video_path) == (url, path)
    assert is_url(video) == (url is not None)


def test_a_request_without_a_video_has_no_place() -> None:
    """A request from a finished task has neither a video URL nor a path."""
    request = CharacterRequest(from_task="t", key="x" * 200)
    assert (request.video_url, request.video_path) == (None, None)


@pytest.mark.parametrize(
    ("fields", "refused"),
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
def test_a_task_request_keeps_its_own_rules(fields: dict[str, object], refused: list[str]) -> None:
    """A task without a model, or with an input that is no JSON object, is refused."""
    assert problems(TaskRequest, **fields) == refused


def test_an_input_nested_without_end_is_refused() -> None:
    """An input that contains itself is no JSON and is refused as such."""
    loop: dict[str, object] = {}
    loop["again"] = loop
    assert problems(TaskRequest, model="m", input=loop) == ["input"]


def test_a_task_request_needs_no_input() -> None:
    """A model may take nothing."""
    assert TaskRequest(model="m").input == {}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"image": 5, "descriptions": "d"}, ["image"]),
        ({"image": "", "descriptions": "d"}, ["image"]),
        ({"image": "https://", "descriptions": "d"}, ["image"]),
        ({"image": "i", "descriptions": None}, ["descriptions"]),
        ({"image": "i", "descriptions": "d", "name": 5}, ["name"]),
        ({"image": "i", "descriptions": "d", "audio_ids": ["a", None, 3]}, ["audio_ids[1]", "audio_ids[2]"]),
        ({"image": "i", "descriptions": "d", "audio_ids": 5}, ["audio_ids[0]"]),
        ({"image": None, "descriptions": 1, "key": ""}, ["key", "image", "descriptions"]),
    ],
)
def test_an_omni_request_keeps_its_own_rules(fields: dict[str, object], refused: list[str]) -> None:
    """An omni request with a field of the wrong type is refused by that field's name."""
    assert problems(OmniCharacterRequest, **fields) == refused


@pytest.mark.parametrize("ids", ["a1", ["a1"], ("a1",)])
def test_audio_ids_are_one_or_many(ids: Any) -> None:
    """One audio id is as good as a list of one."""
    assert OmniCharacterRequest(image="i", descriptions="d", audio_ids=ids).audio_ids == ("a1",)


# Values


def test_keys_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh keys are UUIDs of version 7, so that later ones sort after earlier ones."""
    keys: list[str] = []
    for nanoseconds in (0, 1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 2**48 * 1_000_000 - 1):
        monkeypatch.setattr("time.time_ns", lambda now=nanoseconds: now)
        keys += [new_key()]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    for key in map(uuid.UUID, keys):
        assert (key.version, key.variant) == (7, uuid.RFC_4122)


def test_two_keys_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys made within one millisecond are different wishes."""
    monkeypatch.setattr("time.time_ns", lambda: 1)
    assert new_key() != new_key()


def test_a_mention_is_the_user_name_with_its_sign() -> None:
    """A prompt names a character by "@" and its user name; where there is none, there is no mention."""
    assert Character(id="ch_1", provider="p", username="hfspncadz.mooflapand").mention == "@hfspncadz.mooflapand"
    assert Character(id="ch_1", provider="p").mention is None


def test_signed_links_stay_out_of_the_repr() -> None:
    """What a log shows of a character holds no signed link."""
    character = Character(id="c", provider="p", picture_url="https://x/?sig=secret", raw={"u": "https://x/?sig=secret"})
    assert "secret" not in repr(character)
    snapshot = TaskSnapshot(
        task_id="t", provider="p", state="success", character=character, result="secret", raw="secret"
    )
    assert "secret" not in repr(snapshot)
    assert "secret" not in repr(ModelInfo("m", raw={"x": "secret"}))


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        ("waiting", False),
        ("queuing", False),
        ("generating", False),
        ("success", True),
        ("fail", True),
        ("dreaming", False),
    ],
)
def test_only_known_ends_are_ends(state: str, finished: bool) -> None:  # noqa: FBT001 # a column of the table
    """A task has ended when its state says success or fail; an unknown state is still running."""
    assert TaskSnapshot(task_id="t", provider="p", state=state).finished is finished


@pytest.mark.parametrize(
    ("created", "completed", "duration"),
    [(10.0, 22.5, 12.5), (None, 22.5, None), (10.0, None, None), (22.5, 10.0, 0.0)],
)
def test_a_duration_needs_both_ends(created: float | None, completed: float | None, duration: float | None) -> None:
    """How long a task ran is known once both times are, and is never negative."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="success", created_at=created, completed_at=completed)
    assert snapshot.duration == duration


def test_the_raw_answer_makes_no_change() -> None:
    """Two snapshots that differ only in the raw answer are equal, so that waiters hear of real changes only."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="waiting", raw={"updateTime": 1})
    assert snapshot == attrs.evolve(snapshot, raw={"updateTime": 2})
    assert snapshot != attrs.evolve(snapshot, progress=5.0)


def test_the_outcome_of_a_good_task() -> None:
    """A finished task gives its character, or itself where it made something else."""
    character = Character(id="c", provider="p")
    assert TaskSnapshot(task_id="t", provider="p", state="success", character=character).outcome() is character
    plain = TaskSnapshot(task_id="t", provider="p", state="success", result={"resultUrls": []})
    assert plain.outcome() is plain


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (TaskFailure("501", "it broke"), "501", "Task t failed at p with code 501: it broke"),
        (TaskFailure("SENSITIVE_WORD_ERROR", ""), "SENSITIVE_WORD_ERROR", "SENSITIVE_WORD_ERROR: no reason was given"),
        (TaskFailure(None, "it broke"), None, "Task t failed at p: it broke"),
        (None, None, "Task t failed at p: no reason was given"),
    ],
)
def test_the_outcome_of_a_failed_task(failure: TaskFailure | None, code: str | None, text: str) -> None:
    """A failed task raises an error with its code, its reason and the last snapshot."""
    snapshot = TaskSnapshot(task_id="t", provider="p", state="fail", failure=failure)
    with pytest.raises(TaskFailedError) as caught:
        snapshot.outcome()
    error = caught.value
    assert (error.provider, error.task_id, error.code, error.snapshot) == ("p", "t", code, snapshot)
    assert text in str(error)


def test_values_pickle() -> None:
    """Requests and what comes of them cross process boundaries."""
    for value in (
        CharacterRequest(from_task="t", clip="1,3"),
        TaskRequest(model="m", input={"a": 1}),
        OmniCharacterRequest(image="i", descriptions="d"),
        TaskSnapshot(task_id="t", provider="p", state="fail", failure=TaskFailure("1", "x")),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
