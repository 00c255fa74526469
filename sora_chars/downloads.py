"""Downloads of links that strangers may have chosen: https and public addresses only, also after redirects.

Each download has its own HTTP client: no key, cookie or proxy meets a link, and no connection stays open.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urljoin

import aiohttp
import attrs
from yarl import URL

from .connections import MAX_HEADER_BYTES
from .errors import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path
    from ssl import SSLContext

    from aiohttp.abc import ResolveResult

Address: TypeAlias = IPv4Address | IPv6Address

_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_QUOTED = re.compile(r"[!-~]+")  # a link with other characters is quoted before it is sent
_CHUNK_BYTES = 256 * 1024


class RejectedLinkError(Exception):
    """Why a link is not followed, fit for a log. Not an OSError: aiohttp would wrap one that a resolver raises."""


DOWNLOAD_ERRORS = (RejectedLinkError, aiohttp.ClientError, OSError, ValueError)
"""What a download raises. `reason` is what may be shown of it."""


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet. An IPv4-mapped address counts as its IPv4 address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or address.sixtofour:  # Python calls both global: the retired fec0::/10 and 2002::/16
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_any(address: Address) -> bool:
    """Return True, for links that the caller vouches for."""
    del address
    return True


@attrs.frozen(kw_only=True)
class Downloads:
    """The limits of downloads.

    Attributes:
        max_bytes: The maximum size of a file.
        timeout: Seconds for one file in total.
        schemes: The schemes of the links that are followed.
        allowed: Whether an address may be connected to.
        ssl: As aiohttp's option of that name.
    """

    max_bytes: int
    timeout: float
    schemes: tuple[str, ...] = ("https",)
    allowed: Callable[[Address], bool] = is_public
    ssl: SSLContext | bool = True

    async def read(self, link: str) -> bytes:
        """Return the content of a link.

        Raises:
            RejectedLinkError: The link is not followed, or its file is too large.
            OSError: The server was not reached in time.
            aiohttp.ClientError: The server was not reached.
            ValueError: The link is no URL.
        """
        data = bytearray()
        async with asyncio.timeout(self.timeout), self._response(link) as response:
            async for chunk in self._chunks(response):
                data += chunk
        return bytes(data)

    async def save(self, link: str, path: Path) -> None:
        """Write the content of a link to a new file. What `read` raises leaves an incomplete file."""
        async with asyncio.timeout(self.timeout), self._response(link) as response:
            with path.open("xb") as file:  # its blocks are written in a thread
                async for chunk in self._chunks(response):
                    await asyncio.to_thread(file.write, chunk)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        size = 0
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > self.max_bytes:
                raise RejectedLinkError(f"more than {self.max_bytes} bytes")
            yield chunk

    @asynccontextmanager
    async def _response(self, link: str) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Follow a link and its redirects to a response whose body can be read."""
        url = _url(link)
        async with self._client() as client:
            for _ in range(1 + _MAX_REDIRECTS):
                self._check(url)
                async with client.get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        if response.status != HTTPStatus.OK:
                            raise RejectedLinkError(f"HTTP {response.status}")
                        yield response
                        return
                    url = _url(urljoin(str(url), response.headers.get("Location", "")))
        raise RejectedLinkError(f"more than {_MAX_REDIRECTS} redirects")

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_GuardedResolver(self.allowed), ssl=self.ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a decompression bomb stays small, and is no picture and no video
            timeout=aiohttp.ClientTimeout(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    def _check(self, url: URL) -> None:
        if url.scheme not in self.schemes:
            raise RejectedLinkError(f"not {' or '.join(self.schemes)}")
        if "@" in url.raw_authority:
            raise RejectedLinkError("a user name in the link")
        host = url.raw_host or ""
        # aiohttp calls no resolver for a host that is an address; this is its rule (helpers.is_ip_address).
        if (":" in host or host.replace(".", "").isdigit()) and not self.allowed(ip_address(host)):
            raise RejectedLinkError("not a public address")


class _GuardedResolver(aiohttp.ThreadedResolver):
    """Resolves to allowed addresses only. aiohttp connects to these, so a name cannot change between check and use."""

    def __init__(self, allowed: Callable[[Address], bool]) -> None:
        super().__init__()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        public = [one for one in found if self._allowed(ip_address(one["host"]))]
        if not public:
            raise RejectedLinkError("a name without a public address")
        return public


def reason(error: Exception) -> str:
    """Return why a download failed, without the link, whose signature is secret; aiohttp and yarl quote it."""
    if isinstance(error, RejectedLinkError):
        return str(error)
    return printable(getattr(error, "strerror", None) or type(error).__name__)


def _url(link: str) -> URL:
    """Return the URL of a link as it was given: a change of its quoting would break a signature."""
    return URL(link, encoded=_QUOTED.fullmatch(link) is not None)
