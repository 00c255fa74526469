from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest, ConfigurationError, Kie, OmniCharacterRequest, TaskRequest
from sora_chars.providers.kie_codec import character_task

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1024 * 1024


def refusals(request: CharacterRequest | OmniCharacterRequest) -> list[str]:
    """Which fields kie.ai cannot take."""
    return [line.partition(":")[0] for line in Kie("key").check(request)]


@pytest.mark.parametrize(
    ("request_", "url", "body"),
    [
        (
            CharacterRequest(
                from_task="abc",
                clip="3.55,5.55",
                prompt="A dog",
                name="rex",
                safety="No blood",
            ),
            None,
            {
                "model": "sora-2-characters-pro",
                "input": {
                    "origin_task_id": "abc",
                    "timestamps": "3.55,5.55",
                    "character_prompt": "A dog",
                    "character_user_name": "rex",
                    "safety_instruction": "No blood",
                },
            },
        ),
        (
            CharacterRequest(from_task="abc", clip=(1, 3), prompt="A dog"),
            None,
            {
                "model": "sora-2-characters-pro",
                "input": {"origin_task_id": "abc", "timestamps": "1,3", "character_prompt": "A dog"},
            },
        ),
        (
            CharacterRequest(video="a.mp4", prompt="A dog", safety="No blood", name="rex"),
            "https://up/a.mp4",
            {
                "model": "sora-2-characters",
                "input": {
                    "character_file_url": ["https://up/a.mp4"],
                    "character_prompt": "A dog",
                    "safety_instruction": "No blood",
                },
            },
        ),
        (
            CharacterRequest(video="https://a/b.mp4"),
            "https://a/b.mp4",
            {"model": "sora-2-characters", "input": {"character_file_url": ["https://a/b.mp4"]}},
        ),
    ],
    ids=["pro-all", "pro-least", "video-all", "video-least"],
)
def test_a_character_is_asked_for_as_documented(
    request_: CharacterRequest, url: str | None, body: dict[str, Any]
) -> None:
    """The body of createTask holds the documented fields, and none that was not asked for."""
    assert character_task(request_, video_url=url) == body


FROM_TASK: dict[str, Any] = {"from_task": "abc", "clip": "1,3", "prompt": "A dog"}
FROM_VIDEO: dict[str, Any] = {"video": "https://a/b.mp4"}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        (FROM_TASK, []),
        (FROM_TASK | {"clip": None}, ["clip"]),
        (FROM_TASK | {"clip": "0,0.99"}, ["clip"]),
        (FROM_TASK | {"clip": "0,1"}, []),
        (FROM_TASK | {"clip": "2.3,3.3"}, []),
        (FROM_TASK | {"clip": "0,3.01"}, []),
        (FROM_TASK | {"clip": "0,4"}, []),
        (FROM_TASK | {"clip": "1.1,5.1"}, []),
        (FROM_TASK | {"clip": "0,4.01"}, ["clip"]),
        (FROM_TASK | {"prompt": None}, ["prompt"]),
        (FROM_TASK | {"prompt": ""}, ["prompt"]),
        (FROM_TASK | {"prompt": " \n"}, ["prompt"]),
        (FROM_TASK | {"prompt": "x" * 5000}, []),
        (FROM_TASK | {"prompt": "x" * 5001}, ["prompt"]),
        (FROM_TASK | {"safety": "x" * 5000}, []),
        (FROM_TASK | {"safety": "x" * 5001}, ["safety"]),
        (FROM_TASK | {"name": ""}, ["name"]),
        (FROM_TASK | {"name": " "}, ["name"]),
        (FROM_TASK | {"name": "x"}, []),
        (FROM_TASK | {"name": "x" * 40}, []),
        (FROM_TASK | {"name": "x" * 41}, ["name"]),
        (FROM_VIDEO, []),
        (FROM_VIDEO | {"clip": "1,3"}, ["clip"]),
        (FROM_VIDEO | {"prompt": "x" * 5000, "safety": "x" * 5000, "name": "x" * 41}, []),
        (FROM_VIDEO | {"prompt": "x" * 5001, "safety": "x" * 5001}, ["prompt", "safety"]),
    ],
    ids=lambda value: ",".join(f"{k}={str(v)[:9]}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_the_documented_limits_are_kept(fields: dict[str, Any], refused: list[str]) -> None:
    """What the documentation refuses is refused before sending, and what it allows is not."""
    assert refusals(CharacterRequest(**fields)) == refused


def test_every_broken_limit_is_named() -> None:
    """All broken limits are named together, and not the first one only."""
    request = CharacterRequest(from_task="t", clip="0,9", name="x" * 41, safety="x" * 5001)
    assert refusals(request) == ["safety", "clip", "prompt", "name"]


@pytest.mark.parametrize(
    ("seconds", "size", "refused"),
    [
        (2, 0, []),
        (0.89, 0, ["video"]),
        (0.9, 0, []),
        (1, 0, []),
        (4, 0, []),
        (4.1, 0, []),
        (4.11, 0, ["video"]),
        (0, 0, []),
        (2, 10 * MB, []),
        (2, 10 * MB + 1, ["video"]),
        (9, 10 * MB + 1, ["video"]),
    ],
)
def test_a_local_video_is_looked_at(
    make_clip: Callable[..., Path], seconds: float, size: int, refused: list[str]
) -> None:
    """A local video runs 1 to 4 s, as far as its headers say (and round), and has at most 10 MB."""
    assert refusals(CharacterRequest(video=make_clip(seconds, size=size))) == refused


def test_a_local_video_has_one_of_the_three_types(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """The bytes decide whether a file is a video, and not its name."""
    (tmp_path / "fake.mp4").write_bytes(b"GIF89a" * 10)
    assert refusals(CharacterRequest(video=tmp_path / "fake.mp4")) == ["video"]
    assert refusals(CharacterRequest(video=make_clip(name="clip.bin"))) == []


@pytest.mark.parametrize(
    ("size", "refused"), [(0, ["image"]), (1, []), (20 * MB, []), (20 * MB + 1, ["image"]), (None, ["image"])]
)
def test_a_local_image_has_at_most_20_mb(tmp_path: Path, size: int | None, refused: list[str]) -> None:
    """An image has 1 byte to 20 MB, and is there."""
    path = tmp_path / "face.png"
    if size is not None:
        with path.open("wb") as file:
            file.truncate(size)
    assert refusals(OmniCharacterRequest(image=path, descriptions="A face")) == refused


@pytest.mark.parametrize("place", ["nowhere.mp4", "", ".", "x" * 5000])
def test_a_video_that_is_no_file_is_refused(place: str) -> None:
    """What is neither a URL nor a file here is a problem of the field, whatever the system says of it."""
    problems = Kie("key").check(CharacterRequest(video=Path(place)))
    assert [line.partition(":")[0] for line in problems] == ["video"]


def test_a_file_that_may_not_be_read_is_refused(
    make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without the permission to read it is a problem of the field, before anything is sent."""
    clip = make_clip()

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)
    problems = Kie("key").check(CharacterRequest(video=clip))
    assert problems == [f"video: {clip} cannot be read: Permission denied"]


@pytest.mark.parametrize(("descriptions", "refused"), [("A face", []), ("", ["descriptions"]), (" ", ["descriptions"])])
def test_an_omni_character_needs_a_description(descriptions: str, refused: list[str]) -> None:
    """The description of an omni character is required and not empty."""
    assert refusals(OmniCharacterRequest(image="https://a/b.png", descriptions=descriptions)) == refused


def test_any_job_model_is_taken() -> None:
    """What other models take is theirs to say: nothing of a task request is refused here."""
    assert Kie("key").check(TaskRequest(model="wan/2-7-image", input={"n": 1})) == []


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_names_its_variable(key: str | None) -> None:
    """Without a key nothing is built, and the error says which variable would give it."""
    with pytest.raises(ConfigurationError, match="Set KIE_API_KEY"):
        Kie(key)


def test_the_key_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is read from KIE_API_KEY when none is given."""
    monkeypatch.setenv("KIE_API_KEY", " from-the-environment\n")
    assert Kie()._transport.api_key == "from-the-environment"
    assert Kie("given")._transport.api_key == "given"


@pytest.mark.parametrize("field", ["base_url", "upload_url", "callback_url"])
def test_a_wrong_url_is_named(field: str) -> None:
    """A setting that is no URL is refused by its name."""
    options: dict[str, Any] = {field: "kie.ai"}
    with pytest.raises(ConfigurationError, match=field):
        Kie("key", **options)
