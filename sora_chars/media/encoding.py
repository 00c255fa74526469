"""Decodes a span of a video and encodes it as H.264 and AAC in MP4, in the layout of a rule. Blocks its thread.

The same file and options give the same bytes on machines with the same PyAV: the number of
threads is fixed, and neither times nor versions are written into the file.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import av
import av.error
from av.audio.frame import AudioFrame
from av.codec.context import Flags
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame

from .inspecting import opened, pictures_of, sound_of, unreadable
from .layout import lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Event

    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.filter.context import FilterContext
    from av.packet import Packet
    from av.video.stream import VideoStream

    from sora_chars.models import MediaRule

    from .layout import Fit, Layout
    from .pacing import Span
    from .planning import BitRate

_QUALITY = "18"  # x264's constant rate factor; 18 is taken for visually lossless
_THREADS = 4  # of the encoder; its output depends on their number
_SEEK_SECONDS = 2.0  # before the span: the sound has to be decoded from a little earlier
_SOUND_RATES = (44_100, 48_000)  # hertz
_PIXELS = "yuv420p"
_BT709 = 1
_LIMITED_RANGE = 1
_PQ = 16  # SMPTE ST 2084
_HLG = 18  # ARIB STD-B67, which a display of BT.2020 shows as if its transfer were that of BT.2020
_BT2020 = 9
_FROM_BT2020 = "all=bt709:ispace=bt2020ncl:itrc=bt2020-10:iprimaries=bt2020:irange=tv:format=yuv420p"
_MICROSECONDS = 1_000_000


class StoppedError(Exception):
    """The cut was cancelled."""


@attrs.frozen(kw_only=True)
class Cut:
    """One run of the encoder.

    Attributes:
        source: The video.
        span: The part of it.
        rule: The rule that the cut follows.
        fit: How the picture is made to fit.
        bits: The bit rates.
        has_sound: Whether the sound is kept.
        report: Called with the number of encoded frames.
        stop: Set when the cut is cancelled.
    """

    source: Path
    span: Span
    rule: MediaRule
    fit: Fit
    bits: BitRate
    has_sound: bool
    report: Callable[[int], object]
    stop: Event

    def write(self, path: Path) -> None:
        """Write the cut to a file.

        Raises:
            StoppedError: `stop` was set.
            InvalidRequestError: The source cannot be decoded, or its pictures cannot be encoded.
            OSError: The file cannot be written.
        """
        try:
            self._write(path)
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise unreadable(self.source, f"its pictures cannot be encoded ({error.strerror})") from error

    def _write(self, path: Path) -> None:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with opened(self.source) as source, av.open(str(path), "w", format="mp4", options=options) as output:
            pictures = Pictures(source, self.span, lambda width, height: lay_out(width, height, self.rule, self.fit))
            shown = iter(pictures)
            first = next(shown, None)
            if first is None:
                raise unreadable(self.source, "it shows no picture in this part")
            video = self._video_stream(output, first)
            sound = self._sound_packets(output, pictures.start)
            ahead = next(sound, None)
            for count, picture in enumerate(chain((first,), shown)):
                if self.stop.is_set():
                    raise StoppedError
                picture.pts = count
                picture.time_base = 1 / self.span.rate
                picture.pict_type = PictureType.NONE  # the source's choice of key frames is not ours
                output.mux(video.encode(picture))
                self.report(count + 1)
                while ahead is not None and _time(ahead) <= count / self.span.rate:
                    output.mux(ahead)
                    ahead = next(sound, None)
            output.mux(video.encode(None))
            output.mux([] if ahead is None else [ahead, *sound])

    def _video_stream(self, output: OutputContainer, first: VideoFrame) -> VideoStream:
        options = {"preset": "veryfast", "crf": _QUALITY}
        if self.bits.video:
            options |= {"maxrate": str(self.bits.video), "bufsize": str(self.bits.video)}
        stream = output.add_stream("libx264", rate=self.span.rate, options=options)
        context = stream.codec_context
        context.width = first.width
        context.height = first.height
        context.pix_fmt = _PIXELS
        context.thread_count = _THREADS
        context.flags |= Flags.bitexact
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _sound_packets(self, output: OutputContainer, start: float) -> Iterator[Packet[AudioStream]]:
        """Return the packets of the sound that belongs to the pictures from `start` on."""
        if not self.has_sound:
            return iter(())
        seconds = self.span.frames_from(start) / self.span.rate
        with opened(self.source) as source:
            track = sound_of(source)
            assert track is not None  # noqa: S101 # `has_sound` comes from the same file
            rate = track.rate if track.rate in _SOUND_RATES else _SOUND_RATES[-1]
            channels = "mono" if track.layout.nb_channels == 1 else "stereo"
            stream = output.add_stream("aac", rate=rate, layout=channels)
            context = stream.codec_context
            context.bit_rate = self.bits.sound
            context.flags |= Flags.bitexact
            graph = _sound_graph(track, rate=rate, channels=channels, samples=int(seconds * rate))
            packets: list[Packet[AudioStream]] = []
            for frame in _heard(source, track, start, start + float(seconds), self.stop):
                graph.push(frame)
                packets += _encoded(stream, graph)
            graph.push(None)
            packets += _encoded(stream, graph)
            return iter([*packets, *stream.encode(None)])


@attrs.define(eq=False)
class Pictures:
    """The pictures of a span at the rate of the cut, in their layout.

    Attributes:
        source: The opened video.
        span: The part of it.
        layout: Returns the layout for the displayed width and height.
        start: Seconds from the start of the video at which the first picture is shown, once it was read.
    """

    source: InputContainer
    span: Span
    layout: Callable[[float, float], Layout]
    start: float = 0.0
    _graph: Graph | None = None
    _shape: tuple[object, ...] = ()

    def __iter__(self) -> Iterator[VideoFrame]:
        last: VideoFrame | None = None
        picture: VideoFrame | None = None
        for time, frame in self.span.paced(self._decoded()):
            if frame is not last or picture is None:
                if last is None:
                    self.start = max(time, self.span.start)
                picture = self._laid_out(frame)
                last = frame
            yield picture

    def _decoded(self) -> Iterator[tuple[float, tuple[float, VideoFrame]]]:
        stream = pictures_of(self.source)
        stream.thread_type = "AUTO"
        for frame in _from(self.source, stream, self.span.start):
            time = _shown_at(self.source, frame)
            yield time, (time, frame)

    def _laid_out(self, frame: VideoFrame) -> VideoFrame:
        shape = (frame.width, frame.height, frame.format.name, frame.rotation)
        if self._graph is None or shape != self._shape:  # a stream may change its size
            self._shape = shape
            self._graph = _picture_graph(frame, pictures_of(self.source), self.layout)
        self._graph.push(frame)
        picture = self._graph.pull()
        assert isinstance(picture, VideoFrame)  # noqa: S101 # of a graph of pictures
        return picture


def _picture_graph(frame: VideoFrame, stream: VideoStream, layout: Callable[[float, float], Layout]) -> Graph:
    """Return the filters that turn, scale, and pad or crop a frame, and convert it to 8 bits of BT.709."""
    turns = round(-frame.rotation / 90) % 4
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = float(frame.width * aspect), float(frame.height)
    if turns % 2:
        width, height = height, width
    where = layout(width, height)
    left, top = where.offset
    scale = "w={}:h={}:out_range=limited".format(*where.picture)
    filters = [("transpose", "dir=clock")] * turns
    if frame.color_trc == _PQ:
        filters.append(("scale", f"{scale}:out_color_matrix=bt709:out_transfer=bt709:out_primaries=bt709"))
    elif frame.color_trc == _HLG or frame.color_primaries == _BT2020:
        filters += [("scale", scale), ("format", "yuv420p10le"), ("colorspace", _FROM_BT2020)]
    else:
        filters.append(("scale", f"{scale}:out_color_matrix=bt709"))
    filters += [("setsar", "1"), ("format", _PIXELS)]
    if where.picture != where.size:
        filters.append(("crop" if where.crops else "pad", "w={}:h={}:".format(*where.size) + f"x={left}:y={top}"))
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or stream.time_base
    )
    _link(graph, source, [*filters, ("buffersink", "")])
    return graph


def _sound_graph(track: AudioStream, *, rate: int, channels: str, samples: int) -> Graph:
    """Return the filters that make exactly `samples` samples of sound, with silence where the source has none."""
    graph = Graph()
    _link(
        graph,
        graph.add_abuffer(template=track),
        [
            ("aresample", f"{rate}:async=1:first_pts=0"),
            ("aformat", f"sample_fmts=fltp:sample_rates={rate}:channel_layouts={channels}"),
            ("apad", f"whole_len={samples}"),
            ("atrim", f"end_sample={samples}"),
            ("abuffersink", ""),
        ],
    )
    return graph


def _link(graph: Graph, source: FilterContext, filters: Iterable[tuple[str, str]]) -> None:
    last = source
    for name, arguments in filters:
        node = graph.add(name, arguments or None)
        last.link_to(node)
        last = node
    graph.configure()


def _heard(source: InputContainer, track: AudioStream, start: float, end: float, stop: Event) -> Iterator[AudioFrame]:
    """Yield the sound from a little before `start` up to `end`, with times that count from `start`."""
    for frame in _from(source, track, start):
        if stop.is_set():
            raise StoppedError
        time = _shown_at(source, frame)
        if time >= end:
            break
        if time + frame.samples / frame.sample_rate > start:
            frame.pts = round((time - start) / frame.time_base)
            yield frame


def _encoded(stream: AudioStream, graph: Graph) -> Iterator[Packet[AudioStream]]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, AudioFrame)  # noqa: S101 # of a graph of sounds
        yield from stream.encode(frame)


def _from(source: InputContainer, stream: VideoStream | AudioStream, start: float) -> Iterator[Any]:
    """Decode a stream from a key frame before `start` on. Frames without a time are left out."""
    try:
        if start > _SEEK_SECONDS:
            source.seek(int((start - _SEEK_SECONDS) * _MICROSECONDS) + (source.start_time or 0))
        yield from (frame for frame in source.decode(stream) if frame.pts is not None)
    except av.error.FFmpegError as error:
        raise unreadable(Path(source.name), str(error.strerror)) from error


def _shown_at(source: InputContainer, frame: VideoFrame | AudioFrame) -> float:
    """Return the time of a frame in seconds from the start of the file, whose own times may start later."""
    return (frame.time or 0.0) - (source.start_time or 0) / _MICROSECONDS


def _time(packet: Packet[Any]) -> float:
    return float((packet.dts or 0) * (packet.time_base or 0))
