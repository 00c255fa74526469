"""Which HTTP proxy a request goes through: that of an option, or that of the environment."""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import attrs

from .errors import ConfigurationError, printable
from .logs import event_logger
from .redaction import mask

log = event_logger("sora_chars.transport")

_FIRST_SERVER_ERROR = 500
_PROXY = re.compile(r"https?://([^\s/?#]*@)?[^\s/?#@]+/?", re.IGNORECASE)


def clean_proxy(url: object, *, field: str) -> str | None:
    """Return the URL of a proxy, or None if there is none.

    Raises:
        ConfigurationError: It is not the URL of an HTTP proxy.
    """
    if url is None:
        return None
    text = str(url)
    try:
        good = _PROXY.fullmatch(text) and urlsplit(text).port != 0
    except ValueError:  # an invalid port, or an unclosed bracket
        good = False
    if not good:
        shown = printable(mask(text if "://" in text else f"://{text}").removeprefix("://"))
        raise ConfigurationError(
            f"{field} must be the URL of an HTTP proxy, like http://[user:password@]host[:port], got {shown!r}.",
            hint="Proxies of other kinds, such as SOCKS, are not supported.",
        )
    return text


@attrs.define(eq=False, repr=False)
class Proxies:
    """The proxies of the connections to one provider, from their opening to their closing.

    Without a proxy of an option, HTTPS_PROXY, HTTP_PROXY and NO_PROXY are honoured, in upper or lower case, as
    by aiohttp's `trust_env`; on macOS and Windows also the system's settings. Unlike `trust_env`, a netrc file is
    not read: its passwords would replace the API key.
    """

    provider: str
    option: str | None
    uses_environment: bool = True
    _found: dict[tuple[str, str], str | None] = attrs.field(factory=dict)  # by scheme and host

    def find(self, url: str) -> str | None:
        """Return the proxy of a request.

        Raises:
            ConfigurationError: The environment names a proxy that is not an HTTP proxy.
        """
        if self.option or not self.uses_environment:
            return self.option
        address = urlsplit(url)
        origin = (address.scheme, address.netloc)
        if origin not in self._found:
            self._found[origin] = self._of_environment(address.scheme, address.hostname or "", address.netloc)
        return self._found[origin]

    def _of_environment(self, scheme: str, host: str, netloc: str) -> str | None:
        url = getproxies().get(scheme)
        if not url or proxy_bypass(host) or proxy_bypass(netloc):
            return None
        variable = f"{scheme.upper()}_PROXY"
        proxy = clean_proxy(url if "://" in url else f"http://{url}", field=f"The environment variable {variable}")
        if proxy not in self._found.values():
            facts = {"provider": self.provider, "variable": variable, "proxy": mask(str(proxy))}
            log.info("proxy.of_environment", extra=facts)
        return proxy


def is_rejected_by_proxy(error: Exception) -> bool:
    """Return whether a proxy rejected a connection for good, such as with 407. The request itself was not sent."""
    return isinstance(error, aiohttp.ClientHttpProxyError) and error.status < _FIRST_SERVER_ERROR


def proxies_of(provider: str, option: str | None, http: aiohttp.ClientSession | None) -> Proxies:
    """Return the proxies for a transport. Of a caller's session, its proxy and its `trust_env` count."""
    if http is None:
        return Proxies(provider, option)
    default: object = getattr(http, "_default_proxy", None)  # aiohttp has no property for it
    return Proxies(provider, option or (None if default is None else str(default)), http.trust_env)
