"""Requests with images, requests made of a stranger's input, and names that are no fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_chars import CharacterRequest, InvalidRequestError
from sora_chars.models import as_request

IMAGE = "https://images.example/front.png"
VIDEO = "https://clips.example/rex.mp4"
PNG = "data:image/png;base64," + "A" * 3_000_000


def rejected_fields(fields: Any) -> list[str]:
    """Return the fields that a stranger's request is rejected for."""
    with pytest.raises(InvalidRequestError) as caught:
        CharacterRequest.from_untrusted(fields)
    assert "/etc" not in str(caught.value)
    return [line.partition(" must ")[0] for line in caught.value.problems]


@pytest.mark.parametrize(
    ("images", "kept"),
    [
        ([IMAGE], (IMAGE,)),
        ((IMAGE, Path("side.png")), (IMAGE, Path("side.png"))),
        (IMAGE, (IMAGE,)),
        (["file:///faces/front.png"], (Path("/faces/front.png"),)),
        (["~/front.png"] * 4, (Path("~/front.png").expanduser(),) * 4),
    ],
)
def test_images(images: Any, kept: tuple[object, ...]) -> None:
    """1 to 4 images are kept in their order, as URLs or paths; a single image is a list of one."""
    assert CharacterRequest(images=images).images == kept


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"images": []}, ["images"]),
        ({"images": [IMAGE] * 5}, ["images"]),
        ({"images": [IMAGE, ""]}, ["images[1]"]),
        ({"images": [5, IMAGE, PNG]}, ["images[0]", "images[2]"]),
        ({"images": [IMAGE], "voice": 5}, ["voice"]),
        ({"images": [IMAGE], "voice": " "}, ["voice"]),
        ({"images": [IMAGE], "video": VIDEO}, ["exactly one of from_task, video and images"]),
        ({"video": "file://server/share/rex.mp4"}, ["video"]),
        ({"video": "file://"}, ["video"]),
        ({"video": "https://a.example/" + "x" * 8192}, ["video"]),
        ({"video": "a\0b.mp4"}, ["video"]),
        ({"video": PNG}, ["video"]),
    ],
)
def test_source_rules(fields: dict[str, Any], rejected: list[str]) -> None:
    """An invalid source is named, in a message that stays short whatever was given."""
    with pytest.raises(InvalidRequestError) as caught:
        CharacterRequest(**fields)
    assert [line.partition(" must ")[0] for line in caught.value.problems] == rejected
    assert len(str(caught.value)) < 400


def test_both_sources_are_named() -> None:
    """The error about two sources names those that were given."""
    with pytest.raises(InvalidRequestError, match="got video and images"):
        CharacterRequest(video=VIDEO, images=[IMAGE])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("image", "use images="),
        ("model", "use TaskRequest"),
        ("from_tsk", "use from_task"),
        ("descriptions", "use prompt"),
        ("audio_ids", "use voice"),
        ("timestamps", "use clip"),
        ("zzz", "the fields are from_task, video, images, clip, name, prompt, safety, voice, key"),
    ],
)
def test_names_the_field_that_was_meant(name: str, meant: str) -> None:
    """An unknown field is rejected with the field or the class to use in its place."""
    with pytest.raises(InvalidRequestError, match=f"{name} must not be given, since there is no such field; {meant}"):
        as_request(None, {name: "x"})


def test_untrusted_request() -> None:
    """URLs, ids and texts pass; the caller alone chooses the key."""
    fields = {"video": f" {VIDEO}", "clip": [1, 3], "name": "rex", "prompt": "a dog", "safety": None, "voice": "v1"}
    request = CharacterRequest.from_untrusted(fields, key="order-17")
    assert (request.video, str(request.clip), request.key) == (VIDEO, "1,3", "order-17")
    assert CharacterRequest.from_untrusted({"images": [IMAGE]}).images == (IMAGE,)
    assert CharacterRequest.from_untrusted({"from_task": "7118f712"}).key is None


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"video": "/etc/passwd"}, ["video"]),
        ({"video": "file:///etc/passwd"}, ["video"]),
        ({"video": "~/../../etc/passwd"}, ["video"]),
        ({"video": Path("/etc/passwd")}, ["video"]),
        ({"video": ["/etc/passwd"]}, ["video"]),
        ({"video": "ftp://a.example/etc"}, ["video"]),
        ({"video": PNG}, ["video"]),
        ({"images": [IMAGE, "/etc/passwd"]}, ["images[1]"]),
        ({"images": "/etc/passwd"}, ["images"]),
        ({"images": [[IMAGE]]}, ["images[0]"]),
        ({"video": VIDEO, "key": "another's"}, ["key"]),
        ({"video": VIDEO, "timeout": 0}, ["timeout"]),
        ({"video": VIDEO, "provider": "kie"}, ["provider"]),
        ({5: VIDEO}, ["5"]),
        ({"name": "rex"}, ["exactly one of from_task, video and images"]),
        ({"video": VIDEO, "clip": {"start": 1, "end": 2}}, ["clip"]),
        ({"video": VIDEO, "name": {"a": 1}}, ["name"]),
        ([VIDEO], ["request"]),
        (None, ["request"]),
    ],
)
def test_untrusted_input_is_refused(fields: Any, rejected: list[str]) -> None:
    """No path, key, time-out or provider is taken from a stranger, and no path is repeated to them."""
    assert rejected_fields(fields) == rejected
