"""Inflates the bodies of callbacks, in steps of bounded size."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from sora_chars.errors import InvalidCallbackError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator

_STEP_BYTES = 64 * 1024
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_MAGIC = (b"\x1f", b"\x78")  # the first byte of gzip and of zlib; no JSON begins with either


def is_compressed(encoding: str) -> bool:
    """Return whether a Content-Encoding is one that `inflated` inflates."""
    return encoding.strip().lower() in {"gzip", "x-gzip", "deflate"}


async def inflated(body: AsyncIterable[bytes], encoding: str) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body, inflated if its Content-Encoding is gzip or deflate.

    A body that the web framework has inflated already, as aiohttp does, is left as it is.

    Raises:
        InvalidCallbackError: The body is damaged.
    """
    if not is_compressed(encoding):
        async for chunk in body:
            yield chunk
        return
    inflater: zlib._Decompress | None = None
    is_first = True
    async for chunk in body:
        if is_first and chunk:
            is_first = False
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB) if chunk.startswith(_MAGIC) else None
        if inflater is None:
            yield chunk
            continue
        for part in _steps(inflater, chunk):
            yield part
    if inflater and not inflater.eof:
        raise _damaged()


def _steps(inflater: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
    """Yield what a chunk inflates to, at most 64 KiB at a time."""
    try:
        while chunk and not inflater.eof:
            yield inflater.decompress(chunk, _STEP_BYTES)
            chunk = inflater.unconsumed_tail
    except zlib.error as error:
        raise _damaged() from error


def _damaged() -> InvalidCallbackError:
    return InvalidCallbackError("Callback rejected: its compressed body is damaged.", status=400)
