"""The emulated HeyGen: its limits, its errors, and a plain HTTP client."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars.testing import Emulator
from tests.support.heygen_account import KEY, PHOTO, VIDEO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEADERS = {"X-Api-Key": KEY}
AVATARS = "/v3/avatars"
URL_FILE = {"type": "url", "url": VIDEO}
TWIN: dict[str, Any] = {"type": "digital_twin", "name": "Rex", "file": URL_FILE}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose avatars are ready at once."""
    async with Emulator(durations=(0, 0), heygen_key=KEY) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a plain HTTP client with the key."""
    async with aiohttp.ClientSession(headers=HEADERS) as opened:
        yield opened


async def post(client: aiohttp.ClientSession, url: str, body: object) -> tuple[int, dict[str, Any]]:
    """Send a body, and return status and JSON of the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(url, data=content, headers={"Content-Type": "application/json"}) as response:
        return response.status, await response.json()


async def get(client: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Return the JSON at a URL."""
    async with client.get(url) as response:
        found: dict[str, Any] = await response.json()
        return found


async def test_a_foreign_client(emulator: Emulator, client: aiohttp.ClientSession) -> None:
    """A plain HTTP client uploads a clip, makes an avatar, polls, lists and deletes it."""
    form = aiohttp.FormData()
    form.add_field("file", b"clip", filename="speaker.mp4")
    async with client.post(f"{emulator.url}/v3/assets", data=form) as response:
        uploaded = (await response.json())["data"]
    file = {"type": "asset_id", "asset_id": uploaded["asset_id"]}
    _, made = await post(client, emulator.url + AVATARS, {**TWIN, "file": file})
    look, group = made["data"]["avatar_item"], made["data"]["avatar_group"]
    polled = await get(client, f"{emulator.url}{AVATARS}/looks/{look['id']}")
    groups = await get(client, f"{emulator.url}{AVATARS}?ownership=private&limit=50")
    looks = await get(client, f"{emulator.url}{AVATARS}/looks?ownership=private&group_id={group['id']}")
    public = await get(client, f"{emulator.url}{AVATARS}?ownership=public")
    async with client.delete(f"{emulator.url}{AVATARS}/looks/{look['id']}") as response:
        assert (response.status, await response.json()) == (200, {"data": None})
    async with client.delete(f"{emulator.url}{AVATARS}/looks/{look['id']}") as response:
        assert (await response.json())["error"]["code"] == "avatar_not_found"
    assert (polled["data"]["status"], polled["data"]["group_id"]) == ("completed", group["id"])
    assert ([one["id"] for one in groups["data"]], groups["has_more"]) == ([group["id"]], False)
    assert [one["id"] for one in looks["data"]] == [look["id"]]
    assert public["data"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "type is required"),
        ({"type": "photo"}, "name is required"),
        ({"type": "photo", "name": "Rex"}, "file is required"),
        (TWIN | {"type": "studio"}, "type is not valid"),
        (TWIN | {"name": " "}, "name is not valid"),
        (TWIN | {"prompt": "x"}, "prompt is not valid"),
        (TWIN | {"file": {"type": "url", "url": "x"}}, "file is not valid"),
        (TWIN | {"file": {"type": "url", "url": VIDEO, "x": 1}}, "file is not valid"),
        (TWIN | {"file": {"type": "path", "path": "x"}}, "file is not valid"),
        (TWIN | {"file": {"type": "asset_id", "asset_id": "none"}}, "the asset does not exist"),
        (TWIN | {"avatar_group_id": "none"}, "the group does not exist"),
        (TWIN | {"file": {"type": "base64", "media_type": "video/mp4", "data": "QUJD"}}, None),
        ({"type": "photo", "name": "Rex", "file": {"type": "url", "url": PHOTO}}, None),
    ],
)
async def test_limits(emulator: Emulator, client: aiohttp.ClientSession, body: object, message: str | None) -> None:
    """The emulator rejects what HeyGen's OpenAPI does not describe."""
    status, answer = await post(client, emulator.url + AVATARS, body)
    assert (status == 200) is (message is None)
    assert message is None or message in answer["error"]["message"]


async def test_groups(emulator: Emulator, client: aiohttp.ClientSession) -> None:
    """Another look can be added to a group, which the list shows once."""
    _, made = await post(client, emulator.url + AVATARS, TWIN)
    group_id = made["data"]["avatar_group"]["id"]
    await post(client, emulator.url + AVATARS, TWIN | {"avatar_group_id": group_id, "name": "Rex 2"})
    groups = await get(client, emulator.url + AVATARS)
    looks = await get(client, f"{emulator.url}{AVATARS}/looks?limit=1")
    assert ([one["name"] for one in groups["data"]], [one["name"] for one in looks["data"]]) == (["Rex"], ["Rex 2"])
    assert (looks["has_more"], looks["next_token"]) == (True, "1")


async def test_kinds_of_uploads(emulator: Emulator, client: aiohttp.ClientSession) -> None:
    """An upload has a file of at most 32 MB, and a photo is no clip."""
    sizes = ((b"x" * (32 * 1024 * 1024), 200), (b"x" * (32 * 1024 * 1024 + 1), 400), (b"", 400))
    for content, status in sizes:
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(content), filename="front.JPG")
        async with client.post(f"{emulator.url}/v3/assets", data=form) as response:
            assert response.status == status
    async with client.post(f"{emulator.url}/v3/assets", json={}) as response:
        assert response.status == 400
    form = aiohttp.FormData()
    form.add_field("other", b"x", filename="x")
    async with client.post(f"{emulator.url}/v3/assets", data=form) as response:
        assert response.status == 400
    (asset_id,) = emulator.heygen.files
    file = {"type": "asset_id", "asset_id": asset_id}
    assert (await post(client, emulator.url + AVATARS, TWIN | {"file": file}))[0] == 400
    assert (await post(client, emulator.url + AVATARS, {"type": "photo", "name": "Rex", "file": file}))[0] == 200


@pytest.mark.parametrize("query", ["limit=51", "limit=0", "token=x"])
async def test_pages(emulator: Emulator, client: aiohttp.ClientSession, query: str) -> None:
    """A page has 1 to 50 records, and a token that HeyGen gave."""
    assert (await get(client, f"{emulator.url}{AVATARS}?{query}"))["error"]["code"] == "invalid_parameter"


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "another"}, {"Authorization": f"Bearer {KEY}"}])
async def test_keys(emulator: Emulator, headers: dict[str, str]) -> None:
    """A missing and a wrong key are rejected, and so is a key in another header."""
    async with aiohttp.ClientSession(headers=headers) as client:
        assert (await get(client, emulator.url + AVATARS))["error"]["code"] == "unauthorized"


async def test_consent(emulator: Emulator, client: aiohttp.ClientSession) -> None:
    """A look waits until its person has consented on a page, whose address is new each time."""
    emulator.fault("heygen_consent", times=2)
    await post(client, emulator.url + AVATARS, TWIN)
    _, made = await post(client, emulator.url + AVATARS, TWIN)
    look, group = made["data"]["avatar_item"], made["data"]["avatar_group"]
    assert (look["status"], group["consent_status"]) == ("pending_consent", "pending")
    consent = f"{emulator.url}{AVATARS}/{group['id']}/consent"
    _, first = await post(client, consent, {})
    _, second = await post(client, consent, {})
    assert first["data"]["url"] != second["data"]["url"]
    _, none = await post(client, f"{emulator.url}{AVATARS}/none/consent", {})
    assert none["error"]["code"] == "avatar_not_found"
    async with aiohttp.ClientSession() as browser:
        async with browser.get(first["data"]["url"]) as response:
            assert "Do you consent to the avatar Rex?" in await response.text()
        async with browser.get(f"{emulator.url}/heygen-consent/none") as response:
            assert response.status == 404
        async with browser.post(first["data"]["url"]) as response:
            assert "Thank you" in await response.text()
    polled = await get(client, f"{emulator.url}{AVATARS}/looks/{look['id']}")
    assert polled["data"]["status"] == "completed"
    assert [one.status for one in emulator.heygen.looks.values()] == ["pending_consent", "completed"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("internal_error", 500),
        ("service_unavailable", 503),
        ("gateway_timeout", 504),
        ("rate_limit_exceeded", 429),
        ("resource_not_ready", 409),
        ("insufficient_credit", 402),
        ("quota_exceeded", 429),
        ("plan_upgrade_required", 403),
        ("trial_limit_exceeded", 403),
        ("avatar_not_found", 404),
    ],
)
async def test_errors_on_demand(emulator: Emulator, client: aiohttp.ClientSession, code: str, status: int) -> None:
    """Each code of the contract can be produced, with a text and a pause of one's own."""
    emulator.fault("heygen_error", on="avatar_other", code=code, message="no luck", retry_after="3")
    async with client.get(emulator.url + AVATARS) as response:
        answer = await response.json()
    assert (response.status, response.headers["Retry-After"]) == (status, "3")
    assert answer == {"error": {"code": code, "message": "no luck"}}


async def test_look_that_never_ends_or_fails(emulator: Emulator, client: aiohttp.ClientSession) -> None:
    """A look can stay in processing, or fail with a code."""
    for fault, status in (("heygen_stuck", "processing"), ("heygen_fail", "failed")):
        emulator.fault(fault)
        _, made = await post(client, emulator.url + AVATARS, TWIN)
        polled = await get(client, f"{emulator.url}{AVATARS}/looks/{made['data']['avatar_item']['id']}")
        assert polled["data"]["status"] == status
    assert polled["data"]["error"]["code"] == "video_too_short"
