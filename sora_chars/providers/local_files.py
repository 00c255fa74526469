"""Local videos and images against the limits of a provider, read from their headers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import printable
from sora_chars.media import seconds_between
from sora_chars.models import CharacterRequest, path_of

from .clips import SENT, clip_problems, whole_video_problems

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.models import Accepts, MediaRule, Request

_MIB = 1024 * 1024
_DURATION_TOLERANCE = 0.1  # seconds; containers pad the sound, so a clip of 8 s may declare 8.02 s
_HEAD_BYTES = 12


def request_problems(accepts: Accepts, request: Request) -> list[str]:
    """Return what of a request a provider of characters does not accept, with the headers of local files."""
    if not isinstance(request, CharacterRequest):
        return [f"request must be a CharacterRequest, got {type(request).__name__}"]
    rule = accepts.video
    is_cut_here = request.clip is not None and request.video is not None and not accepts.takes_clip("video")
    if request.clip is not None and is_cut_here and rule is not None:
        problems = clip_problems(request.clip, request.video_path, rule)
        problems += accepts.problems(attrs.evolve(request, clip=None))
    else:
        problems = accepts.problems(request)
        video = request.video_path
        if video is not None and rule and rule.local in SENT:
            cut_here = whole_video_problems(video, rule)
            problems += file_problems("video", video, rule) if cut_here is None else cut_here
    for number, image in enumerate(request.images or ()):
        path = path_of(image)
        if path is not None and accepts.images and accepts.images.local in SENT:
            problems += file_problems(f"images[{number}]", path, accepts.images)
    return problems


def file_problems(field: str, path: Path, rule: MediaRule) -> list[str]:
    """Return the limits of `rule` that a local file breaks. Reads no more than its headers."""
    try:
        if not path.is_file():
            return [f"{field} must be an http(s) URL or an existing file, got {printable(path)}"]
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            size = path.stat().st_size
    except OSError as error:
        return [f"{field} must be a readable file, got {printable(path)}: {error.strerror}"]
    if rule.max_bytes is None and not size:
        return [f"{field} must not be an empty file, got {printable(path)}"]
    if not 0 < size <= (rule.max_bytes or size):
        return [f"{field} must have 1 byte to {(rule.max_bytes or 0) // _MIB} MB, got {size} bytes ({printable(path)})"]
    return _video_problems(field, path, rule) if rule.seconds else _image_problems(field, path, head, rule)


def _video_problems(field: str, path: Path, rule: MediaRule) -> list[str]:
    from .media import probe  # noqa: PLC0415 # most requests name a URL or a task

    facts = probe(path)
    container = facts.container or ("mov" if path.suffix.lower() == ".mov" else None)
    if container not in rule.formats:
        return [f"{field} must be a file of type {', '.join(rule.formats)}, got {printable(path)}"]
    low, high = rule.seconds or (0.0, 0.0)
    if facts.duration is None or low - _DURATION_TOLERANCE <= facts.duration <= high + _DURATION_TOLERANCE:
        return []
    return [f"{field} must run {seconds_between(low, high)} seconds, got {facts.duration:.2f} ({printable(path)})"]


def image_format(head: bytes) -> str | None:
    """Return the format of an image by its first bytes: "jpeg", "png", "webp" or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if head[:4] + head[8:12] == b"RIFFWEBP" else None


def _image_problems(field: str, path: Path, head: bytes, rule: MediaRule) -> list[str]:
    if rule.formats and image_format(head) not in rule.formats:
        return [f"{field} must be a file of type {', '.join(rule.formats)}, got {printable(path)}"]
    if not (rule.min_pixels or rule.max_pixels or rule.ratio):
        return []
    import imagesize  # noqa: PLC0415 # most requests name URLs

    width, height = imagesize.get(path)  # (-1, -1) for a damaged file
    if width <= 0 or height <= 0:
        return [f"{field} must be an undamaged image, got {printable(path)}"]
    problems: list[str] = []
    if min(width, height) < (rule.min_pixels or 0):
        problems.append(
            f"{field} must have at least {rule.min_pixels} pixels a side, got {width}x{height} ({printable(path)})"
        )
    if max(width, height) > (rule.max_pixels or math.inf):
        problems.append(
            f"{field} must have at most {rule.max_pixels} pixels a side, got {width}x{height} ({printable(path)})"
        )
    low, high = rule.ratio or (0.0, math.inf)
    if not low <= width / height <= high:
        problems.append(f"{field} must have a ratio of width to height of {low:g} to {high:g}, got {width}x{height}")
    return problems
