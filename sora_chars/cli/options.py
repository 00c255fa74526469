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

from sora_chars.errors import ConfigurationError, printable
from sora_chars.polling.strategies import AdaptiveInterval, FixedInterval
from sora_chars.providers.evolink import Evolink
from sora_chars.providers.heygen import HeyGen
from sora_chars.providers.kie import Kie
from sora_chars.providers.kkiai import GATEWAYS, Kkiai
from sora_chars.providers.kling import Kling
from sora_chars.providers.seedance import SeedanceAssets
from sora_chars.providers.vidu import Vidu
from sora_chars.providers.wavespeed import Wavespeed
from sora_chars.redaction import mask
from sora_chars.responses import parse_json

from .context import CommandContext
from .ledger_location import LedgerLocation
from .video_options import hosting_option, upload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sora_chars.media import Fit
    from sora_chars.models import UploadProgress
    from sora_chars.protocols import PollingStrategy, Provider

PROVIDERS = ("kie", "kling", "wavespeed", "evolink", "vidu", "seedance", "heygen", *GATEWAYS)
_CALLING_BACK = ("kie", "kling", "wavespeed", "evolink")
_WITH_TASKS = (*_CALLING_BACK, "seedance", "heygen")

_HOSTED = {"kling", "evolink", "seedance"}

_DEFAULT_TIMEOUT = 1800.0  # seconds, of a wait for a task
_RESPONSE_TIMEOUT = 60.0  # seconds
_GATEWAY_RESPONSE_TIMEOUT = 300.0  # seconds
_WEBHOOK_VARIABLE = "KIE_WEBHOOK_HMAC_KEY"

C = TypeVar("C", bound="Callable[..., Any]")


def seconds(text: str) -> float:
    """Parse a finite number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise click.BadParameter(f"{printable(text, limit=60)!r} is not a number of seconds above 0.")
    return number


def host_and_port(text: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 host is in brackets."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise click.BadParameter(f"{printable(text, limit=60)!r} is not HOST:PORT, such as 127.0.0.1:8090.")
    return host, int(port)


def json_input(text: str) -> Any:
    """Parse JSON, or the JSON in FILE if the text is @FILE."""
    try:
        return parse_json(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except OSError as error:
        raise click.BadParameter(f"{printable(text[1:])} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise click.BadParameter(f"The input is not valid JSON: {error}.") from error


@attrs.frozen(kw_only=True)
class Settings:
    """The shared options of a command, as click parsed them.

    Attributes:
        provider: The provider's name.
        base_url: The provider's address, if it is not the default.
        timeout: Seconds to wait; None selects the default.
        proxy: The URL of an HTTP proxy, if it is not that of the environment.
        upload_url: The address for uploads, if it is not the default.
        poll: Seconds between two polls; None selects adaptive polling.
        callback_url: The public URL that the provider sends callbacks to.
        listen: The host and port at which callbacks are received.
        webhook_key: The key that callbacks must be signed with; None does not check
            signatures.
        shutdown_timeout: Seconds that a signal leaves for responses, if they were given.
        hosting: The name of the provider whose uploads make local files public for
            providers that take URLs only.
        fit: How a picture of another shape is made to fit.
        allow_any_url: Whether videos that have to be cut are downloaded from any address.
        location: The ledger.

    Raises:
        click.UsageError: Two options require or exclude each other.
        ConfigurationError: The key is empty.
    """

    provider: str
    base_url: str | None
    timeout: float | None
    proxy: str | None = attrs.field(default=None, repr=False)
    upload_url: str | None = None
    poll: float | None = None
    callback_url: str | None = None
    listen: tuple[str, int] | None = None
    webhook_key: str | None = attrs.field(default=None, repr=False)
    shutdown_timeout: float | None = None
    hosting: str | None = None
    fit: Fit = "pad"
    allow_any_url: bool = False
    location: LedgerLocation = attrs.field(factory=LedgerLocation)

    def __attrs_post_init__(self) -> None:
        if (self.callback_url is None) != (self.listen is None):
            raise click.UsageError("--callback-url and --listen require each other.")
        if self.provider not in _CALLING_BACK and self.callback_url:
            names = f"{', '.join(_CALLING_BACK[:-1])} and {_CALLING_BACK[-1]}"
            raise click.UsageError(f"--callback-url: {self.provider} is only polled; callbacks come from {names}.")
        if self.webhook_key is not None and not self.webhook_key.strip():
            raise ConfigurationError(
                f"--webhook-key and {_WEBHOOK_VARIABLE} must not be empty.",
                hint="Unset them if the account has no webhookHmacKey.",
            )

    @property
    def polling(self) -> PollingStrategy:
        """The polling strategy."""
        return AdaptiveInterval() if self.poll is None else FixedInterval(self.poll)

    @property
    def wait_timeout(self) -> float:
        """Seconds to wait for a task."""
        return self.timeout or _DEFAULT_TIMEOUT

    @property
    def response_timeout(self) -> float:
        """Seconds to wait for the response to a free request."""
        return self.timeout or _RESPONSE_TIMEOUT

    @property
    def provider_args(self) -> tuple[str, ...]:
        """The arguments that select the same provider in another command, without the password of a proxy."""
        options = {
            "--provider": None if self.provider == "kie" else self.provider,
            "--base-url": self.base_url,
            "--proxy": self.proxy and mask(self.proxy),
        }
        return tuple(word for name, value in _given(options).items() for word in (name, value))

    def shutdown_seconds(self, providers: Iterable[str]) -> float:
        """Return how long a signal leaves for responses: by default as long as the slowest provider may take."""
        if self.shutdown_timeout is not None:
            return self.shutdown_timeout
        gateway = self.timeout or _GATEWAY_RESPONSE_TIMEOUT
        return max(_RESPONSE_TIMEOUT if name in _WITH_TASKS else gateway for name in providers)

    def make_provider(self, on_upload: Callable[[UploadProgress], None] | None = None) -> Provider:
        """Return the provider, with its API key from the environment.

        Raises:
            ConfigurationError: The key is missing, or a URL is invalid.
        """
        options: dict[str, Any] = {"base_url": self.base_url, "proxy": self.proxy}
        if self.hosting and self.provider in _HOSTED:
            options["hosting"] = upload_of(self.hosting, self.proxy, self.upload_url, on_upload)
        if self.provider == "kie":
            options |= {"upload_url": self.upload_url, "callback_url": self.callback_url, "on_upload": on_upload}
            return Kie(timeout=_RESPONSE_TIMEOUT, **_given(options))
        if self.provider == "wavespeed":
            options |= {"callback_url": self.callback_url, "on_upload": on_upload}
            return Wavespeed(timeout=_RESPONSE_TIMEOUT, **_given(options))
        if self.provider in {"kling", "evolink"}:
            make = Kling if self.provider == "kling" else Evolink
            return make(timeout=_RESPONSE_TIMEOUT, **_given(options | {"callback_url": self.callback_url}))
        if self.provider in {"heygen", "seedance"}:
            polled = HeyGen if self.provider == "heygen" else SeedanceAssets
            return polled(timeout=_RESPONSE_TIMEOUT, **_given(options))
        if self.provider == "vidu":
            return Vidu(timeout=self.timeout or _GATEWAY_RESPONSE_TIMEOUT, **_given(options))
        # The character is the response to the only request, so `--timeout` limits that request.
        return Kkiai.gateway(self.provider, timeout=self.timeout or _GATEWAY_RESPONSE_TIMEOUT, **_given(options))

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


def provider_options(command: C, *, default: str = "kie") -> C:
    """Add the options that select a provider."""
    return _add(
        command,
        provider_choice(default=default, help_text=f"One of {', '.join(PROVIDERS)}."),
        address_options,
    )


def provider_choice(*, default: str | None, help_text: str) -> Callable[[C], C]:
    """Return the option that names a provider."""
    return click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default=default,
        show_default=default is not None,
        metavar="NAME",
        help=help_text,
    )


def address_options(command: C) -> C:
    """Add the options for how a provider is reached."""
    return _add(
        command,
        click.option("--base-url", metavar="URL", help="Address of the provider, such as an emulator's."),
        click.option(
            "--proxy", metavar="URL", help="HTTP proxy.  [default: HTTPS_PROXY or HTTP_PROXY, except for NO_PROXY]"
        ),
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
            metavar="KEY",
            callback=_webhook_key,
            help="The webhookHmacKey of a kie account; unsigned callbacks are then rejected. kling and wavespeed read "
            f"KLING_WEBHOOK_SECRET and WAVESPEED_WEBHOOK_SECRET.  [env var: {_WEBHOOK_VARIABLE}]",
        ),
        click.option(
            "--shutdown-timeout",
            type=seconds,
            metavar="SECONDS",
            help="Seconds that Ctrl-C, SIGTERM and SIGHUP leave for the responses to requests that were sent.  "
            "[default: what the provider may take: 60; vidu, kkiai and its gateways: their --timeout]",
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
            help="Seconds to wait for the response.  [default: 60]",
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
            help="Seconds to wait for the task; for vidu, kkiai and its gateways, for the response to the request.  "
            "[default: 1800; vidu, kkiai and its gateways: 300]",
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


def create_options(command: C) -> C:
    """Add the options that all commands share which send paid requests."""
    return provider_options(submit_options(_wait_and_output_options(command)))


def voice_options(command: C) -> C:
    """Add the options of `create_options`, with the provider that creates voices as the default."""
    return provider_options(submit_options(hosting_option(_wait_and_output_options(command))), default="kling")


def task_options(command: C) -> C:
    """Add the options that all commands share which wait for recorded tasks."""
    return provider_options(_wait_and_output_options(command))


def _wait_and_output_options(command: C) -> C:
    """Add the options for waiting, for the ledger and for the output."""
    return wait_options(ledger_options(output_options(command)))


def query_options(command: C) -> C:
    """Add the options that all commands share which send one free request."""
    return provider_options(response_options(output_options(command)))


def _add(command: C, *options: Callable[[C], C]) -> C:
    for option in reversed(options):
        command = option(command)
    return command


def _webhook_key(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Read the key from the environment where it is used; click would ignore an empty variable."""
    listens = context.params.get("listen") is not None
    return os.environ.get(_WEBHOOK_VARIABLE) if value is None and listens else value


def _ledger_location(context: click.Context, parameter: click.Parameter, value: str | None) -> LedgerLocation:
    explicit = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    return LedgerLocation(value, explicit)


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(CommandContext).output.as_json = value


def _set_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(CommandContext).verbose = value
