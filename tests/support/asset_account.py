"""An account of the emulated asset library of Seedance, and what tests send to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, FixedInterval, SeedanceAssets

if TYPE_CHECKING:
    from sora_chars.testing import Emulator
    from sora_chars.testing.emulator.seedance_assets import EmulatedAsset

KEY = "icover-test-0123456789abcdef"
ACCESS_KEY = "AKLT0123456789abcdefgh"
SECRET_KEY = "ark-secret-0123456789abcdef"
IMAGE = "https://images.example/front.png"
VIDEO = "https://clips.example/rex.mp4"


def session_at(emulator: Emulator, key: str = KEY, **options: Any) -> CharacterSession:
    """Return a session with icover that polls every 5 ms."""
    provider = SeedanceAssets(key, base_url=emulator.url, **options)
    return CharacterSession(provider, polling=FixedInterval(0.005), timeout=20)


def session_at_ark(emulator: Emulator, **options: Any) -> CharacterSession:
    """Return a session with Ark itself that polls every 5 ms."""
    provider = SeedanceAssets(access_key=ACCESS_KEY, secret_key=SECRET_KEY, base_url=emulator.url, **options)
    return CharacterSession(provider, polling=FixedInterval(0.005), timeout=20)


def provider_of(session: CharacterSession) -> SeedanceAssets:
    """Return the session's provider."""
    (provider,) = session.providers
    assert isinstance(provider, SeedanceAssets)
    return provider


def only_asset(emulator: Emulator) -> EmulatedAsset:
    """Return the only asset of the account."""
    (asset,) = emulator.seedance.assets.values()
    return asset
