"""Profile pictures, kept in a folder: a character's `picture_url` is a signed link that expires within days.

A link comes out of a provider's answer, so it is untrusted: its target (https and public addresses only, also after
redirects), size, type and the id in the file name are checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import tempfile
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import aiohttp
import attrs
from yarl import URL

from sora_chars.connections import MAX_HEADER_BYTES
from sora_chars.errors import printable
from sora_chars.logs import event_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

    from aiohttp.abc import ResolveResult

    from sora_chars.models import Character

    Address = IPv4Address | IPv6Address

log = event_logger("sora_chars.pictures")

_MAX_REDIRECTS = 3
_QUOTED = re.compile(r"[!-~]+")  # a link with other characters is quoted before it is sent
_TYPES = re.compile(
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpg>\xff\xd8\xff)|(?P<webp>RIFF.{4}WEBP)|(?P<gif>GIF8[79]a)", re.DOTALL
)


class _RejectedError(Exception):
    """Why a picture is not saved, fit for a log. Not an OSError: aiohttp would wrap one that a resolver raises."""


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet. An IPv4-mapped address counts as its IPv4 address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or address.sixtofour:  # Python calls both global: the retired fec0::/10 and 2002::/16
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@attrs.frozen
class Pictures:
    """Saves profile pictures as `folder/ID-HASH.png` (`.jpg`, `.webp`, `.gif`), mode 0600.

    Each picture has its own HTTP client: no key, cookie or proxy meets a link, and no connection stays open.

    Attributes:
        folder: Where pictures are saved; created when needed.
        max_bytes: The maximum size of a picture.
        timeout: Seconds for one picture in total.
        allowed: Whether an address may be connected to.
        ssl: As aiohttp's option of that name.
    """

    folder: Path = attrs.field(converter=Path)
    max_bytes: int = attrs.field(default=5 * 1024 * 1024, kw_only=True)
    timeout: float = attrs.field(default=15.0, kw_only=True)
    allowed: Callable[[Address], bool] = attrs.field(default=is_public, kw_only=True)
    ssl: SSLContext | bool = attrs.field(default=True, kw_only=True)

    async def save(self, character: Character) -> Path | None:
        """Save the picture of a character and return its file. A failure is logged as `picture.not_saved`."""
        if not character.picture_url:
            return None
        try:
            async with asyncio.timeout(self.timeout):
                async with self._client() as client:
                    data = await self._download(client, _url(character.picture_url))
                return await asyncio.to_thread(_write, self.folder / _file_name(character, data), data)
        except (_RejectedError, aiohttp.ClientError, OSError, ValueError) as error:
            facts = {"provider": character.provider, "character": printable(character.id), "why": _why(error)}
            log.warning("picture.not_saved", extra=facts)
            return None

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_PublicResolver(self.allowed), ssl=self.ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a decompression bomb stays small, and is not a picture
            timeout=aiohttp.ClientTimeout(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def _download(self, client: aiohttp.ClientSession, url: URL) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            self._check(url)
            async with client.get(url, allow_redirects=False) as response:
                if response.status not in {301, 302, 303, 307, 308}:
                    return await self._read(response)
                url = _url(urljoin(str(url), response.headers.get("Location", "")))
        raise _RejectedError(f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, url: URL) -> None:
        if url.scheme != "https":
            raise _RejectedError("not https")
        if "@" in url.raw_authority:
            raise _RejectedError("a user name in the link")
        host = url.raw_host or ""
        # aiohttp calls no resolver for a host that is an address; this is its rule (helpers.is_ip_address).
        if (":" in host or host.replace(".", "").isdigit()) and not self.allowed(ip_address(host)):
            raise _RejectedError("not a public address")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != HTTPStatus.OK:
            raise _RejectedError(f"HTTP {response.status}")
        data = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            data += chunk
            if len(data) > self.max_bytes:
                raise _RejectedError(f"more than {self.max_bytes} bytes")
        return bytes(data)


class _PublicResolver(aiohttp.ThreadedResolver):
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
            raise _RejectedError("a name without a public address")
        return public


def _url(link: str) -> URL:
    """Return the URL of a link as it was given: a change of its quoting would break a signature."""
    return URL(link, encoded=_QUOTED.fullmatch(link) is not None)


def _file_name(character: Character, data: bytes) -> str:
    """Return the id's safe characters, a hash that keeps ids apart, and the type shown by the first bytes."""
    kind = _TYPES.match(data)
    if kind is None:
        raise _RejectedError("neither PNG nor JPEG, WebP, GIF")
    digest = hashlib.sha256(json.dumps([character.provider, character.id]).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '_', character.id[:64])}-{digest[:16]}.{kind.lastgroup}"


def _write(path: Path, data: bytes) -> Path:
    """Write the whole file or nothing. A thread cannot be cancelled, so this also cleans up after a cancelled save."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _why(error: Exception) -> str:
    """Return the reason without the link, whose signature is secret; the messages of aiohttp and yarl contain it."""
    if isinstance(error, _RejectedError):
        return str(error)
    return printable(getattr(error, "strerror", None) or type(error).__name__)
