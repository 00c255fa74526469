"""What has to be done to a video for a provider, and why it may be impossible."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import pytest

from sora_chars.media.planning import BitRate, VideoFacts, cut_problems, fits, span_of
from sora_chars.models import Clip, MediaRule
from sora_chars.providers.kling_codec import VIDEO as KLING

FACTS = VideoFacts(
    path=Path("clip.mp4"),
    size_bytes=1_000_000,
    formats="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    pixels="yuv420p",
    size=(1920, 1080),
    has_square_pixels=True,
    rate=Fraction(30),
    seconds=5.0,
    sound="aac",
)


@pytest.mark.parametrize(
    ("seconds", "clip", "problems"),
    [
        (20.0, Clip(2, 6), []),
        (20.0, Clip(2, 5), []),
        (20.0, Clip(2, 10), []),
        (5.95, Clip(2, 6), []),
        (None, Clip(2, 6), []),
        (20.0, Clip(2, 4.99), ["clip must span 3 to 8 seconds, got 2.99 ('2,4.99')"]),
        (20.0, Clip(2, 10.01), ["clip must span 3 to 8 seconds, got 8.01 ('2,10.01')"]),
        (5.0, Clip(2, 6), ["clip must end within the video's 5.00 seconds, got '2,6'"]),
        (3.0, None, []),
        (8.02, None, []),
        (2.95, None, []),
        (None, None, []),
        (2.8, None, ["video must run 3 to 8 seconds, got 2.80 (clip.mp4)"]),
        (20.0, None, ["video must run 3 to 8 seconds, got 20.00 (clip.mp4); choose the part with clip"]),
    ],
)
def test_problems(seconds: float | None, clip: Clip | None, problems: list[str]) -> None:
    """The clip, or without one the video, must be as long as the provider takes."""
    assert cut_problems(attrs.evolve(FACTS, seconds=seconds), clip, KLING) == problems


def test_unknown_length_without_a_limit() -> None:
    """A video of unknown length, for a provider without a longest one, needs a clip."""
    rule = MediaRule(seconds=(15, math.inf))
    (problem,) = cut_problems(attrs.evolve(FACTS, seconds=None), None, rule)
    assert problem == "video must state how long it runs, got clip.mp4; choose the part with clip"
    assert cut_problems(attrs.evolve(FACTS, seconds=None), Clip(0, 15), rule) == []
    assert cut_problems(attrs.evolve(FACTS, seconds=14.8), None, rule) == [
        "video must run at least 15 seconds, got 14.80 (clip.mp4)"
    ]


@pytest.mark.parametrize(
    ("seconds", "clip", "start", "end"),
    [(20.0, Clip(2, 6), 2.0, 6.0), (5.0, None, 0.0, 5.0), (None, None, 0.0, 8.0)],
)
def test_spans(seconds: float | None, clip: Clip | None, start: float, end: float) -> None:
    """The span is the clip, or the whole video; of one of unknown length, as much as the provider takes."""
    span = span_of(attrs.evolve(FACTS, seconds=seconds), clip, KLING)
    assert (span.start, span.end, span.rate) == (start, end, Fraction(30))


@pytest.mark.parametrize(
    ("changes", "rotation", "expected"),
    [
        ({}, 0, True),
        ({"sound": None}, 0, True),
        ({"path": Path("clip.mov")}, 0, True),
        ({"size": (1080, 1920)}, 0, True),
        ({}, -90, False),
        ({"codec": "hevc"}, 0, False),
        ({"pixels": "yuv420p10le"}, 0, False),
        ({"sound": "opus"}, 0, False),
        ({"formats": "matroska,webm"}, 0, False),
        ({"size": (1072, 1928)}, 0, False),
        ({"has_square_pixels": False}, 0, False),
        ({"seconds": 8.01}, 0, False),
        ({"seconds": 2.99}, 0, False),
        ({"seconds": None}, 0, False),
        ({"rate": None}, 0, False),
        ({"size_bytes": 200 * 1024 * 1024}, 0, True),
        ({"size_bytes": 200 * 1024 * 1024 + 1}, 0, False),
    ],
)
def test_fits(changes: dict[str, Any], rotation: int, expected: object) -> None:
    """A video is taken as it is only if nothing of it has to change."""
    assert fits(attrs.evolve(FACTS, **changes), rotation, KLING) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MediaRule(formats=("mp4",), min_pixels=1080), True),
        (MediaRule(formats=("mp4",), min_pixels=1081), False),
        (MediaRule(formats=("mp4",), pixels=(1, 2_073_600)), True),
        (MediaRule(formats=("mp4",), pixels=(1, 2_073_599)), False),
        (MediaRule(formats=("mp4",), ratio=(0.4, 1.7)), False),
        (MediaRule(formats=("mp4",), frame_rates=(24, 30)), True),
        (MediaRule(formats=("mp4",), frame_rates=(31, 60)), False),
        (MediaRule(formats=("mov",)), False),
    ],
)
def test_rules(rule: MediaRule, expected: object) -> None:
    """Each limit of a rule is kept from both sides."""
    assert fits(FACTS, 0, rule) is expected


def test_bit_rates() -> None:
    """The bits of pictures and sound together stay below the size."""
    assert BitRate.below(None, 5) == BitRate(video=None)
    bits = BitRate.below(10 * 1024 * 1024, 4)
    assert bits.sound == 160_000
    assert ((bits.video or 0) + bits.sound) * 4 / 8 < 10 * 1024 * 1024
    small = BitRate.below(32_000, 4)
    assert ((small.video or 0) + small.sound) * 4 / 8 < 32_000
