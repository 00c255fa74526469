"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from sora_chars.errors import ConfigurationError
from sora_chars.polling.strategies import AdaptiveInterval, FixedInterval
from sora_chars.providers.kie import Kie
from sora_chars.providers.kkiai import GATEWAYS, Kkiai
from sora_chars.transport import parse_json

from .keeping import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sora_chars.models import UploadProgress
    from sora_chars.protocols import PollingStrategy, Provider

PROVIDERS = ("kie", *GATEWAYS)

C = TypeVar("C", bound="Callable[..., Any]")


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0.")
    return number


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 host in brackets."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):  # noqa: PLR2004 # of TCP
        raise click.BadParameter(f"{text!r} is not HOST:PORT, as in 127.0.0.1:8090.")
    return host, int(port)


def json_input(text: str) -> Any:
    """JSON, or @FILE that holds it."""
    try:
        return parse_json(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except OSError as error:
        raise click.BadParameter(f"{text[1:]} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise click.BadParameter(f"This is no JSON: {error}.") from error


@attrs.frozen(kw_only=True)
class Settings:
    """The options that say with whom to speak and how long to wait.

    Raises:
        click.UsageError: options that need each other, or exclude each other.
    """

    provider: str
    base_url: str | None
    timeout: float | None
    upload_url: str | None = None
    poll: float | None = None
    callback_url: str | None = None
    listen: tuple[str, int] | None = None
    webhook_key: str | None = attrs.field(default=None, repr=False)
    place: Place = attrs.field(factory=Place)

    def __attrs_post_init__(self) -> None:
        if (self.callback_url is None) != (self.listen is None):
            raise click.UsageError("--callback-url and --listen belong together: give both, or neither.")
        if self.provider != "kie" and self.callback_url:
            raise click.UsageError(f"--callback-url: kie sends callbacks, {self.provider} does not.")

    @property
    def pace(self) -> PollingStrategy:
        """How often to look."""
        return AdaptiveInterval() if self.poll is None else FixedInterval(self.poll)

    @property
    def address(self) -> tuple[str, ...]:
        """The options with which another command meets the same provider."""
        return () if self.base_url is None else ("--base-url", self.base_url)

    def make_provider(self, on_upload: Callable[[UploadProgress], None] | None = None) -> Provider:
        """The provider, with its key from the environment.

        Raises:
            ConfigurationError: no key, or a URL that is none.
        """
        options: dict[str, Any] = {"base_url": self.base_url}
        if self.provider == "kie":
            options |= {"upload_url": self.upload_url, "callback_url": self.callback_url, "on_upload": on_upload}
            return Kie(**_given(options))
        # The answer of this protocol's one request is the character: its time-out is the wait's.
        return Kkiai.gateway(self.provider, **_given(options | {"timeout": self.timeout}))

    def open_port(self) -> socket.socket | None:
        """The socket that callbacks come to, if they shall.

        Raises:
            ConfigurationError: the address cannot be had.
        """
        if self.listen is None:
            return None
        family = socket.AF_INET6 if ":" in self.listen[0] else socket.AF_INET
        try:
            return socket.create_server(self.listen, family=family)
        except OSError as error:
            where = "{}:{}".format(*self.listen)
            raise ConfigurationError(f"--listen {where}: {os.strerror(error.errno or 0)}.") from error


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def talking(command: C) -> C:
    """Give a command the options of everything that asks a provider."""
    for option in (
        click.option(
            "--timeout", type=seconds, metavar="SECONDS", help="How long to wait. [default: 1800; kkiai: 300]"
        ),
        click.option("--upload-url", metavar="URL", help="Another address for uploads; --base-url does not change it."),
        click.option("--base-url", metavar="URL", help="Another address of the provider, as an emulator's."),
        click.option("--provider", type=click.Choice(PROVIDERS), default="kie", show_default=True),
    ):
        command = option(command)
    return command


def submitting(command: C) -> C:
    """Give a command the options of callbacks."""
    for option in (
        click.option(
            "--webhook-key",
            envvar="KIE_WEBHOOK_HMAC_KEY",
            show_envvar=True,
            metavar="KEY",
            help="The webhookHmacKey that callbacks must be signed with.",
        ),
        click.option("--listen", type=address, metavar="HOST:PORT", help="Where to receive callbacks while waiting."),
        click.option("--callback-url", metavar="URL", help="The public URL that leads to --listen."),
    ):
        command = option(command)
    return command


def polling(command: C) -> C:
    """Give a command the option of a pace."""
    return click.option(
        "--poll", type=seconds, metavar="SECONDS", help="Look at the task this often. [default: as learned, see pace]"
    )(command)
