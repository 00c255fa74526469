"""Requests to kie.ai: their bodies and their documented limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest, ConfigurationError, Kie, TaskRequest
from sora_chars.providers.kie_codec import character_task
from sora_chars.providers.kie_omni import omni_body

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1024 * 1024
IMAGES: dict[str, Any] = {"images": ["https://a/b.png"]}


@pytest.mark.parametrize(("is_installed", "rejected"), [(True, []), (False, ["clip"])])
def test_clip_of_a_video(
    monkeypatch: pytest.MonkeyPatch,
    is_installed: bool,  # noqa: FBT001 # a column of the table
    rejected: list[str],
) -> None:
    """The clip of a video is cut where PyAV is installed, and refused elsewhere."""
    monkeypatch.setattr("sora_chars.media.extra.find_spec", lambda _: "av" if is_installed else None)
    assert rejected_fields(CharacterRequest(video="https://a/b.mp4", clip="1,3")) == rejected


def rejected_fields(request: CharacterRequest) -> list[str]:
    """Return the fields that kie.ai cannot accept."""
    return [line.partition(" must ")[0] for line in Kie("key").check(request)]


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
def test_create_body(request_: CharacterRequest, url: str | None, body: dict[str, Any]) -> None:
    """The body of createTask holds the documented fields, and no empty ones."""
    assert character_task(request_, video_url=url) == body


FROM_TASK: dict[str, Any] = {"from_task": "abc", "clip": "1,3", "prompt": "A dog"}
FROM_VIDEO: dict[str, Any] = {"video": "https://a/b.mp4"}


@pytest.mark.parametrize(
    ("fields", "rejected"),
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
        (FROM_VIDEO | {"clip": "1,5.1"}, ["clip"]),
        (FROM_VIDEO | {"prompt": "x" * 5000, "safety": "x" * 5000, "name": "x" * 41}, []),
        (FROM_VIDEO | {"prompt": "x" * 5001, "safety": "x" * 5001}, ["prompt", "safety"]),
    ],
    ids=lambda value: ",".join(f"{k}={str(v)[:9]}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_documented_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """Requests beyond the documented limits are rejected before sending, and requests within them are not."""
    assert rejected_fields(CharacterRequest(**fields)) == rejected


def test_all_broken_limits() -> None:
    """The error names all broken limits, and not just the first."""
    request = CharacterRequest(from_task="t", clip="0,9", name="x" * 41, safety="x" * 5001)
    assert rejected_fields(request) == ["clip", "name", "prompt", "safety"]


@pytest.mark.parametrize(
    ("seconds", "size", "rejected"),
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
def test_local_video_limits(make_clip: Callable[..., Path], seconds: float, size: int, rejected: list[str]) -> None:
    """A local video runs 1 to 4 s by its headers, with a tolerance, and has at most 10 MB."""
    assert rejected_fields(CharacterRequest(video=make_clip(seconds, size=size))) == rejected


def test_local_video_container(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """The bytes of a file decide whether it is a video, and not its name."""
    (tmp_path / "fake.mp4").write_bytes(b"GIF89a" * 10)
    assert rejected_fields(CharacterRequest(video=tmp_path / "fake.mp4")) == ["video"]
    assert rejected_fields(CharacterRequest(video=make_clip(name="clip.bin"))) == []


@pytest.mark.parametrize("start", [b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", b"\0\0\0\x08free", b"\0\0\0\x08wide"])
def test_local_videos_of_phones_and_cameras(tmp_path: Path, make_clip: Callable[..., Path], start: bytes) -> None:
    """A MOV, which one page of kie.ai lists and another omits, and an MP4 behind padding are accepted."""
    path = tmp_path / "iphone.mov"
    path.write_bytes(start + make_clip().read_bytes())
    assert rejected_fields(CharacterRequest(video=path)) == []


def test_rejected_container(tmp_path: Path) -> None:
    """The message lists every allowed container."""
    path = tmp_path / "dog.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3")
    (problem,) = Kie("key").check(CharacterRequest(video=path))
    assert problem.startswith("video must be a file of type mp4, webm, avi, mov, got ")


@pytest.mark.parametrize(
    ("size", "rejected"),
    [(0, ["images[0]"]), (1, []), (20 * MB, []), (20 * MB + 1, ["images[0]"]), (None, ["images[0]"])],
)
def test_local_image_limits(tmp_path: Path, size: int | None, rejected: list[str]) -> None:
    """A local image exists and has 1 byte to 20 MB."""
    path = tmp_path / "face.png"
    if size is not None:
        with path.open("wb") as file:
            file.truncate(size)
    assert rejected_fields(CharacterRequest(images=[path], prompt="A face")) == rejected


@pytest.mark.parametrize("path", ["nowhere.mp4", "", ".", "x" * 5000])
def test_missing_file(path: str) -> None:
    """A source that is neither a URL nor an existing file is a problem of its field, on any system error."""
    problems = Kie("key").check(CharacterRequest(video=Path(path)))
    assert [line.partition(" must ")[0] for line in problems] == ["video"]


def test_unreadable_file(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission to read it is a problem of its field, before anything is sent."""
    clip = make_clip()

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    problems = Kie("key").check(CharacterRequest(video=clip))
    assert problems == [f"video must be a readable file, got {clip}: Permission denied"]


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"prompt": "A face"}, []),
        ({"prompt": "A face", "name": "rex", "voice": "a1,a2"}, []),
        ({}, ["prompt"]),
        ({"prompt": " "}, ["prompt"]),
        ({"prompt": "A face", "images": ["https://a/b.png"] * 2}, []),
        ({"prompt": "A face", "images": ["https://a/b.png"] * 3}, ["images"]),
        ({"prompt": "A face", "clip": "1,3", "safety": "x"}, ["clip", "safety"]),
    ],
)
def test_image_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """A character from images needs a description and 1 or 2 images; it has no clip and no safety instruction."""
    assert rejected_fields(CharacterRequest(**IMAGES | fields)) == rejected


def test_image_body() -> None:
    """The images keep their order, and the voice becomes a list of audio ids."""
    urls = ["https://a/front.png", "https://a/side.png"]
    request = CharacterRequest(images=urls, prompt="A face", name="rex", voice="a1, a2,")
    assert omni_body(request, urls) == {
        "descriptions": "A face",
        "image_urls": urls,
        "audio_ids": ["a1", "a2"],
        "character_name": "rex",
    }
    assert omni_body(CharacterRequest(images=urls[:1], prompt="A face"), urls[:1]) == {
        "descriptions": "A face",
        "image_urls": urls[:1],
    }


def test_only_images_have_a_voice() -> None:
    """A voice is refused where the route has none."""
    assert rejected_fields(CharacterRequest(video="https://a/b.mp4", voice="a1")) == ["voice"]


def test_task_requests_are_not_checked() -> None:
    """A task request is accepted as it is: its rules depend on its model."""
    assert Kie("key").check(TaskRequest(model="wan/2-7-image", input={"n": 1})) == []


@pytest.mark.parametrize("key", [None, "", "  "])
def test_missing_key(key: str | None) -> None:
    """Without a key the constructor fails, and the hint names the environment variable."""
    with pytest.raises(ConfigurationError, match="Set KIE_API_KEY"):
        Kie(key)


def test_key_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is read from KIE_API_KEY if none is given."""
    monkeypatch.setenv("KIE_API_KEY", " from-the-environment\n")
    assert Kie()._transport.api_key == "from-the-environment"
    assert Kie("given")._transport.api_key == "given"


@pytest.mark.parametrize("field", ["base_url", "upload_url", "callback_url"])
def test_invalid_url(field: str) -> None:
    """The error for an invalid URL names its setting."""
    options: dict[str, Any] = {field: "kie.ai"}
    with pytest.raises(ConfigurationError, match=field):
        Kie("key", **options)


def test_message_of_clip() -> None:
    """The message for a clip that is too short names the limits, the length and the clip."""
    request = CharacterRequest(**FROM_TASK | {"clip": "1,1.5"})
    assert Kie("key").check(request) == ['clip must span 1 to 4 seconds, got 0.5 ("1,1.5")']
