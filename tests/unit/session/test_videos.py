"""The videos that a session cuts: each once, few of them kept, and none left behind."""

from __future__ import annotations

import asyncio
import errno
import shutil
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.downloads import Downloads, RejectedLinkError, is_any, is_public
from sora_chars.errors import ConfigurationError, InvalidRequestError, WaitTimeoutError
from sora_chars.ledger import EntryState
from sora_chars.media import Cutting
from sora_chars.models import Accepts, CharacterRequest, MediaRule
from sora_chars.session.session import CharacterSession
from sora_chars.session.videos import CutVideos
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sora_chars.models import Request, TaskSnapshot

RULE = MediaRule(local="upload", seconds=(1, 4))
TAKES_VIDEOS = Accepts(video=RULE)
LINK = "https://clips.example/rex.mp4?signature=SECRET"


@attrs.define(eq=False)
class WholeVideos(FakeProvider):
    """A provider that takes whole videos, and keeps what it got.

    Attributes:
        taken: The video and the clip of each request, and whether the file was there.
    """

    accepts: Accepts | None = TAKES_VIDEOS
    taken: list[tuple[Path | None, object, bool]] = attrs.field(factory=list)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        assert isinstance(request, CharacterRequest)
        path = request.video_path
        self.taken.append((path, request.clip, path is not None and path.exists()))
        return await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)


@attrs.define
class Encoder:
    """Stands for PyAV: a cut takes `seconds` and writes a few bytes, or fails.

    Attributes:
        seconds: How long each cut takes.
        fault: Raised by each cut.
        cuts: The source of each cut that began.
        cancelled: How many were cancelled.
    """

    seconds: float = 5.0
    fault: Exception | None = None
    cuts: list[Path] = attrs.field(factory=list)
    cancelled: int = 0

    async def cut(self, source: Path, output: Path, **options: Any) -> Path:
        """See `media.cut`."""
        self.cuts.append(source)
        assert source.exists()
        assert options["overwrite"]
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fault:
            raise self.fault
        output.write_bytes(b"cut")
        return output


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """An encoder in PyAV's place."""
    made = Encoder()
    monkeypatch.setattr("sora_chars.session.videos.cut", made.cut)
    return made


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A video; after the test, no folder of cuts is left."""
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (path := tmp_path / "rex.mp4").write_bytes(b"video")
    yield path
    assert list(temporary.iterdir()) == []


def clip_of(source: Path, start: int = 0) -> CharacterRequest:
    """Return a request for two seconds of a video."""
    return CharacterRequest(video=source, clip=(start, start + 2))


async def take(videos: CutVideos, request: CharacterRequest, hold: float = 0.0) -> CharacterRequest:
    """Return the prepared request after it was used for a while."""
    async with videos.prepared(WholeVideos(), request) as prepared:
        await asyncio.sleep(hold)
        return prepared


@pytest.mark.looptime
async def test_requests_share_a_cut(encoder: Encoder, source: Path) -> None:
    """Requests for the same clip, at the same time or one after the other, use one cut."""
    videos = CutVideos()
    first, second = await asyncio.gather(*(take(videos, clip_of(source)) for _ in range(2)))
    third = await take(videos, clip_of(source))
    assert first.video == second.video == third.video
    assert (first.clip, encoder.cuts) == (None, [source])
    source.write_bytes(b"another video")
    assert (await take(videos, clip_of(source))).video != first.video
    await videos.aclose()


@pytest.mark.looptime
async def test_few_cuts_are_kept(encoder: Encoder, source: Path) -> None:
    """Of the cuts that no request uses, eight are kept. One that is in use stays."""
    videos = CutVideos()
    held = asyncio.create_task(take(videos, clip_of(source, 99), hold=1000.0))
    paths = [(await take(videos, clip_of(source, start))).video_path for start in range(10)]
    assert [path is not None and path.exists() for path in paths] == [False] * 2 + [True] * 8
    await take(videos, clip_of(source, 9))
    await take(videos, clip_of(source, 0))
    assert len(encoder.cuts) == 12
    assert (kept := (await held).video_path)
    assert kept.exists()
    await videos.aclose()


@pytest.mark.looptime
async def test_a_folder_that_was_cleaned_up(encoder: Encoder, source: Path) -> None:
    """Where the system has removed old temporary files, the video is cut again into a new folder."""
    videos = CutVideos()
    first = await take(videos, clip_of(source))
    assert first.video_path
    shutil.rmtree(first.video_path.parent)
    for start in (0, 1):
        path = (await take(videos, clip_of(source, start))).video_path
        assert path
        assert path.exists()
    assert len(encoder.cuts) == 3
    await videos.aclose()


@pytest.mark.looptime
async def test_a_full_disk(encoder: Encoder, source: Path) -> None:
    """A cut that cannot be written is an error of the settings, which names the folder."""
    encoder.fault = OSError(errno.ENOSPC, "No space left on device")
    videos = CutVideos()
    with pytest.raises(ConfigurationError, match=r"temporary files cannot be written: No space left.*Nothing was sent"):
        await take(videos, clip_of(source))
    await videos.aclose()


async def test_no_folder_for_temporary_files(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files that does not exist is an error of the settings."""
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(source.with_name("none")))
        with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
            await take(CutVideos(), clip_of(source))


@pytest.mark.looptime
async def test_failed_cut(encoder: Encoder, source: Path) -> None:
    """Each request gets an error of its own, and the next one cuts again."""
    encoder.fault = InvalidRequestError("The video was not cut: it is broken.")
    videos = CutVideos()
    errors = await asyncio.gather(*(take(videos, clip_of(source)) for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in errors] == [str(encoder.fault)] * 2
    assert errors[0] is not errors[1]
    encoder.fault = None
    await take(videos, clip_of(source))
    assert len(encoder.cuts) == 2
    await videos.aclose()


@pytest.mark.looptime
async def test_cancelled_requests(encoder: Encoder, source: Path) -> None:
    """A cut goes on while a request waits for it, and ends with the last one."""
    videos = CutVideos()
    tasks = [asyncio.create_task(take(videos, clip_of(source))) for _ in range(2)]
    await asyncio.sleep(1)
    tasks[0].cancel()
    assert (await tasks[1]).clip is None
    last = asyncio.create_task(take(videos, clip_of(source, 1)))
    await asyncio.sleep(1)
    last.cancel()
    await asyncio.wait((last,))
    assert (encoder.cancelled, last.cancelled()) == (1, True)
    await take(videos, clip_of(source, 1))
    await videos.aclose()


@pytest.mark.looptime
async def test_closing_ends_cuts(encoder: Encoder, source: Path) -> None:
    """Closing ends a cut, whose request is cancelled."""
    videos = CutVideos()
    waiting = asyncio.create_task(take(videos, clip_of(source)))
    await asyncio.sleep(1)
    await videos.aclose()
    await asyncio.wait((waiting,))
    assert (encoder.cancelled, waiting.cancelled()) == (1, True)


@pytest.mark.looptime
async def test_requests_that_need_no_cut(encoder: Encoder, source: Path) -> None:
    """A request is passed as it is where its provider describes no videos, or takes its video whole."""
    videos = CutVideos()
    whole = CharacterRequest(video=source)  # no video that PyAV can read
    link = CharacterRequest(video=LINK)
    task = CharacterRequest(from_task="t", clip="1,3")
    for request in (whole, link, task):
        assert await take(videos, request) is request
    async with videos.prepared(FakeProvider(), clip_of(source)) as prepared:
        assert prepared.clip is not None
    assert encoder.cuts == []
    await videos.aclose()


async def test_a_file_that_is_gone(encoder: Encoder, source: Path) -> None:
    """A video that was removed since it was checked is an error of the request."""
    with pytest.raises(InvalidRequestError, match="video must be a readable file"):
        await take(CutVideos(), clip_of(source.with_name("gone.mp4")))
    assert encoder.cuts == []


@pytest.mark.parametrize(
    ("cutting", "schemes", "allowed"),
    [(Cutting(), ("https",), is_public), (Cutting(allow_any_url=True), ("https", "http"), is_any)],
)
async def test_downloads(  # noqa: PLR0917 # pytest passes them by name
    encoder: Encoder,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    cutting: Cutting,
    schemes: tuple[str, ...],
    allowed: object,
) -> None:
    """The video of a URL is downloaded by the rules of pictures, unless the caller allows more, and then removed."""
    del source

    async def save(self: Downloads, link: str, path: Path) -> None:
        assert (self.schemes, self.allowed, self.max_bytes) == (schemes, allowed, cutting.max_download_bytes)
        assert link == LINK
        path.write_bytes(b"video")

    monkeypatch.setattr(Downloads, "save", save)
    encoder.seconds = 0
    videos = CutVideos(cutting)
    await take(videos, CharacterRequest(video=LINK, clip="0,2"))
    assert not encoder.cuts[0].exists()
    await videos.aclose()


async def test_failed_download(encoder: Encoder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the reason and not the secret part of the link, and no file is left."""
    del source

    async def save(_: Downloads, _link: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise RejectedLinkError("not a public address")

    monkeypatch.setattr(Downloads, "save", save)
    videos = CutVideos()
    with pytest.raises(InvalidRequestError, match=r"not a public address \(https://clips\.example") as raised:
        await take(videos, CharacterRequest(video=LINK, clip="0,2"))
    assert "SECRET" not in str(raised.value)
    assert encoder.cuts == []
    assert videos._folder
    assert list(videos._folder.iterdir()) == []
    await videos.aclose()


@pytest.mark.looptime
async def test_a_cut_counts_towards_the_timeout(encoder: Encoder, source: Path) -> None:
    """A cut that takes too long ends the call before anything is sent, and the same key can be sent later."""
    provider = WholeVideos(before=0.0, after=0.0)
    async with CharacterSession(provider) as session:
        encoder.seconds = 50.0
        with pytest.raises(WaitTimeoutError, match="was not sent"):
            await session.create(clip_of(source), timeout=20)
        assert (provider.posts, encoder.cancelled, asyncio.get_running_loop().time()) == ([], 1, 20)
        encoder.seconds = 5.0
        request = attrs.evolve(clip_of(source), key="order-17")
        provider.early = ConfigurationError("Not yet.")
        with pytest.raises(ConfigurationError):
            await session.create(request)
        entry = await session.entry("order-17")
        assert entry
        assert (entry.state, entry.request["clip"], entry.request["video"]) == (EntryState.PENDING, "0,2", str(source))
        provider.early = None
        await session.create(request)
        assert len(encoder.cuts) == 2  # the second call with the key used the cut of the first
    assert [(clip, exists) for _, clip, exists in provider.taken] == [(None, True)] * 2


def test_options() -> None:
    """Another word for `fit` is refused when the options are made."""
    with pytest.raises(ConfigurationError, match="fit must be one of pad, crop, got 'stretch'"):
        Cutting(fit="stretch")  # type: ignore[arg-type]
