"""The provider Wavespeed against the emulator: uploads, a foreign client, and what the emulator rejects."""

from __future__ import annotations

import logging
import socket
import traceback
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    InvalidRequestError,
    Kling,
    NoAnswerError,
    RequestRejectedError,
    UploadProgress,
    Wavespeed,
)
from tests.support.gateway_accounts import IMAGES, KEYS, VIDEO, only_task, quick_emulator, session_at
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

KEY = KEYS["wavespeed"]
CREATE = "/api/v3/kwaivgi/kling-elements-advanced"
VIDEO_BODY = (
    b'{"name":"a","description":"b","reference_type":"video_refer","element_video_list":["https://a.example/b.mp4"]}'
)
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with quick_emulator() as running:
        yield running


async def test_local_images(emulator: Emulator, tmp_path: Path) -> None:
    """Local images are uploaded first, in their order, with progress; links are sent as they are."""
    front, side = tmp_path / "front.png", tmp_path / "side.jpg"
    front.write_bytes(png(300, 400, size=2_000_000))
    side.write_bytes(jpeg(400, 300))
    reported: list[UploadProgress] = []
    async with session_at(emulator, "wavespeed", on_upload=reported.append) as session:
        await session.create(images=[front, IMAGES[1], side], name="Rex", prompt="A friendly dog")
    sent: Any = only_task(emulator, "wavespeed").input
    uploads = [sent["frontal_image"], sent["refer_images"][1]]
    contents = [file.content for url in uploads if (file := emulator.files.find(url))]
    assert contents == [png(300, 400, size=2_000_000), jpeg(400, 300)]
    assert sent["refer_images"][0] == IMAGES[1]
    assert reported[-2:] == [
        UploadProgress(front, 2_000_000, 2_000_000),
        UploadProgress(side, len(jpeg(400, 300)), len(jpeg(400, 300))),
    ]


async def test_local_video(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A local video is uploaded; one that breaks a limit is refused before anything is sent."""
    async with session_at(emulator, "wavespeed") as session:
        await session.create(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
        with pytest.raises(InvalidRequestError, match="video must run 3 to 8 seconds"):
            await session.create(video=make_clip(9.0, name="long.mp4"), name="Rex", prompt="A friendly dog")
    sent: Any = only_task(emulator, "wavespeed").input
    assert [url.startswith(emulator.url) for url in sent["element_video_list"]] == [True]
    assert emulator.counts.uploads == 1


async def test_failed_upload(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """If the upload fails, nothing was paid for; a transient fault of it is retried."""
    emulator.fault("wavespeed_error", on="prediction_upload", status=401)
    async with session_at(emulator, "wavespeed") as session:
        with pytest.raises(AuthenticationError):
            await session.create(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
        emulator.fault("wavespeed_error", on="prediction_upload", status=503)
        await session.create(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
    assert emulator.counts.gateway_elements == 1


async def test_hosting_elsewhere(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A file that Wavespeed makes public serves a provider that takes URLs only."""
    async with Wavespeed(KEY, base_url=emulator.url) as wavespeed:
        kling = Kling("any", base_url=emulator.url, hosting=wavespeed.upload)
        async with CharacterSession(kling) as session:
            await session.submit(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
        with pytest.raises(FileNotFoundError):
            await wavespeed.upload("none.mp4")
    (task,) = emulator.kling.tasks.values()
    body: Any = task.body
    file = emulator.files.find(body["element_video_list"]["refer_videos"][0]["video_url"])
    assert file is not None
    assert file.content == make_clip(5.0).read_bytes()


async def test_voice(emulator: Emulator) -> None:
    """A voice is passed on."""
    async with session_at(emulator, "wavespeed") as session:
        await session.create(**VIDEO, voice="v1")
    assert only_task(emulator, "wavespeed").input["element_voice_id"] == "v1"


async def test_rejected_parameter(emulator: Emulator) -> None:
    """A rejection of the gateway shows its reason, and is sent once."""
    emulator.fault("wavespeed_error", status=400, code=1401, message="frontal_image is too small")
    async with session_at(emulator, "wavespeed") as session:
        with pytest.raises(RequestRejectedError, match="HTTP 400 with code 1401: frontal_image is too small"):
            await session.create(**VIDEO)
    assert len(emulator.requests) == 1


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client that follows Wavespeed's page is served."""
    body = {"name": "Rex", "description": "A friendly dog", "frontal_image": IMAGES[0], "refer_images": [IMAGES[1]]}
    async with aiohttp.ClientSession(emulator.url, headers=HEADERS) as client:
        async with client.post(CREATE, json=body) as response:
            made = await response.json()
        task_id = made["data"]["id"]
        await emulator.until(lambda: emulator.wavespeed.tasks[task_id].finished)
        async with client.get(f"/api/v3/predictions/{task_id}/result") as response:
            done = await response.json()
        form = aiohttp.FormData()
        form.add_field("file", png(300, 300), filename="image.png", content_type="image/png")
        async with client.post("/api/v3/media/upload/binary", data=form) as response:
            uploaded = await response.json()
    assert (made["code"], made["message"], made["data"]["status"], made["data"]["outputs"]) == (
        200,
        "success",
        "created",
        [],
    )
    assert made["data"]["urls"]["get"] == f"{emulator.url}/api/v3/predictions/{task_id}/result"
    assert (done["data"]["status"], done["data"]["outputs"][0]["element_name"]) == ("completed", "Rex")
    assert (uploaded["data"]["type"], uploaded["data"]["size"]) == ("image", len(png(300, 300)))
    assert uploaded["data"]["download_url"].startswith(emulator.url)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CREATE, b"{", 400),
        ("POST", CREATE, b"[]", 400),
        ("POST", CREATE, b"{}", 400),
        ("POST", f"{CREATE}?webhook=hooks", VIDEO_BODY, 400),
        ("POST", f"{CREATE}?webhook=https://hooks.example/a", VIDEO_BODY, 200),
        ("GET", "/api/v3/predictions/none/result", b"", 404),
        ("GET", "/api/v3/predictions/none", b"", 404),
        ("POST", "/api/v3/media/upload/binary", b"{}", 400),
        ("GET", "/api/v3/balance", b"", 200),
    ],
)
async def test_invalid_requests(emulator: Emulator, method: str, path: str, body: bytes, status: int) -> None:
    """The emulator rejects what the contract does not describe."""
    headers = HEADERS | {"Content-Type": "application/json"}
    emulator.wavespeed.callbacks.lost = True
    async with (
        aiohttp.ClientSession(emulator.url, headers=headers) as client,
        client.request(method, path, data=body) as response,
    ):
        assert response.status == status


@pytest.mark.parametrize(
    ("name", "filename", "content_type", "content", "status"),
    [
        ("file", "clip.mp4", None, None, 200),
        ("file", "voice.mp3", None, None, 200),
        ("file", "page.html", None, None, 400),
        ("file", "image", None, None, 400),
        ("video", "clip.mp4", None, None, 400),
        ("file", "clip.mp4", "multipart/form-data; boundary=x", b"--y", 400),
    ],
)
async def test_invalid_uploads(
    emulator: Emulator, *, name: str, filename: str, content_type: str | None, content: bytes | None, status: int
) -> None:
    """An upload is an image, a video or sound in the part "file"."""
    form = aiohttp.FormData()
    form.add_field(name, b"content", filename=filename)
    headers = HEADERS | ({"Content-Type": content_type} if content_type else {})
    data: Any = content or form
    async with (
        aiohttp.ClientSession(emulator.url, headers=headers) as client,
        client.post("/api/v3/media/upload/binary", data=data) as response,
    ):
        assert response.status == status


async def test_uploaded_images_are_checked(emulator: Emulator, tmp_path: Path) -> None:
    """The emulator knows the size of an image that it stores, as the gateway does."""
    small = tmp_path / "small.png"
    small.write_bytes(png(299, 300))
    async with Wavespeed(KEY, base_url=emulator.url) as wavespeed:
        url = await wavespeed.upload(small)
    async with session_at(emulator, "wavespeed") as session:
        with pytest.raises(RequestRejectedError, match="at least 300px"):
            await session.create(images=[IMAGES[0], url], name="Rex", prompt="A friendly dog")


async def test_requests_of_strangers(emulator: Emulator, tmp_path: Path) -> None:
    """A path from a stranger is refused where the request is made, so no file of the server is uploaded."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(300, 300))
    with pytest.raises(InvalidRequestError):
        CharacterRequest.from_untrusted({"images": [IMAGES[0], str(secret)], "name": "Rex", "prompt": "A dog"})
    assert not emulator.requests


async def test_connection_that_times_out(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback URL in the query of a create stands in no error, traceback or log record, and in no entry."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("sora_chars.transport.random.uniform", lambda *_: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # no TLS handshake ever begins
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        provider = Wavespeed(KEY, base_url=url, callback_url="https://hooks.example", timeout=0.2)
        async with CharacterSession(provider) as session:
            with pytest.raises(NoAnswerError) as caught:
                await session.create(**VIDEO, key="order-17", timeout=20.0)
            entry = await session.entry("order-17")
    shown = "".join(traceback.format_exception(caught.value)) + repr([vars(record) for record in caplog.records])
    assert "Connection timeout" in shown
    assert entry is not None
    assert "hooks.example/" not in f"{shown}{entry.error_json}"
