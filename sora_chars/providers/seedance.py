"""Seedance's assets, by icover: characters from an image or a clip, as coroutines.

Source: apiyi docs, "Seedance 2.0 asset library" (2026).
"""

from __future__ import annotations

import asyncio
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport

from . import seedance_codec as codec
from . import seedance_icover as icover
from .base import HTTPProvider, resolve_key, resolve_url
from .local_files import request_problems
from .named_keys import key_suffix, only_match

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request, Source, TaskSnapshot
    from sora_chars.responses import Response

T = TypeVar("T")

_MAX_PAGES = 1000


class SeedanceAssets(HTTPProvider):
    """Seedance's asset library, by icover.

    A character is an asset, which Seedance 2.x takes as `asset://ID`. Its name ends in a
    digest of the idempotency key, by which a request whose response was lost is found in
    the account's list. Whoever knows the id of an asset may use it, so no log record
    holds one.

    Args:
        api_key: The key of icover's asset library, which is no token of apiyi. Defaults
            to the environment variable ICOVER_API_KEY.
        group_id: Id of the group of the assets. Defaults to the account's default group.
            icover's page lists clips for groups of real persons only.
        base_url: Base URL of the API. Defaults to SEEDANCE_BASE_URL, or else to
            https://icover.ai. A trailing "/api" is removed.
        large_clips: Check clips by the limits of a newer page for China: 2 to 30 s,
            200 MB and up to 4K.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. icover publishes none, and none is the default.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or the base URL is invalid.
    """

    settles = "lookup"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        group_id: str | None = None,
        base_url: str | None = None,
        large_clips: bool = False,
        name: str = "seedance",
        limits: Limits | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        key = resolve_key(api_key, variable="ICOVER_API_KEY", provider=name)
        base_url = resolve_url(base_url, variable="SEEDANCE_BASE_URL", default=icover.HOST).removesuffix("/api")
        super().__init__(
            Transport(
                provider=name,
                base_url=base_url,
                api_key=key,
                sign=icover.bearer(base_url, key),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self._door: codec.Door = icover.Icover()
        self._group_id = group_id
        self._accepts = codec.accepted("upload", large_clips=large_clips)
        self.accepts = self._accepts

    async def poll_capacity(self) -> int:
        """See `Provider.poll_capacity`."""
        return await self._transport.account.windows["poll"].available()

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks size, format, and the declared duration or pixels of local files."""
        return request_problems(self._accepts, request)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. A local file is uploaded first, free of charge."""
        del callback_url
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        source = request.video if request.images is None else request.images[0]
        if source is None:
            raise TypeError("a video or an image is needed")
        asset_type = "Image" if request.images else "Video"
        call = self._door.create(
            url=await self._url_of(source),
            asset_type=asset_type,
            name=codec.asset_name(request, key),
            group_id=self._group_id,
        )
        read = partial(codec.read_created, asset_type=asset_type, provider=self.name)
        return await self._send(call, read, kind="create", on_send=on_send)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`."""
        return await self._poll(task_id, None)

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`. An unchanged response is not parsed again."""
        return await self._poll(seen.task_id, seen)

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """See `Provider.lookup`. The account's assets are searched for a name that ends in the key's digest."""
        suffix = key_suffix(key)
        found = [asset for asset in await self._list(suffix) if codec.name_of(asset).endswith(suffix)]
        return only_match(found, shown="assets", provider=self.name)

    async def assets(self) -> list[TaskSnapshot]:
        """Return the assets of the account, each as the task that made it. Free of charge."""
        return await self._list("")

    async def delete(self, character_id: str) -> None:
        """See `Provider.delete`. Finished videos stay."""
        await self._send(self._door.delete(character_id), codec.read_deleted)

    async def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a local file to icover's storage, free of charge; return its public URL.

        The storage keeps the file. The key is not sent there.

        Raises:
            OSError: The file cannot be read.
            ProviderError: The upload failed.
        """
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)
        mime = icover.media_type(path, content)
        address = await self._send(icover.presign(path, mime), icover.read_presigned)
        await self._transport.request(
            "PUT",
            address.upload_url,
            icover.read_stored,
            body=lambda: io.BytesIO(content),
            headers={"User-Agent": "sora-chars", "Content-Type": mime},
        )
        return address.public_url

    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        read = partial(codec.read_asset, task_id=task_id, provider=self.name, seen=seen)
        return await self._send(self._door.fetch(task_id), read, kind="poll")

    async def _list(self, name: str) -> list[TaskSnapshot]:
        found: list[TaskSnapshot] = []
        for page in range(1, _MAX_PAGES + 1):
            call = self._door.list(page, name=name, group_id=self._group_id)
            assets, follows = await self._send(call, partial(codec.read_list, page=page, provider=self.name))
            found += assets
            if not follows:
                break
        return found

    async def _url_of(self, source: Source) -> str:
        path = path_of(source)
        return str(source) if path is None else await self.upload(path)

    async def _send(self, call: codec.Call, read: Callable[[Response], T], **options: Any) -> T:
        url = self._transport.base_url + call.path
        return await self._transport.request(call.method, url, read, **call.options, **options)
