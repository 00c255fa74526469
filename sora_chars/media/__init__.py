"""Cuts videos to what a provider takes, with PyAV: `pip install 'sora-chars[media]'`.

from sora_chars import Kling, media

await media.cut("phone.mov", "clip.mp4", clip="2,6", rule=Kling.accepts.video)
"""

from .cutting import CutProgress, Cutting, cut, needs_cut
from .extra import EXTRA, is_installed, require_extra
from .layout import FITS, Fit
from .planning import not_cut, seconds_between, source_problems

__all__ = [
    "EXTRA",
    "FITS",
    "CutProgress",
    "Cutting",
    "Fit",
    "cut",
    "is_installed",
    "needs_cut",
    "not_cut",
    "require_extra",
    "seconds_between",
    "source_problems",
]
