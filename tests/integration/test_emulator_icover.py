"""The emulated asset library of icover: its limits, its errors, and a plain HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars.testing import Emulator
from sora_chars.testing.emulator.files import File
from sora_chars.testing.emulator.seedance_assets import file_problem
from tests.support.asset_account import IMAGE, KEY
from tests.support.images import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASSETS = "/api/asset-library/assets"
HEADERS = {"Authorization": f"Bearer {KEY}"}
MB = 1024 * 1024


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose assets are ready at once."""
    async with Emulator(durations=(0, 0), icover_key=KEY) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", ASSETS, b"{", 400, "not valid JSON"),
        ("POST", ASSETS, b"[]", 400, "must be a JSON object"),
        ("POST", ASSETS, b"{}", 400, "imageUrl is required"),
        ("POST", ASSETS, b'{"imageUrl":"x"}', 400, "imageUrl must be"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","name":"x"}', 400, "name is not a known"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","label":"%s"}' % (b"x" * 65), 400, "label must be"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","label":"%s"}' % (b"x" * 64), 200, "asset-"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","assetType":"image"}', 400, "assetType must be"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","assetType":"Audio"}', 200, "asset-"),
        ("POST", ASSETS, b'{"imageUrl":"https://a.example/b","groupId":"group-9"}', 404, "group not found"),
        ("GET", ASSETS + "?pageSize=101", b"", 400, "pageSize must be"),
        ("GET", ASSETS + "?pageNumber=0", b"", 400, "pageSize must be"),
        ("GET", ASSETS + "?pageSize=100&pageNumber=1", b"", 200, '"TotalCount":0'),
        ("GET", ASSETS + "/asset-1", b"", 404, "asset not found"),
        ("DELETE", ASSETS + "/asset-1", b"", 404, "asset not found"),
        ("POST", "/api/storage/presign", b'{"ext":1}', 400, "ext must be"),
    ],
)
async def test_limits(emulator: Emulator, *, method: str, path: str, body: bytes, status: int, text: str) -> None:
    """The emulator rejects what the pages do not describe, as plain text."""
    headers = {**HEADERS, "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.request(method, emulator.url + path, data=body) as response,
    ):
        shown = await response.text()
    assert (response.status, text in shown) == (status, True)
    assert shown.startswith("[client] ") is (status != 200)


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer another", f"Token {KEY}"])
async def test_keys(emulator: Emulator, authorization: str) -> None:
    """A missing and a wrong key are rejected as plain text."""
    headers = {"Authorization": authorization}
    async with aiohttp.ClientSession() as client, client.get(emulator.url + ASSETS, headers=headers) as response:
        assert (response.status, await response.text()) == (401, "[client] invalid asset library key")


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client uploads a file, makes an asset, polls, lists and deletes it."""
    async with aiohttp.ClientSession() as client:
        presign = {"ext": "png", "contentType": "image/png"}
        async with client.post(f"{emulator.url}/api/storage/presign", json=presign, headers=HEADERS) as response:
            address: dict[str, Any] = await response.json()
        data = address["data"]
        async with client.put(data["uploadUrl"], data=png(300, 300), headers={"Content-Type": "image/png"}) as response:
            assert response.status == 200
        async with client.get(data["publicUrl"]) as response:
            assert await response.read() == png(300, 300)
        body = {"imageUrl": data["publicUrl"], "label": "actor-A-front"}
        async with client.post(emulator.url + ASSETS, json=body, headers=HEADERS) as response:
            made: dict[str, Any] = await response.json()
        asset = f"{emulator.url}{ASSETS}/{made['Result']['Id']}"
        async with client.get(asset, headers=HEADERS) as response:
            polled: dict[str, Any] = await response.json()
        async with client.get(emulator.url + ASSETS, headers=HEADERS) as response:
            listed: dict[str, Any] = await response.json()
        async with client.delete(asset, headers=HEADERS) as response:
            deleted: dict[str, Any] = await response.json()
    assert (address["code"], polled["Result"]["Status"], polled["Result"]["Name"]) == (0, "Active", "actor-A-front")
    assert listed["Result"]["Items"][0]["_library"] == "virtual"
    assert (deleted["Result"], polled["ResponseMetadata"]["Action"]) == ({}, "GetAsset")


async def test_storage(emulator: Emulator) -> None:
    """An upload needs its signature and its announced type, takes no other credential, and works once."""
    async with aiohttp.ClientSession() as client:
        presign = {"ext": "png", "contentType": "image/png"}
        async with client.post(f"{emulator.url}/api/storage/presign", json=presign, headers=HEADERS) as response:
            url = (await response.json())["data"]["uploadUrl"]
        plain = {"Content-Type": "image/png"}
        attempts = [
            (url, {**plain, **HEADERS}, 400),
            (url.partition("?")[0], plain, 400),
            (url, {"Content-Type": "image/jpeg"}, 403),
            (url, plain, 200),
            (url, plain, 403),
        ]
        for address, headers, status in attempts:
            async with client.put(address, data=b"x", headers=headers) as response:
                assert response.status == status


@pytest.mark.parametrize(
    ("asset_type", "mime", "content", "code"),
    [
        ("Image", "video/mp4", b"", "InvalidParameter.AssetType"),
        ("Image", "image/png", png(300, 300), None),
        ("Image", "image/png", png(299, 300), "InvalidParameter.ImagePixel"),
        ("Image", "image/png", png(6000, 6000), None),
        ("Image", "image/png", png(6001, 6000), "InvalidParameter.ImagePixel"),
        ("Image", "image/png", png(750, 300), None),
        ("Image", "image/png", png(751, 300), "InvalidParameter.ImageRatio"),
        ("Image", "image/png", png(300, 300, size=30 * MB), "InvalidParameter.FileSize"),
        ("Video", "video/mp4", bytes(50 * MB), None),
        ("Video", "video/mp4", bytes(50 * MB + 1), "InvalidParameter.FileSize"),
    ],
)
def test_files(asset_type: str, mime: str, content: bytes, code: str | None) -> None:
    """A file that breaks a limit fails later, with a code."""
    problem = file_problem(asset_type, File(mime, content))
    assert (problem and problem[0]) == code


async def test_stuck_asset(emulator: Emulator) -> None:
    """An asset can stay in processing."""
    emulator.fault("asset_stuck")
    async with aiohttp.ClientSession(headers=HEADERS) as client:
        async with client.post(emulator.url + ASSETS, json={"imageUrl": IMAGE}) as response:
            made = await response.json()
        async with client.get(f"{emulator.url}{ASSETS}/{made['Result']['Id']}") as response:
            assert (await response.json())["Result"]["Status"] == "Processing"
