"""What PyAV knows of a video before it decodes it: its streams, their codecs, and how long they run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import av
import av.error

from sora_chars.errors import InvalidRequestError, printable

if TYPE_CHECKING:
    from collections.abc import Generator
    from fractions import Fraction
    from pathlib import Path

    from av.container import InputContainer

# A playlist or a list of files would name other files and hosts, which FFmpeg would open.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MICROSECONDS = 1e6


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


@contextmanager
def opened(path: Path) -> Generator[InputContainer]:
    """Open a video file for reading. No other file and no host is opened, whatever the file names.

    Raises:
        InvalidRequestError: It cannot be read, or has no video.
    """
    try:
        container = av.open(str(path.absolute()), container_options=dict(_OPTIONS))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    with container:
        if not container.streams.video:
            raise unreadable(path, "it has no video")
        yield container


def inspect(path: Path) -> VideoFacts:
    """Return the facts of a video file.

    Raises:
        InvalidRequestError: It cannot be read, or has no video.
    """
    with opened(path) as container:
        video = container.streams.video[0]
        context = video.codec_context
        length = None if video.duration is None or video.time_base is None else float(video.duration * video.time_base)
        if length is None and container.duration is not None:
            length = container.duration / _MICROSECONDS
        aspect = video.sample_aspect_ratio
        sound = container.streams.audio
        return VideoFacts(
            path=path,
            size_bytes=path.stat().st_size,
            formats=container.format.name,
            codec=context.name,
            pixels=context.pix_fmt or "",
            size=(context.width, context.height),
            has_square_pixels=not aspect or aspect == 1,
            rate=video.average_rate or video.guessed_rate,
            seconds=length,
            sound=sound[0].codec_context.name if sound else None,
        )


def unreadable(path: Path, why: str) -> InvalidRequestError:
    """Return the error for a file that is no video."""
    problem = f"video must be a video file that can be decoded, got {printable(path)}: {printable(why)}"
    return InvalidRequestError(f"The video was not cut: {problem}.", problems=(problem,))
