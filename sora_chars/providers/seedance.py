"""Seedance's assets, by icover or by Ark itself: characters from an image or a clip, as coroutines.

Sources: apiyi docs, "Seedance 2.0 asset library"; Volcengine Ark docs, "Private asset library" (2026).
"""

from __future__ import annotations

import asyncio
import io
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sora_chars.errors import ConfigurationError, ModelUnavailableError, RequestRejectedError, TaskNotFoundError
from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport

from . import seedance_codec as codec
from . import seedance_icover as icover
from .base import PolledProvider
from .hosting import hosting_of
from .local_files import request_problems
from .loop_lock import LoopLock
from .named_keys import key_suffix, only_match
from .seedance_access import ark_access, icover_access, uses_ark
from .seedance_ark import GROUP_NAME, Ark, read_group, read_groups

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request, Source, TaskSnapshot
    from sora_chars.responses import Response

    from .hosting import Host

T = TypeVar("T")

ARK_LIMITS = Limits(creates=(10, 1.0), polls=(100, 1.0))
"""The limits of an account of Ark: about 10 creates and 100 polls a second. Source: Volcengine Ark docs."""

_MAX_PAGES = 1000
_MAX_GROUP_NAME = 64  # characters
_MAX_DESCRIPTION = 300  # characters


class SeedanceAssets(PolledProvider):
    """Seedance's asset library, by icover or by Ark itself.

    A character is an asset, which Seedance 2.x takes as `asset://ID`. Its name ends in a
    digest of the idempotency key, by which a request whose response was lost is found in
    the account's list. The id of an asset is all that its use requires, so no log record
    holds one.

    Args:
        api_key: The key of icover's asset library, which is no token of apiyi. Defaults
            to the environment variable ICOVER_API_KEY.
        access_key: Access key of an account of Ark. Defaults to ARK_ACCESS_KEY.
        secret_key: Secret key of that account. Defaults to ARK_SECRET_KEY.
        ark: Whether to use Ark itself, with a signature over each request. Defaults to
            whether keys of Ark were passed, or are in the environment without a key of
            icover.
        region: Region of the account of Ark. Defaults to ARK_REGION, or else to
            "ap-southeast-1". The other one is "cn-beijing".
        project: Project of Ark, where it is not the account's default.
        group_id: Id of the group of the assets. Defaults to ARK_GROUP_ID at Ark, where
            otherwise a group named "sora-chars" is used, and made if it is missing. At
            icover, defaults to the account's default group.
        hosting: Makes a local file public and returns its URL. icover has a storage of
            its own, and Ark takes no uploads.
        base_url: Base URL of the API. Defaults to SEEDANCE_BASE_URL, or else to
            https://icover.ai or the host of the region. A trailing "/api" is removed.
        large_clips: Check clips by the limits of a newer page for China: 2 to 30 s,
            200 MB and up to 4K.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. Defaults to `ARK_LIMITS` at Ark, and to none
            at icover, which publishes none. `Limits()` switches them off.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: A key is missing, or an option is invalid.
    """

    accepts = codec.ACCEPTS
    settles = "lookup"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        ark: bool | None = None,
        region: str | None = None,
        project: str | None = None,
        group_id: str | None = None,
        hosting: Host | None = None,
        base_url: str | None = None,
        large_clips: bool = False,
        name: str = "seedance",
        limits: Limits | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        is_ark = uses_ark(api_key, access_key, secret_key, ark)
        access = (
            ark_access(access_key, secret_key, region, base_url, provider=name)
            if is_ark
            else icover_access(api_key, base_url, provider=name)
        )
        super().__init__(
            Transport(
                provider=name,
                base_url=access.base_url,
                api_key=access.secret,
                sign=access.sign,
                limits=limits or (ARK_LIMITS if is_ark else Limits()),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self._ark = Ark(project) if is_ark else None
        self._door: codec.Door = self._ark or icover.Icover()
        self._group_id = group_id or (os.environ.get("ARK_GROUP_ID") or None if is_ark else None)
        self._default_group_id: str | None = None  # found or made by the first create
        self._lock = LoopLock()
        self._hosting = hosting_of(hosting)
        self._accepts = codec.accepted("hosting" if is_ark and hosting is None else "upload", large_clips=large_clips)
        self.accepts = self._accepts

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
        """See `Provider.submit`. A local file is uploaded or hosted first."""
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
            group_id=self._group_id or await self._own_group(),
        )
        read = partial(codec.read_created, asset_type=asset_type, provider=self.name)
        return await self._send(call, read, kind="create", on_send=on_send)

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
            ConfigurationError: The provider uses Ark, which takes no uploads.
            OSError: The file cannot be read.
            ProviderError: The upload failed.
        """
        if self._ark:
            raise ConfigurationError(f"{self.name} takes no uploads: Ark takes URLs only.", hint="Pass hosting=.")
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)
        mime = icover.media_type(path, content)
        read = partial(icover.read_presigned, base_url=self._transport.base_url)
        address = await self._send(icover.presign(path, mime), read)
        await self._transport.request(
            "PUT",
            address.upload_url,
            icover.read_stored,
            body=lambda: io.BytesIO(content),
            headers={"User-Agent": "sora-chars", "Content-Type": mime},
        )
        return address.public_url

    async def create_group(self, name: str, description: str = "") -> str:
        """Make a group for assets at Ark, for faces that a model made, and return its id, for `group_id`.

        Raises:
            ConfigurationError: The provider uses icover, or a text is too long.
            ProviderError: The request failed.
        """
        if self._ark is None:
            raise ConfigurationError(f"{self.name} makes no groups: icover has a default group.")
        if not 1 <= len(name) <= _MAX_GROUP_NAME or len(description) > _MAX_DESCRIPTION:
            raise ConfigurationError(
                f"name must have 1 to {_MAX_GROUP_NAME} characters, and description at most {_MAX_DESCRIPTION}; "
                f"got {len(name)} and {len(description)}."
            )
        return await self._send(self._ark.create_group(name, description), read_group)

    async def _own_group(self) -> str | None:
        """Return the id of this package's group at Ark, which is made if it is missing; None at icover."""
        if self._ark is None:
            return None
        async with self._lock.held():
            self._default_group_id = self._default_group_id or await self._find_group(self._ark)
        return self._default_group_id

    async def _find_group(self, ark: Ark) -> str:
        found: str | None = None
        with suppress(
            RequestRejectedError, ModelUnavailableError, TaskNotFoundError
        ):  # a proxy may not pass this action on
            found = await self._send(ark.groups(), read_groups)
        return found or await self.create_group(GROUP_NAME)

    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        read = partial(codec.read_asset, task_id=task_id, provider=self.name, seen=seen)
        return await self._send(self._door.fetch(task_id), read, kind="poll")

    async def _list(self, name: str) -> list[TaskSnapshot]:
        found: list[TaskSnapshot] = []
        for page in range(1, _MAX_PAGES + 1):
            call = self._door.list(page, name=name, group_id=self._group_id)
            assets, follows = await self._send(
                call, partial(codec.read_list, page=page, provider=self.name), kind="poll"
            )
            found += assets
            if not follows:
                break
        return found

    async def _url_of(self, source: Source) -> str:
        path = path_of(source)
        if path is None:
            return str(source)
        if self._hosting is None:
            return await self.upload(path)
        return await self._hosting.url_of(path)

    async def _send(self, call: codec.Call, read: Callable[[Response], T], **options: Any) -> T:
        url = self._transport.base_url + call.path
        return await self._transport.request(call.method, url, read, **call.options, **options)
