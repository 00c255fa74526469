"""Videos that are downloaded to be cut: public addresses over https by default, and of a bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from sora_chars.downloads import Downloads, RejectedLinkError, is_any
from sora_chars.errors import InvalidRequestError
from sora_chars.media import Cutting
from sora_chars.models import Accepts, CharacterRequest, MediaRule
from sora_chars.session.videos import CutVideos
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4000


class WholeVideos(FakeProvider):
    """A provider that takes whole videos."""

    accepts = Accepts(video=MediaRule(local="upload", seconds=(1, 4)))


@pytest.fixture
async def link() -> AsyncIterator[str]:
    """The link of a file on loopback, without TLS."""
    app = web.Application()

    async def send(_: web.Request) -> web.Response:
        return web.Response(body=CONTENT)

    app.router.add_get("/clip.mp4", send)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/clip.mp4?signature=SECRET"
    await runner.cleanup()


async def cut(link: str, cutting: Cutting) -> str:
    """Return why the video of a link is not cut."""
    videos = CutVideos(cutting)
    try:
        with pytest.raises(InvalidRequestError) as raised:
            async with videos.prepared(WholeVideos(), CharacterRequest(video=link, clip="0,2")):
                pass
        assert "SECRET" not in str(raised.value)
        assert videos._folder
        assert list(videos._folder.iterdir()) == []
    finally:
        await videos.aclose()
    return str(raised.value)


async def test_private_addresses(link: str) -> None:
    """By default, neither http nor an address of a private network is followed."""
    assert "not https" in await cut(link, Cutting())
    assert "not a public address" in await cut(link.replace("http:", "https:"), Cutting())


async def test_any_address(link: str, tmp_path: Path) -> None:
    """A caller who allows more gets the file, which is then no video."""
    pytest.importorskip("av")
    assert "must be a video file that can be decoded" in await cut(link, Cutting(allow_any_url=True))
    downloads = Downloads(max_bytes=len(CONTENT), timeout=10, schemes=("http",), allowed=is_any)
    await downloads.save(link, tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == CONTENT


async def test_larger_files(link: str, tmp_path: Path) -> None:
    """A file of one byte more than the limit is not downloaded."""
    message = await cut(link, Cutting(allow_any_url=True, max_download_bytes=len(CONTENT) - 1))
    assert f"more than {len(CONTENT) - 1} bytes" in message
    downloads = Downloads(max_bytes=len(CONTENT) - 1, timeout=10, schemes=("http",), allowed=is_any)
    with pytest.raises(RejectedLinkError):
        await downloads.save(link, tmp_path / "clip.mp4")
