"""Where local files go for providers that take URLs only."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest

from sora_chars import Evolink, Kling, SeedanceAssets
from sora_chars.errors import ConfigurationError
from sora_chars.protocols import Provider
from sora_chars.providers.hosting import Hosting

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Uploads(Provider):
    """A provider with an upload, which counts its uploads and how often it is open."""

    name = "uploads"

    def __init__(self) -> None:
        self.opened = 0
        self.uploaded: list[Path] = []

    async def submit(self, *_: Any, **__: Any) -> Any:
        """Make nothing."""

    async def upload(self, path: Path) -> str:
        """Return a URL that counts."""
        assert self.opened == 1
        self.uploaded.append(path)
        return f"https://files.example/{len(self.uploaded)}"

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.opened -= 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A local file."""
    (path := tmp_path / "clip.mp4").write_bytes(b"clip")
    return path


@pytest.mark.looptime
async def test_unchanged_files_are_uploaded_once_an_hour(clip: Path) -> None:
    """The provider is open while it uploads. A file that changed, and a URL that is an hour old, are made anew."""
    owner = Uploads()
    hosting = Hosting(owner.upload)
    assert [await hosting.url_of(clip) for _ in range(2)] == ["https://files.example/1"] * 2
    assert owner.opened == 0
    clip.write_bytes(b"another clip")
    assert await hosting.url_of(clip) == "https://files.example/2"
    await asyncio.sleep(3599)
    assert await hosting.url_of(clip) == "https://files.example/2"
    await asyncio.sleep(2)
    assert await hosting.url_of(clip) == "https://files.example/3"


async def test_few_urls_are_kept(clip: Path) -> None:
    """The oldest URL is forgotten beyond 256."""
    made: list[Path] = []

    async def host(path: Path) -> str:
        made.append(path)
        return f"https://files.example/{path.name}"

    hosting = Hosting(host)
    files = [clip.with_name(f"{number}.mp4") for number in range(257)]
    for path in files:
        path.write_bytes(b"clip")
        await hosting.url_of(path)
    await hosting.url_of(files[1])
    assert len(made) == 257
    await hosting.url_of(files[0])
    assert len(made) == 258


@pytest.mark.parametrize(
    "url", ["clip.mp4", None, 7, b"https://a.example/b", "https://", "https://a.example/b c.mp4", "https://a/b\n"]
)
async def test_what_is_no_url(clip: Path, url: Any) -> None:
    """A function that returns no URL is named."""

    async def host(path: Path) -> Any:
        del path
        return url

    with pytest.raises(ConfigurationError, match=r"hosting must return an http\(s\) URL, got"):
        await Hosting(host).url_of(clip)


async def test_a_function_that_is_not_async(clip: Path) -> None:
    """A function that returns its URL without being async is named."""

    def host(path: Path) -> Any:
        return f"https://files.example/{path.name}?signature=SECRET"

    with pytest.raises(ConfigurationError, match="hosting must be an async function, and this one returned") as caught:
        await Hosting(host).url_of(clip)
    assert "SECRET" not in str(caught.value)


async def test_missing_file(clip: Path) -> None:
    """A file that is gone is an error of the file."""
    with pytest.raises(FileNotFoundError):
        await Hosting(Uploads().upload).url_of(clip.with_name("gone.mp4"))


@pytest.mark.parametrize("provider", [Kling, Evolink, SeedanceAssets])
def test_options_are_checked(provider: Any) -> None:
    """Anything but a function is refused when the provider is made."""
    with pytest.raises(ConfigurationError, match="hosting must be an async function from a path to a URL, got 'kie'"):
        provider("key", hosting="kie")
