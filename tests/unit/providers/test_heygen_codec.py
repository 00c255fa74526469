"""Requests to HeyGen, their limits, and responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    BlockedError,
    CharacterRequest,
    ConfigurationError,
    HeyGen,
    InsufficientCreditsError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRequest,
    TaskSnapshot,
)
from sora_chars.providers import heygen_codec as codec
from sora_chars.providers.named_keys import key_suffix
from sora_chars.responses import Response
from tests.support.heygen_account import PHOTO, VIDEO
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sora_chars.models import Request

MB = 1024 * 1024


def rejected_fields(request: Request) -> list[str]:
    """Return the fields that HeyGen cannot accept."""
    return [line.partition(" must ")[0] for line in HeyGen("key").check(request)]


def respond(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with JSON, or with these bytes."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def read(look: object, seen: TaskSnapshot | None = None, headers: Mapping[str, str] | None = None) -> TaskSnapshot:
    """Read the response to a poll of look-1."""
    return codec.read_look(respond(200, {"data": look}, headers), task_id="look-1", provider="heygen", seen=seen)


def create(response: Response) -> TaskSnapshot:
    """Read the response to a create."""
    return codec.read_created(response, model="heygen-photo", provider="heygen")


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"video": VIDEO}, []),
        ({"images": [PHOTO]}, []),
        ({"images": [PHOTO] * 2}, ["images"]),
        ({"video": VIDEO, "name": "x" * 1000}, []),
        ({"video": VIDEO, "name": None}, ["name"]),
        ({"video": VIDEO, "name": " "}, ["name"]),
        ({"video": VIDEO, "clip": "1,15.9"}, ["clip"]),
        ({"video": VIDEO, "prompt": "x", "safety": "x", "voice": "v"}, ["prompt", "safety", "voice"]),
        ({"from_task": "t1"}, ["from_task"]),
    ],
)
def test_documented_limits(fields: dict[str, Any], rejected: list[str]) -> None:
    """All limits that a request breaks are listed; a request within them has none."""
    assert rejected_fields(CharacterRequest(**{"name": "Rex"} | fields)) == rejected


def test_other_requests() -> None:
    """HeyGen takes no requests for other models."""
    assert rejected_fields(TaskRequest(model="m")) == ["request"]


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        (png(10, 10), []),
        (jpeg(10, 10), []),
        (b"GIF89a", ["images[0]"]),
        (png(10, 10, size=32 * MB), []),
        (png(10, 10, size=32 * MB + 1), ["images[0]"]),
    ],
)
def test_local_photos(tmp_path: Path, content: bytes, rejected: list[str]) -> None:
    """A local photo is a JPEG or PNG of at most 32 MB, the limit of uploads."""
    path = tmp_path / "front.png"
    path.write_bytes(content)
    assert rejected_fields(CharacterRequest(images=[path], name="Rex")) == rejected


@pytest.mark.parametrize(
    ("seconds", "size", "rejected"),
    [(15.0, 0, []), (14.8, 0, ["video"]), (600.0, 0, []), (20.0, 32 * MB, []), (20.0, 32 * MB + 1, ["video"])],
)
def test_local_videos(make_clip: Callable[..., Path], seconds: float, size: int, rejected: list[str]) -> None:
    """A local clip runs at least 15 s and has at most 32 MB."""
    clip = make_clip(seconds)
    with clip.open("r+b") as file:
        file.truncate(max(size, clip.stat().st_size))
    assert rejected_fields(CharacterRequest(video=clip, name="Rex")) == rejected


def test_local_video_formats(tmp_path: Path) -> None:
    """A local clip is an MP4 file; the error names the shortest duration."""
    path = tmp_path / "clip.mov"
    path.write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    assert rejected_fields(CharacterRequest(video=path, name="Rex")) == ["video"]


def test_short_video(make_clip: Callable[..., Path]) -> None:
    """The message of a clip that is too short states the limit."""
    (problem,) = HeyGen("key").check(CharacterRequest(video=make_clip(3.0), name="Rex"))
    assert problem.startswith("video must run at least 15 seconds, got 3.00")


def test_bodies() -> None:
    """A clip makes a digital twin and a photo a photo avatar, named by the digest of the key."""
    name = "Rex" + key_suffix("order-17")
    file = {"type": "url", "url": VIDEO}
    twin = CharacterRequest(video=VIDEO, name="Rex")
    assert codec.avatar_body(twin, key="order-17", file=file) == {"type": "digital_twin", "name": name, "file": file}
    photo = CharacterRequest(images=[PHOTO], name="Rex")
    assert codec.avatar_body(photo, key="order-17", file=file)["type"] == "photo"
    assert (codec.model_of(twin), codec.model_of(photo)) == ("heygen-digital_twin", "heygen-photo")


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("place", ["avatar_item", "data"])
def test_an_id_in_any_answer_is_the_look(status: int, place: str) -> None:
    """An id is enough, whatever the status is."""
    look = {"id": "look-1", "status": "pending_consent"}
    made = create(respond(status, {"data": {"avatar_item": look} if place == "avatar_item" else look}))
    assert (made.task_id, made.state, made.status, made.model) == (
        "look-1", "pending_consent", "running", "heygen-photo"
    )  # fmt: skip


@pytest.mark.parametrize("data", [None, {}, {"avatar_item": None}, {"avatar_item": {"id": ""}}, {"id": True}, []])
def test_success_without_an_id(data: object) -> None:
    """A success without an id leaves the outcome unknown: the list may show the avatar."""
    with pytest.raises(NoAnswerError, match="no look id") as caught:
        create(respond(200, {"data": data}))
    assert not caught.value.harmless


@pytest.mark.parametrize(
    ("kind", "model"), [("digital_twin", "heygen-digital_twin"), ("photo_avatar", "heygen-photo"), (None, None)]
)
def test_finished_look(kind: str | None, model: str | None) -> None:
    """A completed look is a character, used by its id, with its picture and its time."""
    look = {
        "id": "look-1",
        "name": "Rex_1",
        "avatar_type": kind,
        "status": "completed",
        "preview_image_url": "https://files.example/p.webp",
        "created_at": 1_780_000_000,
    }
    snapshot = read(look)
    character = snapshot.character
    assert character is not None
    assert (snapshot.status, snapshot.model, snapshot.created_at) == ("succeeded", model, 1_780_000_000)
    assert (character.id, character.name, character.task_id, character.raw) == ("look-1", "Rex_1", "look-1", look)
    assert character.picture_url == "https://files.example/p.webp"
    assert character.usage == {"type": "avatar", "avatar_id": "look-1"}


def test_little_is_known_of_a_look() -> None:
    """What is missing or odd is left out; the model of the create is kept."""
    look = {"status": "completed", "name": 5, "preview_image_url": "p", "created_at": "now"}
    snapshot = read(look, create(respond(200, {"data": {"avatar_item": {"id": "look-1"}}})))
    assert snapshot.character is not None
    assert (snapshot.character.name, snapshot.character.picture_url) == (None, None)
    assert (snapshot.created_at, snapshot.model) == (None, "heygen-photo")
    assert read({"status": "processing", "created_at": "2026-05-28T20:28:20"}).created_at is None
    assert read({"status": "processing", "created_at": "2026-05-28T20:26:40Z"}).created_at == 1_780_000_000
    assert read({"status": "processing", "created_at": []}).created_at is None


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ({"code": "video_too_short", "message": "too short"}, "video_too_short", "too short"),
        ({"code": None}, None, "no reason was given"),
        (None, None, "no reason was given"),
    ],
)
def test_failed_look(error: object, code: str | None, text: str) -> None:
    """A failed look raises its code and message."""
    with pytest.raises(TaskFailedError, match=text) as caught:
        read({"status": "failed", "error": error}).outcome()
    assert caught.value.code == code


@pytest.mark.parametrize("status", ["processing", "pending_consent", "novel"])
def test_running_look(status: str) -> None:
    """A state that is not known is still running; an unchanged response is not parsed again."""
    snapshot = read({"id": "look-1", "status": status}, headers={"Retry-After": "3"})
    assert (snapshot.state, snapshot.finished, snapshot.retry_after) == (status, False, 3.0)
    assert read({"id": "look-1", "status": status}, snapshot, {"Retry-After": "3"}) is snapshot
    assert read({"id": "look-1", "status": status}, snapshot) is not snapshot


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (respond(200, {"data": {"id": "look-2", "status": "completed"}}), "another look's record"),
        (respond(200, {"data": {"id": "look-1"}}), "no status"),
        (respond(200, {"data": []}), "no data"),
        (respond(200, {"error": None}), "unreadable"),
        (respond(200, b"<html>"), "unreadable"),
        (respond(200, []), "unreadable"),
        (respond(502, b"<html>"), "unreadable"),
        (respond(500, {"message": "x"}), "unreadable"),
    ],
)
def test_unreadable_responses(response: Response, why: str) -> None:
    """A response that HeyGen did not write ends no wait."""
    with pytest.raises(NoAnswerError, match=why) as caught:
        codec.read_look(response, task_id="look-1", provider="heygen")
    assert caught.value.transient


@pytest.mark.parametrize(
    ("code", "status", "paid", "free"),
    [
        ("rate_limit_exceeded", 429, RateLimitedError, RateLimitedError),
        ("service_unavailable", 503, NoAnswerError, ServiceUnavailableError),
        ("internal_error", 500, NoAnswerError, ServiceUnavailableError),
        ("gateway_timeout", 504, NoAnswerError, ServiceUnavailableError),
        ("resource_not_ready", 409, ServiceUnavailableError, ServiceUnavailableError),
        ("insufficient_credit", 402, InsufficientCreditsError, InsufficientCreditsError),
        ("quota_exceeded", 429, InsufficientCreditsError, InsufficientCreditsError),
        ("plan_upgrade_required", 403, InsufficientCreditsError, InsufficientCreditsError),
        ("trial_limit_exceeded", 403, InsufficientCreditsError, InsufficientCreditsError),
        ("avatar_not_found", 404, RequestRejectedError, TaskNotFoundError),
        ("novel", 400, RequestRejectedError, RequestRejectedError),
        ("novel", 401, AuthenticationError, AuthenticationError),
        ("novel", 402, InsufficientCreditsError, InsufficientCreditsError),
        ("novel", 403, PermissionDeniedError, PermissionDeniedError),
        ("novel", 404, ModelUnavailableError, ModelUnavailableError),
        ("novel", 429, RateLimitedError, RateLimitedError),
        ("novel", 500, NoAnswerError, ServiceUnavailableError),
        ("novel", 408, NoAnswerError, ServiceUnavailableError),
    ],
)
def test_errors(code: str, status: int, paid: type[ProviderError], free: type[ProviderError]) -> None:
    """The code decides, and the status about one that is not known; a server's error leaves a create unknown."""
    response = respond(status, {"data": None, "error": {"code": code, "message": "no luck"}}, {"Retry-After": "7"})
    with pytest.raises(ProviderError, match="no luck") as caught:
        create(response)
    error = caught.value
    assert (type(error), error.code, error.status, error.retry_after) == (paid, code, status, 7.0)
    assert error.harmless is (paid is RateLimitedError or code == "resource_not_ready")
    with pytest.raises(ProviderError) as caught:
        codec.read_look(response, task_id="look-1", provider="heygen")
    assert type(caught.value) is free


def test_error_without_a_message() -> None:
    """An error without a message is shown as such."""
    with pytest.raises(RequestRejectedError, match="400 with code novel: no message"):
        create(respond(400, {"error": {"code": "novel", "message": None}}))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (302, b"", BlockedError),
        (403, b"<html>", BlockedError),
        (400, {"message": "x"}, BlockedError),
        (401, b"<html>", AuthenticationError),
        (404, b"<html>", ModelUnavailableError),
        (429, b"", RateLimitedError),
    ],
)
def test_pages_in_front(status: int, body: object, kind: type[ProviderError]) -> None:
    """A page of a proxy or a firewall rejects a create, and ends no wait."""
    with pytest.raises(ProviderError) as caught:
        create(respond(status, body))
    assert type(caught.value) is kind
    with pytest.raises(ProviderError) as caught:
        codec.read_look(respond(status, body), task_id="look-1", provider="heygen")
    assert (type(caught.value), caught.value.transient) == (kind, True)


def test_lists() -> None:
    """A page gives its records, and the token of the next page if there is one."""
    records = [{"id": "a", "name": "Rex_1"}, 5]
    page = respond(200, {"data": records, "has_more": True, "next_token": "t"})
    assert codec.read_page(page) == ([records[0]], "t")
    ends: tuple[dict[str, Any], ...] = (
        {"data": []},
        {"data": [], "has_more": False, "next_token": "t"},
        {"data": [], "has_more": True, "next_token": None},
    )
    for last in ends:
        assert codec.read_page(respond(200, last)) == ([], None)
    with pytest.raises(NoAnswerError, match="no list"):
        codec.read_page(respond(200, {"data": {}}))
    assert [codec.is_look(one) for one in ({"group_id": "g"}, {"avatar_type": "photo"}, {"id": "g"})] == [
        True, True, False
    ]  # fmt: skip
    assert [look.task_id for look in codec.looks([{"id": "a"}, {"id": None}], provider="heygen")] == ["a"]
    assert codec.is_named(records[0], "_1")
    assert not codec.is_named({"name": 5}, "_1")
    assert not codec.is_named(None, "_1")


def test_other_responses() -> None:
    """Uploads give an id, pages of consent a URL, and a delete that finds nothing is a success too."""
    assert codec.read_asset(respond(200, {"data": {"asset_id": "a1"}})) == "a1"
    assert codec.read_consent(respond(200, {"data": {"url": "https://x.example/c"}})) == "https://x.example/c"
    for read_one in (codec.read_asset, codec.read_consent):
        with pytest.raises(NoAnswerError):
            read_one(respond(200, {"data": {"asset_id": "", "url": "c"}}))
    with pytest.raises(NoAnswerError, match="no page of consent"):
        codec.read_consent(respond(200, {"data": {"url": "https://x.example/\x1b[2J"}}))
    codec.read_deleted(respond(204, b""))
    codec.read_deleted(respond(200, {"data": None}))
    codec.read_deleted(respond(404, {"error": {"code": "avatar_not_found"}}))
    with pytest.raises(ModelUnavailableError):
        codec.read_deleted(respond(404, b"<html>"))
    assert codec.group_of(TaskSnapshot(task_id="l", provider="heygen", state="x", raw={"group_id": "g"})) == "g"
    assert codec.group_of(TaskSnapshot(task_id="l", provider="heygen", state="x")) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"callback_url": "https://app.example/cb"}, "callback_url must be omitted: HeyGen has callbacks for a whole"),
        ({"consent_interval": 0}, "consent_interval must be a number of seconds above 0, got 0"),
        ({"consent_interval": True}, "consent_interval"),
        ({"consent_interval": "60"}, "consent_interval"),
        ({"consent_interval": float("inf")}, "consent_interval"),
    ],
)
def test_rejects_invalid_options(options: dict[str, Any], text: str) -> None:
    """Callbacks are not supported, and the interval is a number of seconds."""
    with pytest.raises(ConfigurationError, match=text):
        HeyGen("key", **options)


def test_needs_a_key() -> None:
    """A missing key is an error that names the variable."""
    with pytest.raises(ConfigurationError, match="Set HEYGEN_API_KEY"):
        HeyGen()
