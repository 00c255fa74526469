"""Cuts videos to what a provider takes, with PyAV: `pip install 'sora-chars[media]'`.

from sora_chars import Kling, media

await media.cut("phone.mov", "clip.mp4", clip="2,6", rule=Kling.accepts.video)
"""

from .cutting import CutProgress, cut
from .extra import EXTRA, is_installed
from .layout import FITS, Fit

__all__ = ["EXTRA", "FITS", "CutProgress", "Fit", "cut", "is_installed"]
