"""An account of the emulated HeyGen, and what tests send to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, FixedInterval, HeyGen

if TYPE_CHECKING:
    from sora_chars.testing import Emulator
    from sora_chars.testing.emulator.heygen_looks import Look

KEY = "heygen-test-0123456789abcdef"
PHOTO = "https://images.example/front.png"
VIDEO = "https://clips.example/speaker.mp4"


def session_at(emulator: Emulator, key: str = KEY, **options: Any) -> CharacterSession:
    """Return a session that polls every 5 ms, also while a person is waited for."""
    given: dict[str, Any] = {"consent_interval": 0.005} | options
    provider = HeyGen(key, base_url=emulator.url, **given)
    return CharacterSession(provider, polling=FixedInterval(0.005), timeout=20)


def provider_of(session: CharacterSession) -> HeyGen:
    """Return the session's provider."""
    (provider,) = session.providers
    assert isinstance(provider, HeyGen)
    return provider


def only_look(emulator: Emulator) -> Look:
    """Return the only look of the account."""
    (look,) = emulator.heygen.looks.values()
    return look
