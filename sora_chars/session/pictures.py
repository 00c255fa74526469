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
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sora_chars.downloads import DOWNLOAD_ERRORS, Downloads, RejectedLinkError, is_public, reason
from sora_chars.errors import printable
from sora_chars.logs import event_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

    from sora_chars.downloads import Address
    from sora_chars.models import Character

log = event_logger("sora_chars.pictures")

_TYPES = re.compile(
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpg>\xff\xd8\xff)|(?P<webp>RIFF.{4}WEBP)|(?P<gif>GIF8[79]a)", re.DOTALL
)


@attrs.frozen
class Pictures:
    """Saves profile pictures as `folder/ID-HASH.png` (`.jpg`, `.webp`, `.gif`), mode 0600.

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
        downloads = Downloads(max_bytes=self.max_bytes, timeout=self.timeout, allowed=self.allowed, ssl=self.ssl)
        try:
            data = await downloads.read(character.picture_url)
            return await asyncio.to_thread(_write, self.folder / _file_name(character, data), data)
        except DOWNLOAD_ERRORS as error:
            facts = {"provider": character.provider, "character": printable(character.id), "why": reason(error)}
            log.warning("picture.not_saved", extra=facts)
            return None


def _file_name(character: Character, data: bytes) -> str:
    """Return the id's safe characters, a hash that keeps ids apart, and the type shown by the first bytes."""
    kind = _TYPES.match(data)
    if kind is None:
        raise RejectedLinkError("neither PNG nor JPEG, WebP, GIF")
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
