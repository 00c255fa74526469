"""The videos that a session cuts before it sends a request: in a folder of its own, each once, and few of them kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from contextlib import asynccontextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sora_chars.downloads import DOWNLOAD_ERRORS, Downloads, is_any, reason
from sora_chars.errors import ConfigurationError, SoraCharsError
from sora_chars.media import Cutting, cut, needs_cut, not_cut
from sora_chars.redaction import mask

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.models import CharacterRequest, MediaRule
    from sora_chars.protocols import Provider

_MAX_KEPT = 8  # cut videos that no request uses at the moment, for requests that are repeated
_CONCURRENCY = max(1, (os.cpu_count() or 1) // 2)  # each encoder uses several threads
_DOWNLOAD_TIMEOUT = 600.0  # seconds


async def download_video(link: str, path: Path, cutting: Cutting) -> None:
    """Write the video of a URL to a new file, by the rules of `cutting`. An error leaves an incomplete file.

    Raises:
        InvalidRequestError: It cannot be downloaded, or may not.
    """
    downloads = Downloads(max_bytes=cutting.max_download_bytes, timeout=_DOWNLOAD_TIMEOUT)
    if cutting.allow_any_url:
        downloads = attrs.evolve(downloads, allowed=is_any, schemes=("https", "http"))
    try:
        await downloads.save(link, path)
    except DOWNLOAD_ERRORS as error:
        why = f"{reason(error)} ({mask(link)})"
        raise not_cut(f"video must be a link that can be downloaded, since it has to be cut: {why}") from error


@attrs.define(eq=False)
class _CutVideo:
    """A video that is being cut, or was.

    Attributes:
        path: Where the cut is, or will be.
        work: The asyncio task that cuts it.
        users: How many requests wait for it or use it.
    """

    path: Path
    work: asyncio.Task[None]
    users: int = 0


@attrs.define(eq=False)
class CutVideos:
    """Cuts the videos of requests to what their providers take.

    Attributes:
        cutting: How they are cut.
    """

    cutting: Cutting = attrs.field(factory=Cutting)
    _folder: Path | None = None
    _cuts: dict[str, _CutVideo] = attrs.field(factory=dict)  # the least recently used first
    _slots: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(_CONCURRENCY))

    @asynccontextmanager
    async def prepared(self, provider: Provider, request: CharacterRequest) -> AsyncGenerator[CharacterRequest]:
        """Give the request with a video that the provider takes: its own, or a local file that was cut of it.

        Raises:
            InvalidRequestError: The video cannot be downloaded, read or cut.
            ConfigurationError: PyAV is not installed.
        """
        accepts = provider.accepts
        rule = accepts.video if accepts and not accepts.takes_clip("video") else None
        if rule is None or not await self._needs_cut(request, rule):
            yield request
            return
        name = _name(request, rule, self.cutting.fit)
        video = self._cuts.pop(name, None)
        if video is None or (video.work.done() and not video.path.is_file()):  # temporary files may be cleaned up
            video = self._start(name, request, rule)
        self._cuts[name] = video
        video.users += 1
        try:
            await asyncio.wait((video.work,))
            try:
                video.work.result()
            except SoraCharsError as error:
                raise copy(error) from error  # each request adds its own facts
            yield attrs.evolve(request, video=video.path, clip=None)
        finally:
            video.users -= 1
            self._forget(name, video)
            if not video.users and not video.work.done():
                video.work.cancel()
                await asyncio.wait((video.work,))

    async def aclose(self) -> None:
        """End every cut, and remove the folder."""
        running = [video.work for video in self._cuts.values() if not video.work.done()]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @staticmethod
    async def _needs_cut(request: CharacterRequest, rule: MediaRule) -> bool:
        if request.clip is not None:
            return request.video is not None
        path = request.video_path
        return path is not None and await asyncio.to_thread(needs_cut, path, rule)

    def _start(self, name: str, request: CharacterRequest, rule: MediaRule) -> _CutVideo:
        if self._folder is None or not self._folder.is_dir():
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="sora-chars-"))
            except OSError as error:
                raise _not_written(error) from error
        path = self._folder / f"{name}.mp4"
        return _CutVideo(path, asyncio.create_task(self._cut(request, rule, path), name="sora_chars cut"))

    async def _cut(self, request: CharacterRequest, rule: MediaRule, path: Path) -> None:
        async with self._slots:
            source = request.video_path
            downloaded = path.with_suffix(".source")
            try:
                if source is None:
                    await download_video(str(request.video), downloaded, self.cutting)
                    source = downloaded
                await cut(
                    source,
                    path,
                    rule=rule,
                    clip=request.clip,
                    fit=self.cutting.fit,
                    overwrite=True,
                    on_progress=self.cutting.on_progress,
                )
            except OSError as error:
                raise _not_written(error) from error
            finally:
                downloaded.unlink(missing_ok=True)

    def _forget(self, name: str, video: _CutVideo) -> None:
        """Forget a cut that failed or is given up, and remove those used least recently. Does not wait for anything."""
        is_there = video.work.done() and not video.work.cancelled() and not video.work.exception()
        if not is_there and not (video.users and not video.work.done()):
            if self._cuts.get(name) is video:
                del self._cuts[name]
            return
        self._cuts[name] = self._cuts.pop(name, video)
        unused = [(key, one) for key, one in self._cuts.items() if not one.users]
        for key, one in unused[:-_MAX_KEPT]:
            del self._cuts[key]
            with suppress(OSError):
                one.path.unlink()


def _not_written(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"The video was not cut: the folder for temporary files cannot be written: {error.strerror}.",
        hint="Nothing was sent. TMPDIR selects another folder.",
    )


def _name(request: CharacterRequest, rule: MediaRule, fit: str) -> str:
    """Return the name of the cut of a video: the same file or link, clip, rule and fit give the same name.

    Raises:
        InvalidRequestError: The file is gone.
    """
    source = str(request.video)
    if path := request.video_path:
        try:
            facts = path.stat()
        except OSError as error:
            raise not_cut(f"video must be a readable file, got {path}: {error.strerror}") from error
        source = f"{path.absolute()} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.sha256(f"{source}\n{request.clip}\n{rule}\n{fit}".encode(errors="surrogatepass")).hexdigest()[:32]
