"""Wavespeed: Kling's elements without a contract with Kling, and uploads, as coroutines.

Source: WaveSpeedAI docs, "Kling Elements Advanced", "Upload Files", "Webhooks" and
"Verifying Webhooks" (September 2026).
"""

from __future__ import annotations

import asyncio
import binascii
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport

from . import wavespeed_codec as codec
from .base import resolve_key, resolve_url
from .element_gateway import ElementGateway
from .record_callback import read_event
from .standard_webhooks import check_signature, plain_key
from .upload_body import UploadBody, upload_name

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request, Source, TaskSnapshot, UploadProgress

    from .kie_callback import CallbackEvent


class Wavespeed(ElementGateway):
    """The provider Wavespeed, a gateway to Kling.

    A character is an element of Kling in Wavespeed's account, for Wavespeed's models of
    Kling. Wavespeed takes no id of the client. If the response to a create is lost, the
    outcome stays unknown until the callback of its task arrives.

    Args:
        api_key: The API key. Defaults to the environment variable WAVESPEED_API_KEY.
        base_url: Base URL of the API. Defaults to WAVESPEED_BASE_URL, or else to
            https://api.wavespeed.ai. A trailing "/api/v3" is removed.
        callback_url: Public URL under which a `CallbackReceiver` is mounted; Wavespeed
            requires HTTPS. Without it, tasks are only polled.
        webhook_secret: The account's webhook secret, which starts with "whsec_". Defaults
            to WAVESPEED_WEBHOOK_SECRET. Without it, callbacks are authenticated by the
            token in their URL alone.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. They depend on its level, and none is the
            default. An account of the lowest level may start 2 tasks in a minute:
            `Limits(creates=(2, 60))`.
        on_upload: Called with the progress of the upload of a local file.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or an option is invalid.
    """

    calls_back = True
    accepts = codec.ACCEPTS

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        callback_url: str | None = None,
        webhook_secret: str | None = None,
        name: str = "wavespeed",
        limits: Limits | None = None,
        on_upload: Callable[[UploadProgress], None] | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        base_url = resolve_url(base_url, variable="WAVESPEED_BASE_URL", default="https://api.wavespeed.ai")
        super().__init__(
            Transport(
                provider=name,
                base_url=base_url.removesuffix("/api/v3"),
                api_key=resolve_key(api_key, variable="WAVESPEED_API_KEY", provider=name),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            ),
            callback_url=callback_url,
            accepts=codec.ACCEPTS,
            task_path=codec.task_path,
            read_record=codec.read_record,
        )
        secret = os.environ.get("WAVESPEED_WEBHOOK_SECRET") if webhook_secret is None else webhook_secret
        self._webhook_key = None if secret is None else plain_key(secret)
        self._on_upload = on_upload

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. Local files are uploaded first, free of charge."""
        del key
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        body = codec.element_body(
            request,
            video=None if request.video is None else await self._url_of(request.video),
            images=[await self._url_of(image) for image in request.images or ()],
        )
        return await self._transport.request(
            "POST",
            self._transport.base_url + codec.CREATE_PATH,
            partial(codec.read_element, provider=self.name),
            kind="create",
            on_send=on_send,
            json=body,
            params={"webhook": callback_url} if callback_url else None,
        )

    async def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a local video or image, free of charge; return its public URL.

        Wavespeed keeps an upload for 7 days.

        Raises:
            OSError: The file cannot be read.
            ProviderError: The upload failed.
        """
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData()
            fields.add_field("file", UploadBody(content, path, self._on_upload), filename=upload_name(path))
            return fields

        return await self._transport.request(
            "POST", self._transport.base_url + codec.UPLOAD_PATH, codec.read_upload, body=form
        )

    async def credit(self) -> float:
        """Return how many US dollars the account has left."""
        return await self._transport.request("GET", self._transport.base_url + codec.BALANCE_PATH, codec.read_balance)

    def read_callback(self, headers: Mapping[str, str], body: bytes, *, now: float, tolerance: float) -> CallbackEvent:
        """Parse a callback, and check its signature if there is a `webhook_secret`.

        Raises:
            InvalidCallbackError: It is no callback of Wavespeed, or its signature is wrong.
        """
        if self._webhook_key is not None:
            check_signature(
                headers,
                body,
                key=self._webhook_key,
                now=now,
                tolerance=tolerance,
                version="v3",
                encode=binascii.hexlify,
            )
        read = partial(codec.read_snapshot, provider=self.name)
        return read_event(body, claimed=codec.claimed_task, read=read, provider=self.name)

    async def _url_of(self, source: Source) -> str:
        path = path_of(source)
        return str(source) if path is None else await self.upload(path)
