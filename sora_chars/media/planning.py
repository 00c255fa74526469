"""What has to be done to a video for a provider: nothing, or a cut; and why it may be impossible."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import InvalidRequestError, printable

from .pacing import Span, frame_rate

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from sora_chars.models import Clip, MediaRule

DURATION_TOLERANCE = 0.1  # seconds; containers pad the sound, so a video of 8 s may declare 8.02 s
_FORMAT_OF = {"mp4": "mp4", "mov": "mov", "webm": "webm", "avi": "avi"}  # the provider's word: FFmpeg's


@attrs.frozen(kw_only=True)
class VideoFacts:
    """A video file as its headers describe it.

    Attributes:
        path: The file.
        size_bytes: Size of the file.
        formats: The names of its container format, such as "mov,mp4,m4a,3gp,3g2,mj2".
        codec: The codec of the video, such as "h264".
        pixels: The pixel format of the video, such as "yuv420p".
        size: Width and height as they are stored, before the rotation.
        has_square_pixels: Whether a pixel is as wide as it is high.
        rate: Frames a second on average, if known.
        seconds: How long the pictures run, if known.
        sound: The codec of the sound; None without sound.
    """

    path: Path
    size_bytes: int
    formats: str
    codec: str
    pixels: str
    size: tuple[int, int]
    has_square_pixels: bool
    rate: Fraction | None
    seconds: float | None
    sound: str | None


class OnlySoundError(InvalidRequestError):
    """A file holds sound and no moving pictures, so no provider of characters takes it as a video."""


def seconds_between(low: float, high: float) -> str:
    """Return a range of seconds in words."""
    return f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"


def cut_problems(facts: VideoFacts, clip: Clip | None, rule: MediaRule) -> list[str]:
    """Return why no video that the rule allows can be made of this one: lines for `InvalidRequestError`."""
    if facts.seconds is not None and clip is not None and clip.end > facts.seconds + DURATION_TOLERANCE:
        return [f"clip must end within the video's {facts.seconds:.2f} seconds, got {str(clip)!r}"]
    low, high = rule.seconds or (0.0, math.inf)
    if clip is not None:
        if low - 1e-6 <= clip.seconds <= high + 1e-6:
            return []
        return [f"clip must span {seconds_between(low, high)} seconds, got {clip.seconds:g} ({str(clip)!r})"]
    if facts.seconds is None and high == math.inf:
        return [f"video must state how long it runs, got {printable(facts.path)}; choose the part with clip"]
    if facts.seconds is None or low - DURATION_TOLERANCE <= facts.seconds <= high + DURATION_TOLERANCE:
        return []
    choice = "; choose the part with clip" if facts.seconds > high else ""
    got = f"{facts.seconds:.2f} ({printable(facts.path)})"
    return [f"video must run {seconds_between(low, high)} seconds, got {got}{choice}"]


def source_problems(path: Path, clip: Clip | None, rule: MediaRule) -> list[str] | None:
    """Return `cut_problems` of a local video, read from its headers; None if PyAV cannot read it.

    A file that holds only sound has the problem that it is no video.

    Call it where `is_installed()`.
    """
    from .inspecting import inspect  # noqa: PLC0415 # PyAV takes a tenth of a second to import

    try:
        return cut_problems(inspect(path), clip, rule)
    except OnlySoundError as error:
        return list(error.problems)
    except InvalidRequestError:
        return None


def not_cut(*problems: str) -> InvalidRequestError:
    """Return the error for a video of which no cut can be made."""
    return InvalidRequestError(f"The video was not cut: {'; '.join(problems)}.", problems=problems)


def span_of(facts: VideoFacts, clip: Clip | None, rule: MediaRule) -> Span:
    """Return the span of a video that is cut: the clip, or the whole video."""
    low, high = rule.seconds or (0.0, math.inf)
    end = facts.seconds if facts.seconds is not None else high
    return Span(
        start=clip.start if clip else 0.0,
        end=clip.end if clip else end,
        rate=frame_rate(facts.rate, rule.frame_rates),
        seconds=(low, high),
    )


def fits(facts: VideoFacts, rotation: int, rule: MediaRule) -> bool:
    """Return whether a provider takes a whole video as it is: H.264 without rotation, with AAC or no sound."""
    names = facts.formats.split(",")
    container = "mov" if facts.path.suffix.lower() == ".mov" else "mp4"
    is_known = any(_FORMAT_OF.get(one) in names for one in rule.formats) and (
        "mov" not in names or container in rule.formats
    )
    is_plain = facts.codec == "h264" and facts.pixels == "yuv420p" and facts.sound in {None, "aac"} and not rotation
    return is_known and is_plain and _has_size(facts, rule) and _has_rates(facts, rule)


def _has_size(facts: VideoFacts, rule: MediaRule) -> bool:
    width, height = facts.size
    fewest, most = rule.pixels or (0, math.inf)
    low, high = rule.ratio or (0.0, math.inf)
    return (
        facts.has_square_pixels
        and (not rule.sizes or facts.size in rule.sizes)
        and min(facts.size) >= (rule.min_pixels or 0)
        and fewest <= width * height <= most
        and low <= width / height <= high
    )


def _has_rates(facts: VideoFacts, rule: MediaRule) -> bool:
    low, high = rule.seconds or (0.0, math.inf)
    slow, fast = rule.frame_rates or (0.0, math.inf)
    return (
        facts.size_bytes <= (rule.max_bytes or facts.size_bytes)
        and facts.seconds is not None
        and low <= facts.seconds <= high
        and facts.rate is not None
        and slow <= facts.rate <= fast
    )


@attrs.frozen(kw_only=True)
class BitRate:
    """The bits a second that keep a file below a size.

    Attributes:
        video: Bits a second of the pictures, at most. None without a limit.
        sound: Bits a second of the sound.
    """

    video: int | None
    sound: int = 160_000

    @classmethod
    def below(cls, max_bytes: int | None, seconds: float, *, share: float = 0.9) -> BitRate:
        """Return the bit rates for a share of a size. The rest is for the container and for peaks."""
        if max_bytes is None:
            return cls(video=None)
        total = max_bytes * 8 * share / seconds
        sound = min(160_000, int(total / 5))
        return cls(video=int(total) - sound, sound=sound)
