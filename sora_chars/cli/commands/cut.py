"""`sora-chars cut`: cuts a video to what a provider takes. No request is sent, and no key is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from sora_chars import media
from sora_chars.cli.options import output_options
from sora_chars.cli.runner import run
from sora_chars.cli.single_task import cut_status
from sora_chars.cli.video_options import any_url_option
from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import Clip, is_url
from sora_chars.providers.evolink_codec import VIDEO as EVOLINK
from sora_chars.providers.heygen_codec import VIDEO as HEYGEN
from sora_chars.providers.kie_codec import VIDEO as KIE
from sora_chars.providers.kling_codec import VIDEO as KLING
from sora_chars.providers.media import probe
from sora_chars.providers.seedance_codec import VIDEO as SEEDANCE
from sora_chars.providers.vidu_codec import VIDEO as VIDU
from sora_chars.providers.wavespeed_codec import VIDEO as WAVESPEED
from sora_chars.session.videos import download_video

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.cli.context import CommandContext
    from sora_chars.models import MediaRule

RULES: Mapping[str, MediaRule] = {
    "kie": KIE,
    "kling": KLING,
    "wavespeed": WAVESPEED,
    "evolink": EVOLINK,
    "vidu": VIDU,
    "seedance": SEEDANCE,
    "heygen": HEYGEN,
}
"""The rule for videos of each provider that takes whole videos."""


@click.command()
@click.argument("video")
@click.argument("clip", metavar="START,END")
@click.option(
    "--for",
    "provider",
    type=click.Choice([*RULES]),
    required=True,
    metavar="PROVIDER",
    help=f"Cut to the limits of this provider: {', '.join(RULES)}.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="OUT",
    help="The MP4 file to write.",
)
@click.option(
    "--fit",
    type=click.Choice(media.FITS),
    default="pad",
    show_default=True,
    help="Make a picture of another shape fit by black bars, or by cutting off its edges.",
)
@any_url_option
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@output_options
@click.pass_obj
def cut(
    context: CommandContext,
    /,
    *,
    video: str,
    clip: str,
    provider: str,
    output: Path,
    fit: media.Fit,
    allow_any_url: bool,
    force: bool,
) -> None:
    """Cut a video to what a provider takes.

    The part of VIDEO, a file or a URL, from START to END, in seconds, becomes an
    MP4 file with H.264 and AAC, in the picture size, frame rate and number of bytes
    that the provider takes. Needs `pip install 'sora-chars[media]'`.
    """
    work = _Cut(context, video, Clip.parse(clip), output, RULES[provider], fit, allow_any_url, force)
    path = run(context, work.run())
    facts = probe(path)
    payload = {"file": str(path), "bytes": facts.size, "seconds": facts.duration, "provider": provider}
    rows = [
        ("file", printable(path)),
        ("size", f"{facts.size / 1e6:.2f} MB"),
        ("seconds", f"{facts.duration or 0:.2f}"),
    ]
    context.output.show(payload, rows, title="Clip")


@attrs.frozen
class _Cut:
    """One run of the command."""

    context: CommandContext
    video: str
    clip: Clip
    output: Path
    rule: MediaRule
    fit: media.Fit
    allow_any_url: bool
    force: bool

    async def run(self) -> Path:
        """Download the video if it is at a URL, and cut it."""
        if not is_url(self.video):
            return await self._cut(Path(self.video))
        media.require_extra()  # before the download
        with tempfile.TemporaryDirectory(prefix="sora-chars-") as folder:
            path = Path(folder, "video")
            await download_video(self.video, path, media.Cutting(allow_any_url=self.allow_any_url))
            return await self._cut(path)

    async def _cut(self, path: Path) -> Path:
        with self.context.output.status_line() as line:

            def show(progress: media.CutProgress) -> None:
                line.update(cut_status(progress))

            try:
                return await media.cut(
                    path,
                    self.output,
                    rule=self.rule,
                    clip=self.clip,
                    fit=self.fit,
                    overwrite=self.force,
                    on_progress=show,
                )
            except FileExistsError as error:
                shown = printable(self.output)
                raise ConfigurationError(f"{shown} exists.", hint="Add --force to replace it.") from error
            except OSError as error:
                shown = printable(self.output)
                raise ConfigurationError(f"{shown} cannot be written: {error.strerror}.") from error
