"""What PyAV knows of a video before it decodes it: its streams, their codecs, and how long they run."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
from av.stream import Disposition

from sora_chars.errors import printable

from .planning import OnlySoundError, VideoFacts, not_cut

if TYPE_CHECKING:
    from collections.abc import Generator

    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

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
    if path.exists() and not path.is_file():  # FFmpeg would wait for the other end of a pipe
        raise unreadable(path, "it is no regular file")
    try:
        container = av.open(str(path.absolute()), container_options=dict(_OPTIONS))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    with container:
        pictures_of(container)
        yield container


def pictures_of(container: InputContainer) -> VideoStream:
    """Return the first stream of moving pictures. The cover of a piece of music is none.

    Raises:
        InvalidRequestError: There is none, or FFmpeg does not know its codec.
    """
    moving = [one for one in container.streams.video if Disposition.attached_pic not in one.disposition]
    if not moving and container.streams.audio:
        problem = f"video must have moving pictures, got {printable(container.name)}, which has only sound"
        raise OnlySoundError(f"The video was not cut: {problem}.", problems=(problem,))
    if not moving:
        raise unreadable(Path(container.name), "it has no video")
    if not _is_known(moving[0]):
        raise unreadable(Path(container.name), "its codec is unknown")
    return moving[0]


def sound_of(container: InputContainer) -> AudioStream | None:
    """Return the first stream of sound whose codec FFmpeg knows; None without sound."""
    return next(filter(_is_known, container.streams.audio), None)


def _is_known(stream: VideoStream | AudioStream) -> bool:
    return getattr(stream, "codec_context", None) is not None  # None, against its type, without a decoder


def inspect(path: Path) -> VideoFacts:
    """Return the facts of a video file.

    Raises:
        InvalidRequestError: It cannot be read, or has no video.
    """
    with opened(path) as container:
        video = pictures_of(container)
        context = video.codec_context
        aspect = video.sample_aspect_ratio
        sound = sound_of(container)
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
            sound=sound.codec_context.name if sound else None,
        )


def rotation_of(path: Path) -> int:
    """Return the degrees by which a player turns the first picture of a video.

    Raises:
        InvalidRequestError: It cannot be decoded.
    """
    with opened(path) as container:
        try:
            return next(container.decode(pictures_of(container))).rotation
        except (av.error.FFmpegError, StopIteration) as error:
            raise unreadable(path, "no picture can be decoded") from error


def _end(container: InputContainer) -> float | None:
    """Return the time at which the pictures end, in seconds from the start of the file."""
    video = pictures_of(container)
    if video.duration is not None and video.time_base is not None:
        end = float((video.duration + (video.start_time or 0)) * video.time_base)
        return end - (container.start_time or 0) / _MICROSECONDS
    return None if container.duration is None else container.duration / _MICROSECONDS


def unreadable(path: Path, why: str) -> InvalidRequestError:
    """Return the error for a file that is no video."""
    problem = f"video must be a video file that can be decoded, got {printable(path)}: {printable(why)}"
    return not_cut(problem)
