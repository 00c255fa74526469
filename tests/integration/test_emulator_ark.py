"""The emulated Ark: its check of signatures, its limits, and a plain HTTP client."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars.testing import Emulator
from tests.support.asset_account import ACCESS_KEY, IMAGE, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GROUP = "group-20260101000000-dflt1"
ASSET: dict[str, Any] = {"GroupId": GROUP, "URL": IMAGE, "AssetType": "Image"}
SIGNED = "content-type;host;x-content-sha256;x-date"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose assets are ready at once."""
    async with Emulator(durations=(0, 0), ark_access_key=ACCESS_KEY, ark_secret_key=SECRET_KEY) as running:
        yield running


def headers_of(url: str, query: str, body: bytes, *, at: float | None = None) -> dict[str, str]:
    """Sign a request step by step, as Ark's page describes it."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    scope = f"{date[:8]}/ap-southeast-1/ark/request"
    digest = hashlib.sha256(body).hexdigest()
    host = url.partition("//")[2]
    lines = ["POST", "/", query, "content-type:application/json", f"host:{host}", f"x-content-sha256:{digest}"]
    canonical = "\n".join([*lines, f"x-date:{date}", "", SIGNED, digest])
    text = f"HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = SECRET_KEY.encode()
    for part in (date[:8], "ap-southeast-1", "ark", "request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"HMAC-SHA256 Credential={ACCESS_KEY}/{scope}"
    return {
        "Authorization": f"{credential}, SignedHeaders={SIGNED}, Signature={signature}",
        "Content-Type": "application/json",
        "X-Content-Sha256": digest,
        "X-Date": date,
    }


async def ask(
    emulator: Emulator, action: str, body: object, *, version: str = "2024-01-01", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Send a signed request, with some headers changed, and return status and body of the answer."""
    query = f"Action={action}&Version={version}"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = headers_of(emulator.url, query, content) | (headers or {})
    async with aiohttp.ClientSession() as client, client.post(
        f"{emulator.url}/?{query}", data=content, headers=sent
    ) as response:  # fmt: skip
        return response.status, await response.json()


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client makes a group and an asset, polls, finds and deletes it."""
    _, group = await ask(emulator, "CreateAssetGroup", {"Name": "rex", "GroupType": "AIGC"})
    _, made = await ask(emulator, "CreateAsset", ASSET | {"GroupId": group["Result"]["Id"], "Name": "actor-A"})
    asset = {"Id": made["Result"]["Id"]}
    _, polled = await ask(emulator, "GetAsset", asset)
    search = {"Filter": {"Name": "tor", "GroupIds": [group["Result"]["Id"]], "Statuses": ["Active"]}, "PageSize": 100}
    _, found = await ask(emulator, "ListAssets", search)
    _, none = await ask(emulator, "ListAssets", {"Filter": {"Statuses": ["Failed"]}})
    deleted = await ask(emulator, "DeleteAsset", asset)
    status, gone = await ask(emulator, "DeleteAsset", asset)
    record = polled["Result"]
    assert (record["Status"], record["Name"], polled["ResponseMetadata"]["Action"]) == ("Active", "actor-A", "GetAsset")
    assert found["Result"] == {"TotalCount": 1, "Items": [record]}
    assert none["Result"]["TotalCount"] == 0
    assert (deleted[0], deleted[1]["Result"]) == (200, {})
    assert (status, gone["ResponseMetadata"]["Error"]["Code"]) == (404, "NotFound.Asset")


@pytest.mark.parametrize(
    ("action", "body", "code"),
    [
        ("CreateAsset", {}, "MissingParameter.GroupId"),
        ("CreateAsset", {"GroupId": GROUP, "URL": IMAGE}, "MissingParameter.AssetType"),
        ("CreateAsset", ASSET | {"URL": "x"}, "InvalidParameter.URL"),
        ("CreateAsset", ASSET | {"AssetType": "image"}, "InvalidParameter.AssetType"),
        ("CreateAsset", ASSET | {"Name": "x" * 65}, "InvalidParameter.Name"),
        ("CreateAsset", ASSET | {"Name": "x" * 64, "ProjectName": "p"}, None),
        ("CreateAsset", ASSET | {"Description": "x"}, "InvalidParameter.Description"),
        ("CreateAsset", ASSET | {"GroupId": "group-9"}, "NotFound.Group"),
        ("CreateAssetGroup", {"Name": "x" * 65}, "InvalidParameter.Name"),
        ("CreateAssetGroup", {"Name": "x" * 64, "Description": "x" * 300}, None),
        ("CreateAssetGroup", {"Name": "x", "Description": "x" * 301}, "InvalidParameter.Description"),
        ("CreateAssetGroup", {"Name": "x", "GroupType": "Any"}, "InvalidParameter.GroupType"),
        ("CreateAssetGroup", {}, "MissingParameter.Name"),
        ("GetAsset", {}, "MissingParameter.Id"),
        ("GetAsset", {"Id": "asset-1"}, "NotFound.Asset"),
        ("ListAssets", {"PageSize": 100}, None),
        ("ListAssets", {"PageSize": 101}, "InvalidParameter.PageSize"),
        ("ListAssets", {"PageNumber": 0}, "InvalidParameter.PageNumber"),
        ("ListAssets", {"Filter": {"Ids": []}}, "InvalidParameter.Filter"),
        ("ListAssetGroups", {"Filter": {"Name": "def"}}, None),
        ("UpdateAsset", {}, "InvalidActionOrVersion"),
        ("GetAsset", b"{", "InvalidParameter.Body"),
        ("GetAsset", b"[]", "InvalidParameter.Body"),
    ],
)
async def test_limits(emulator: Emulator, action: str, body: object, code: str | None) -> None:
    """The emulator rejects what Ark's pages do not describe."""
    _, answer = await ask(emulator, action, body)
    assert answer["ResponseMetadata"].get("Error", {}).get("Code") == code


async def test_version(emulator: Emulator) -> None:
    """Another version of the API is rejected."""
    _, answer = await ask(emulator, "ListAssets", {}, version="2025-01-01")
    assert answer["ResponseMetadata"]["Error"]["Code"] == "InvalidParameter.Version"


def changed(headers: dict[str, str], old: str, new: str) -> dict[str, str]:
    """Return the Authorization header with another part."""
    return {"Authorization": headers["Authorization"].replace(old, new)}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("HMAC-SHA256", "Bearer", "SignatureDoesNotMatch"),
        (SIGNED, "host;x-date", "SignatureDoesNotMatch"),
        ("/ap-southeast-1/", "/eu-1/", "SignatureDoesNotMatch"),
        ("/ap-southeast-1/", "/cn-beijing/", "SignatureDoesNotMatch"),
        (ACCESS_KEY, "AKLTother", "InvalidAccessKeyId"),
        ("Signature=", "Signature=0", "SignatureDoesNotMatch"),
    ],
)
async def test_authorization(emulator: Emulator, old: str, new: str, code: str) -> None:
    """A header that is malformed, of another key or not of this request is rejected."""
    query = "Action=ListAssets&Version=2024-01-01"
    headers = changed(headers_of(emulator.url, query, b"{}"), old, new)
    status, answer = await ask(emulator, "ListAssets", b"{}", headers=headers)
    assert (status, answer["ResponseMetadata"]["Error"]["Code"]) == (401, code)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"X-Date": "now"},
        {"X-Date": "20260101T000000Z"},
        {"X-Content-Sha256": "0" * 64},
        {"Content-Type": "text/plain"},
    ],
)
async def test_signed_headers(emulator: Emulator, headers: dict[str, str]) -> None:
    """A request whose signed headers differ from those that were sent is rejected."""
    status, answer = await ask(emulator, "ListAssets", {}, headers=headers)
    assert (status, answer["ResponseMetadata"]["Error"]["Code"]) == (401, "SignatureDoesNotMatch")


@pytest.mark.parametrize("seconds", [-1000, 1000])
async def test_old_and_future_requests(emulator: Emulator, seconds: float) -> None:
    """A request that was signed too long ago, or by a clock that is ahead, is rejected."""
    query = "Action=ListAssets&Version=2024-01-01"
    headers = headers_of(emulator.url, query, b"{}", at=time.time() + seconds)
    status, _ = await ask(emulator, "ListAssets", b"{}", headers=headers)
    assert status == 401


async def test_a_changed_body(emulator: Emulator) -> None:
    """A body that was changed after it was signed is rejected."""
    headers = headers_of(emulator.url, "Action=ListAssets&Version=2024-01-01", b"{}")
    status, answer = await ask(emulator, "ListAssets", b"{ }", headers=headers)
    assert (status, answer["ResponseMetadata"]["Error"]["Message"]) == (401, "the digest of the body is wrong")


async def test_any_key() -> None:
    """Without keys, any well-formed signature of a known region is accepted."""
    async with Emulator() as emulator:
        query = "Action=ListAssets&Version=2024-01-01"
        headers = changed(headers_of(emulator.url, query, b"{}"), ACCESS_KEY, "AKLTother")
        assert (await ask(emulator, "ListAssets", b"{}", headers=headers))[0] == 200
        headers = changed(headers_of(emulator.url, query, b"{}"), "/ap-southeast-1/", "/eu-1/")
        assert (await ask(emulator, "ListAssets", b"{}", headers=headers))[0] == 401


async def test_asset_that_fails(emulator: Emulator) -> None:
    """A fault makes an asset fail with a code."""
    emulator.fault("asset_fail", code="InvalidParameter.FaceCheck", message="a real person")
    _, made = await ask(emulator, "CreateAsset", ASSET)
    _, polled = await ask(emulator, "GetAsset", {"Id": made["Result"]["Id"]})
    assert polled["Result"]["Error"] == {"Code": "InvalidParameter.FaceCheck", "Message": "a real person"}
