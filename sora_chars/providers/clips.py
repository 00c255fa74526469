"""Whether a clip of a video can be made for a provider that takes whole videos, before anything is cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sora_chars import media
from sora_chars.errors import printable
from sora_chars.models.sources import is_file

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.models import Clip, MediaRule

SENT = {"upload", "inline"}
"""How local files reach a provider that takes them."""


def clip_problems(clip: Clip, path: Path | None, rule: MediaRule) -> list[str]:
    """Return why the clip of a video cannot be made. `path` is None for the video of a URL, which is not read here."""
    low, high = rule.seconds or (0.0, math.inf)
    if refusal := _refusal(rule, low, high):
        return [refusal]
    if not low <= clip.seconds <= high:
        allowed = media.seconds_between(low, high)
        return [f"clip must span {allowed} seconds, got {clip.seconds:g} ({str(clip)!r})"]
    if path is None:
        return []
    if not is_file(path):
        return [f"video must be an http(s) URL or an existing file, got {printable(path)}"]
    problems = media.source_problems(path, clip, rule)
    return [f"video must be a video file that can be decoded, got {printable(path)}"] if problems is None else problems


def whole_video_problems(path: Path, rule: MediaRule) -> list[str] | None:
    """Return why a local video can neither be sent nor be made to fit. None if only its headers can show that."""
    if not (media.is_installed() and is_file(path)):
        return None
    return media.source_problems(path, None, rule)


def _refusal(rule: MediaRule, low: float, high: float) -> str:
    """Return why clips are refused here, with the ways out; empty if they can be made."""
    ways = "cut the video"
    if rule.local == "hosting":
        ways += ", or pass hosting= to have it cut"
    elif rule.local in SENT and not media.is_installed():
        ways += f", or install what cuts it: {media.EXTRA}"
    elif rule.local in SENT:
        return ""
    whole = f"a whole video of {media.seconds_between(low, high)} seconds"
    return f"clip must be omitted, since this provider takes {whole}; {ways}"
