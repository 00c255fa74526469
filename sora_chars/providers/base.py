"""What providers over a `Transport` share: base class, keys and addresses, the emulator, and the pages in front."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from sora_chars.errors import BlockedError, ConfigurationError, printable
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sora_chars.models import TaskSnapshot
    from sora_chars.responses import Response
    from sora_chars.transport import Transport

# A provider that read the request answers in its own format. With these statuses, a page in another format was
# written by a firewall, a proxy or a web server in front of it, which did not pass the request on.
_BLOCKED = frozenset({400, 403, 405, 406, 407, 410, 411, 412, 413, 414, 415, 417, 421, 426, 428, 431, 451, 511})
REDIRECTS = range(HTTPStatus.MULTIPLE_CHOICES, HTTPStatus.BAD_REQUEST)
"""The statuses of redirects, which are not followed."""
EMULATOR_VARIABLE = "SORA_CHARS_EMULATOR"
"""The environment variable that makes every provider speak to an emulator."""
EMULATOR_KEY = "emulated-by-sora-chars"
"""The key that is sent to that emulator in place of every real one."""


class HTTPProvider(Provider):
    """A provider that takes its connections, name and account from a transport."""

    def __init__(self, transport: Transport) -> None:
        emulator = emulator_url()
        if emulator and not f"{transport.base_url}/".startswith(f"{emulator}/"):
            raise ConfigurationError(
                f"{transport.provider} does not support {EMULATOR_VARIABLE}: it would reach {transport.base_url}.",
                hint="Build its address with `resolve_url`, or unset the variable.",
            )
        if emulator and transport.api_key != EMULATOR_KEY:
            raise ConfigurationError(
                f"{transport.provider} does not support {EMULATOR_VARIABLE}: it would send its key there.",
                hint="Read its key with `resolve_key`, or unset the variable.",
            )
        self._transport = transport
        self.name = transport.provider
        self.account = transport.account

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, base_url={self._transport.base_url!r})"

    async def __aenter__(self) -> Self:
        await self._transport.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.leave()


class PolledProvider(HTTPProvider):
    """A provider over a transport whose tasks are polled."""

    async def poll_capacity(self) -> int:
        """See `Provider.poll_capacity`."""
        return await self._transport.account.windows["poll"].available()

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`."""
        return await self._poll(task_id, None)

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`. An unchanged response is not parsed again."""
        return await self._poll(seen.task_id, seen)

    @abstractmethod
    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        """Send one poll. `seen` is the snapshot of the previous one, if there was one."""


def emulator_url() -> str | None:
    """Return the address of the emulator that SORA_CHARS_EMULATOR names; None if it is not set.

    Raises:
        ConfigurationError: It is not an http(s) URL with a host.
    """
    url = os.environ.get(EMULATOR_VARIABLE, "").strip()
    return clean_url(url, field=EMULATOR_VARIABLE) if url else None


def resolve_key(api_key: str | None, *, variable: str, provider: str, option: str = "api_key") -> str:
    """Return the API key that was passed as `option`, or else the one in the environment.

    With SORA_CHARS_EMULATOR it is a made-up one, so no real key is sent to an emulator.

    Raises:
        ConfigurationError: There is no key, or it cannot be sent in a header.
    """
    if emulator_url():
        return EMULATOR_KEY
    key: object = os.environ.get(variable, "") if api_key is None else api_key
    if not isinstance(key, str):
        raise ConfigurationError(f"{option} must be text, got {type(key).__name__}.")
    key = key.strip()
    if not key:
        what = {"access_key": "an access key", "secret_key": "a secret key"}.get(option, "an API key")
        raise ConfigurationError(f"{provider} needs {what}.", hint=f"Set {variable}, or pass {option}=.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(
            f"The API key of {provider} contains characters that no key has (spaces, line breaks)."
        )
    return key


def resolve_url(base_url: str | None, *, variable: str, default: str, field: str = "base_url") -> str:
    """Return the base URL that was passed, or else the one in the environment, or else the default.

    With SORA_CHARS_EMULATOR it is the emulator's in place of any of these, with the path of the default.

    Raises:
        ConfigurationError: It is invalid. The message names the option or the variable that holds it.
    """
    if base_url is not None:
        found = clean_url(base_url, field=field)
    else:
        found = clean_url(os.environ.get(variable) or default, field=variable)
    emulator = emulator_url()
    return emulator + urlsplit(default).path.rstrip("/") if emulator else found


def clean_url(url: str, *, field: str) -> str:
    """Return a base URL without trailing slashes.

    Raises:
        ConfigurationError: It is not an http(s) URL with a host, or contains a user, a query or a fragment.
    """
    try:
        good = re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url) and urlsplit(url).port != 0
    except ValueError:  # an invalid port, or an unclosed bracket
        good = False
    if not good:
        raise ConfigurationError(f"{field}: must be like https://host[:port][/path], got {printable(url)!r}.")
    return url.rstrip("/")


def blocked(response: Response, provider: str) -> BlockedError | None:
    """Return the error for a response that is not in the provider's format, if it proves that nothing was done.

    HTTP 303 proves nothing: it names the place of the result after a request that was carried out (RFC 9110).
    """
    status = response.status
    location = response.headers.get("Location")
    if status in REDIRECTS and status != HTTPStatus.SEE_OTHER:
        target = None if location is None else _without_secrets(location)
        where = f" redirects to {printable(target, limit=200)}" if target else " is a redirect without a target"
        return BlockedError(
            f"{provider} was not reached: HTTP {status}{where}.",
            hint="Set base_url to the address that serves the API. A login page of the network redirects too.",
            provider=provider,
            status=status,
            location=target,
        )
    if status not in _BLOCKED:
        return None
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200) or "an empty body"
    return BlockedError(
        f"{provider} was not reached: something in front of it answered HTTP {status}: {shown}",
        hint="A firewall, a proxy or a filter rejected the request. Check base_url and the network.",
        provider=provider,
        status=status,
        retry_after=response.retry_after,
    )


def _without_secrets(location: str) -> str:
    """Return the target of a redirect, which may be a path, without its user, query and fragment."""
    try:
        parts = urlsplit(location)
    except ValueError:  # such as an unclosed bracket
        return re.split(r"[?#]", location)[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
