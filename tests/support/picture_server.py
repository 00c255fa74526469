"""An HTTPS server of pictures, and the responses that it gives."""

from __future__ import annotations

import asyncio
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.models import Character

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator
    from ipaddress import IPv4Address, IPv6Address
    from logging import LogRecord
    from pathlib import Path

    from sora_chars.session.pictures import Pictures

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 1000
JPEG = b"\xff\xd8\xff\xe0" + b"j" * 1000
WEBP = b"RIFF\xf0\3\0\0WEBP" + b"w" * 1000
GIF = b"GIF89a" + b"g" * 1000
SECRET = "signature=SECRET"
HOME = "127.0.0.2"  # the only address that the tests allow; other loopback addresses stand for a private network


def http(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """Return a response with Content-Length `length`, or without one if it is negative."""
    declared = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\n{headers}"
    return (head + (f"Content-Length: {declared}\r\n\r\n" if declared >= 0 else "\r\n")).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """Return a response that redirects."""
    return http(b"", status=status, headers=f"Location: {location}\r\n")


@attrs.define(eq=False)
class PictureServer:
    """A server that responds to each path with its bytes.

    After the bytes of a path in `hangs` it keeps the connection open.
    """

    paths: dict[str, bytes]
    hangs: set[str]
    delay: float = 0
    port: int = 0
    connections: int = 0
    requests: list[bytes] = attrs.field(factory=list)
    responded: asyncio.Event = attrs.field(factory=asyncio.Event)
    disconnected: asyncio.Event = attrs.field(factory=asyncio.Event)

    def url(self, path: str = "/p", host: str = HOME) -> str:
        """Return the link of a path, with a signature that must not be logged."""
        return f"https://{host}:{self.port}{path}?{SECRET}"

    async def start(self, host: str, context: ssl.SSLContext) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self.handle, host, 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to one request."""
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            path = head.split()[1].partition(b"?")[0].decode()
            await asyncio.sleep(self.delay)
            writer.write(self.paths[path])
            await writer.drain()
            self.responded.set()
            if path in self.hangs:
                await reader.read()
                self.disconnected.set()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        finally:
            writer.close()


def is_home(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is the one that stands for the public internet."""
    return str(address) == HOME


@contextmanager
def max_file_size(size: int) -> Generator[None]:
    """Limit the size of files that this process writes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def character(url: str | None, character_id: str = "cameo_69") -> Character:
    """Return a character with a picture."""
    return Character(id=character_id, provider="kkiai", picture_url=url)


def files(pictures: Pictures) -> list[Path]:
    """Return all files of the folder, including temporary ones."""
    return sorted(pictures.folder.iterdir()) if pictures.folder.is_dir() else []


async def save_rejected(pictures: Pictures, character: Character, records: list[LogRecord]) -> str:
    """Save a picture that must be rejected; check that this leaves no file, and return the logged reason."""
    before = files(pictures)
    assert await pictures.save(character) is None
    (record,) = [record for record in records if record.name == "sora_chars.pictures"]
    facts: dict[str, Any] = vars(record)
    assert (facts["event"], facts["provider"]) == ("picture.not_saved", "kkiai")
    assert str(facts["character"]) in character.id
    assert SECRET not in str(facts)
    assert files(pictures) == before
    return str(facts["why"])
