"""Videos cut with PyAV: exact frames, upright pictures, sound in step, limits kept, and clean ends."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("av")

from sora_chars import CharacterRequest, media
from sora_chars.errors import ConfigurationError, InvalidRequestError
from sora_chars.media.encoding import Cut, StoppedError
from sora_chars.media.inspecting import inspect
from sora_chars.media.planning import BitRate, span_of
from sora_chars.models import Clip, MediaRule
from sora_chars.providers.kling_codec import VIDEO as KLING
from sora_chars.providers.local_files import request_problems
from sora_chars.providers.media import probe
from sora_chars.providers.vidu_codec import ACCEPTS as VIDU
from tests.support.videos import Video, click_time, luma_at, numbers, phone_video

if TYPE_CHECKING:
    from pathlib import Path

SMALL = MediaRule(formats=("mp4",), seconds=(0.2, 4), sizes=((128, 72), (72, 128)), max_bytes=10 * 1024 * 1024)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Six seconds at 25 frames a second, with a tone at 2.5 s."""
    return Video(click=2.5).write(tmp_path / "source.mp4")


def threads() -> list[threading.Thread]:
    """Return the running threads of cuts."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("sora_chars cut")]


@pytest.mark.parametrize(
    ("clip", "first", "last"),
    [("0,1", 0, 24), ("2,4", 50, 99), ("2.01,3.01", 51, 75), ("2.04,2.44", 51, 60), ("5,6", 125, 149)],
)
async def test_exact_frames(video: Path, tmp_path: Path, clip: str, first: int, last: int) -> None:
    """Each frame from the start up to the end is there once."""
    path = await media.cut(video, tmp_path / "clip.mp4", clip=clip, rule=SMALL)
    assert numbers(path) == list(range(first, last + 1))


@pytest.mark.slow
@pytest.mark.timeout(300)  # it encodes 115 large frames, and decodes and encodes 93
async def test_a_video_of_a_phone(tmp_path: Path) -> None:
    """HEVC of 10 bits, turned, with a variable frame rate and odd sizes, becomes what Kling takes."""
    source = phone_video(tmp_path / "phone.mov")
    path = await media.cut(source, tmp_path / "clip.mp4", clip="1,4.1", rule=KLING)
    facts = inspect(path)
    assert (facts.codec, facts.pixels, facts.sound, facts.size) == ("h264", "yuv420p", "aac", (1080, 1920))
    shown = numbers(path)
    assert (shown[0], shown[-1]) == (30, 120)  # frames 30 and 120 are shown from 1.025 s and 4.085 s on
    assert sorted(set(shown)) == list(range(30, 121))
    assert click_time(path) == pytest.approx(2.5 - 1.025, abs=0.03)
    declared = probe(path)
    assert declared.container == "mp4"
    assert declared.duration == pytest.approx(3.1, abs=0.05)


@pytest.mark.parametrize(("rotation", "size"), [(0, (128, 72)), (180, (128, 72)), (90, (72, 128)), (-90, (72, 128))])
async def test_rotation(tmp_path: Path, rotation: int, size: tuple[int, int]) -> None:
    """The picture stands as a player shows it, and needs no rotation any more."""
    source = Video(rotation=rotation, times=[number / 25 for number in range(20)]).write(tmp_path / "source.mov")
    path = await media.cut(source, tmp_path / "clip.mp4", rule=SMALL)
    assert inspect(path).size == size
    assert numbers(path, is_mirrored=rotation in {90, 180}) == list(range(20))


@pytest.mark.parametrize(("fit", "edge", "middle"), [("pad", 16, 220), ("crop", 220, 220)])
async def test_fits(tmp_path: Path, fit: media.Fit, edge: int, middle: int) -> None:
    """A wide picture in an upright frame has black bars, or loses its edges."""
    source = Video(size=(72, 72), times=[0, 0.1, 0.2], stripes=False).write(tmp_path / "source.mp4")
    path = await media.cut(source, tmp_path / "clip.mp4", rule=SMALL, fit=fit)
    assert inspect(path).size == (128, 72)
    assert luma_at(path, 0.05, 0.5) == pytest.approx(edge, abs=6)
    assert luma_at(path, 0.5, 0.5) == pytest.approx(middle, abs=6)


@pytest.mark.parametrize(
    ("primaries", "transfer", "matrix"), [(9, 18, 9), (9, 16, 9), (9, 14, 9)], ids=["HLG", "PQ", "BT.2020"]
)
async def test_wide_colors(tmp_path: Path, primaries: int, transfer: int, matrix: int) -> None:
    """High dynamic range becomes 8 bits of BT.709, whose whites stay white and whose blacks stay black."""
    options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    made = Video(
        codec="libx265",
        pixels="yuv420p10le",
        options=options,
        colors=(primaries, transfer, matrix),
        times=[number / 25 for number in range(10)],
    )
    path = await media.cut(made.write(tmp_path / "hdr.mp4"), tmp_path / "clip.mp4", rule=SMALL)
    assert inspect(path).pixels == "yuv420p"
    assert numbers(path) == list(range(10))


async def test_sound_stays_in_step(video: Path, tmp_path: Path) -> None:
    """The tone begins as long after the first frame as in the source, also where the file is searched first."""
    for clip, expected in (("0,3", 2.5), ("2,4", 0.5), ("2.4,3", 0.1)):
        path = await media.cut(video, tmp_path / "clip.mp4", clip=clip, rule=SMALL, overwrite=True)
        assert click_time(path) == pytest.approx(expected, abs=0.025)
    later = Video(times=[number / 25 for number in range(300)], click=9.0).write(tmp_path / "long.mp4")
    path = await media.cut(later, tmp_path / "clip.mp4", clip="8,10", rule=SMALL, overwrite=True)
    assert numbers(path) == [number % 256 for number in range(200, 250)]
    assert click_time(path) == pytest.approx(1.0, abs=0.025)


async def test_no_sound(tmp_path: Path) -> None:
    """A video without sound stays without."""
    source = Video(times=[number / 25 for number in range(10)]).write(tmp_path / "silent.mkv")
    path = await media.cut(source, tmp_path / "clip.mp4", rule=SMALL)
    assert inspect(path).sound is None
    assert numbers(path) == list(range(10))


async def test_same_bytes(video: Path, tmp_path: Path) -> None:
    """The same file and options give the same bytes."""
    one = await media.cut(video, tmp_path / "one.mp4", clip="1,2", rule=SMALL)
    two = await media.cut(video, tmp_path / "two.mp4", clip=(1, 2), rule=SMALL)
    assert one.read_bytes() == two.read_bytes()


async def test_size_limit(tmp_path: Path) -> None:
    """The bit rate keeps the file below the provider's size."""
    source = Video(size=(640, 360), noise=True, times=[number / 25 for number in range(50)]).write(tmp_path / "a.mp4")
    free = await media.cut(source, tmp_path / "free.mp4", rule=MediaRule())
    limit = free.stat().st_size // 4
    path = await media.cut(source, tmp_path / "clip.mp4", rule=MediaRule(max_bytes=limit))
    assert limit / 4 < path.stat().st_size <= limit


async def test_impossible_size(video: Path, tmp_path: Path) -> None:
    """A size that no bit rate reaches is an error, and no file is left."""
    with pytest.raises(InvalidRequestError, match="even its smallest cut has"):
        await media.cut(video, tmp_path / "clip.mp4", clip="1,2", rule=MediaRule(max_bytes=500))
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


async def test_progress(video: Path, tmp_path: Path) -> None:
    """The progress counts the frames up to their number."""
    seen: list[media.CutProgress] = []
    await media.cut(video, tmp_path / "clip.mp4", clip="1,2", rule=SMALL, on_progress=seen.append)
    await asyncio.sleep(0)
    assert [one.done for one in seen] == list(range(1, 26))
    assert {(one.path, one.total) for one in seen} == {(video, 25)}


async def test_cancelled(video: Path, tmp_path: Path) -> None:
    """A cancelled cut ends its thread and leaves no file, however often it is cancelled."""
    begun = asyncio.Event()
    cutting = asyncio.create_task(
        media.cut(video, tmp_path / "clip.mp4", clip="0,4", rule=SMALL, on_progress=lambda _: begun.set())
    )
    await begun.wait()
    cutting.cancel()
    await asyncio.sleep(0)
    cutting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cutting
    assert threads() == []
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


@pytest.mark.parametrize("has_sound", [True, False])
def test_stopped(video: Path, tmp_path: Path, has_sound: bool) -> None:  # noqa: FBT001 # pytest passes it
    """A stopped encoder ends at its next frame, of the sound as of the pictures."""
    (stop := threading.Event()).set()
    span = span_of(inspect(video), Clip(1, 2), SMALL)
    bits = BitRate.below(None, 1)
    run = Cut(source=video, span=span, rule=SMALL, fit="pad", bits=bits, has_sound=has_sound, report=print, stop=stop)
    with pytest.raises(StoppedError):
        run.write(tmp_path / "clip.mp4")


async def test_existing_file(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced only if that is asked for, also one that appears during the cut."""
    output = tmp_path / "clip.mp4"
    output.write_text("mine")
    with pytest.raises(FileExistsError):
        await media.cut(video, output, clip="1,2", rule=SMALL)
    output.unlink()

    with pytest.raises(FileExistsError):
        await media.cut(video, output, clip="1,2", rule=SMALL, on_progress=lambda _: output.write_text("mine"))
    assert output.read_text() == "mine"
    await media.cut(video, output, clip="1,2", rule=SMALL, overwrite=True)
    assert numbers(output) == list(range(25, 50))
    monkeypatch.setattr("pathlib.Path.hardlink_to", _no_links)
    assert numbers(await media.cut(video, tmp_path / "two.mp4", clip="1,2", rule=SMALL)) == list(range(25, 50))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "source.mp4", "two.mp4"]


def _no_links(*_: Any) -> None:
    raise OSError(95, "Operation not supported")


async def test_unwritable_folder(video: Path, tmp_path: Path) -> None:
    """A folder that does not exist is an error of the output."""
    with pytest.raises(OSError, match="No such file"):
        await media.cut(video, tmp_path / "none" / "clip.mp4", clip="1,2", rule=SMALL)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"no video at all", "must be a video file that can be decoded"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsource.mp4\n#EXT-X-ENDLIST\n", "must be a video file"),
        (b"ffconcat version 1.0\nfile source.mp4\n", "must be a video file"),
    ],
)
async def test_files_that_are_no_video(video: Path, tmp_path: Path, content: bytes, match: str) -> None:
    """A file that is no video, or that names other files, is not cut."""
    source = video.with_name("playlist.m3u8")
    source.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=match):
        await media.cut(source, tmp_path / "clip.mp4", rule=SMALL)


async def test_damaged_video(video: Path, tmp_path: Path) -> None:
    """A video whose frames cannot be decoded is not cut, and no file is left."""
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + len(data) // 2] = bytes(len(data) // 2)
    (source := tmp_path / "damaged.mp4").write_bytes(data)
    with pytest.raises(InvalidRequestError, match=r"damaged\.mp4"):
        await media.cut(source, tmp_path / "clip.mp4", clip="0,1", rule=SMALL)
    assert not (tmp_path / "clip.mp4").exists()
    assert not media.needs_cut(source, SMALL)  # a session sends it as it is


async def test_only_sound(tmp_path: Path) -> None:
    """A file that has only sound is not cut."""
    source = Video(click=0.5, times=()).write(tmp_path / "sound.mp4")
    with pytest.raises(InvalidRequestError, match="has only sound"):
        await media.cut(source, tmp_path / "clip.mp4", rule=SMALL)
    (problem,) = request_problems(VIDU, CharacterRequest(video=source, name="Rex"))
    assert "must have moving pictures" in problem


async def test_pictures_that_begin_later(tmp_path: Path) -> None:
    """A part in which no picture is shown is not cut; one in which they begin keeps the sound in step."""
    times = [2 + number / 25 for number in range(50)]
    source = Video(click=2.4, times=times).write(tmp_path / "late.mp4")
    with pytest.raises(InvalidRequestError, match="shows no picture in this part"):
        await media.cut(source, tmp_path / "clip.mp4", clip="0.2,1", rule=SMALL)
    path = await media.cut(source, tmp_path / "clip.mp4", clip="1,3", rule=SMALL)
    assert numbers(path) == list(range(25))
    assert click_time(path) == pytest.approx(0.4, abs=0.025)


async def test_options(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid option and a missing PyAV are named."""
    with pytest.raises(ConfigurationError, match="fit must be one of pad, crop, got 'stretch'"):
        await media.cut(video, tmp_path / "clip.mp4", rule=SMALL, fit="stretch")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="must be a local path, got a URL"):
        await media.cut("https://clips.example/rex.mp4", tmp_path / "clip.mp4", rule=SMALL)
    with pytest.raises(InvalidRequestError, match=r"clip must span 0\.2 to 4 seconds, got 5"):
        await media.cut(video, tmp_path / "clip.mp4", clip="0,5", rule=SMALL)
    monkeypatch.setattr("sora_chars.media.extra.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"needs PyAV.*pip install 'sora-chars\[media\]'"):
        await media.cut(video, tmp_path / "clip.mp4", rule=SMALL)
