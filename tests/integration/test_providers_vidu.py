"""The provider Vidu against the emulator."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    EntryState,
    InsufficientCreditsError,
    NoAnswerError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskRequest,
    Vidu,
)
from sora_chars.testing import Emulator
from tests.support.images import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY = "vidu-test-0123456789abcdef"
IMAGES = ["https://images.example/front.png", "https://images.example/side.png"]
REQUEST: dict[str, Any] = {"images": IMAGES, "name": "Rex"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator."""
    async with Emulator(vidu_key=KEY) as running:
        yield running


def session_at(emulator: Emulator, key: str = KEY) -> CharacterSession:
    """Return a session with Vidu."""
    return CharacterSession(Vidu(key, base_url=emulator.url), timeout=20)


async def test_character_from_images(emulator: Emulator, tmp_path: Path) -> None:
    """Links are sent as they are, and local images as data URLs; the character is there at once."""
    path = tmp_path / "front.png"
    path.write_bytes(png(300, 300, size=2_000_000))
    async with session_at(emulator) as session:
        handle = await session.submit(images=[path, IMAGES[1]], name="Rex", voice="v1")
        assert handle.done()
        character = await handle
    (subject,) = emulator.subjects.values()
    data = "data:image/png;base64," + base64.b64encode(png(300, 300, size=2_000_000)).decode()
    assert (subject["images"], subject["voice_id"]) == ([data, IMAGES[1]], "v1")
    assert (character.id, character.mention) == (subject["id"], f"@{subject['name']}")


@pytest.mark.parametrize(("name", "mime"), [("clip.mp4", "video/mp4"), ("clip.mov", "video/quicktime")])
async def test_character_from_a_video(emulator: Emulator, make_clip: Callable[..., Path], name: str, mime: str) -> None:
    """A local video is sent as a data URL of its type."""
    async with session_at(emulator) as session:
        await session.create(video=make_clip(3.0, name=name), name="Rex")
        await session.create(video="https://clips.example/rex.mp4", name="Rex")
    first, second = emulator.subjects.values()
    assert str(first["videos"]).startswith(f"['data:{mime};base64,")
    assert second["videos"] == ["https://clips.example/rex.mp4"]


async def test_other_requests(emulator: Emulator) -> None:
    """A provider that is asked directly refuses requests for other models."""
    async with session_at(emulator) as session:
        with pytest.raises(TypeError):
            await session.providers[0].submit(TaskRequest(model="m"), key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["lost_response", "truncated", "junk_json"])
async def test_lost_responses(emulator: Emulator, fault: str) -> None:
    """10 creates whose responses are lost become 10 characters, found in the list by their names."""
    emulator.fault(fault, on="subject", times=10)
    async with session_at(emulator) as session:
        requests = [CharacterRequest(**REQUEST, key=f"Order {number}") for number in range(10)]
        outcomes = await session.create_all(requests)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED] * 10
    assert {outcome.character.id for outcome in outcomes if outcome.character} == set(emulator.subjects)
    assert emulator.counts.subjects == 10


async def test_two_subjects_of_one_key_settle_nothing(emulator: Emulator) -> None:
    """If the list shows two subjects of a key, the outcome stays unknown."""
    async with session_at(emulator) as session:
        await session.create(**REQUEST, key="order-17")
    emulator.fault("lost_response", on="subject")
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="vidu shows 2 subjects of this key"):
            await session.create(**REQUEST, key="order-17", timeout=1.5)
        with pytest.raises(NoAnswerError):
            await session.providers[0].lookup("order-17")
        assert await session.providers[0].lookup("order-18") is None


async def test_long_list(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the list are read."""
    monkeypatch.setattr("sora_chars.providers.vidu._PAGE_SIZE", 2)
    async with session_at(emulator) as session:
        provider = session.providers[0]
        assert isinstance(provider, Vidu)
        made = [await session.create(**REQUEST, key=f"order-{number}") for number in range(5)]
        assert [one.task_id for one in await provider.subjects()] == [one.id for one in reversed(made)]
        monkeypatch.setattr("sora_chars.providers.vidu._MAX_PAGES", 2)
        assert len(await provider.subjects()) == 4


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [(400, "bad image", RequestRejectedError), (429, "no credits", InsufficientCreditsError)],
)
async def test_rejections(emulator: Emulator, code: int, message: str, error: type[Exception]) -> None:
    """A rejection is sent once, and pauses nothing."""
    emulator.fault("status", on="subject", code=code, message=message)
    async with session_at(emulator) as session:
        with pytest.raises(error, match=message):
            await session.create(**REQUEST)
        assert (await session.create(**REQUEST)).name is not None
    assert len(emulator.requests) == 2


async def test_wrong_key(emulator: Emulator) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with session_at(emulator, "another-0123456789abcdef") as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.create(**REQUEST)
    assert "another" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", b"{", 400),
        ("POST", "", b"[]", 400),
        ("POST", "", b"{}", 400),
        ("POST", "", b'{"name":"a"}', 400),
        ("POST", "", b'{"name":"a","prompt":"b"}', 400),
        ("POST", "", b'{"name":"%s","images":["https://a.example/b"]}' % (b"x" * 65), 400),
        ("POST", "", b'{"name":"%s","images":["https://a.example/b"]}' % (b"x" * 64), 200),
        ("POST", "", b'{"name":"a","images":"b"}', 400),
        ("POST", "", b'{"name":"a","images":["b"]}', 400),
        ("POST", "", b'{"name":"a","images":["data:image/gif;base64,QUJD"]}', 400),
        ("POST", "", b'{"name":"a","images":["data:image/png;base64,QUJ"]}', 400),
        ("POST", "", b'{"name":"a","images":["data:image/png;base64,QUJD"],"voice_id":""}', 400),
        ("POST", "", b'{"name":"a","videos":["https://a.example/b","https://a.example/b"]}', 400),
        ("GET", "?count=101", b"", 400),
        ("GET", "?count=100&ownership=private", b"", 200),
        ("PUT", "/none", b"{}", 404),
    ],
)
async def test_emulated_limits(emulator: Emulator, method: str, path: str, body: bytes, status: int) -> None:
    """The emulator rejects what Vidu's page does not describe."""
    headers = {"Authorization": f"Token {KEY}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.request(method, f"{emulator.url}/ent/v2/subjects{path}", data=body) as response,
    ):
        assert response.status == status


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client creates, edits and lists a subject; a file of 20 MB is refused, and so is a Bearer key."""
    url = f"{emulator.url}/ent/v2/subjects"
    async with aiohttp.ClientSession(headers={"Authorization": f"Token {KEY}"}) as client:
        async with client.post(url, json={"name": "girl", "images": IMAGES}) as response:
            made = await response.json()
        async with client.put(f"{url}/{made['id']}", json={"name": "woman"}) as response:
            edited = await response.json()
        large: Any = "data:image/png;base64," + base64.b64encode(bytes(20 * 1024 * 1024)).decode()
        body = io.BytesIO(json.dumps({"name": "girl", "images": [large]}).encode())
        async with client.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 400
        async with client.get(url, headers={"Authorization": f"Bearer {KEY}"}) as response:
            assert response.status == 401
    assert (made["credits"], edited["credits"], edited["name"]) == (5, 0, "woman")
