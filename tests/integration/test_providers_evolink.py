"""The provider Evolink against the emulator: URLs only, a foreign client, and what the emulator rejects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars import CharacterRequest, InvalidRequestError
from tests.support.gateway_accounts import IMAGES, KEYS, VIDEO, only_task, quick_emulator, session_at
from tests.support.images import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

HEADERS = {"Authorization": f"Bearer {KEYS['evolink']}"}
CREATE = "/v1/videos/generations"
ELEMENT: dict[str, Any] = {
    "element_name": "My Character",
    "element_description": "A young man with short hair",
    "reference_type": "image_refer",
    "element_image_list": {"frontal_image": IMAGES[0], "refer_images": [{"image_url": IMAGES[1]}]},
}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with quick_emulator() as running:
        yield running


async def test_local_files_are_refused(emulator: Emulator, make_clip: Callable[..., Path], tmp_path: Path) -> None:
    """Evolink takes URLs only: a local file is refused before anything is sent, also by the provider itself."""
    (tmp_path / "side.png").write_bytes(png(300, 300))
    async with session_at(emulator, "evolink") as session:
        with pytest.raises(InvalidRequestError, match="video must be a URL"):
            await session.create(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
        images = [IMAGES[0], str(tmp_path / "side.png")]
        with pytest.raises(InvalidRequestError, match=r"images\[1\] must be a URL"):
            await session.create(images=images, name="Rex", prompt="A friendly dog")
        request = CharacterRequest(images=images, name="Rex", prompt="A friendly dog")
        with pytest.raises(TypeError, match="URLs only"):
            await session.providers[0].submit(request, key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]
    assert not emulator.requests


async def test_hosting(emulator: Emulator, make_clip: Callable[..., Path], tmp_path: Path) -> None:
    """With hosting, local files are sent as the URLs that the caller's storage gives them."""
    (tmp_path / "side.png").write_bytes(png(300, 300))

    async def host(path: Path) -> str:
        return f"https://files.example/{path.name}"

    async with session_at(emulator, "evolink", hosting=host) as session:
        await session.create(video=make_clip(5.0), name="Rex", prompt="A friendly dog")
        assert '"video_url": "https://files.example/clip.mp4"' in json.dumps(only_task(emulator, "evolink").input)
        (tmp_path / "small.png").write_bytes(png(299, 300))
        with pytest.raises(InvalidRequestError, match=r"images\[1\] must have at least 300 pixels"):
            await session.create(images=[IMAGES[0], tmp_path / "small.png"], name="Rex", prompt="A friendly dog")


async def test_body(emulator: Emulator) -> None:
    """The element is a parameter of the model."""
    async with session_at(emulator, "evolink") as session:
        await session.create(**VIDEO)
    assert only_task(emulator, "evolink").input == {
        "model": "kling-custom-element",
        "model_params": {
            "element_name": "Rex",
            "element_description": "A friendly dog",
            "reference_type": "video_refer",
            "element_video_list": {"refer_videos": [{"video_url": VIDEO["video"]}]},
        },
    }


async def test_a_foreign_client(emulator: Emulator) -> None:
    """A plain HTTP client that follows Evolink's page is served."""
    async with aiohttp.ClientSession(emulator.url, headers=HEADERS) as client:
        body = {"model": "kling-custom-element", "model_params": ELEMENT}
        async with client.post(CREATE, json=body) as response:
            made = await response.json()
        await emulator.until(lambda: emulator.evolink.tasks[made["id"]].finished)
        async with client.get(f"/v1/tasks/{made['id']}") as response:
            done = await response.json()
    assert made["id"].startswith("task-unified-")
    assert (made["status"], made["progress"], made["model"], made["object"]) == (
        "pending",
        0,
        "kling-custom-element",
        "video.generation.task",
    )
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert done["result_data"]["element_id"] == only_task(emulator, "evolink").element_id


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CREATE, "{", 400),
        ("POST", CREATE, [], 400),
        ("POST", CREATE, {"model": "kling-custom-element"}, 400),
        ("POST", CREATE, {"model": "sora-2", "model_params": ELEMENT}, 404),
        ("POST", CREATE, {"model_params": ELEMENT}, 404),
        ("POST", CREATE, {"model": "kling-custom-element", "model_params": ELEMENT, "prompt": "x"}, 400),
        ("POST", CREATE, {"model": "kling-custom-element", "model_params": ELEMENT | {"tag_list": []}}, 400),
        ("POST", CREATE, {"model": "kling-custom-element", "model_params": ELEMENT | {"element_name": "x" * 21}}, 400),
        *(
            ("POST", CREATE, {"model": "kling-custom-element", "model_params": ELEMENT, "callback_url": url}, status)
            for url, status in (
                ("http://hooks.example/a", 400),
                ("hooks", 400),
                (5, 400),
                ("https://hooks.example/" + "a" * 2026, 200),
                ("https://hooks.example/" + "a" * 2027, 400),
            )
        ),
        ("GET", "/v1/tasks/none", None, 404),
        ("GET", "/v1/credits", None, 200),
    ],
)
async def test_invalid_requests(emulator: Emulator, method: str, path: str, body: object, status: int) -> None:
    """The emulator rejects what the contract does not describe, with the parameter."""
    emulator.evolink.callbacks.lost = True
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = HEADERS | {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(emulator.url, headers=headers) as client,
        client.request(method, path, data=data) as response,
    ):
        assert response.status == status
        answer = await response.json()
    assert ("error" in answer) == (status != 200)
