"""Which frames of a video a clip shows, and when. Plain numbers: no file is read.

A cut video has a constant frame rate. The frames of a source with a constant rate are
kept one by one. Of a source with a variable rate, a frame that is shown longer is
repeated, and one that is too short for the rate is left out.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

TOLERANCE = 0.001  # seconds; a bound with three decimals means the frame whose time is rounded to it
_USUAL_RATES = (
    *map(Fraction, (24, 25, 30, 50, 60)),
    *(Fraction(rate, 1001) for rate in (24_000, 30_000, 60_000)),
)
_DEFAULT_RATE = Fraction(30)
_DEFAULT_LIMITS = (1.0, 60.0)  # frames a second
_SAME = 0.0002  # relative; closer rates are one rate


def frame_rate(average: Fraction | None, limits: tuple[float, float] | None) -> Fraction:
    """Return the constant frame rate of the cut for the average rate of its source.

    A rate that is a whole number or usual is kept. A variable rate, whose average is neither, becomes
    the nearest usual rate. A rate outside `limits` is multiplied or divided by a whole number.
    """
    low, high = limits or _DEFAULT_LIMITS
    rate = _near(average) if average and average > 0 else _DEFAULT_RATE
    if rate > high:
        rate /= math.ceil(rate / Fraction(high))
    elif rate < low:
        rate *= math.ceil(Fraction(low) / rate)
    return rate if low <= rate <= high else Fraction(low)


def _near(average: Fraction) -> Fraction:
    whole = Fraction(max(1, round(average)))
    for candidate in (whole, *_USUAL_RATES):
        if abs(average / candidate - 1) < _SAME:
            return candidate
    return whole if average > max(_USUAL_RATES) else min(_USUAL_RATES, key=lambda usual: abs(average - usual))


@attrs.frozen
class Span:
    """A span of a video and the frame rate at which it is shown.

    Attributes:
        start: Seconds from the start of the video.
        end: Seconds from the start of the video. A frame at this time is left out.
        rate: Frames a second of the cut.
        seconds: Shortest and longest duration of the cut; within them, its last frame may
            be repeated or left out.
    """

    start: float
    end: float
    rate: Fraction
    seconds: tuple[float, float] | None = None

    @property
    def expected(self) -> int:
        """The number of frames, if the first one is at the start of the span."""
        return self.frames_from(self.start)

    def frames_from(self, first: float) -> int:
        """Return the number of frames if the first one is shown from the time `first`."""
        count = math.ceil((self.end - first - TOLERANCE) * self.rate)
        low, high = self.seconds or (0.0, math.inf)
        if high < math.inf:
            count = min(count, math.floor(high * self.rate + TOLERANCE))
        return max(count, math.ceil(low * self.rate - TOLERANCE), 1)

    def paced(self, frames: Iterable[tuple[float, T]]) -> Iterator[T]:
        """Yield the frames of the cut, each for one tick of its rate. `frames` are pairs of a time and a frame."""
        shown: T | None = None
        before: T | None = None
        first = slot = count = total = 0.0
        for time, frame in frames:
            if time < self.start - TOLERANCE:
                before = frame
                continue
            if time >= self.end - TOLERANCE:
                break
            if shown is None:
                # A frame that was shown long before the start is still shown there.
                late = before is not None and (time - self.start) * self.rate > 1 + TOLERANCE
                first = self.start if late else time
                shown = before if late else frame
                total = self.frames_from(first)
            due = math.ceil((time - first) * self.rate - 0.5 - TOLERANCE)
            while shown is not None and count < min(due, total):
                yield shown
                count += 1
            if due > slot:
                slot = due
                shown = frame
        if shown is None:
            shown = before
            total = self.frames_from(self.start)
        while shown is not None and count < total:
            yield shown
            count += 1
