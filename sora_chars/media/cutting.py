"""`cut`: one video cut to what a provider takes, in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import ConfigurationError, InvalidRequestError, printable
from sora_chars.models import CharacterRequest

from .extra import is_installed, require_extra
from .layout import FITS
from .planning import BitRate, cut_problems, fits, not_cut, span_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.models import Clip, ClipLike, MediaRule

    from .layout import Fit
    from .planning import VideoFacts

_SHARES = (0.9, 0.75, 0.5, 0.3)  # of the largest size: what is aimed at, until a file is small enough
_MIB = 1024 * 1024


@attrs.frozen
class CutProgress:
    """The progress of a cut.

    Attributes:
        path: The video that is cut.
        done: Frames encoded so far.
        total: Frames of the cut.
    """

    path: Path
    done: int
    total: int


@attrs.frozen(kw_only=True)
class Cutting:
    """How a session cuts the videos of its requests, where their providers take whole videos.

        CharacterSession(Kling(hosting=Kie().upload), cutting=Cutting(fit="crop"))

    Attributes:
        fit: How a picture of another shape is made to fit: "pad" adds black bars, "crop" cuts off edges.
        allow_any_url: Whether the video of a URL may also be downloaded by http and from addresses that are not
            public. Leave it off where strangers choose the URLs.
        max_download_bytes: Largest video that is downloaded to be cut.
        on_progress: Called in the event loop with the progress of each cut.

    Raises:
        ConfigurationError: `fit` is another word.
    """

    fit: Fit = "pad"
    allow_any_url: bool = False
    max_download_bytes: int = 1024 * _MIB
    on_progress: Callable[[CutProgress], object] | None = None

    def __attrs_post_init__(self) -> None:
        _check_fit(self.fit)


def needs_cut(path: Path, rule: MediaRule) -> bool:
    """Return whether a whole local video has to be changed for a provider. Decodes its first frame.

    False if PyAV is not installed or cannot decode the video: it is sent as it is.
    """
    if not is_installed():
        return False
    from .inspecting import inspect, rotation_of  # noqa: PLC0415 # PyAV takes a tenth of a second to import

    try:
        return not fits(inspect(path), rotation_of(path), rule)
    except InvalidRequestError:
        return False


def _check_fit(fit: str) -> None:
    if fit not in FITS:
        raise ConfigurationError(f"fit must be one of {', '.join(FITS)}, got {printable(repr(fit), limit=60)}.")


async def cut(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rule: MediaRule,
    clip: ClipLike | None = None,
    fit: Fit = "pad",
    overwrite: bool = False,
    on_progress: Callable[[CutProgress], object] | None = None,
) -> Path:
    """Cut a local video to what a provider takes, and return the path of the new file.

        await media.cut("phone.mov", "clip.mp4", clip="2,6", rule=Kling.accepts.video)

    The new file is an MP4 with H.264 and, if the source has sound, AAC. It has a constant
    frame rate, 8 bits a colour and no rotation. The first frame is the one that is shown at
    the start of the clip, and the frame at its end is left out. The same file and options
    give the same bytes with the same version of PyAV.

    The cut runs in a thread. Cancelling it ends the thread and leaves no file.

    Args:
        source: A local video.
        output: The file to write.
        rule: The provider's limits, such as `Kling.accepts.video`.
        clip: The part of the video, such as "2,6". Defaults to the whole video.
        fit: How a picture of another shape is made to fit: "pad" adds black bars, "crop" cuts off edges.
        overwrite: Whether an existing `output` is replaced.
        on_progress: Called in the event loop with the progress.

    Raises:
        ConfigurationError: PyAV is not installed.
        InvalidRequestError: The video cannot be read, or the provider would not take the cut.
        FileExistsError: There is an `output`, and `overwrite` is false.
        OSError: `output` cannot be written.
    """
    require_extra()
    request = CharacterRequest(video=source, clip=clip)
    _check_fit(fit)
    path = request.video_path
    if path is None:
        raise not_cut("video must be a local path, got a URL; download it first")
    target = Path(output)
    stop = threading.Event()
    job = _Job(path, target, rule, request.clip, fit, overwrite, _reporter(on_progress, path), stop)
    await _in_thread(job.run, stop)
    return target


def _reporter(on_progress: Callable[[CutProgress], object] | None, path: Path) -> Callable[[int, int], object] | None:
    if on_progress is None:
        return None
    loop = asyncio.get_running_loop()
    return lambda done, total: loop.call_soon_threadsafe(on_progress, CutProgress(path, done, total))


async def _in_thread(work: Callable[[], object], stop: threading.Event) -> None:
    """Run a function in a thread of its own. A cancellation sets `stop` and waits until the thread has ended."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sora_chars cut")
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        await asyncio.wait((future,))
    except asyncio.CancelledError:
        stop.set()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((future,))
        future.exception()  # retrieved: the cancellation is what the caller sees
        raise
    finally:
        executor.shutdown()  # the function has ended, and now its thread does
    future.result()


@attrs.frozen
class _Job:
    """A cut, as its thread runs it."""

    source: Path
    target: Path
    rule: MediaRule
    clip: Clip | None
    fit: Fit
    overwrite: bool
    report: Callable[[int, int], object] | None
    stop: threading.Event

    def run(self) -> None:
        """Write the cut beside its target, and move it there when it is complete."""
        from .inspecting import inspect  # noqa: PLC0415 # PyAV takes a tenth of a second to import

        if not self.overwrite and self.target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.target))
        facts = inspect(self.source)
        if problems := cut_problems(facts, self.clip, self.rule):
            raise not_cut(*problems)
        # The path is absolute, because FFmpeg would take "12:30.mp4" for a URL.
        part = self.target.absolute().with_name(f".{self.target.name}.{uuid.uuid4().hex}.part")
        try:
            self._write(facts, part)
            if self.overwrite:
                part.replace(self.target)
            else:
                _move(part, self.target)
        finally:
            part.unlink(missing_ok=True)

    def _write(self, facts: VideoFacts, part: Path) -> None:
        from .encoding import Cut  # noqa: PLC0415 # as above

        span = span_of(facts, self.clip, self.rule)
        size = 0
        limit = self.rule.max_bytes or math.inf
        for share in _SHARES:
            Cut(
                source=self.source,
                span=span,
                rule=self.rule,
                fit=self.fit,
                bits=BitRate.below(self.rule.max_bytes, span.end - span.start, share=share),
                has_sound=facts.sound is not None,
                report=partial(self._report, total=span.expected),
                stop=self.stop,
            ).write(part)
            size = part.stat().st_size
            if size <= limit:
                return
        raise not_cut(f"video must have up to {limit / _MIB:g} MB, and even its smallest cut has {size} bytes")

    def _report(self, done: int, total: int) -> None:
        if self.report:
            self.report(min(done, total), total)


def _move(part: Path, target: Path) -> None:
    """Give a finished file its name, unless there is a file of that name by now."""
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        part.rename(target)
