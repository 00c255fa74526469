"""Which frames of a video a clip shows, and when."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sora_chars.media.pacing import Span, frame_rate

NTSC = Fraction(30_000, 1001)


def constant(rate: Fraction | int, count: int = 400) -> list[tuple[float, int]]:
    """Return the times and the numbers of the frames of a video with a constant rate."""
    return [(float(number / Fraction(rate)), number) for number in range(count)]


@pytest.mark.parametrize(
    ("average", "limits", "rate"),
    [
        (Fraction(25), None, Fraction(25)),
        (Fraction(10), None, Fraction(10)),
        (Fraction(30_000, 1001), None, NTSC),
        (Fraction(24_000, 1001), None, Fraction(24_000, 1001)),
        (Fraction(2997, 100), None, NTSC),
        (Fraction(39_900, 1357), None, NTSC),
        (Fraction(26), None, Fraction(26)),
        (Fraction(1227, 50), None, Fraction(25)),
        (Fraction(240), None, Fraction(60)),
        (Fraction(2391, 10), None, Fraction(239, 4)),
        (Fraction(1, 5), None, Fraction(24_000, 1001)),
        (None, None, Fraction(30)),
        (Fraction(10), (24, 60), Fraction(30)),
        (Fraction(120), (24, 60), Fraction(60)),
        (Fraction(15), (24, 25), Fraction(24)),
    ],
)
def test_frame_rates(average: Fraction | None, limits: tuple[float, float] | None, rate: Fraction) -> None:
    """A usual or whole rate is kept, another becomes the nearest usual one, and limits are kept by whole factors."""
    assert frame_rate(average, limits) == rate


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), NTSC, Fraction(60)])
@pytest.mark.parametrize("start", [0.0, 1.0, 2.01, 3.337])
def test_constant_rate(rate: Fraction, start: float) -> None:
    """Of a video with a constant rate, each frame from the start up to the end is shown once."""
    end = start + 3
    shown = list(Span(start, end, rate).paced(constant(rate)))
    expected = [number for time, number in constant(rate) if start - 0.001 <= time < end - 0.001]
    assert shown == expected


def test_bounds_with_three_decimals() -> None:
    """A bound that was rounded to a millisecond means the frame that it was rounded from."""
    assert list(Span(2.034, 2.134, Fraction(30)).paced(constant(30))) == [61, 62, 63]
    assert list(Span(2.033, 2.133, Fraction(30)).paced(constant(30))) == [61, 62, 63]


def test_variable_rate() -> None:
    """A frame that is shown longer is repeated, and one that is too short for the rate is left out."""
    frames = [(0.0, 0), (0.1, 1), (0.11, 2), (0.2, 3), (0.5, 4), (0.6, 5)]
    assert list(Span(0.0, 0.7, Fraction(10)).paced(frames)) == [0, 1, 3, 3, 3, 4, 5]


def test_a_halved_rate() -> None:
    """At half the rate of the source, every second frame is shown."""
    assert list(Span(0.0, 1.0, Fraction(30)).paced(constant(60)))[:5] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("times", [(0.0, 5.0), (0.0,), (0.0, 1.5)])
def test_a_frame_from_before_the_start(times: tuple[float, ...]) -> None:
    """A frame that is still shown at the start is the first one of the clip."""
    shown = list(Span(1.0, 2.0, Fraction(4)).paced([(time, time) for time in times]))
    assert shown == ([0.0, 0.0, 1.5, 1.5] if 1.5 in times else [0.0] * 4)


def test_nothing_to_show() -> None:
    """A video whose pictures begin after the clip gives no frame."""
    assert list(Span(1.0, 2.0, Fraction(4)).paced([(3.0, 3)])) == []
    assert list(Span(1.0, 2.0, Fraction(4)).paced([])) == []


@pytest.mark.parametrize(
    ("span", "count"),
    [
        (Span(0.0, 8.0, NTSC, (3, 8)), 239),
        (Span(0.0, 8.05, Fraction(30), (3, 8)), 240),
        (Span(0.0, 2.95, Fraction(30), (3, 8)), 90),
        (Span(0.0, 3.0, NTSC, (3, 8)), 90),
        (Span(0.0, 0.0, Fraction(30)), 1),
    ],
)
def test_limits_of_the_duration(span: Span, count: int) -> None:
    """The last frame is left out or repeated where that keeps the duration within the limits."""
    assert span.expected == count
    assert len(list(span.paced(constant(span.rate)))) == count or span.end == 0
