"""The emulator's upload host: three upload routes and the download of files."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, cast

import aiohttp
import pytest

from sora_chars.testing import Emulator
from sora_chars.testing.emulator import uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STREAM, BASE64, URL = "/api/file-stream-upload", "/api/file-base64-upload", "/api/file-url-upload"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.0, 0.0)) as running:
        yield running


def form(content: bytes = b"clip", filename: str | None = "clip.mp4", **fields: str) -> aiohttp.FormData:
    """Return a multipart body."""
    data = aiohttp.FormData(fields, default_to_multipart=True)
    data.add_field("file", io.BytesIO(content), filename=filename)
    return data


async def upload(http: aiohttp.ClientSession, path: str, **options: object) -> dict[str, object]:
    """Send an upload, and return the whole response."""
    async with http.post(path, **options) as response:  # type: ignore[arg-type]  # data= or json=, as each test says
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        return cast("dict[str, object]", await response.json())


async def fetch(http: aiohttp.ClientSession, response: dict[str, object]) -> tuple[str, bytes]:
    """Download the file of an upload's response."""
    url = cast("dict[str, str]", response["data"])["downloadUrl"]
    async with http.get(url, headers={"Authorization": ""}) as file:
        return file.content_type, await file.read()


async def test_stream_upload(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """An uploaded file is served at `downloadUrl` without a key; the response has the recorded keys."""
    response = await upload(http, STREAM, data=form(uploadPath="videos/user", fileName="a b%.webm"))
    data = cast("dict[str, object]", response["data"])
    assert list(response) == ["success", "code", "msg", "data"]
    assert list(data) == ["success", "fileName", "filePath", "downloadUrl", "fileSize", "mimeType", "uploadedAt"]
    assert (data["fileName"], data["fileSize"], data["mimeType"]) == ("a b%.webm", 4, "video/webm")
    assert str(data["filePath"]).endswith("/videos/user/a b%.webm")
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", str(data["uploadedAt"]))
    assert str(data["downloadUrl"]).endswith("/videos/user/a%20b%25.webm")
    assert await fetch(http, response) == ("video/webm", b"clip")
    assert emulator.counts.uploads == 1


async def test_file_names(http: aiohttp.ClientSession) -> None:
    """`fileName` defaults to the file's name, then to a unique one; an equal name overwrites."""
    named = await upload(http, STREAM, data=form(b"old", uploadPath="x"))
    await upload(http, STREAM, data=form(b"new", uploadPath="x"))
    assert await fetch(http, named) == ("video/mp4", b"new")
    unnamed = [await upload(http, BASE64, json={"base64Data": "AAAA", "uploadPath": "x"}) for _ in range(2)]
    names = {cast("dict[str, str]", response["data"])["fileName"] for response in unnamed}
    assert len(names) == 2
    assert (await fetch(http, unnamed[0]))[0] == "application/octet-stream"


async def test_base64_upload(http: aiohttp.ClientSession) -> None:
    """Bare base64 and a data: URL store the same bytes."""
    for data in ("SGVsbG8=", "data:text/plain;base64,SGVsbG8="):
        response = await upload(http, BASE64, json={"base64Data": data, "uploadPath": "x", "fileName": "a.txt"})
        assert await fetch(http, response) == ("text/plain", b"Hello")


async def test_url_upload(http: aiohttp.ClientSession) -> None:
    """A file of the emulator is copied; for any other URL a sample is stored, without a request."""
    first = await upload(http, STREAM, data=form(uploadPath="x"))
    url = cast("dict[str, str]", first["data"])["downloadUrl"]
    copy = await upload(http, URL, json={"fileUrl": url, "uploadPath": "copies"})
    assert cast("dict[str, str]", copy["data"])["filePath"].endswith("/copies/clip.mp4")
    assert await fetch(http, copy) == ("video/mp4", b"clip")
    body = {"fileUrl": "https://example.invalid/far.mp4?x=1", "uploadPath": "copies"}
    assert b"ftyp" in (await fetch(http, await upload(http, URL, json=body)))[1]


async def test_download_link_of_an_upload(http: aiohttp.ClientSession) -> None:
    """The download-url route accepts uploaded files."""
    first = await upload(http, STREAM, data=form(uploadPath="x"))
    url = cast("dict[str, str]", first["data"])["downloadUrl"]
    async with http.post("/api/v1/common/download-url", json={"url": url}) as response:
        assert (await response.json())["data"] == url


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (STREAM, {"json": {}}, "Content type must be multipart/form-data"),
        (STREAM, {"data": form(uploadPath="/x")}, "uploadPath must not start or end with a slash"),
        (STREAM, {"data": form(uploadPath="x/")}, "uploadPath must not start or end with a slash"),
        (STREAM, {"data": form()}, "uploadPath is required"),
        (STREAM, {"data": aiohttp.FormData({"a": "b"}, default_to_multipart=True)}, "file is required"),
        (BASE64, {"json": {"uploadPath": "x"}}, "base64Data is required"),
        (BASE64, {"json": {"base64Data": "A", "uploadPath": "x"}}, "base64Data is not valid base64"),
        (BASE64, {"json": {"base64Data": "ä", "uploadPath": "x"}}, "base64Data is not valid base64"),
        (BASE64, {"json": {"base64Data": "AAAA"}}, "uploadPath is required"),
        (URL, {"json": {"uploadPath": "x"}}, "fileUrl is required"),
    ],
)
async def test_rejects_invalid_uploads(
    emulator: Emulator, http: aiohttp.ClientSession, path: str, body: dict[str, object], message: str
) -> None:
    """A rejected upload has `success` false, code 400 and a reason, and stores nothing."""
    assert await upload(http, path, **body) == {"success": False, "code": 400, "msg": message}
    assert emulator.counts.uploads == 0


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b"no boundary at all", b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
async def test_rejects_broken_multipart_bodies(emulator: Emulator, http: aiohttp.ClientSession, body: bytes) -> None:
    """A broken multipart body is code 400."""
    for content_type in ("multipart/form-data; boundary=x", "multipart/form-data"):
        response = await upload(http, STREAM, data=body, headers={"Content-Type": content_type})
        assert response["code"] == 400
    assert emulator.counts.uploads == 0


async def test_ignores_nested_multipart_bodies(http: aiohttp.ClientSession) -> None:
    """A nested multipart body is not a file."""
    body = b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\na\r\n--y--\r\n--x--\r\n"
    response = await upload(http, STREAM, data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert response["msg"] == "file is required"


async def test_size_limits(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of exactly the limit is accepted; one more byte is rejected."""
    monkeypatch.setattr(uploads, "MAX_BASE64_BYTES", 3)
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 4)
    for data, code in (("AAAA", 200), ("AAAAAA==", 400)):
        assert (await upload(http, BASE64, json={"base64Data": data, "uploadPath": "x"}))["code"] == code
    for content, code in ((b"1234", 200), (b"12345", 400)):
        assert (await upload(http, STREAM, data=form(content, uploadPath="x")))["code"] == code
