"""Vidu: subjects from images or a clip, as coroutines. One synchronous request makes a subject.

Source: Vidu docs, "Subjects" (August 2026).
"""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import TYPE_CHECKING

from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.signing import header
from sora_chars.transport import Transport

from . import vidu_codec as codec
from .base import HTTPProvider, resolve_key, resolve_url
from .local_files import image_format, request_problems
from .named_keys import key_suffix, only_match

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request, Source, TaskSnapshot

CHINA = "https://api.vidu.cn"
INTERNATIONAL = "https://api.vidu.com"
_PAGE_SIZE = 100  # subjects of a page of the list
_MAX_PAGES = 1000
_VIDEO_TYPES = {".mov": "video/quicktime", ".avi": "video/x-msvideo"}


class Vidu(HTTPProvider):
    """The provider Vidu.

    A character is a subject of Vidu, which the response to the only request holds. The
    name of the subject ends in a digest of the idempotency key, by which a request whose
    response was lost is found in the account's list.

    Args:
        api_key: The API key. Defaults to the environment variable VIDU_API_KEY.
        base_url: Base URL of the API. Defaults to VIDU_BASE_URL, or else to
            `INTERNATIONAL`; `CHINA` is the host for accounts in China.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. None are published, and none is the default.
        timeout: Seconds for the whole request.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or the base URL is invalid.
    """

    synchronous = True
    accepts = codec.ACCEPTS
    settles = "lookup"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        name: str = "vidu",
        limits: Limits | None = None,
        timeout: float = 300.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        key = resolve_key(api_key, variable="VIDU_API_KEY", provider=name)
        super().__init__(
            Transport(
                provider=name,
                base_url=resolve_url(base_url, variable="VIDU_BASE_URL", default=INTERNATIONAL),
                api_key=key,
                sign=header("Authorization", f"Token {key}"),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self._subjects_url = self._transport.base_url + codec.SUBJECTS_PATH

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks size, format, and the declared duration or ratio of local files."""
        return request_problems(codec.ACCEPTS, request)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. Local files are sent inside the request."""
        del callback_url
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        video = None if request.video is None else await _inline(request.video)
        images = [await _inline(image) for image in request.images or ()]
        return await self._transport.request(
            "POST",
            self._subjects_url,
            partial(codec.read_created, provider=self.name),
            kind="create",
            on_send=on_send,
            json=codec.subject_body(request, key=key, video=video, images=images),
        )

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """See `Provider.lookup`. The account's subjects are searched for a name that ends in the key's digest."""
        suffix = key_suffix(key)
        found = [one for one in await self.subjects() if one.character and (one.character.name or "").endswith(suffix)]
        return only_match(found, shown="subjects", provider=self.name)

    async def subjects(self) -> list[TaskSnapshot]:
        """Return the account's own subjects, each as the task that made it. Free of charge."""
        found: list[TaskSnapshot] = []
        token: str | None = None
        for _ in range(_MAX_PAGES):
            query = {"ownership": "private", "count": str(_PAGE_SIZE)} | ({"next_page_token": token} if token else {})
            page, token = await self._transport.request(
                "GET", self._subjects_url, partial(codec.read_page, provider=self.name), kind="poll", params=query
            )
            found += page
            if token is None:
                break
        return found


async def _inline(source: Source) -> str:
    """Return a URL as it is, and the content of a local file as a data URL."""
    path = path_of(source)
    if path is None:
        return str(source)
    content = await asyncio.to_thread(path.read_bytes)
    image = image_format(content)
    mime = f"image/{image}" if image else _VIDEO_TYPES.get(path.suffix.lower(), "video/mp4")
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
