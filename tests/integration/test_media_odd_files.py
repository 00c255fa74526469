"""Odd videos and odd names of files: each is cut, or refused in one line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("av")

import av
from av.stream import Disposition
from av.video.frame import VideoFrame

from sora_chars import CharacterRequest, media
from sora_chars.errors import InvalidRequestError
from sora_chars.media.inspecting import inspect
from sora_chars.models import MediaRule
from sora_chars.providers.local_files import request_problems
from sora_chars.providers.vidu_codec import ACCEPTS as VIDU
from tests.support.videos import Video, numbers

if TYPE_CHECKING:
    from pathlib import Path

SMALL = MediaRule(formats=("mp4",), seconds=(0.2, 4), sizes=((128, 72), (72, 128)), max_bytes=10 * 1024 * 1024)
TIMES = tuple(number / 25 for number in range(50))


def problems_of(path: Path, **fields: Any) -> list[str]:
    """Return why Vidu does not take a video."""
    return request_problems(VIDU, CharacterRequest(video=path, name="Rex", **fields))


@pytest.mark.parametrize("clip", [None, "0,1"])
async def test_unknown_codec(tmp_path: Path, clip: str | None) -> None:
    """A video of a codec that FFmpeg does not know is not cut, and is checked by its headers."""
    data = Video(times=TIMES).write(tmp_path / "known.mp4").read_bytes()
    (source := tmp_path / "unknown.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(InvalidRequestError, match="its codec is unknown"):
        await media.cut(source, tmp_path / "clip.mp4", clip=clip, rule=SMALL)
    expected = [] if clip is None else [f"video must be a video file that can be decoded, got {source}"]
    assert problems_of(source, clip=clip) == expected


async def test_the_cover_of_a_piece_of_music(tmp_path: Path) -> None:
    """A cover is no moving picture: a piece of music is refused before anything is sent."""
    source = tmp_path / "music.mp4"
    with av.open(str(source), "w") as output:
        sound: Any = output.add_stream("aac", rate=48_000, layout="mono")
        cover: Any = output.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        output.mux([*cover.encode(VideoFrame(64, 64, "yuvj420p")), *cover.encode(None)])
        with av.open(str(Video(click=0.5, times=TIMES).write(tmp_path / "song.mp4"))) as song:
            for frame in song.decode(audio=0):
                output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    (problem,) = problems_of(source)
    assert problem.startswith("video must have moving pictures")
    with pytest.raises(InvalidRequestError, match="has only sound"):
        await media.cut(source, tmp_path / "clip.mp4", clip="0,1", rule=SMALL)


@pytest.mark.parametrize("size", [(2, 2000), (2000, 2)])
async def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    """A picture that no encoder can bring to the provider's size is refused in one line."""
    source = Video(size=size, times=TIMES, stripes=False).write(tmp_path / "thin.mp4")
    rule = MediaRule(formats=("mp4",), seconds=(0, 5), min_pixels=128)
    with pytest.raises(InvalidRequestError, match="its pictures cannot be encoded"):
        await media.cut(source, tmp_path / "clip.mp4", rule=rule)
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("name", ["12:30.mp4", "a:b.mp4", "-i.mp4", "%03d.mp4", "a b\n😀'.mp4"])
async def test_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that FFmpeg would take for URLs, options or patterns name files, also relative to the folder."""
    monkeypatch.chdir(tmp_path)
    source = Video(times=TIMES).write(tmp_path / "source.mp4").rename(tmp_path / name)
    path = await media.cut(source.name, f"cut-{name}", clip="0,1", rule=SMALL)
    assert numbers(path.absolute()) == list(range(25))
    path = await media.cut(source, name.removeprefix("-") + ".cut", clip="0,1", rule=SMALL)
    assert inspect(path).size == (128, 72)


async def test_a_pipe(tmp_path: Path) -> None:
    """A pipe is refused, and not waited for."""
    os.mkfifo(source := tmp_path / "pipe.mp4")
    with pytest.raises(InvalidRequestError, match="no regular file"):
        await media.cut(source, tmp_path / "clip.mp4", rule=SMALL)
