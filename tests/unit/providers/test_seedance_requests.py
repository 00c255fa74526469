"""Requests for Seedance's assets: their documented limits, and how icover is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest, ConfigurationError, SeedanceAssets, TaskRequest
from sora_chars.providers.named_keys import key_suffix
from sora_chars.providers.seedance_codec import Call, asset_name
from sora_chars.providers.seedance_icover import Icover, bearer, media_type, presign
from tests.support.asset_account import IMAGE, VIDEO
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.models import Request

MB = 1024 * 1024


def rejected_fields(request: Request, **options: Any) -> list[str]:
    """Return the fields that the asset library cannot accept."""
    return [line.partition(" must ")[0] for line in SeedanceAssets("key", **options).check(request)]


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"video": VIDEO}, []),
        ({"images": [IMAGE]}, []),
        ({"images": [IMAGE] * 2}, ["images"]),
        ({"video": VIDEO, "name": "x" * 53}, []),
        ({"video": VIDEO, "name": "x" * 54}, ["name"]),
        ({"video": VIDEO, "name": " "}, ["name"]),
        ({"video": VIDEO, "clip": "1,2.9"}, ["clip"]),
        ({"images": [IMAGE], "prompt": "x", "safety": "x", "voice": "v"}, ["prompt", "safety", "voice"]),
        ({"from_task": "t1"}, ["from_task"]),
    ],
)
def test_documented_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """All limits that a request breaks are listed; a request within them has none."""
    assert rejected_fields(CharacterRequest(**fields)) == rejected


def test_other_requests() -> None:
    """The asset library takes no requests for other models."""
    assert rejected_fields(TaskRequest(model="m")) == ["request"]


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        (png(300, 300), []),
        (jpeg(300, 300), []),
        (b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x2b\x01\0\x2b\x01\0", []),
        (b"GIF89a", ["images[0]"]),
        (png(299, 300), ["images[0]"]),
        (png(6000, 6000), []),
        (png(6000, 6001), ["images[0]"]),
        (png(300, 750), []),
        (png(300, 751), ["images[0]"]),
        (png(750, 300), []),
        (png(751, 300), ["images[0]"]),
        (png(300, 300, size=30 * MB - 1), []),
        (png(300, 300, size=30 * MB), ["images[0]"]),
    ],
)
def test_local_image_limits(tmp_path: Path, content: bytes, rejected: list[str]) -> None:
    """A local image has 300 to 6000 pixels a side, a ratio of 0.4 to 2.5 and less than 30 MB."""
    path = tmp_path / "front.png"
    path.write_bytes(content)
    assert rejected_fields(CharacterRequest(images=[path])) == rejected


@pytest.mark.parametrize(
    ("seconds", "size", "large", "rejected"),
    [
        (2.0, 0, False, []),
        (1.8, 0, False, ["video"]),
        (15.0, 0, False, []),
        (15.2, 0, False, ["video"]),
        (5.0, 50 * MB, False, []),
        (5.0, 50 * MB + 1, False, ["video"]),
        (1.8, 0, True, ["video"]),
        (30.0, 0, True, []),
        (30.2, 0, True, ["video"]),
        (5.0, 200 * MB, True, []),
        (5.0, 200 * MB + 1, True, ["video"]),
    ],
)
def test_local_video_limits(
    make_clip: Callable[..., Path], seconds: float, size: int, *, large: bool, rejected: list[str]
) -> None:
    """A local clip runs 2 to 15 s and has at most 50 MB, or 30 s and 200 MB by the newer page for China."""
    clip = make_clip(seconds)
    with clip.open("r+b") as file:
        file.truncate(max(size, clip.stat().st_size))
    assert rejected_fields(CharacterRequest(video=clip), large_clips=large) == rejected


def test_local_video_formats(tmp_path: Path) -> None:
    """A local clip is an MP4 or MOV file."""
    (tmp_path / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    (tmp_path / "clip.avi").write_bytes(b"RIFF\0\0\0\0AVI ")
    found = [rejected_fields(CharacterRequest(video=tmp_path / name)) for name in ("clip.mov", "clip.avi")]
    assert found == [[], ["video"]]


def test_names() -> None:
    """A name ends in the digest of the key and has at most 64 characters; one is made where none was given."""
    assert asset_name(CharacterRequest(video=VIDEO, name="Rex"), "order-17") == "Rex" + key_suffix("order-17")
    assert asset_name(CharacterRequest(video=VIDEO), "order-17") == "character" + key_suffix("order-17")
    assert len(asset_name(CharacterRequest(video=VIDEO, name="x" * 53), "order-17")) == 64


def test_calls_of_icover() -> None:
    """Icover's routes, with the type of the asset and the group if there is one."""
    door = Icover()
    path = "/api/asset-library/assets"
    body = {"imageUrl": VIDEO, "label": "Rex_1", "assetType": "Video"}
    made = door.create(url=VIDEO, asset_type="Video", name="Rex_1", group_id=None)
    assert made == Call("POST", path, {"json": body})
    made = door.create(url=VIDEO, asset_type="Video", name="Rex_1", group_id="group-1")
    assert made.options == {"json": body | {"groupId": "group-1"}}
    assert door.fetch("asset-1/..") == Call("GET", f"{path}/asset-1%2F..")
    assert door.delete("asset-1") == Call("DELETE", f"{path}/asset-1")
    assert door.list(2, name="x", group_id=None) == Call("GET", path, {"params": {"pageNumber": 2, "pageSize": 100}})
    assert door.list(1, name="x", group_id="group-1").options["params"]["groupId"] == "group-1"


@pytest.mark.parametrize(
    ("name", "content", "extension", "mime"),
    [
        ("front.jpg", png(300, 300), "jpg", "image/png"),
        ("clip.MOV", b"", "mov", "video/quicktime"),
        ("clip.mp4", b"", "mp4", "video/mp4"),
        ("clip", b"", "mp4", "video/mp4"),
        ("front", jpeg(300, 300), "jpeg", "image/jpeg"),
        ("voice.mp3", b"", "mp3", "audio/mpeg"),
    ],
)
def test_announced_uploads(tmp_path: Path, name: str, content: bytes, extension: str, mime: str) -> None:
    """An upload is announced with the extension of the name and the type of the content."""
    assert media_type(tmp_path / name, content) == mime
    assert presign(tmp_path / name, mime).options == {"json": {"ext": extension, "contentType": mime}}


def test_the_key_is_sent_to_icover_only() -> None:
    """The storage of an upload, also one whose address looks like icover's, does not get the key."""
    sign = bearer("https://icover.ai", "key")
    assert sign("GET", "https://icover.ai/api/asset-library/assets", {}, b"") == {"Authorization": "Bearer key"}
    for other in ("https://cdn.icover.ai/x", "https://icover.ai.example/x", "https://icover.aix/y"):
        assert not sign("PUT", other, {}, b"")


def test_base_url_with_api() -> None:
    """A base URL may end in "/api", as icover's page writes it."""
    assert "base_url='https://proxy.example/x'" in repr(SeedanceAssets("key", base_url="https://proxy.example/x/api/"))


def test_needs_a_key() -> None:
    """A missing key is an error that names the variable."""
    with pytest.raises(ConfigurationError, match="Set ICOVER_API_KEY"):
        SeedanceAssets()
