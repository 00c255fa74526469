"""kie.ai's synchronous route for characters from images, as plain functions.

Source: kie.ai docs, omni/character/create (August 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.models import CharacterRequest


def omni_body(request: CharacterRequest, image_urls: Sequence[str]) -> dict[str, Any]:
    """Return the body of omni/character/create. `voice` holds one or more audio ids, separated by commas."""
    body = {
        "descriptions": request.prompt,
        "image_urls": list(image_urls),
        "audio_ids": [audio_id.strip() for audio_id in (request.voice or "").split(",") if audio_id.strip()] or None,
        "character_name": request.name,
    }
    return {name: value for name, value in body.items() if value is not None}
