"""Kling: elements from a clip or from images, as coroutines.

Source: Kling docs, "Element", "Authentication" and "Callback" (September 2026).
"""

from __future__ import annotations

import asyncio
import base64
import os
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs

from sora_chars.errors import ConfigurationError, NoAnswerError, ProviderError, TaskNotFoundError, printable
from sora_chars.models import CharacterRequest, VoiceRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.signing import JwtSigner, header
from sora_chars.transport import Transport

from . import kling_codec as codec
from . import kling_voices as voices
from .base import PolledProvider, clean_url, emulator_url, resolve_key, resolve_url
from .hosting import hosting_of
from .kling_callback import read_callback, webhook_key
from .local_files import request_problems

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request, Source, TaskSnapshot

    from .hosting import Host
    from .kie_callback import CallbackEvent

SINGAPORE = "https://api-singapore.klingai.com"
BEIJING = "https://api-beijing.klingai.com"
_MAX_PAGE_SIZE = 500  # records of a page of the list
_MAX_PAGES = 1000


class Kling(PolledProvider):
    """The provider Kling, or a proxy that passes its API on.

    A character is an element of Kling. The idempotency key of a request is sent as its
    `external_task_id`, which Kling keeps unique within the account. A request whose
    response was lost is therefore settled by asking Kling for that id.

    Args:
        api_key: The API key. Defaults to the environment variable KLING_API_KEY.
        access_key: Access key of an older pair of keys, in place of the API key.
            Defaults to KLING_ACCESS_KEY, if there is no API key.
        secret_key: Secret key of that pair. Defaults to KLING_SECRET_KEY.
        base_url: Base URL of the API. Defaults to KLING_BASE_URL, or else to the host
            for accounts outside China, `SINGAPORE`. `BEIJING` is the host for accounts
            in China. Keys and elements of the two are separate.
        hosting: Makes a local video public and returns its URL, such as `Kie().upload`
            or any async function of yours. Kling takes no uploads.
        callback_url: Public URL under which a `CallbackReceiver` is mounted. Without it,
            tasks are only polled.
        webhook_secret: The secret that signs callbacks, which starts with "whsec_".
            Defaults to KLING_WEBHOOK_SECRET. Without it, callbacks are authenticated by
            the token in their URL alone.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. None are published, and none is the default.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: A key is missing, or an option is invalid.
    """

    calls_back = True
    accepts = codec.ACCEPTS
    settles = "lookup"
    makes_voices = True

    def __init__(
        self,
        api_key: str | None = None,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        base_url: str | None = None,
        hosting: Host | None = None,
        callback_url: str | None = None,
        webhook_secret: str | None = None,
        name: str = "kling",
        limits: Limits | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        keys = _keys(api_key, access_key, secret_key, provider=name)
        super().__init__(
            Transport(
                provider=name,
                base_url=resolve_url(base_url, variable="KLING_BASE_URL", default=SINGAPORE),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
                **keys,
            )
        )
        self.callback_url = None if callback_url is None else clean_url(callback_url, field="callback_url")
        secret = os.environ.get("KLING_WEBHOOK_SECRET") if webhook_secret is None else webhook_secret
        self._webhook_key = None if secret is None else webhook_key(secret)
        self._hosting = hosting_of(hosting)
        self._accepts = codec.ACCEPTS
        if self._hosting:
            self._accepts = attrs.evolve(codec.ACCEPTS, video=attrs.evolve(codec.VIDEO, local="upload"))
        self.accepts = self._accepts
        self._elements_url = self._transport.base_url + codec.ELEMENTS_PATH

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks size, format, and the declared duration or pixels of local files."""
        if isinstance(request, VoiceRequest):
            return voices.voice_problems(request, can_host=self._hosting is not None)
        return request_problems(self._accepts, request)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. Local images are sent as base64; a local video is hosted first."""
        if isinstance(request, VoiceRequest):
            url = await self._url_of(request.source)
            body = voices.voice_body(request.name, url, external_id=codec.external_id(key), callback_url=callback_url)
            return await self._create(body, voices.VOICE_MODEL, key, on_send)
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        body = codec.element_body(
            request,
            key=key,
            callback_url=callback_url,
            video=None if request.video is None else await self._url_of(request.video),
            images=[await _inline(image) for image in request.images or ()],
        )
        return await self._create(body, codec.MODEL, key, on_send)

    async def _create(
        self, body: dict[str, Any], model: str, key: str, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        snapshot = await self._transport.request(
            "POST",
            self._tasks_url(model),
            partial(codec.read_created, provider=self.name, model=model),
            kind="create",
            on_send=on_send,
            json=body,
        )
        return snapshot or await self._first_task(key)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`. A task that makes no element is looked for among those that make voices."""
        try:
            return await self._poll(task_id, None)
        except TaskNotFoundError as error:
            try:
                return await self._poll(task_id, None, voices.VOICE_MODEL)
            except TaskNotFoundError:
                raise error from None

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`. An unchanged response is not parsed again."""
        return await self._poll(seen.task_id, seen, seen.model or codec.MODEL)

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """See `Provider.lookup`. Kling is asked for the `external_task_id` of the key, of elements and of voices."""
        external_id = codec.external_id(key)
        found: TaskSnapshot | None = None
        for model in (codec.MODEL, voices.VOICE_MODEL):
            found = found or await self._transport.request(
                "GET",
                f"{self._tasks_url(model)}/{quote(external_id, safe='')}",
                partial(codec.read_lookup, external_id=external_id, provider=self.name, model=model),
                kind="poll",
            )
        return found

    async def tasks(self) -> list[TaskSnapshot]:
        """Return the tasks of the account, as Kling lists them. Free of charge."""
        found: list[TaskSnapshot] = []
        for page in range(1, _MAX_PAGES + 1):
            snapshots, count = await self._transport.request(
                "GET",
                self._elements_url,
                partial(codec.read_list, provider=self.name),
                params={"pageNum": page, "pageSize": _MAX_PAGE_SIZE},
            )
            found += snapshots
            if count < _MAX_PAGE_SIZE:
                break
        return found

    async def delete(self, character_id: str) -> None:
        """See `Provider.delete`. Other characters and finished videos stay."""
        await self._transport.request(
            "POST",
            self._transport.base_url + codec.DELETE_PATH,
            codec.read_deleted,
            json={"element_id": character_id},
        )

    def read_callback(self, headers: Mapping[str, str], body: bytes, *, now: float, tolerance: float) -> CallbackEvent:
        """Parse a callback, and check its signature if there is a `webhook_secret`.

        Raises:
            InvalidCallbackError: It is no callback of Kling, or its signature is wrong.
        """
        return read_callback(headers, body, now=now, key=self._webhook_key, tolerance=tolerance, provider=self.name)

    async def _poll(self, task_id: str, seen: TaskSnapshot | None, model: str = codec.MODEL) -> TaskSnapshot:
        return await self._transport.request(
            "GET",
            f"{self._tasks_url(model)}/{quote(task_id, safe='')}",
            partial(codec.read_record, task_id=task_id, provider=self.name, model=model, seen=seen),
            kind="poll",
        )

    def _tasks_url(self, model: str) -> str:
        """Return the URL of the tasks that make elements, or of those that make voices."""
        return self._elements_url if model == codec.MODEL else self._transport.base_url + voices.VOICES_PATH

    async def _first_task(self, key: str) -> TaskSnapshot:
        """Return the task that an earlier request with the same key has made.

        Raises:
            NoAnswerError: It was not found, so the outcome is unknown.
        """
        try:
            snapshot = await self.lookup(key)
        except ProviderError as error:
            raise NoAnswerError(
                f"Kling has a task of key {printable(key)} already, but did not show it: {error.message}",
                provider=self.name,
            ) from error
        if snapshot is None:
            raise NoAnswerError(
                f"Kling has a task of key {printable(key)} already, but does not show it.", provider=self.name
            )
        return snapshot

    async def _url_of(self, video: Source) -> str:
        path = path_of(video)
        if path is None:
            return str(video)
        if self._hosting is None:
            raise TypeError("video: a local file needs hosting=")
        return await self._hosting.url_of(path)


async def _inline(image: Source) -> str:
    """Return a URL as it is, and the content of a local image as base64 without a prefix."""
    path = path_of(image)
    if path is None:
        return str(image)
    return base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode()


def _keys(api_key: str | None, access_key: str | None, secret_key: str | None, *, provider: str) -> dict[str, Any]:
    """Return the options of the transport for an API key, or for a pair of keys."""
    pair = access_key is not None or secret_key is not None
    if pair and api_key is not None:
        raise ConfigurationError("api_key and access_key exclude each other.")
    if not pair and api_key is None and not os.environ.get("KLING_API_KEY"):
        pair = bool(os.environ.get("KLING_ACCESS_KEY"))
    if not pair or emulator_url():
        key = resolve_key(api_key, variable="KLING_API_KEY", provider=provider)
        return {"api_key": key, "sign": header("Authorization", f"Bearer {key}")}
    access = resolve_key(access_key, variable="KLING_ACCESS_KEY", provider=provider, option="access_key")
    secret = resolve_key(secret_key, variable="KLING_SECRET_KEY", provider=provider, option="secret_key")
    return {"api_key": secret, "sign": JwtSigner(access, secret)}
