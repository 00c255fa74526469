"""Where a picture goes in the frame of a cut video. Plain numbers: no file is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from sora_chars.models import MediaRule

Fit: TypeAlias = Literal["pad", "crop"]
"""How a picture of another shape is made to fit: by black bars, or by cutting off its edges."""
FITS: tuple[Fit, ...] = ("pad", "crop")


@attrs.frozen
class Layout:
    """The size of a cut video, and of the picture in its middle. All numbers are even, as H.264 requires.

    Attributes:
        size: Width and height of the video.
        picture: Width and height to which the picture is scaled: the part beyond `size`
            is cut off, and what is missing is black.
    """

    size: tuple[int, int]
    picture: tuple[int, int]

    @property
    def crops(self) -> bool:
        """Whether a part of the picture is cut off."""
        return self.picture[0] > self.size[0] or self.picture[1] > self.size[1]

    @property
    def offset(self) -> tuple[int, int]:
        """The distance of the picture from the left and the top of the video, or of the video from the picture's."""
        (width, height), (inner_width, inner_height) = self.size, self.picture
        return abs(width - inner_width) // 4 * 2, abs(height - inner_height) // 4 * 2


def lay_out(width: float, height: float, rule: MediaRule, fit: Fit) -> Layout:
    """Return the layout for a picture as it is displayed, after its rotation and with square pixels."""
    size = _size(width, height, rule, fit)
    scales = size[0] / width, size[1] / height
    scale = max(scales) if fit == "crop" else min(scales)
    picture = _even(width * scale), _even(height * scale)
    if fit == "crop":
        return Layout(size, (max(picture[0], size[0]), max(picture[1], size[1])))
    return Layout(size, (min(picture[0], size[0]), min(picture[1], size[1])))


def _size(width: float, height: float, rule: MediaRule, fit: Fit) -> tuple[int, int]:
    if rule.sizes:
        return min(rule.sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))
    low, high = rule.ratio or (0.0, math.inf)
    ratio = min(max(width / height, low), high)
    if (ratio > width / height) == (fit == "pad"):  # otherwise one side stays as it is
        width = height * ratio
    else:
        height = width / ratio
    fewest, most = rule.pixels or (0, math.inf)
    larger = max(1.0, (rule.min_pixels or 2) / min(width, height), math.sqrt(fewest / (width * height)))
    smaller = min(1.0, math.sqrt(most / (width * height)))
    if larger > 1.0:
        return _even(width * larger, up=True), _even(height * larger, up=True)
    return _even(width * smaller, up=False), _even(height * smaller, up=False)


def _even(number: float, *, up: bool | None = None) -> int:
    """Return a near even number, at least 2: the nearest one, or the next one up or down."""
    half = number / 2
    if up is None:
        return max(2, 2 * round(half))
    return max(2, 2 * (math.ceil(half - 1e-9) if up else math.floor(half + 1e-9)))
