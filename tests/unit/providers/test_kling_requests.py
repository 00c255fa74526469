"""Requests to Kling: their bodies and their documented limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest, ConfigurationError, Kling, TaskRequest
from sora_chars.providers.kling import BEIJING, SINGAPORE
from sora_chars.providers.kling_codec import element_body, external_id
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.models import Request

MB = 1024 * 1024
VIDEO = "https://clips.example/rex.mp4"
IMAGES = ["https://images.example/front.png", "https://images.example/side.png"]
TEXTS: dict[str, Any] = {"name": "Rex", "prompt": "A friendly dog"}


async def host(path: Path) -> str:
    """Pretend to make a file public."""
    return f"https://files.example/{path.name}"


def rejected_fields(request: Request, **options: Any) -> list[str]:
    """Return the fields that Kling cannot accept."""
    return [line.partition(" must ")[0] for line in Kling("key", **options).check(request)]


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"video": VIDEO}, []),
        ({"video": VIDEO, "voice": "v1"}, []),
        ({"images": IMAGES, "voice": "v1"}, []),
        ({"images": IMAGES * 2}, []),
        ({"images": IMAGES[:1]}, ["images"]),
        ({"video": VIDEO, "name": "x" * 20, "prompt": "x" * 100}, []),
        ({"video": VIDEO, "name": "x" * 21, "prompt": "x" * 101}, ["name", "prompt"]),
        ({"video": VIDEO, "name": "", "prompt": " "}, ["name", "prompt"]),
        ({"video": VIDEO, "name": None, "prompt": None}, ["name", "prompt"]),
        ({"video": VIDEO, "clip": "1,3"}, ["clip"]),
        ({"images": IMAGES, "safety": "x"}, ["safety"]),
        ({"from_task": "t1"}, ["from_task"]),
        ({"video": "rex.mp4"}, ["video"]),
        ({"video": "rex.mp4", "safety": "x"}, ["video", "safety"]),
    ],
)
def test_documented_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """All limits that a request breaks are listed before it is sent; a request within them has none."""
    assert rejected_fields(CharacterRequest(**TEXTS | fields)) == rejected


def test_other_requests() -> None:
    """Kling takes no requests for other models."""
    assert rejected_fields(TaskRequest(model="m")) == ["request"]


def test_refusals_name_the_way_out() -> None:
    """A clip names the seconds that Kling takes, and it and a local video name `hosting`."""
    (clip,) = Kling("key").check(CharacterRequest(video=VIDEO, clip="1,5", **TEXTS))
    assert clip.endswith("takes a whole video of 3 to 8 seconds; cut the video, or pass hosting= to have it cut")
    (video,) = Kling("key").check(CharacterRequest(video="rex.mp4", **TEXTS))
    assert video.endswith("host the file, or pass hosting=")


@pytest.mark.parametrize(
    ("seconds", "size", "rejected"),
    [
        (3.0, 0, []),
        (8.0, 0, []),
        (2.91, 0, []),
        (8.09, 0, []),
        (2.8, 0, ["video"]),
        (8.2, 0, ["video"]),
        (5.0, 200 * MB, []),
        (5.0, 200 * MB + 1, ["video"]),
    ],
)
def test_local_video_limits(make_clip: Callable[..., Path], seconds: float, size: int, rejected: list[str]) -> None:
    """A local video that will be hosted runs 3 to 8 s, with a tolerance, and has at most 200 MB."""
    clip = make_clip(seconds)
    with clip.open("r+b") as file:
        file.truncate(max(size, clip.stat().st_size))
    assert rejected_fields(CharacterRequest(video=clip, **TEXTS), hosting=host) == rejected


def test_local_video_formats(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """An MP4 or MOV file is accepted, and a file of another type or that is missing is not."""
    (tmp_path / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    (tmp_path / "clip.avi").write_bytes(b"RIFF\0\0\0\0AVI ")
    found = [
        rejected_fields(CharacterRequest(video=path, **TEXTS), hosting=host)
        for path in (tmp_path / "clip.mov", make_clip(5.0), tmp_path / "clip.avi", tmp_path / "none.mp4")
    ]
    assert found == [[], [], ["video"], ["video"]]


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        (png(300, 300), []),
        (jpeg(300, 300), []),
        (png(299, 300), ["images[1]"]),
        (png(300, 750), []),
        (png(300, 751), ["images[1]"]),
        (png(750, 300), []),
        (png(751, 300), ["images[1]"]),
        (png(300, 300, size=10 * MB), []),
        (png(300, 300, size=10 * MB + 1), ["images[1]"]),
        (b"", ["images[1]"]),
        (b"GIF89a" + bytes(50), ["images[1]"]),
        (b"RIFF\0\0\0\0WEBPVP8 ", ["images[1]"]),
        (b"\x89PNG\r\n\x1a\n", ["images[1]"]),
        (b"\xff\xd8\xff\xe0\0\x10", ["images[1]"]),
        (png(0, 0), ["images[1]"]),
        (png(10, 2000), ["images[1]", "images[1]"]),
    ],
)
def test_local_image_limits(tmp_path: Path, content: bytes, rejected: list[str]) -> None:
    """A local image is a JPEG or PNG of at most 10 MB, with 300 pixels a side and a ratio of 1:2.5 to 2.5:1."""
    path = tmp_path / "side.png"
    path.write_bytes(content)
    assert rejected_fields(CharacterRequest(images=[IMAGES[0], path], **TEXTS)) == rejected


def test_missing_and_unreadable_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is missing or may not be read is named before anything is sent."""
    path = tmp_path / "side.png"
    assert rejected_fields(CharacterRequest(images=[IMAGES[0], path], **TEXTS)) == ["images[1]"]
    path.write_bytes(png(300, 300))

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert rejected_fields(CharacterRequest(images=[IMAGES[0], path], **TEXTS)) == ["images[1]"]


def test_video_body() -> None:
    """A video is one reference video; the key is sent as the id of the task."""
    request = CharacterRequest(video=VIDEO, voice="v1", **TEXTS)
    assert element_body(request, key="order-17", callback_url="https://a.example/t", video=VIDEO, images=[]) == {
        "element_name": "Rex",
        "element_description": "A friendly dog",
        "reference_type": "video_refer",
        "element_video_list": {"refer_videos": [{"video_url": VIDEO}]},
        "element_voice_id": "v1",
        "tag_list": [{"tag_id": "o_102"}],
        "callback_url": "https://a.example/t",
        "external_task_id": "order-17",
    }


def test_images_body() -> None:
    """The first image is the frontal one."""
    request = CharacterRequest(images=IMAGES, **TEXTS)
    body = element_body(request, key="order-17", callback_url=None, video=None, images=["A", "B", "C"])
    assert body["reference_type"] == "image_refer"
    assert body["element_image_list"] == {
        "frontal_image": "A",
        "refer_images": [{"image_url": "B"}, {"image_url": "C"}],
    }
    assert body.keys().isdisjoint({"element_video_list", "element_voice_id", "callback_url"})


@pytest.mark.parametrize("key", ["order-17", "01890a5d-ac96-774b-bcce-b302099a8057", "a" * 64, "A_b-9"])
def test_keys_that_fit_are_sent_as_they_are(key: str) -> None:
    """A key that can stand in a path is the id."""
    assert external_id(key) == key


@pytest.mark.parametrize("key", ["856528333369769993", "a" * 65, "a/b", "a b", "ключ", "a.b", "..", "\ud83d"])
def test_other_keys_are_sent_as_digests(key: str) -> None:
    """A key that cannot stand in a path, or could be the id of another task, is sent as its digest."""
    digest = external_id(key)
    assert (digest[:4], len(digest)) == ("key-", 44)
    assert digest == external_id(key) == external_id(digest)
    assert digest != external_id(f"{key}x")


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default host serves accounts outside China; an option or the environment chooses another."""
    assert f"base_url='{SINGAPORE}'" in repr(Kling("key"))
    assert f"base_url='{BEIJING}'" in repr(Kling("key", base_url=BEIJING))
    monkeypatch.setenv("KLING_BASE_URL", "https://proxy.example/kling/")
    assert "base_url='https://proxy.example/kling'" in repr(Kling("key"))


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        ({}, {}, "Set KLING_API_KEY"),
        ({"access_key": "ak"}, {}, "Set KLING_SECRET_KEY"),
        ({"secret_key": "sk"}, {}, "Set KLING_ACCESS_KEY"),
        ({}, {"KLING_ACCESS_KEY": "ak"}, "Set KLING_SECRET_KEY"),
        ({"api_key": "k", "access_key": "ak"}, {}, "exclude each other"),
        ({"api_key": "k", "webhook_secret": ""}, {}, "webhook_secret must be"),
        ({"api_key": "k", "webhook_secret": "whsec_a"}, {}, "webhook_secret must be"),
        ({"api_key": "k"}, {"KLING_WEBHOOK_SECRET": "!"}, "webhook_secret must be"),
        ({"api_key": "k", "base_url": "kling"}, {}, "base_url"),
        ({"api_key": "k", "callback_url": "kling"}, {}, "callback_url"),
    ],
)
def test_rejects_invalid_options(
    options: dict[str, Any], environment: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key and an invalid option are errors before anything is sent."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=text):
        Kling(**options)


def test_reads_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API key in the environment comes before a pair of keys."""
    monkeypatch.setenv("KLING_ACCESS_KEY", "access")
    monkeypatch.setenv("KLING_SECRET_KEY", "secret")
    assert Kling()._transport.api_key == "secret"
    monkeypatch.setenv("KLING_API_KEY", "key")
    assert Kling()._transport.api_key == "key"


def test_repr_hides_keys() -> None:
    """No key stands in the repr."""
    provider = Kling(access_key="AK-SECRET-1", secret_key="SK-SECRET-2", webhook_secret="whsec_c2VjcmV0")
    shown = repr(provider) + repr(provider._transport)
    assert "SECRET" not in shown
    assert "c2Vj" not in shown
