"""Videos that show the number of each frame, made with PyAV, and the numbers read back from any other video.

A frame shows ten stripes: a white one, eight bits of its number with the highest first, and a black one.
They stand side by side from left to right; in a video that is turned by 90 degrees, from top to bottom.
"""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import attrs
import av
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BITS = 8
_STRIPES = _BITS + 2
_SOUND_RATE = 48_000  # hertz
_WHITE = 220
_BLACK = 30
_TICKS = 600  # a second: the time base of QuickTime, in which phones count


@attrs.frozen(kw_only=True)
class Video:
    """A video to write.

    Attributes:
        size: Width and height as stored.
        times: The time of each frame in seconds.
        rate: Frames a second that the file declares.
        codec: The encoder.
        pixels: The pixel format.
        rotation: Degrees by which a player turns the picture counterclockwise.
        click: Seconds at which a short tone begins in an otherwise silent track; None without sound.
        options: Options of the encoder.
        colors: Numbers of the colour primaries, transfer and matrix.
        stripes: Whether the number is shown; otherwise all is white.
        noise: Whether the picture is noise in place of stripes.
    """

    size: tuple[int, int] = (160, 90)
    times: Sequence[float] = tuple(number / 25 for number in range(150))
    rate: int = 25
    codec: str = "libx264"
    pixels: str = "yuv420p"
    rotation: int = 0
    click: float | None = None
    options: dict[str, str] = attrs.field(factory=lambda: {"preset": "ultrafast", "crf": "18"})
    colors: tuple[int, int, int] | None = None
    stripes: bool = True
    noise: bool = False

    def write(self, path: Path) -> Path:
        """Write the video to a file, whose name selects the container."""
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream(self.codec, rate=self.rate, options=self.options)
            stream.width, stream.height = self.size
            stream.pix_fmt = self.pixels
            stream.codec_context.time_base = Fraction(1, _TICKS)
            if self.colors:
                context = stream.codec_context
                context.color_primaries, context.color_trc, context.colorspace = self.colors
            if self.codec == "libx265":
                stream.codec_context.codec_tag = "hvc1"
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            sound: Any = output.add_stream("aac", rate=_SOUND_RATE, layout="mono") if self.click is not None else None
            sounds = [] if self.click is None else _sound(max(self.times, default=1.0) + 1 / 30, self.click)
            for number, time in enumerate(self.times):
                frame = self._frame(number).reformat(format=self.pixels)
                frame.pts = round(time * _TICKS)
                frame.time_base = Fraction(1, _TICKS)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            for part in (*sounds, None) if sounds else ():
                output.mux(sound.encode(part))
        return path

    def _frame(self, number: int) -> VideoFrame:
        width, height = self.size
        frame = VideoFrame(width, height, "yuv420p")
        luma = frame.planes[0]
        if self.noise:
            luma.update(random.Random(number).randbytes(luma.buffer_size))
        else:
            bits = [1, *(number >> bit & 1 for bit in reversed(range(_BITS))), 0]
            shown = [bits[x * _STRIPES // width] or not self.stripes for x in range(width)]
            row = bytes(_WHITE if is_white else _BLACK for is_white in shown)
            luma.update(row.ljust(luma.line_size, b"\0") * height)
        for plane in frame.planes[1:]:
            plane.update(bytes([128]) * plane.buffer_size)
        return frame


def phone_video(path: Path, *, seconds: float = 4.2) -> Path:
    """Write a video as a phone records it: HEVC of 10 bits, with a variable frame rate, shown upright as 1072x1928."""
    times: list[float] = []
    time = 0.0
    while time < seconds:
        times.append(time)
        time += (20 if len(times) % 7 else 23) / _TICKS
    options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=2"}
    video = Video(
        size=(1928, 1072),
        times=times,
        rate=30,
        codec="libx265",
        pixels="yuv420p10le",
        rotation=-90,
        click=2.5,
        options=options,
        colors=(9, 18, 9),
    )
    return video.write(path)


def numbers(path: Path, *, is_mirrored: bool = False) -> list[int]:
    """Return the numbers that the frames of a video show. The stripes stand along its longer side.

    They stand in the opposite order if the source is turned by 180 degrees or counterclockwise.
    """
    with av.open(str(path)) as container:
        return [_number(frame, is_mirrored=is_mirrored) for frame in container.decode(video=0)]


def luma_at(path: Path, x: float, y: float) -> int:
    """Return the luma of the first frame at a place, in parts of its width and height."""
    with av.open(str(path)) as container:
        frame = next(iter(container.decode(video=0)))
    plane = frame.planes[0]
    return bytes(plane)[int(y * frame.height) * plane.line_size + int(x * frame.width)]


def click_time(path: Path) -> float | None:
    """Return the time at which the tone begins; None if the video is silent."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_SOUND_RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                samples = struct.unpack(f"<{part.samples}h", bytes(part.planes[0])[: 2 * part.samples])
                loud = next((at for at, sample in enumerate(samples) if abs(sample) > 3000), None)
                if loud is not None:
                    return float(part.time or 0.0) + loud / _SOUND_RATE
    return None


def _number(frame: VideoFrame, *, is_mirrored: bool) -> int:
    grey = frame.reformat(format="gray")
    plane = grey.planes[0]
    pixels = bytes(plane)
    number = 0
    for stripe in range(_STRIPES):
        part = (_STRIPES - 0.5 - stripe if is_mirrored else stripe + 0.5) / _STRIPES
        along, across = (part, 0.5) if grey.width >= grey.height else (0.5, part)
        is_white = pixels[int(across * grey.height) * plane.line_size + int(along * grey.width)] > 125
        assert stripe not in {0, _STRIPES - 1} or is_white is (stripe == 0), "the stripes stand in another order"
        number = number << 1 | is_white if 0 < stripe < _STRIPES - 1 else number
    return number


def _sound(seconds: float, click: float) -> list[AudioFrame]:
    frames: list[AudioFrame] = []
    for start in range(0, int(seconds * _SOUND_RATE), 1024):
        frame = AudioFrame(format="fltp", layout="mono", samples=1024)
        times = [(start + at) / _SOUND_RATE for at in range(1024)]
        tone = [0.8 * math.sin(6283 * time) if click <= time < click + 0.2 else 0.0 for time in times]
        frame.planes[0].update(struct.pack("<1024f", *tone))
        frame.sample_rate = _SOUND_RATE
        frame.pts = start
        frame.time_base = Fraction(1, _SOUND_RATE)
        frames.append(frame)
    return frames
