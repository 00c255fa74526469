"""What PyAV knows of a video before it decodes it: its streams, their codecs, and how long they run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import av
import av.error

from sora_chars.errors import printable

from .planning import VideoFacts, not_cut

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from av.container import InputContainer

    from sora_chars.errors import InvalidRequestError

# A playlist or a list of files would name other files and hosts, which FFmpeg would open.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MICROSECONDS = 1e6


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
            seconds=_end(container),
            sound=sound[0].codec_context.name if sound else None,
        )


def rotation_of(path: Path) -> int:
    """Return the degrees by which a player turns the first picture of a video.

    Raises:
        InvalidRequestError: It cannot be decoded.
    """
    with opened(path) as container:
        try:
            return next(container.decode(video=0)).rotation
        except (av.error.FFmpegError, StopIteration) as error:
            raise unreadable(path, "no picture can be decoded") from error


def _end(container: InputContainer) -> float | None:
    """Return the time at which the pictures end, in seconds from the start of the file."""
    video = container.streams.video[0]
    if video.duration is not None and video.time_base is not None:
        end = float((video.duration + (video.start_time or 0)) * video.time_base)
        return end - (container.start_time or 0) / _MICROSECONDS
    return None if container.duration is None else container.duration / _MICROSECONDS


def unreadable(path: Path, why: str) -> InvalidRequestError:
    """Return the error for a file that is no video."""
    problem = f"video must be a video file that can be decoded, got {printable(path)}: {printable(why)}"
    return not_cut(problem)
