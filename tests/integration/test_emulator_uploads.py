"""The emulator's upload host: three ways in, one way out."""

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
    """An emulator."""
    async with Emulator(durations=(0.0, 0.0)) as running:
        yield running


def form(content: bytes = b"clip", filename: str | None = "clip.mp4", **fields: str) -> aiohttp.FormData:
    """A multipart body."""
    data = aiohttp.FormData(fields, default_to_multipart=True)
    data.add_field("file", io.BytesIO(content), filename=filename)
    return data


async def upload(http: aiohttp.ClientSession, path: str, **options: object) -> dict[str, object]:
    """Send it, and give the whole answer."""
    async with http.post(path, **options) as answer:  # type: ignore[arg-type]  # data= or json=, as each test says
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        return cast("dict[str, object]", await answer.json())


async def fetch(http: aiohttp.ClientSession, answer: dict[str, object]) -> tuple[str, bytes]:
    """The file behind an upload's answer."""
    url = cast("dict[str, str]", answer["data"])["downloadUrl"]
    async with http.get(url, headers={"Authorization": ""}) as file:
        return file.content_type, await file.read()


async def test_a_stream_upload_is_served_back(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    """What was uploaded comes back from `downloadUrl` without a key, with the recorded keys in the answer."""
    answer = await upload(http, STREAM, data=form(uploadPath="videos/user", fileName="a b%.webm"))
    data = cast("dict[str, object]", answer["data"])
    assert list(answer) == ["success", "code", "msg", "data"]
    assert list(data) == ["success", "fileName", "filePath", "downloadUrl", "fileSize", "mimeType", "uploadedAt"]
    assert (data["fileName"], data["fileSize"], data["mimeType"]) == ("a b%.webm", 4, "video/webm")
    assert str(data["filePath"]).endswith("/videos/user/a b%.webm")
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", str(data["uploadedAt"]))
    assert str(data["downloadUrl"]).endswith("/videos/user/a%20b%25.webm")
    assert await fetch(http, answer) == ("video/webm", b"clip")
    assert emulator.counts.uploads == 1


async def test_the_name_comes_from_the_file_or_is_made_up(http: aiohttp.ClientSession) -> None:
    """Without `fileName` the file's own name is used, and without that a unique one; the same name overwrites."""
    named = await upload(http, STREAM, data=form(b"old", uploadPath="x"))
    await upload(http, STREAM, data=form(b"new", uploadPath="x"))
    assert await fetch(http, named) == ("video/mp4", b"new")
    made_up = [await upload(http, BASE64, json={"base64Data": "AAAA", "uploadPath": "x"}) for _ in range(2)]
    names = {cast("dict[str, str]", answer["data"])["fileName"] for answer in made_up}
    assert len(names) == 2
    assert (await fetch(http, made_up[0]))[0] == "application/octet-stream"


async def test_base64_is_taken_bare_and_as_a_data_url(http: aiohttp.ClientSession) -> None:
    """Both spellings give the same bytes."""
    for data in ("SGVsbG8=", "data:text/plain;base64,SGVsbG8="):
        answer = await upload(http, BASE64, json={"base64Data": data, "uploadPath": "x", "fileName": "a.txt"})
        assert await fetch(http, answer) == ("text/plain", b"Hello")


async def test_a_url_upload_copies_what_is_here(http: aiohttp.ClientSession) -> None:
    """A file of the emulator's own is copied under its name; for any other URL a sample is kept, nothing is fetched."""
    first = await upload(http, STREAM, data=form(uploadPath="x"))
    url = cast("dict[str, str]", first["data"])["downloadUrl"]
    copy = await upload(http, URL, json={"fileUrl": url, "uploadPath": "copies"})
    assert cast("dict[str, str]", copy["data"])["filePath"].endswith("/copies/clip.mp4")
    assert await fetch(http, copy) == ("video/mp4", b"clip")
    body = {"fileUrl": "https://example.invalid/far.mp4?x=1", "uploadPath": "copies"}
    assert b"ftyp" in (await fetch(http, await upload(http, URL, json=body)))[1]


async def test_a_link_to_an_upload_can_be_had(http: aiohttp.ClientSession) -> None:
    """The download-url route knows what was uploaded."""
    first = await upload(http, STREAM, data=form(uploadPath="x"))
    url = cast("dict[str, str]", first["data"])["downloadUrl"]
    async with http.post("/api/v1/common/download-url", json={"url": url}) as answer:
        assert (await answer.json())["data"] == url


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
async def test_a_wrong_upload_is_refused(
    emulator: Emulator, http: aiohttp.ClientSession, path: str, body: dict[str, object], message: str
) -> None:
    """A refused upload has `success` false, code 400 and the reason, and keeps nothing."""
    assert await upload(http, path, **body) == {"success": False, "code": 400, "msg": message}
    assert emulator.counts.uploads == 0


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b"no boundary at all", b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
async def test_a_broken_multipart_body_is_refused(emulator: Emulator, http: aiohttp.ClientSession, body: bytes) -> None:
    """A body that breaks off is an answer, not a crash."""
    for content_type in ("multipart/form-data; boundary=x", "multipart/form-data"):
        answer = await upload(http, STREAM, data=body, headers={"Content-Type": content_type})
        assert answer["code"] == 400
    assert emulator.counts.uploads == 0


async def test_a_part_inside_a_part_is_passed_over(http: aiohttp.ClientSession) -> None:
    """A nested multipart body is no file."""
    body = b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\na\r\n--y--\r\n--x--\r\n"
    answer = await upload(http, STREAM, data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer["msg"] == "file is required"


async def test_limits_of_size(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of exactly the limit passes, one byte more does not."""
    monkeypatch.setattr(uploads, "LARGEST_BASE64", 3)
    monkeypatch.setattr(uploads, "LARGEST_FILE", 4)
    for data, code in (("AAAA", 200), ("AAAAAA==", 400)):
        assert (await upload(http, BASE64, json={"base64Data": data, "uploadPath": "x"}))["code"] == code
    for content, code in ((b"1234", 200), (b"12345", 400)):
        assert (await upload(http, STREAM, data=form(content, uploadPath="x")))["code"] == code
