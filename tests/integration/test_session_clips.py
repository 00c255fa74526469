"""A session cuts what its provider takes whole: with PyAV, real videos and the emulated Kling and Vidu."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("av")

from sora_chars import CharacterSession, CutProgress, Cutting, FixedInterval, InvalidRequestError, Kling, Vidu
from sora_chars.media.inspecting import inspect
from sora_chars.providers.kling_codec import VIDEO
from sora_chars.providers.local_files import file_problems
from sora_chars.testing import Emulator
from tests.support.kling_account import KEY, only_task
from tests.support.videos import Video, luma_at, numbers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TEXTS: dict[str, Any] = {"name": "Rex", "prompt": "A friendly dog"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), kling_key=KEY) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight seconds, upright, at 10 frames a second."""
    return Video(rate=10, times=[number / 10 for number in range(80)], rotation=-90).write(tmp_path / "phone.mov")


class Storage:
    """Public storage that keeps a copy of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    async def host(self, path: Path) -> str:
        """Copy a file and return a URL for it."""
        self.files.append(self.folder / f"hosted-{len(self.files)}.mp4")
        shutil.copy(path, self.files[-1])
        return f"https://files.example/{self.files[-1].name}"


async def test_a_clip_for_kling(emulator: Emulator, source: Path, tmp_path: Path) -> None:
    """The clip is cut, hosted and sent as a URL; what was hosted passes Kling's checks."""
    storage = Storage(tmp_path)
    seen: list[CutProgress] = []
    provider = Kling(KEY, base_url=emulator.url, hosting=storage.host)
    cutting = Cutting(fit="crop", on_progress=seen.append)
    async with CharacterSession(provider, cutting=cutting, polling=FixedInterval(0.005)) as session:
        character = await session.create(video=source, clip="2,5", key="order-17", **TEXTS)
        entry = await session.entry("order-17")
    assert character.provider == "kling"
    (hosted,) = storage.files
    videos = only_task(emulator).body["element_video_list"]
    assert videos == {"refer_videos": [{"video_url": f"https://files.example/{hosted.name}"}]}
    assert numbers(hosted) == list(range(20, 50))
    assert inspect(hosted).size == (1080, 1920)
    assert luma_at(hosted, 0.01, 0.05) > 200  # it was cropped, so there are no bars
    assert file_problems("video", hosted, VIDEO) == []
    assert entry
    assert (entry.request["video"], entry.request["clip"]) == (str(source), "2,5")
    assert (seen[-1].done, seen[-1].total) == (30, 30)


async def test_a_whole_video_that_does_not_fit(emulator: Emulator, source: Path, tmp_path: Path) -> None:
    """A whole video of another size is normalised, and one that fits is sent as it is."""
    storage = Storage(tmp_path)
    provider = Kling(KEY, base_url=emulator.url, hosting=storage.host)
    async with CharacterSession(provider, polling=FixedInterval(0.005)) as session:
        await session.create(video=source, **TEXTS)
        normalised = storage.files[0]
        await session.create(video=normalised, **TEXTS)
    assert inspect(normalised).size == (1080, 1920)
    assert numbers(normalised) == list(range(80))
    assert storage.files[1].read_bytes() == normalised.read_bytes()


async def test_a_clip_for_vidu(emulator: Emulator, source: Path) -> None:
    """A provider that takes files inside the request gets the cut there."""
    async with CharacterSession(Vidu("vidu-key", base_url=emulator.url)) as session:
        character = await session.create(video=source, clip="1,2", name="Rex")
    assert character.provider == "vidu"
    (request,) = [one for one in emulator.requests if one.method == "POST"]
    assert request


@pytest.mark.parametrize(
    ("clip", "match"),
    [
        ("1,2", r"kling: clip must span 3 to 8 seconds, got 1 \('1,2'\)"),
        ("4,9", r"kling: clip must end within the video's 8\.00 seconds, got '4,9'"),
    ],
)
async def test_clips_that_cannot_be_made(emulator: Emulator, source: Path, clip: str, match: str) -> None:
    """A clip that Kling would not take is refused before anything is cut, hosted or sent."""
    provider = Kling(KEY, base_url=emulator.url, hosting=Storage(source.parent).host)
    async with CharacterSession(provider) as session:
        with pytest.raises(InvalidRequestError, match=match):
            await session.create(video=source, clip=clip, **TEXTS)
        (notes := source.with_name("notes.mp4")).write_text("no video")
        with pytest.raises(InvalidRequestError, match="must be a video file that can be decoded"):
            await session.create(video=notes, clip="1,5", **TEXTS)
        with pytest.raises(InvalidRequestError, match="or an existing file"):
            await session.create(video=source.with_name("none.mp4"), clip="1,5", **TEXTS)
    assert not emulator.requests


async def test_a_long_video(emulator: Emulator, tmp_path: Path) -> None:
    """A whole video that is too long names the field that chooses a part."""
    source = Video(times=[number / 25 for number in range(250)]).write(tmp_path / "long.mp4")
    provider = Kling(KEY, base_url=emulator.url, hosting=Storage(tmp_path).host)
    async with CharacterSession(provider) as session:
        with pytest.raises(InvalidRequestError, match=r"must run 3 to 8 seconds.*choose the part with clip"):
            await session.create(video=source, **TEXTS)


async def test_without_the_extra(
    emulator: Emulator, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PyAV, a clip names the command that installs it, and a whole video is sent as it is."""
    monkeypatch.setattr("sora_chars.media.extra.find_spec", lambda _: None)
    storage = Storage(tmp_path)
    provider = Kling(KEY, base_url=emulator.url, hosting=storage.host)
    async with CharacterSession(provider, polling=FixedInterval(0.005)) as session:
        with pytest.raises(InvalidRequestError, match=r"pip install 'sora-chars\[media\]'"):
            await session.create(video=source, clip="2,5", **TEXTS)
        assert not emulator.requests
        await session.create(video=source, **TEXTS)
    assert storage.files[0].read_bytes() == source.read_bytes()
