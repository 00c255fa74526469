"""Requests to Vidu, their limits, and responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    BlockedError,
    CharacterRequest,
    InsufficientCreditsError,
    ModelUnavailableError,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskRequest,
    Vidu,
)
from sora_chars.providers import vidu_codec as codec
from sora_chars.providers.named_keys import key_suffix
from sora_chars.providers.vidu import CHINA, INTERNATIONAL
from sora_chars.responses import Response
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.models import Request

IMAGE = "https://images.example/front.png"
VIDEO = "https://clips.example/rex.mp4"
MB = 1024 * 1024


def rejected_fields(request: Request) -> list[str]:
    """Return the fields that Vidu cannot accept."""
    return [line.partition(" must ")[0] for line in Vidu("key").check(request)]


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"images": [IMAGE]}, []),
        ({"images": [IMAGE] * 3, "voice": "v1"}, []),
        ({"images": [IMAGE] * 4}, ["images"]),
        ({"video": VIDEO, "voice": "v1"}, []),
        ({"video": VIDEO, "name": "x" * 53}, []),
        ({"video": VIDEO, "name": "x" * 54}, ["name"]),
        ({"video": VIDEO, "name": None}, ["name"]),
        ({"video": VIDEO, "clip": "1,6.1", "prompt": "x", "safety": "x"}, ["clip", "prompt", "safety"]),
        ({"from_task": "t1"}, ["from_task"]),
    ],
)
def test_documented_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """All limits that a request breaks are listed; a request within them has none."""
    options: dict[str, Any] = {"name": "Rex"} | fields
    assert rejected_fields(CharacterRequest(**options)) == rejected


def test_other_requests() -> None:
    """Vidu takes no requests for other models."""
    assert rejected_fields(TaskRequest(model="m")) == ["request"]


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        (png(100, 400), []),
        (png(100, 401), ["images[0]"]),
        (jpeg(400, 100), []),
        (png(401, 100), ["images[0]"]),
        (png(100, 100, size=20 * MB - 1), []),
        (png(100, 100, size=20 * MB), ["images[0]"]),
        (b"GIF89a", ["images[0]"]),
        (b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x63\0\0\x63\0\0", []),
    ],
)
def test_local_image_limits(tmp_path: Path, content: bytes, rejected: list[str]) -> None:
    """A local image is a PNG, JPEG or WebP below 20 MB with a ratio of 1:4 to 4:1."""
    path = tmp_path / "front.png"
    path.write_bytes(content)
    assert rejected_fields(CharacterRequest(images=[path], name="Rex")) == rejected


@pytest.mark.parametrize(("seconds", "rejected"), [(0.5, []), (5.0, []), (5.09, []), (5.2, ["video"])])
def test_local_video_limits(make_clip: Callable[..., Path], seconds: float, rejected: list[str]) -> None:
    """A local video runs at most 5 s, with a tolerance."""
    assert rejected_fields(CharacterRequest(video=make_clip(seconds), name="Rex")) == rejected


def test_bodies() -> None:
    """The name ends in the digest of the key; what was not given is left out."""
    images = CharacterRequest(images=[IMAGE], name="Rex", voice="v1")
    name = "Rex" + key_suffix("order-17")
    assert codec.subject_body(images, key="order-17", video=None, images=[IMAGE]) == {
        "name": name,
        "images": [IMAGE],
        "voice_id": "v1",
    }
    video = CharacterRequest(video=VIDEO, name="Rex")
    assert codec.subject_body(video, key="order-17", video=VIDEO, images=[]) == {"name": name, "videos": [VIDEO]}
    assert len("x" * 53 + key_suffix("\ud83d")) == 64
    assert key_suffix("order-17") != key_suffix("order-18")


def respond(status: int, body: object) -> Response:
    """Return a response with JSON, or with these bytes."""
    return Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_created() -> None:
    """The response is the finished character, with its cost and the way to use it."""
    body = {"id": 2**64 + 1, "name": "Rex_1", "images": [IMAGE], "credits": 5}
    made = codec.read_created(respond(200, body), provider="vidu")
    character = made.character
    assert character is not None
    assert (made.status, made.credits, made.task_id) == ("succeeded", 5.0, str(2**64 + 1))
    assert (character.id, character.name, character.mention) == (str(2**64 + 1), "Rex_1", "@Rex_1")
    assert character.usage == {"prompt": "@Rex_1", "subjects": [{"name": "Rex_1", "server_id": str(2**64 + 1)}]}


@pytest.mark.parametrize("status", [200, 201, 400, 500])
def test_an_id_in_any_answer_is_the_subject(status: int) -> None:
    """An id is enough, whatever the status is and whatever else is missing."""
    made = codec.read_created(respond(status, {"id": "s1", "credits": True}), provider="vidu")
    assert made.character is not None
    assert (made.character.id, made.character.usage, made.credits) == ("s1", None, None)


@pytest.mark.parametrize("body", [{}, {"id": ""}, {"id": None}, {"id": True}, {"id": 5.5}, {"id": "a\nb"}])
def test_success_without_an_id(body: object) -> None:
    """A success without an id leaves the outcome unknown, since the list may show the subject."""
    with pytest.raises(NoAnswerError, match="without the id of a subject") as caught:
        codec.read_created(respond(200, body), provider="vidu")
    assert not caught.value.harmless


def test_an_error_in_a_success() -> None:
    """A body that describes an error in HTTP 200 proves no charge."""
    with pytest.raises(NoAnswerError, match="bad image"):
        codec.read_created(respond(200, {"code": 400, "message": "bad image"}), provider="vidu")


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (400, RequestRejectedError)])
def test_the_id_of_an_error(status: int, kind: type[ProviderError]) -> None:
    """An id beside the message of an error is that of the HTTP request, and no subject."""
    with pytest.raises(kind):
        codec.read_created(respond(status, {"id": "request-1", "message": "no"}), provider="vidu")


def test_credits_as_a_field_are_no_lack_of_money() -> None:
    """Only the message or the reason of an error decides about money, and not the names of its fields."""
    with pytest.raises(RequestRejectedError):
        codec.read_created(respond(400, {"reason": "InvalidImage", "credits": 0}), provider="vidu")
    with pytest.raises(InsufficientCreditsError):
        codec.read_created(respond(400, {"reason": "CreditInsufficient"}), provider="vidu")


@pytest.mark.parametrize(
    ("status", "body", "paid", "free"),
    [
        (400, {"message": "bad image"}, RequestRejectedError, RequestRejectedError),
        (400, {"message": "Insufficient Credits"}, InsufficientCreditsError, InsufficientCreditsError),
        (401, {"message": "no"}, AuthenticationError, AuthenticationError),
        (402, {}, InsufficientCreditsError, InsufficientCreditsError),
        (403, {"message": "no"}, AuthenticationError, AuthenticationError),
        (403, {"message": "out of credits"}, InsufficientCreditsError, InsufficientCreditsError),
        (404, {}, ModelUnavailableError, ModelUnavailableError),
        (429, {"message": "slow down"}, RateLimitedError, RateLimitedError),
        (429, {"message": "credit insufficient"}, InsufficientCreditsError, InsufficientCreditsError),
        (500, {"err_msg": "credits service"}, NoAnswerError, ServiceUnavailableError),
        (502, b"<html>", NoAnswerError, ServiceUnavailableError),
        (408, {}, NoAnswerError, ServiceUnavailableError),
        (302, b"", BlockedError, BlockedError),
        (403, b"<html>", BlockedError, BlockedError),
        (401, b"<html>", AuthenticationError, AuthenticationError),
        (200, b"<html>", NoAnswerError, ServiceUnavailableError),
        (200, b"", NoAnswerError, ServiceUnavailableError),
    ],
)
def test_errors(status: int, body: object, paid: type[ProviderError], free: type[ProviderError]) -> None:
    """The status and a text about credits decide; a server's error leaves the outcome of a create unknown."""
    with pytest.raises(ProviderError) as caught:
        codec.read_created(respond(status, body), provider="vidu")
    assert type(caught.value) is paid
    assert caught.value.harmless is (paid is RateLimitedError)
    with pytest.raises(ProviderError) as caught:
        codec.read_page(respond(status, body), provider="vidu")
    assert type(caught.value) is free


def test_pages() -> None:
    """A page gives its subjects with an id, and the token of the next page."""
    subjects = [{"id": "s1", "name": "Rex"}, {"id": None}, "x"]
    page = respond(200, {"subjects": subjects, "next_page_token": "2"})
    found, token = codec.read_page(page, provider="vidu")
    assert ([one.task_id for one in found], token) == (["s1"], "2")
    ends: list[dict[str, Any]] = [
        {"subjects": []},
        {"subjects": [], "next_page_token": ""},
        {"subjects": [], "next_page_token": 5},
    ]
    for last in ends:
        assert codec.read_page(respond(200, last), provider="vidu") == ([], None)


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default host serves accounts outside China; an option or the environment chooses another."""
    assert f"base_url='{INTERNATIONAL}'" in repr(Vidu("key"))
    assert f"base_url='{CHINA}'" in repr(Vidu("key", base_url=CHINA))
    monkeypatch.setenv("VIDU_BASE_URL", "https://proxy.example")
    monkeypatch.setenv("VIDU_API_KEY", "key")
    assert "base_url='https://proxy.example'" in repr(Vidu())


def test_files_are_not_kept_twice() -> None:
    """A subject that repeats the files that were sent is kept without their contents."""
    subject = {"id": "1", "name": "rex", "images": ["data:image/png;base64,AAAA", "https://a/b.png"]}
    snapshot = codec.read_created(Response(200, {}, json.dumps(subject).encode()), provider="vidu")
    assert snapshot.raw == subject | {"images": ["data:image/png;base64,...", "https://a/b.png"]}
    assert snapshot.character is not None
    assert snapshot.character.raw == snapshot.raw
