"""The provider SeedanceAssets against the emulated Ark."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    EntryState,
    FixedInterval,
    InvalidRequestError,
    PermissionDeniedError,
    RequestRejectedError,
    SeedanceAssets,
    ServiceUnavailableError,
)
from sora_chars.testing import Emulator
from tests.support.asset_account import (
    ACCESS_KEY,
    IMAGE,
    SECRET_KEY,
    VIDEO,
    only_asset,
    provider_of,
    session_at,
    session_at_ark,
)
from tests.support.images import png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose assets take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), ark_access_key=ACCESS_KEY, ark_secret_key=SECRET_KEY) as running:
        yield running


def own_groups(emulator: Emulator) -> list[str]:
    """Return the names of the groups that were made."""
    return list(emulator.seedance.groups.values())[1:]


async def test_character(emulator: Emulator) -> None:
    """A clip becomes an asset in this package's group, which the first create makes and the next process finds."""
    async with session_at_ark(emulator) as session:
        character = await session.create(video=VIDEO, name="Rex")
        asset = only_asset(emulator)
        assert (character.id, character.name, asset.asset_type) == (asset.asset_id, asset.name, "Video")
        await session.create(images=[IMAGE])
    async with session_at_ark(emulator) as session:
        await session.create(images=[IMAGE])
    assert own_groups(emulator) == ["sora-chars"]
    assert {emulator.seedance.groups[one.group_id] for one in emulator.seedance.assets.values()} == {"sora-chars"}


async def test_many_creates_make_one_group(emulator: Emulator) -> None:
    """10 creates at once, whose responses are lost, make one group and 10 characters."""
    emulator.fault("lost_response", on="asset", times=10)
    async with session_at_ark(emulator) as session:
        requests = [CharacterRequest(images=[IMAGE], key=f"Order {number}") for number in range(10)]
        outcomes = await session.create_all(requests)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED] * 10
    assert (len(own_groups(emulator)), emulator.counts.assets) == (1, 10)


async def test_a_proxy_without_the_list_of_groups(emulator: Emulator) -> None:
    """Where the groups cannot be listed, one is made; other errors are raised before anything is paid."""
    emulator.fault("ark_error", on="asset_other", status=404, code="InvalidActionOrVersion")
    async with session_at_ark(emulator) as session:
        await session.create(images=[IMAGE])
    emulator.fault("ark_error", on="asset_other", status=403, code="SubscriptionRequired", message="no plan")
    async with session_at_ark(emulator) as session:
        with pytest.raises(PermissionDeniedError, match="no plan"):
            await session.create(images=[IMAGE])
    assert emulator.counts.assets == 1


async def test_groups(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group can be made, and given by an option or the environment; one that does not exist is a rejection."""
    async with session_at_ark(emulator) as session:
        provider = provider_of(session)
        group_id = await provider.create_group("x" * 64, "y" * 300)
        bad = (("", ""), ("x" * 65, ""), ("x", "y" * 301))
        for name, description in bad:
            with pytest.raises(ConfigurationError, match="name must have 1 to 64 characters"):
                await provider.create_group(name, description)
    async with session_at_ark(emulator, group_id=group_id) as session:
        made = await session.create(images=[IMAGE])
        assert [one.task_id for one in await provider_of(session).assets()] == [made.id]
    monkeypatch.setenv("ARK_GROUP_ID", "group-9")
    async with session_at_ark(emulator) as session:
        with pytest.raises(RequestRejectedError, match="the group does not exist"):
            await session.create(images=[IMAGE])
    async with session_at(emulator) as session:
        with pytest.raises(ConfigurationError, match="icover has a default group"):
            await provider_of(session).create_group("x")
        await session.create(images=[IMAGE])  # the variable is Ark's
    assert own_groups(emulator) == ["x" * 64]


async def test_hosting(emulator: Emulator, tmp_path: Path) -> None:
    """A local file goes to the caller's storage before anything is sent; Ark takes no uploads."""
    path = tmp_path / "front.png"
    path.write_bytes(png(300, 300))
    urls: list[Any] = ["https://files.example/front.png", "front.png"]

    async def host(given: Path) -> Any:
        assert given == path
        return urls.pop(0)

    async with session_at_ark(emulator, hosting=host) as session:
        await session.create(images=[path])
        assert only_asset(emulator).url == "https://files.example/front.png"
        path.write_bytes(png(301, 300))  # an unchanged file is not hosted again
        with pytest.raises(ConfigurationError, match="hosting must return"):
            await session.create(images=[path])
    async with session_at_ark(emulator) as session:
        with pytest.raises(InvalidRequestError, match="pass hosting="):
            await session.create(images=[path])
        with pytest.raises(ConfigurationError, match="Ark takes URLs only"):
            await provider_of(session).upload(path)


async def test_delete(emulator: Emulator) -> None:
    """A deleted asset is gone from the list; deleting it twice has no effect."""
    async with session_at_ark(emulator) as session:
        made = await session.create(images=[IMAGE])
        await session.delete(made)
        await provider_of(session).delete(made.id)
        assert await provider_of(session).assets() == []


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"access_key": "AKLT-another-0123456789"}, "InvalidAccessKeyId"),
        ({"secret_key": "another-0123456789abcdef"}, "SignatureDoesNotMatch"),
        ({"region": "cn-beijing"}, None),
    ],
)
async def test_wrong_keys(emulator: Emulator, keys: dict[str, str], text: str | None) -> None:
    """Wrong keys are rejected, and no message shows them; a region is signed, too."""
    options: dict[str, Any] = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY} | keys
    provider = SeedanceAssets(**options, base_url=emulator.url)
    async with CharacterSession(provider, polling=FixedInterval(0.005), timeout=20) as session:
        if text is None:
            await session.create(images=[IMAGE])
            return
        with pytest.raises(AuthenticationError, match=text) as caught:
            await session.create(images=[IMAGE])
    assert "another-" not in str(caught.value)
    assert emulator.counts.assets == 0


async def test_errors_inside_http_200(emulator: Emulator) -> None:
    """An error inside HTTP 200 is read as what its code means."""
    async with session_at_ark(emulator, group_id="group-20260101000000-dflt1") as session:
        emulator.fault("ark_error", on="asset", code="InvalidParameter.URL", message="bad link")
        with pytest.raises(RequestRejectedError, match="bad link"):
            await session.create(images=[IMAGE])
        emulator.fault("ark_error", on="asset_other", times=None)
        with pytest.raises(ServiceUnavailableError):
            await provider_of(session).delete("asset-1")


async def test_no_log_shows_a_secret(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """The debug log shows neither the asset, nor a key, nor a signature, also if Ark repeats them."""
    caplog.set_level(logging.DEBUG)
    emulator.fault("ark_error", on="asset", code="AccessDenied", message=f"{ACCESS_KEY} {SECRET_KEY}")
    async with session_at_ark(emulator) as session:
        with pytest.raises(PermissionDeniedError) as caught:
            await session.create(images=[IMAGE])
        made = await session.create(images=[IMAGE])
    shown = caplog.text + "".join(str(vars(record)) for record in caplog.records) + str(caught.value)
    assert "Signature=" not in shown
    for secret in (made.id, ACCESS_KEY, SECRET_KEY):
        assert secret not in shown
