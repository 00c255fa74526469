"""kie.ai's synchronous route for characters from images, as plain functions.

Source: kie.ai docs, omni/character/create (August 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.models import CharacterRequest

_MAX_IMAGES = 2


def omni_problems(request: CharacterRequest) -> list[str]:
    """Return the limits of the route that a request with images breaks, apart from those of local files."""
    problems: list[str] = []
    if len(request.images or ()) > _MAX_IMAGES:
        problems.append(f"images must hold 1 to {_MAX_IMAGES} images, got {len(request.images or ())}")
    if not (request.prompt and request.prompt.strip()):
        problems.append("prompt must be given with images, and must not be empty")
    problems += [
        f"{field} must be omitted with images, since this route has no such field"
        for field, value in (("clip", request.clip), ("safety", request.safety))
        if value is not None
    ]
    return problems


def omni_body(request: CharacterRequest, image_urls: Sequence[str]) -> dict[str, Any]:
    """Return the body of omni/character/create. `voice` holds one or more audio ids, separated by commas."""
    body = {
        "descriptions": request.prompt,
        "image_urls": list(image_urls),
        "audio_ids": [audio_id.strip() for audio_id in (request.voice or "").split(",") if audio_id.strip()] or None,
        "character_name": request.name,
    }
    return {name: value for name, value in body.items() if value is not None}
