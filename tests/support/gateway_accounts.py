"""Accounts of the emulated gateways to Kling, and what tests send to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, Evolink, FixedInterval, Wavespeed
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from sora_chars.testing.emulator.gateway_tasks import GatewayAccount, GatewayTask

KEYS = {"wavespeed": "wavespeed-test-0123456789abcdef", "evolink": "evolink-test-0123456789abcdef"}
CLASSES: dict[str, Any] = {"wavespeed": Wavespeed, "evolink": Evolink}
CREATES = {"wavespeed": "prediction", "evolink": "generation"}
"""The names of the creates in faults."""
IMAGES = ["https://images.example/front.png", "https://images.example/side.png"]
VIDEO: dict[str, Any] = {"video": "https://clips.example/rex.mp4", "name": "Rex", "prompt": "A friendly dog"}
ELEMENTS: dict[str, Any] = {"images": IMAGES, "name": "Bello", "prompt": "Another dog"}


def quick_emulator(**options: Any) -> Emulator:
    """Return an emulator that checks the keys, and whose tasks take some milliseconds."""
    return Emulator(durations=(0.02, 0.04), wavespeed_key=KEYS["wavespeed"], evolink_key=KEYS["evolink"], **options)


def session_at(emulator: Emulator, name: str, **options: Any) -> CharacterSession:
    """Return a session with one gateway that polls every 5 ms."""
    provider = CLASSES[name](KEYS[name], base_url=emulator.url, **options)
    return CharacterSession(provider, polling=FixedInterval(0.005), timeout=20)


def account(emulator: Emulator, name: str) -> GatewayAccount:
    """Return the account of a gateway."""
    return emulator.wavespeed if name == "wavespeed" else emulator.evolink


def only_task(emulator: Emulator, name: str) -> GatewayTask:
    """Return the only task of an account."""
    (task,) = account(emulator, name).tasks.values()
    return task
