"""HeyGen: avatars from a clip of a speaker or from a photo, as coroutines.

Source: HeyGen's OpenAPI of version 3 (July 2026).
"""

from __future__ import annotations

import asyncio
import io
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import attrs

from sora_chars.errors import ConfigurationError, ProviderError, printable
from sora_chars.logs import event_logger
from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.signing import header
from sora_chars.transport import Transport

from . import heygen_codec as codec
from .base import PolledProvider, resolve_key, resolve_url
from .local_files import request_problems
from .loop_lock import LoopLock
from .named_keys import key_suffix, only_match
from .upload_body import upload_name

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request, Source, TaskSnapshot

HOST = "https://api.heygen.com"
_MAX_PAGES = 1000
_CONSENT_INTERVAL = 60.0  # seconds between two polls while a person is waited for

log = event_logger("sora_chars.providers")


class HeyGen(PolledProvider):
    """The provider HeyGen.

    A character is an avatar: a digital twin of the person whom a clip shows, or a photo
    avatar. HeyGen may ask that person for consent, and waits for it for up to a day. The
    task is then in the state "pending_consent", and `waiting_for` of its snapshot holds
    the URL of the page on which the person consents.

    The name of an avatar ends in a digest of the idempotency key, by which a request
    whose response was lost is found in the account's list.

    Args:
        api_key: The API key. Defaults to the environment variable HEYGEN_API_KEY.
        base_url: Base URL of the API. Defaults to HEYGEN_BASE_URL, or else to `HOST`.
        callback_url: Must be omitted: callbacks of HeyGen are not supported.
        consent_interval: Seconds between two polls of a task that waits for a person.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. None are published, and none is the default.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or an option is invalid.
    """

    accepts = codec.ACCEPTS
    settles = "lookup"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        callback_url: str | None = None,
        consent_interval: float = _CONSENT_INTERVAL,
        name: str = "heygen",
        limits: Limits | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        if callback_url is not None:
            raise ConfigurationError(
                "callback_url must be omitted: HeyGen has callbacks for a whole account only, and its pages "
                "contradict each other about how they are signed.",
                hint="Tasks of HeyGen are polled.",
            )
        given: object = consent_interval
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            shown = printable(repr(given), limit=60)
            raise ConfigurationError(f"consent_interval must be a number of seconds above 0, got {shown}.")
        key = resolve_key(api_key, variable="HEYGEN_API_KEY", provider=name)
        super().__init__(
            Transport(
                provider=name,
                base_url=resolve_url(base_url, variable="HEYGEN_BASE_URL", default=HOST),
                api_key=key,
                sign=header("X-Api-Key", key),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self._consent_interval = consent_interval
        self._pages: dict[str, str] = {}  # URLs of pages of consent, by task id
        self._lock = LoopLock()

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks size, format and declared duration of local files."""
        return request_problems(codec.ACCEPTS, request)

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
        return await self._transport.request(
            "POST",
            self._url(codec.AVATARS_PATH),
            partial(codec.read_created, model=codec.model_of(request), provider=self.name),
            kind="create",
            on_send=on_send,
            json=codec.avatar_body(request, key=key, file=await self._file(source)),
        )

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """See `Provider.lookup`. The account's avatars are searched for a name that ends in the key's digest."""
        suffix = key_suffix(key)
        found: list[TaskSnapshot] = []
        async for records in self._pages_of(codec.AVATARS_PATH):
            for record in records:
                if codec.is_look(record):
                    found += codec.looks([record], provider=self.name)
                elif codec.is_named(record, suffix):
                    found += await self._looks(group_id=str(record.get("id")))
        named = [look for look in found if codec.is_named(look.raw, suffix)]
        return only_match(named, shown="avatars", provider=self.name)

    async def avatars(self) -> list[TaskSnapshot]:
        """Return the account's own avatars, each as the task that made it. Free of charge."""
        return await self._looks()

    async def delete(self, character_id: str) -> None:
        """See `Provider.delete`. Finished videos stay."""
        await self._transport.request("DELETE", self._url(codec.LOOKS_PATH, character_id), codec.read_deleted)

    async def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a local file, free of charge; return the id of the file at HeyGen.

        Raises:
            OSError: The file cannot be read.
            ProviderError: The upload failed.
        """
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData()
            fields.add_field("file", io.BytesIO(content), filename=upload_name(path))
            return fields

        return await self._transport.request("POST", self._url(codec.UPLOAD_PATH), codec.read_asset, body=form)

    async def _file(self, source: Source) -> Mapping[str, str]:
        path = path_of(source)
        if path is None:
            return {"type": "url", "url": str(source)}
        return {"type": "asset_id", "asset_id": await self.upload(path)}

    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        snapshot = await self._transport.request(
            "GET",
            self._url(codec.LOOKS_PATH, task_id),
            partial(codec.read_look, task_id=task_id, provider=self.name, seen=seen),
            kind="poll",
        )
        if snapshot.state != codec.PENDING_CONSENT:
            self._pages.pop(task_id, None)
            return snapshot
        if snapshot.waiting_for:
            return snapshot
        async with self._lock.held():  # a caller's `refresh` may poll the same task
            page = await self._page_of_consent(snapshot)
        if page is None:
            return attrs.evolve(snapshot, digest=None)  # the next poll requests the page again
        return attrs.evolve(snapshot, waiting_for=page, retry_after=self._consent_interval)

    async def _page_of_consent(self, snapshot: TaskSnapshot) -> str | None:
        """Return the URL of the page of consent, which is requested once for each task; None if there is none.

        A request that fails ends no wait: the person may have consented by now.
        """
        task_id = snapshot.task_id
        if task_id in self._pages:  # the record has changed, and the task still waits
            return self._pages[task_id]
        group_id = codec.group_of(snapshot)
        if group_id is None:
            return None
        try:
            page = await self._transport.request(
                "POST", self._url(codec.AVATARS_PATH, group_id, "consent"), codec.read_consent, kind="poll", json={}
            )
        except ProviderError as error:
            facts = {"provider": self.name, "task_id": task_id, "error": printable(error)}
            log.warning("consent.no_page", extra=facts)
            return None
        self._pages[task_id] = page
        return page

    async def _looks(self, **query: str) -> list[TaskSnapshot]:
        found: list[TaskSnapshot] = []
        async for records in self._pages_of(codec.LOOKS_PATH, **query):
            found += codec.looks(records, provider=self.name)
        return found

    async def _pages_of(self, path: str, **query: str) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """Yield the pages of a list of the account's own records."""
        token: str | None = None
        for _ in range(_MAX_PAGES):
            params = {"ownership": "private", "limit": str(codec.PAGE_SIZE), **query}
            params |= {"token": token} if token else {}
            records, token = await self._transport.request(
                "GET", self._url(path), codec.read_page, kind="poll", params=params
            )
            yield records
            if token is None:
                break

    def _url(self, *parts: str) -> str:
        head, *rest = parts
        return self._transport.base_url + "/".join([head, *(quote(part, safe="") for part in rest)])
