"""Requests, and their entries in a ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars.ledger.serialize import to_record
from sora_chars.models import CharacterRequest, Clip, TaskRequest

if TYPE_CHECKING:
    from sora_chars.ledger import Entry, EntryState, Ledger
    from sora_chars.models import Request

URL = "https://a.invalid/dog.mp4"
REQUESTS: list[Request] = [
    CharacterRequest(from_task="t0", clip=Clip(1, 3), name="rex", prompt="a dog", safety="none"),
    CharacterRequest(video=URL),
    TaskRequest(model="m", input={"prompt": "a dog", "frames": [1, None]}),
    CharacterRequest(images=["HTTPS://a.invalid/dog.png"], prompt="a dog", voice="a1,a2"),
]


async def record_request(
    ledger: Ledger, key: str, *states: EntryState, request: Request = REQUESTS[0], **facts: Any
) -> Entry:
    """Register a request and move its entry through states; the facts go with the last."""
    kind, record = to_record(request)
    entry = await ledger.register(key=key, provider="kie", kind=kind, request=record)
    for number, state in enumerate(states, 1):
        entry = await ledger.transition(entry, state, **facts if number == len(states) else {})
    return entry
