"""The provider SeedanceAssets against the emulated icover."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    EntryState,
    NoAnswerError,
    PermissionDeniedError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRequest,
)
from sora_chars.testing import Emulator
from tests.support.asset_account import IMAGE, KEY, VIDEO, only_asset, provider_of, session_at
from tests.support.images import jpeg, png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose assets take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), icover_key=KEY) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "asset_type"), [({"images": [IMAGE]}, "Image"), ({"video": VIDEO, "name": "Rex"}, "Video")]
)
async def test_character(emulator: Emulator, fields: dict[str, Any], asset_type: str) -> None:
    """An image and a clip become assets of their type, each with the way to use it."""
    async with session_at(emulator) as session:
        character = await session.create(**fields)
    asset = only_asset(emulator)
    assert (character.id, character.name, character.task_id) == (asset.asset_id, asset.name, asset.asset_id)
    assert (asset.asset_type, asset.url) == (asset_type, fields.get("video") or IMAGE)
    assert character.usage is not None
    assert character.usage["prompt"] == f"{asset_type} 1"
    assert f"asset://{asset.asset_id}" in str(character.usage["content"])


async def test_local_files_are_uploaded(emulator: Emulator, tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """A local file is stored first, under its type, and the asset is made from its public address."""
    path = tmp_path / "front.jpg"
    path.write_bytes(png(300, 400, size=2_000_000))
    async with session_at(emulator) as session:
        await session.create(images=[path])
        await session.create(video=make_clip(5.0))
    image, clip = (emulator.files.find(asset.url) for asset in emulator.seedance.assets.values())
    assert image is not None
    assert clip is not None
    assert (image.mime, image.content) == ("image/png", png(300, 400, size=2_000_000))
    assert (clip.mime, emulator.counts.uploads) == ("video/mp4", 2)


async def test_upload(emulator: Emulator, tmp_path: Path) -> None:
    """A file can be uploaded by itself; a failure of the storage is repeated, a rejection is not."""
    path = tmp_path / "side.jpg"
    path.write_bytes(jpeg(300, 300))
    async with session_at(emulator) as session:
        emulator.fault("http_500", on="asset_upload")
        url = await provider_of(session).upload(path)
        file = emulator.files.find(url)
        assert file is not None
        assert file.content == jpeg(300, 300)
        emulator.fault("icover_error", on="asset_other", status=403, message="no storage")
        with pytest.raises(PermissionDeniedError, match="no storage"):
            await session.create(images=[path])
    assert emulator.counts.assets == 0


async def test_group(emulator: Emulator) -> None:
    """The assets belong to the group that was given, and the list shows that group."""
    emulator.seedance.groups["group-1"] = "rex"
    async with session_at(emulator, group_id="group-1") as session:
        made = await session.create(images=[IMAGE])
        assert only_asset(emulator).group_id == "group-1"
        assert [asset.task_id for asset in await provider_of(session).assets()] == [made.id]
    async with session_at(emulator, group_id="group-2") as session:
        with pytest.raises(RequestRejectedError, match="group not found"):
            await session.create(images=[IMAGE])


async def test_failed_asset(emulator: Emulator) -> None:
    """An asset that fails raises the library's code and message."""
    emulator.fault("asset_fail", message="The image shows a real person")
    async with session_at(emulator) as session:
        with pytest.raises(TaskFailedError, match="a real person") as caught:
            await session.create(images=[IMAGE])
    assert caught.value.code == "InvalidParameter.FaceCheck"


async def test_other_requests(emulator: Emulator) -> None:
    """A provider that is asked directly refuses requests that `check` would refuse."""
    async with session_at(emulator) as session:
        requests = (TaskRequest(model="m"), CharacterRequest(from_task="t"))
        for request in requests:
            with pytest.raises(TypeError):
                await session.providers[0].submit(request, key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["lost_response", "truncated", "junk_json"])
async def test_lost_responses(emulator: Emulator, fault: str) -> None:
    """10 creates whose responses are lost become 10 characters, found in the list by their names."""
    emulator.fault(fault, on="asset", times=10)
    async with session_at(emulator) as session:
        requests = [CharacterRequest(images=[IMAGE], key=f"Order {number}") for number in range(10)]
        outcomes = await session.create_all(requests)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED] * 10
    assert {outcome.character.id for outcome in outcomes if outcome.character} == set(emulator.seedance.assets)
    assert emulator.counts.assets == 10


async def test_two_assets_of_one_key_settle_nothing(emulator: Emulator) -> None:
    """If the list shows two assets of a key, the outcome stays unknown."""
    async with session_at(emulator) as session:
        await session.create(images=[IMAGE], key="order-17")
    emulator.fault("lost_response", on="asset")
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="seedance shows 2 assets of this key"):
            await session.create(images=[IMAGE], key="order-17", timeout=1.5)
        with pytest.raises(NoAnswerError):
            await session.providers[0].lookup("order-17")
        assert await session.providers[0].lookup("order-18") is None


async def test_long_list(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the list are read."""
    monkeypatch.setattr("sora_chars.providers.seedance_icover.PAGE_SIZE", 2)
    monkeypatch.setattr("sora_chars.providers.seedance_codec.PAGE_SIZE", 2)
    async with session_at(emulator) as session:
        made = [await session.create(images=[IMAGE], key=f"order-{number}") for number in range(5)]
        provider = provider_of(session)
        assert [one.task_id for one in await provider.assets()] == [one.id for one in reversed(made)]
        monkeypatch.setattr("sora_chars.providers.seedance._MAX_PAGES", 2)
        assert len(await provider.assets()) == 4


async def test_delete(emulator: Emulator) -> None:
    """A deleted asset is gone from the list; deleting it twice has no effect."""
    async with session_at(emulator) as session:
        made = await session.create(images=[IMAGE])
        provider = provider_of(session)
        await session.delete(made)
        await provider.delete(made.id)
        assert await provider.assets() == []
        with pytest.raises(TaskNotFoundError):
            await provider.fetch(made.id)


@pytest.mark.parametrize(
    ("fault", "settings", "error"),
    [
        ("ark_error", {"code": "InvalidParameter.URL", "message": "bad link"}, RequestRejectedError),
        ("ark_error", {"code": "SubscriptionRequired", "message": "no plan", "status": 403}, PermissionDeniedError),
        ("icover_error", {"status": 400, "message": "bad label"}, RequestRejectedError),
    ],
)
async def test_rejections(emulator: Emulator, fault: str, settings: dict[str, Any], error: type[Exception]) -> None:
    """A rejection is sent once, also one inside HTTP 200."""
    emulator.fault(fault, on="asset", **settings)
    async with session_at(emulator) as session:
        with pytest.raises(error, match=settings["message"]):
            await session.create(images=[IMAGE])
    assert len(emulator.requests) == 1


async def test_throttling_is_repeated(emulator: Emulator) -> None:
    """A throttled create did nothing, and is sent again after a pause."""
    emulator.fault("ark_error", on="asset", code="Throttling")
    async with session_at(emulator) as session:
        await session.create(images=[IMAGE])
    assert emulator.counts.assets == 1


@pytest.mark.parametrize(("fault", "settings"), [("ark_error", {}), ("icover_error", {}), ("html", {"status": 502})])
async def test_server_errors(emulator: Emulator, fault: str, settings: dict[str, Any]) -> None:
    """After a server's error the list is searched; a missing asset proves nothing."""
    emulator.fault(fault, on="asset", **settings)
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="it shows no task of this key"):
            await session.create(images=[IMAGE], timeout=1.5)
    assert len([one for one in emulator.requests if one.method == "POST"]) == 1


async def test_wrong_key(emulator: Emulator) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with session_at(emulator, "another-0123456789abcdef") as session:
        with pytest.raises(AuthenticationError, match="a token of apiyi is none") as caught:
            await session.create(images=[IMAGE])
    assert "another-" not in str(caught.value)


async def test_no_log_shows_the_id_of_an_asset(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The debug log of a whole life names the key, and neither the asset nor the API key nor the upload's signature."""
    path = tmp_path / "front.png"
    path.write_bytes(png(300, 300))
    caplog.set_level(logging.DEBUG)
    emulator.fault("lost_response", on="asset")
    async with session_at(emulator) as session:
        made = await session.create(images=[path], key="asset-17")
        await provider_of(session).delete(made.id)
    shown = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "asset-17" in shown
    assert "asset-***" in shown
    assert made.id not in shown
    assert KEY not in shown
    assert "X-Amz-Signature" not in shown
