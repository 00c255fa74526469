"""Requests to Wavespeed and Evolink: their bodies and their documented limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars import CharacterRequest, ConfigurationError, Evolink, TaskRequest, Wavespeed
from sora_chars.providers import evolink_codec, kling_codec, wavespeed_codec
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.models import Request

MB = 1024 * 1024
VIDEO = "https://clips.example/rex.mp4"
IMAGES = ["https://images.example/front.png", "https://images.example/side.png"]
TEXTS: dict[str, Any] = {"name": "Rex", "prompt": "A friendly dog"}
CLASSES: list[Any] = [Wavespeed, Evolink]


def rejected_fields(provider: Any, request: Request) -> list[str]:
    """Return the fields that a gateway cannot accept."""
    return [line.partition(" must ")[0] for line in provider("key").check(request)]


@pytest.mark.parametrize("provider", CLASSES)
@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"video": VIDEO}, []),
        ({"images": IMAGES}, []),
        ({"images": IMAGES * 2}, []),
        ({"images": IMAGES[:1]}, ["images"]),
        ({"video": VIDEO, "name": "x" * 20, "prompt": "x" * 100}, []),
        ({"video": VIDEO, "name": "x" * 21, "prompt": "x" * 101}, ["name", "prompt"]),
        ({"video": VIDEO, "name": "", "prompt": " "}, ["name", "prompt"]),
        ({"video": VIDEO, "name": None, "prompt": None}, ["name", "prompt"]),
        ({"video": VIDEO, "clip": "1,3"}, ["clip"]),
        ({"images": IMAGES, "safety": "x"}, ["safety"]),
        ({"from_task": "t1"}, ["from_task"]),
    ],
)
def test_documented_limits(provider: Any, fields: dict[str, Any], rejected: list[str]) -> None:
    """Kling's limits hold, from both sides; all that a request breaks are listed before it is sent."""
    assert rejected_fields(provider, CharacterRequest(**TEXTS | fields)) == rejected


@pytest.mark.parametrize("provider", CLASSES)
def test_other_requests(provider: Any) -> None:
    """The gateways take no requests for other models here."""
    assert rejected_fields(provider, TaskRequest(model="m")) == ["request"]


@pytest.mark.parametrize("source", [{"video": VIDEO}, {"images": IMAGES}])
def test_voices(source: dict[str, Any]) -> None:
    """Wavespeed takes a voice, and Evolink none."""
    request = CharacterRequest(**TEXTS, **source, voice="v1")
    assert (rejected_fields(Wavespeed, request), rejected_fields(Evolink, request)) == ([], ["voice"])


def test_limits_are_those_of_kling() -> None:
    """The limits are Kling's, but for how local files reach the provider."""
    for accepts in (wavespeed_codec.ACCEPTS, evolink_codec.ACCEPTS):
        assert (accepts.name, accepts.prompt) == (kling_codec.ACCEPTS.name, kling_codec.ACCEPTS.prompt)
        for mine, theirs in ((accepts.video, kling_codec.VIDEO), (accepts.images, kling_codec.IMAGES)):
            assert mine is not None
            assert attrs.evolve(mine, local=theirs.local) == theirs


@pytest.mark.parametrize(
    ("seconds", "size", "rejected"),
    [
        (3.0, 0, []),
        (8.0, 0, []),
        (2.8, 0, ["video"]),
        (8.2, 0, ["video"]),
        (5.0, 200 * MB, []),
        (5.0, 200 * MB + 1, ["video"]),
    ],
)
def test_local_video_limits(make_clip: Callable[..., Path], seconds: float, size: int, rejected: list[str]) -> None:
    """A local video is uploaded to Wavespeed, within Kling's limits; Evolink takes URLs only."""
    clip = make_clip(seconds)
    with clip.open("r+b") as file:
        file.truncate(max(size, clip.stat().st_size))
    request = CharacterRequest(video=clip, **TEXTS)
    assert (rejected_fields(Wavespeed, request), rejected_fields(Evolink, request)) == (rejected, ["video"])


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        (png(300, 300), []),
        (jpeg(300, 750), []),
        (png(299, 300), ["images[1]"]),
        (png(300, 751), ["images[1]"]),
        (png(300, 300, size=10 * MB), []),
        (png(300, 300, size=10 * MB + 1), ["images[1]"]),
        (b"GIF89a" + bytes(50), ["images[1]"]),
        (b"", ["images[1]"]),
    ],
)
def test_local_image_limits(tmp_path: Path, content: bytes, rejected: list[str]) -> None:
    """A local image is uploaded to Wavespeed, within Kling's limits; Evolink takes URLs only."""
    path = tmp_path / "side.png"
    path.write_bytes(content)
    request = CharacterRequest(images=[IMAGES[0], path], **TEXTS)
    refused = [*dict.fromkeys(rejected_fields(Evolink, request))]
    assert (rejected_fields(Wavespeed, request), refused) == (rejected, ["images[1]"])


def test_wavespeed_bodies() -> None:
    """Wavespeed has names of its own, and flat lists of URLs."""
    request = CharacterRequest(video=VIDEO, voice="v1", **TEXTS)
    assert wavespeed_codec.element_body(request, video=VIDEO, images=[]) == {
        "name": "Rex",
        "description": "A friendly dog",
        "reference_type": "video_refer",
        "element_video_list": [VIDEO],
        "element_voice_id": "v1",
    }
    request = CharacterRequest(images=IMAGES, **TEXTS)
    assert wavespeed_codec.element_body(request, video=None, images=["A", "B", "C"]) == {
        "name": "Rex",
        "description": "A friendly dog",
        "reference_type": "image_refer",
        "frontal_image": "A",
        "refer_images": ["B", "C"],
    }


def test_evolink_bodies() -> None:
    """Evolink takes Kling's members as parameters of a model."""
    request = CharacterRequest(images=IMAGES, **TEXTS)
    url = "https://hooks.example/t"
    assert evolink_codec.element_body(request, callback_url=url, video=None, images=["A", "B"]) == {
        "model": "kling-custom-element",
        "model_params": {
            "element_name": "Rex",
            "element_description": "A friendly dog",
            "reference_type": "image_refer",
            "element_image_list": {"frontal_image": "A", "refer_images": [{"image_url": "B"}]},
        },
        "callback_url": url,
    }


@pytest.mark.parametrize(
    ("provider", "options", "text"),
    [
        (Wavespeed, {"webhook_secret": ""}, "webhook_secret must be"),
        (Wavespeed, {"webhook_secret": "whsec_"}, "webhook_secret must be"),
        (Wavespeed, {"callback_url": "hooks"}, "callback_url"),
        (Evolink, {"callback_url": "hooks"}, "callback_url"),
        (Evolink, {"callback_url": "http://hooks.example"}, "callback_url must be an https:// URL"),
    ],
)
def test_rejects_invalid_options(provider: Any, options: dict[str, Any], text: str) -> None:
    """An invalid option is an error before anything is sent."""
    with pytest.raises(ConfigurationError, match=text):
        provider("key", **options)


def test_callback_urls() -> None:
    """Evolink accepts https:// URLs, and Wavespeed's may be http:// for an emulator."""
    assert Evolink("key", callback_url="https://hooks.example/").callback_url == "https://hooks.example"
    assert Wavespeed("key", callback_url="http://127.0.0.1:8090").callback_url == "http://127.0.0.1:8090"


def test_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The webhook secret may come from the environment, and is shown nowhere."""
    monkeypatch.setenv("WAVESPEED_WEBHOOK_SECRET", "whsec_from-the-environment")
    provider = Wavespeed("key")
    assert provider._webhook_key == b"from-the-environment"
    assert "environment" not in repr(provider)
