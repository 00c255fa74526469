"""The options for local videos: how they are cut, and where they are hosted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from sora_chars.media import FITS
from sora_chars.providers.kie import Kie
from sora_chars.providers.seedance import SeedanceAssets
from sora_chars.providers.wavespeed import Wavespeed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.models import UploadProgress
    from sora_chars.providers.hosting import Host

C = TypeVar("C", bound="Callable[..., Any]")

HOSTS = ("kie", "wavespeed", "seedance")
"""The providers whose uploads `--hosting` uses."""


any_url_option = click.option(
    "--allow-any-url",
    is_flag=True,
    help="Download a video that has to be cut also over http, and from addresses that are not public.",
)


hosting_option = click.option(
    "--hosting",
    type=click.Choice(HOSTS),
    metavar="NAME",
    help=f"Upload local files to {', '.join(HOSTS[:-1])} or {HOSTS[-1]}, with its own key, for providers that "
    "take URLs only: kling, evolink and Ark.",
)


def video_options(command: C) -> C:
    """Add `--fit`, `--hosting` and `--allow-any-url`."""
    fit = click.option(
        "--fit",
        type=click.Choice(FITS),
        default="pad",
        show_default=True,
        help="Make a video of another shape fit by black bars, or by cutting off its edges.",
    )
    return fit(hosting_option(any_url_option(command)))


def upload_of(
    name: str, proxy: str | None, upload_url: str | None, on_upload: Callable[[UploadProgress], None] | None
) -> Host:
    """Return the upload of the provider that `--hosting` names. Its key and its address are in the environment.

    Raises:
        ConfigurationError: The key is missing.
    """
    if name == "wavespeed":
        return Wavespeed(proxy=proxy, on_upload=on_upload).upload
    if name == "seedance":
        return SeedanceAssets(proxy=proxy, ark=False).upload
    return Kie(proxy=proxy, upload_url=upload_url, on_upload=on_upload).upload
