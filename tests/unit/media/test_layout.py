"""Where a picture goes in the frame of a cut video."""

from __future__ import annotations

import pytest

from sora_chars.media.layout import FITS, Fit, lay_out
from sora_chars.models import MediaRule

KLING = MediaRule(sizes=((1920, 1080), (1080, 1920)))


@pytest.mark.parametrize(
    ("shown", "fit", "size", "picture", "offset"),
    [
        ((1072, 1928), "pad", (1080, 1920), (1068, 1920), (6, 0)),
        ((1072, 1928), "crop", (1080, 1920), (1080, 1942), (0, 10)),
        ((1080, 1942), "pad", (1080, 1920), (1068, 1920), (6, 0)),
        ((1920, 1080), "pad", (1920, 1080), (1920, 1080), (0, 0)),
        ((3840, 2160), "crop", (1920, 1080), (1920, 1080), (0, 0)),
        ((640, 480), "pad", (1920, 1080), (1440, 1080), (240, 0)),
        ((640, 480), "crop", (1920, 1080), (1920, 1440), (0, 180)),
        ((480, 640), "pad", (1080, 1920), (1080, 1440), (0, 240)),
        ((1, 1000), "pad", (1080, 1920), (2, 1920), (538, 0)),
    ],
)
def test_exact_sizes(
    shown: tuple[int, int], fit: Fit, size: tuple[int, int], picture: tuple[int, int], offset: tuple[int, int]
) -> None:
    """The size nearest in shape is taken; the picture is centred in it, whole or without its edges."""
    layout = lay_out(*shown, KLING, fit)
    assert (layout.size, layout.picture, layout.offset) == (size, picture, offset)
    assert layout.crops is (fit == "crop" and size != picture)


@pytest.mark.parametrize(
    ("rule", "shown", "size"),
    [
        (MediaRule(), (641, 479), (640, 478)),
        (MediaRule(), (640, 480), (640, 480)),
        (MediaRule(min_pixels=128), (100, 201), (128, 258)),
        (MediaRule(pixels=(409_600, 927_408)), (3840, 2160), (1284, 722)),
        (MediaRule(pixels=(409_600, 927_408)), (320, 240), (740, 556)),
        (MediaRule(pixels=(409_600, 927_408)), (1280, 720), (1280, 720)),
    ],
)
@pytest.mark.parametrize("fit", FITS)
def test_bounds(rule: MediaRule, shown: tuple[int, int], size: tuple[int, int], fit: Fit) -> None:
    """Without exact sizes, the shape is kept and the size changes as little as the bounds allow."""
    layout = lay_out(*shown, rule, fit)
    assert layout.size == size
    if rule.pixels:
        assert rule.pixels[0] <= layout.size[0] * layout.size[1] <= rule.pixels[1]


@pytest.mark.parametrize(
    ("shown", "fit", "size"),
    [
        ((1000, 200), "pad", (1000, 400)),
        ((1000, 200), "crop", (500, 200)),
        ((200, 1000), "pad", (400, 1000)),
        ((200, 1000), "crop", (200, 500)),
    ],
)
def test_ratios(shown: tuple[int, int], fit: Fit, size: tuple[int, int]) -> None:
    """A picture outside the ratios is padded or cropped to the nearest one."""
    assert lay_out(*shown, MediaRule(ratio=(0.4, 2.5)), fit).size == size
