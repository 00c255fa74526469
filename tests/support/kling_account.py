"""An account of the emulated Kling, and what tests send to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, FixedInterval, Kling

if TYPE_CHECKING:
    from sora_chars.testing import Emulator
    from sora_chars.testing.emulator.kling_tasks import KlingTask

KEY = "kling-test-0123456789abcdef"
SECRET_KEY = "secret-0123456789abcdef"
WEBHOOK_SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
IMAGES = ["https://images.example/front.png", "https://images.example/side.png"]
VIDEO: dict[str, Any] = {"video": "https://clips.example/rex.mp4", "name": "Rex", "prompt": "A friendly dog"}


def session_at(emulator: Emulator, **options: Any) -> CharacterSession:
    """Return a session that polls every 5 ms."""
    provider = Kling(KEY, base_url=emulator.url, **options)
    return CharacterSession(provider, polling=FixedInterval(0.005), timeout=20)


def only_task(emulator: Emulator) -> KlingTask:
    """Return the only task of the account."""
    (task,) = emulator.kling.tasks.values()
    return task
