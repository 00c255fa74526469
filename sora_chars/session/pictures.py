"""Profile pictures, kept in a folder: a character's `picture_url` is a signed link that dies within days.

A link comes out of a provider's answer, so nothing about it is believed: not where it leads (only https, only
public addresses, at every redirect again), not its size, not its type, not the id that names the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import socket
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import attrs
from yarl import URL

from sora_chars.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

    from aiohttp.abc import ResolveResult

    from sora_chars.models import Character

    Address = IPv4Address | IPv6Address

log = logging.getLogger("sora_chars.pictures")

_REDIRECTS = 3
_KINDS = re.compile(
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpg>\xff\xd8\xff)|(?P<webp>RIFF.{4}WEBP)|(?P<gif>GIF8[79]a)", re.DOTALL
)


class _RefusedError(Exception):
    """Why a picture is not saved, fit for a log. No OSError: aiohttp would wrap one that a resolver raises."""


def is_public(address: Address) -> bool:
    """Whether an address is on the open internet; one that carries an IPv4 address (mapped) is judged by that."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or address.sixtofour:  # Python calls both global: the retired fec0::/10 and 2002::/16
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@attrs.frozen
class Pictures:
    """Saves profile pictures as `folder/ID-HASH.png` (`.jpg`, `.webp`, `.gif`), mode 0600.

    `timeout`: seconds for one picture, all in all. `allowed` says which addresses may be connected to, and `ssl`
    is aiohttp's. Each picture has its own client: no key, cookie or proxy of others meets a link, and none stays open.
    """

    folder: Path = attrs.field(converter=Path)
    max_bytes: int = attrs.field(default=5 * 1024 * 1024, kw_only=True)
    timeout: float = attrs.field(default=15.0, kw_only=True)
    allowed: Callable[[Address], bool] = attrs.field(default=is_public, kw_only=True)
    ssl: SSLContext | bool = attrs.field(default=True, kw_only=True)

    async def save(self, character: Character) -> Path | None:
        """Save the picture over an older one, return its file. Never raises: logs `picture.not_saved` with `why`."""
        if not character.picture_url:
            return None
        try:
            async with asyncio.timeout(self.timeout):
                async with self._client() as client:
                    data = await self._download(client, URL(character.picture_url))
                return await asyncio.to_thread(_write, self.folder / _file_name(character, data), data)
        except (_RefusedError, aiohttp.ClientError, OSError, ValueError) as error:
            who = {"provider": character.provider, "character": printable(character.id)}
            log.warning("picture.not_saved", extra={**who, "why": _why(error)})
            return None

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_PublicResolver(self.allowed), ssl=self.ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a bomb stays small, and is no picture
            timeout=aiohttp.ClientTimeout(),
        )

    async def _download(self, client: aiohttp.ClientSession, url: URL) -> bytes:
        for _ in range(1 + _REDIRECTS):
            self._check(url)
            async with client.get(url, allow_redirects=False) as answer:
                if answer.status not in {301, 302, 303, 307, 308}:
                    return await self._read(answer)
                url = url.join(URL(answer.headers.get("Location", "")))
        raise _RefusedError(f"more than {_REDIRECTS} redirects")

    def _check(self, url: URL) -> None:
        if url.scheme != "https":
            raise _RefusedError("not https")
        if "@" in url.raw_authority:
            raise _RefusedError("a user name in the link")
        host = url.raw_host or ""
        # aiohttp asks no resolver for what it takes for an address: this is its own rule (helpers.is_ip_address).
        if (":" in host or host.replace(".", "").isdigit()) and not self.allowed(ip_address(host)):
            raise _RefusedError("not a public address")

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status != 200:  # noqa: PLR2004 # OK
            raise _RefusedError(f"HTTP {answer.status}")
        data = bytearray()
        async for chunk in answer.content.iter_chunked(64 * 1024):
            data += chunk
            if len(data) > self.max_bytes:
                raise _RefusedError(f"more than {self.max_bytes} bytes")
        return bytes(data)


class _PublicResolver(aiohttp.ThreadedResolver):
    """Resolves to allowed addresses only. aiohttp connects to these, so no name can change between check and use."""

    def __init__(self, allowed: Callable[[Address], bool]) -> None:
        super().__init__()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        public = [one for one in found if self._allowed(ip_address(one["host"]))]
        if not public:
            raise _RefusedError("a name without a public address")
        return public


def _file_name(character: Character, data: bytes) -> str:
    """The id as far as it is harmless, a hash that keeps ids apart, and the type that the first bytes tell."""
    kind = _KINDS.match(data)
    if kind is None:
        raise _RefusedError("neither PNG nor JPEG, WebP, GIF")
    digest = hashlib.sha256(json.dumps([character.provider, character.id]).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '_', character.id[:64])}-{digest[:16]}.{kind.lastgroup}"


def _write(path: Path, data: bytes) -> Path:
    """Write all or nothing. A thread cannot be cancelled, so this also tidies up after a cancelled save."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _why(error: Exception) -> str:
    """The reason in words that hold no link: the texts of aiohttp and yarl do, and its signature is a secret."""
    if isinstance(error, _RefusedError):
        return str(error)
    return printable(getattr(error, "strerror", None) or type(error).__name__)
