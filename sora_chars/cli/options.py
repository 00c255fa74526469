"""Options that several commands share, and the objects that are built from them."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click
from click.core import ParameterSource
from platformdirs import user_data_path

from sora_chars.errors import ConfigurationError
from sora_chars.ledger import open_ledger
from sora_chars.polling.strategies import AdaptiveInterval, FixedInterval
from sora_chars.providers.kie import Kie
from sora_chars.providers.kkiai import GATEWAYS, Kkiai
from sora_chars.providers.kling import Kling
from sora_chars.responses import parse_json

from .context import CommandContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sora_chars.ledger import Ledger
    from sora_chars.models import UploadProgress
    from sora_chars.protocols import PollingStrategy, Provider

PROVIDERS = ("kie", "kling", *GATEWAYS)
_CALLING_BACK = ("kie", "kling")
SHUTDOWN_TIMEOUT = 8.0  # seconds for the response to a paid request after a signal; service managers kill after 10

_DEFAULT_TIMEOUT = 1800.0  # seconds
_DATABASE_SCHEMES = ("postgresql:", "postgres:")

C = TypeVar("C", bound="Callable[..., Any]")


def seconds(text: str) -> float:
    """Parse a finite number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0.")
    return number


def host_and_port(text: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 host is in brackets."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8090.")
    return host, int(port)


def json_input(text: str) -> Any:
    """Parse JSON, or the JSON in FILE if the text is @FILE."""
    try:
        return parse_json(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except OSError as error:
        raise click.BadParameter(f"{text[1:]} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise click.BadParameter(f"The input is not valid JSON: {error}.") from error


@attrs.frozen
class LedgerLocation:
    """The ledger of a command: `url`, or a file in the user's data folder.

    `str(location)` contains no password.

    Attributes:
        url: A path or URL as the user gave it; None selects the default file.
        explicit: Whether `url` was given by `--ledger`, not by the environment.
    """

    url: str | None = attrs.field(default=None, repr=False)
    explicit: bool = False

    @property
    def args(self) -> tuple[str, ...]:
        """The arguments that select this ledger in another command."""
        return ("--ledger", str(self)) if self.explicit else ()

    def open(self) -> Ledger:
        """Return the ledger, and create the user's data folder if it is needed.

        Raises:
            ConfigurationError: The URL's scheme is unknown, or the folder cannot be
                created.
        """
        if self.url is None:
            folder = _default_file().parent
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"The ledger's folder {folder} cannot be created: {os.strerror(error.errno or 0)}.",
                    hint="Choose another location with --ledger.",
                ) from error
        return self._ledger()

    def open_existing(self) -> Ledger:
        """Return the ledger without creating one.

        Raises:
            ConfigurationError: The URL's scheme is unknown, or the file does not exist.
        """
        ledger = self._ledger()
        path = str(self).removeprefix("sqlite:///")
        if not path.startswith((*_DATABASE_SCHEMES, "memory:")) and not Path(path).exists():
            raise ConfigurationError(f"No ledger exists at {path}.", hint="`sora-chars create` creates one.")
        return ledger

    def _ledger(self) -> Ledger:
        return open_ledger(_default_file() if self.url is None else self.url)

    def __str__(self) -> str:
        if self.url is None:
            return str(_default_file())
        return "postgresql://..." if self.url.startswith(_DATABASE_SCHEMES) else self.url


def _default_file() -> Path:
    return user_data_path("sora-chars", appauthor=False) / "ledger.db"


@attrs.frozen(kw_only=True)
class Settings:
    """The shared options of a command, as click parsed them.

    Attributes:
        provider: The provider's name.
        base_url: The provider's address, if it is not the default.
        timeout: Seconds to wait; None selects the default.
        upload_url: The address for uploads, if it is not the default.
        poll: Seconds between two polls; None selects adaptive polling.
        callback_url: The public URL that the provider sends callbacks to.
        listen: The host and port at which callbacks are received.
        webhook_key: The key that callbacks must be signed with.
        location: The ledger.

    Raises:
        click.UsageError: Two options require or exclude each other.
    """

    provider: str
    base_url: str | None
    timeout: float | None
    upload_url: str | None = None
    poll: float | None = None
    callback_url: str | None = None
    listen: tuple[str, int] | None = None
    webhook_key: str | None = attrs.field(default=None, repr=False)
    location: LedgerLocation = attrs.field(factory=LedgerLocation)

    def __attrs_post_init__(self) -> None:
        if (self.callback_url is None) != (self.listen is None):
            raise click.UsageError("--callback-url and --listen require each other.")
        if self.provider not in _CALLING_BACK and self.callback_url:
            names = " and ".join(_CALLING_BACK)
            raise click.UsageError(f"--callback-url: {self.provider} sends no callbacks; only {names} do.")

    @property
    def polling(self) -> PollingStrategy:
        """The polling strategy."""
        return AdaptiveInterval() if self.poll is None else FixedInterval(self.poll)

    @property
    def wait_timeout(self) -> float:
        """Seconds to wait for a task."""
        return self.timeout or _DEFAULT_TIMEOUT

    @property
    def provider_args(self) -> tuple[str, ...]:
        """The arguments that select the same provider in another command."""
        return () if self.base_url is None else ("--base-url", self.base_url)

    def make_provider(self, on_upload: Callable[[UploadProgress], None] | None = None) -> Provider:
        """Return the provider, with its API key from the environment.

        Raises:
            ConfigurationError: The key is missing, or a URL is invalid.
        """
        options: dict[str, Any] = {"base_url": self.base_url}
        if self.provider == "kie":
            options |= {"upload_url": self.upload_url, "callback_url": self.callback_url, "on_upload": on_upload}
            return Kie(**_given(options))
        if self.provider == "kling":
            return Kling(**_given(options | {"callback_url": self.callback_url}))
        # The character is the response to the only request, so `--timeout` limits that request.
        return Kkiai.gateway(self.provider, **_given(options | {"timeout": self.timeout}))

    def open_listener(self) -> socket.socket | None:
        """Return a listening socket for callbacks, or None without `--listen`.

        Raises:
            ConfigurationError: The address is not available.
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


def provider_options(command: C) -> C:
    """Add the options that select a provider."""
    return _add(
        command,
        click.option(
            "--provider",
            type=click.Choice(PROVIDERS),
            default="kie",
            show_default=True,
            metavar="NAME",
            help=f"One of {', '.join(PROVIDERS)}.",
        ),
        click.option("--base-url", metavar="URL", help="Address of the provider, such as an emulator's."),
    )


def submit_options(command: C) -> C:
    """Add the options for uploads and for receiving callbacks."""
    return _add(
        command,
        click.option("--upload-url", metavar="URL", help="Address for uploads; --base-url does not change it."),
        click.option("--callback-url", metavar="URL", help="Public URL that forwards to --listen."),
        click.option("--listen", type=host_and_port, metavar="HOST:PORT", help="Receive callbacks here while waiting."),
        click.option(
            "--webhook-key",
            envvar="KIE_WEBHOOK_HMAC_KEY",
            show_envvar=True,
            metavar="KEY",
            help="The account's webhookHmacKey; unsigned callbacks are then rejected.",
        ),
    )


def response_options(command: C) -> C:
    """Add `--timeout` to a command that sends one free request."""
    return _add(
        command,
        click.option(
            "--timeout",
            type=seconds,
            metavar="SECONDS",
            help="Seconds to wait for the response.  [default: 1800]",
        ),
    )


def wait_options(command: C) -> C:
    """Add the options for waiting: the timeout, and a fixed polling interval."""
    return _add(
        command,
        click.option(
            "--timeout",
            type=seconds,
            metavar="SECONDS",
            help="Seconds to wait for the task; for kkiai and other gateways, for the response to the request.  "
            "[default: 1800; gateways: 300]",
        ),
        click.option(
            "--poll",
            type=seconds,
            metavar="SECONDS",
            help="Poll at this fixed interval.  [default: adaptive, see `sora-chars durations`]",
        ),
    )


def ledger_options(command: C) -> C:
    """Add the option that selects a ledger."""
    return _add(
        command,
        click.option(
            "--ledger",
            "location",
            envvar="SORA_CHARS_LEDGER",
            show_envvar=True,
            metavar="PATH_OR_URL",
            callback=_ledger_location,
            help="Where requests are recorded: an SQLite file, postgresql://... or memory:.  "
            "[default: ledger.db in your data folder]",
        ),
    )


def output_options(command: C) -> C:
    """Add `--json` and `-v`, which configure the command's context."""
    return _add(
        command,
        click.option(
            "--json",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_json,
            help="Write JSON to stdout instead of text.",
        ),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_verbose,
            help="Show debug messages on stderr; secrets are masked.",
        ),
    )


def _add(command: C, *options: Callable[[C], C]) -> C:
    for option in reversed(options):
        command = option(command)
    return command


def _ledger_location(context: click.Context, parameter: click.Parameter, value: str | None) -> LedgerLocation:
    explicit = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    return LedgerLocation(value, explicit)


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(CommandContext).output.as_json = value


def _set_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(CommandContext).verbose = value
