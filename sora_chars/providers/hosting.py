"""Where local files go for providers that take URLs only: any async function from a path to a URL."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeAlias

import attrs

from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import is_whole_url
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Host: TypeAlias = Callable[[Path], Awaitable[str]]

_LIFETIME = 3600.0  # seconds for which a URL is used again; the shortest storage keeps files for a day
_MAX_KEPT = 256  # URLs


@attrs.define(eq=False)
class Hosting:
    """Makes local files public, each once an hour.

    `host` may be the `upload` of a provider: `Kie().upload`, `Wavespeed().upload` and `SeedanceAssets().upload`.
    That provider is open while it uploads, so it need not be one of the session's.
    """

    host: Host
    _urls: dict[tuple[str, int, int], tuple[float, str]] = attrs.field(factory=dict)

    async def url_of(self, path: Path) -> str:
        """Return the public URL of a local file. Unchanged files are not uploaded again within an hour.

        Raises:
            ConfigurationError: `host` returned no URL.
            OSError: The file cannot be read.
        """
        name = await asyncio.to_thread(_identity, path)
        now = asyncio.get_running_loop().time()
        made_at, url = self._urls.get(name, (0.0, ""))
        if url and now - made_at < _LIFETIME:
            return url
        url = await self._upload(path)
        self._urls.pop(name, None)
        self._urls[name] = now, url
        if len(self._urls) > _MAX_KEPT:
            del self._urls[next(iter(self._urls))]
        return url

    async def _upload(self, path: Path) -> str:
        owner = getattr(self.host, "__self__", None)
        async with AsyncExitStack() as stack:
            if owner is not None and Provider in type(owner).__mro__:
                await stack.enter_async_context(owner)
            hosted: object = self.host(path)
            if not inspect.isawaitable(hosted):
                shown = printable(repr(hosted), limit=60)
                raise ConfigurationError(f"hosting must be an async function, and this one returned {shown}.")
            url: object = await hosted
        if isinstance(url, str) and is_whole_url(url):
            return url
        raise ConfigurationError(f"hosting must return an http(s) URL, got {printable(repr(url), limit=60)}.")


def _identity(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.absolute()), facts.st_size, facts.st_mtime_ns


def hosting_of(host: Host | None) -> Hosting | None:
    """Return the hosting of a provider's option.

    Raises:
        ConfigurationError: It is no function.
    """
    given: object = host  # callers without a type checker pass anything
    if host is None:
        return None
    if not callable(given):
        shown = printable(repr(given), limit=60)
        raise ConfigurationError(f"hosting must be an async function from a path to a URL, got {shown}.")
    return Hosting(host)
