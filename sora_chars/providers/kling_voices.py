"""Kling's custom voices as plain functions: requests to bodies, records to voices. No network, no clock.

Source: Kling docs, "Custom voices" (September 2026), and recorded responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars.errors import MissingCharacterError, printable
from sora_chars.ids import as_id
from sora_chars.models import MediaRule, Voice, path_of
from sora_chars.models.sources import is_file

from .local_files import file_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.models import VoiceRequest

VOICE_MODEL = "kling-custom-voices"
VOICES_PATH = "/v1/general/custom-voices"
SOURCE = MediaRule(local="hosting", formats=("mp3", "wav", "mp4", "mov"), seconds=(5, 30), note="one clean voice")
MAX_NAME_LENGTH = 20  # characters
_VIDEOS = {".mp4", ".mov"}  # whose headers are read


def voice_problems(request: VoiceRequest, *, can_host: bool) -> list[str]:
    """Return what of a request Kling does not accept, with the header of a local video."""
    problems: list[str] = []
    if len(request.name) > MAX_NAME_LENGTH:
        problems.append(f"name must have 1 to {MAX_NAME_LENGTH} characters, got {len(request.name)}")
    path = path_of(request.source)
    if path is None:
        return problems
    if not can_host:
        refusal = "source must be a URL, since this provider takes no uploads; host the file, or pass hosting="
        return [*problems, refusal]
    if path.suffix.lower() in _VIDEOS:
        return problems + file_problems("source", path, SOURCE)
    if path.suffix.lower().lstrip(".") not in SOURCE.formats:
        problems.append(f"source must be a file of type {', '.join(SOURCE.formats)}, got {printable(path)}")
    elif not is_file(path):
        problems.append(f"source must be an http(s) URL or an existing file, got {printable(path)}")
    elif not path.stat().st_size:
        problems.append(f"source must not be an empty file, got {printable(path)}")
    return problems


def voice_body(name: str, url: str, *, external_id: str, callback_url: str | None) -> dict[str, Any]:
    """Return the body of the create."""
    body = {"voice_name": name, "voice_url": url, "callback_url": callback_url, "external_task_id": external_id}
    return {member: value for member, value in body.items() if value is not None}


def is_voice(record: Mapping[str, Any]) -> bool:
    """Return whether the result of a record is that of a voice."""
    result = record.get("task_result")
    return isinstance(result, dict) and "voices" in result


def voice_of(record: Mapping[str, Any], task_id: str, provider: str) -> Voice:
    """Return the voice in the record of a task that succeeded.

    Raises:
        MissingCharacterError: It holds no id of a voice.
    """
    match record.get("task_result"):
        case {"voices": [{"voice_id": found} as voice, *_]} if voice_id := as_id(found):
            name = voice.get("voice_name")
            return Voice(
                id=voice_id,
                provider=provider,
                name=name if isinstance(name, str) and name else None,
                task_id=task_id,
                raw=voice,
            )
        case payload:
            raise MissingCharacterError(
                f"Task {printable(task_id)} succeeded, but its result holds no voice id: {printable(payload)}",
                hint="Ask Kling about the result, which `payload` holds.",
                provider=provider,
                task_id=task_id,
                payload=payload,
            )
