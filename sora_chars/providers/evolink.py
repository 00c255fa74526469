"""Evolink: Kling's elements without a contract with Kling, as coroutines.

Source: EvoLink docs, "Kling Custom Element" and "Get Task Detail" (September 2026).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import CharacterRequest, path_of
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport

from . import evolink_codec as codec
from .base import resolve_key, resolve_url
from .element_gateway import ElementGateway
from .hosting import hosting_of
from .record_callback import read_event

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request, Source, TaskSnapshot

    from .hosting import Host
    from .kie_callback import CallbackEvent


class Evolink(ElementGateway):
    """The provider Evolink, a gateway to Kling.

    A character is an element of Kling in Evolink's account, for Evolink's models of
    Kling. Evolink takes no id of the client. If the response to a create is lost, the
    outcome stays unknown until the callback of its task arrives.

    Args:
        api_key: The API key. Defaults to the environment variable EVOLINK_API_KEY.
        base_url: Base URL of the API. Defaults to EVOLINK_BASE_URL, or else to
            https://api.evolink.ai. A trailing "/v1" is removed.
        hosting: Makes a local file public and returns its URL, such as `Kie().upload` or
            any async function of yours. Evolink takes no uploads.
        callback_url: Public URL under which a `CallbackReceiver` is mounted. Evolink
            accepts https:// only. Without it, tasks are only polled. Callbacks are
            authenticated by the token in their URL, because Evolink does not sign them.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. None are published, and none is the default.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or an option is invalid.
    """

    calls_back = True
    calls_https_only = True
    accepts = codec.ACCEPTS

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        hosting: Host | None = None,
        callback_url: str | None = None,
        name: str = "evolink",
        limits: Limits | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        base_url = resolve_url(base_url, variable="EVOLINK_BASE_URL", default="https://api.evolink.ai")
        super().__init__(
            Transport(
                provider=name,
                base_url=base_url.removesuffix("/v1"),
                api_key=resolve_key(api_key, variable="EVOLINK_API_KEY", provider=name),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            ),
            callback_url=callback_url,
            accepts=codec.ACCEPTS if hosting is None else codec.HOSTED,
            task_path=codec.task_path,
            read_record=codec.read_record,
        )
        self._hosting = hosting_of(hosting)
        if self.callback_url is not None and not self.callback_url.startswith("https://"):
            shown = printable(self.callback_url)
            raise ConfigurationError(
                f"callback_url must be an https:// URL, since Evolink calls no other, got {shown}."
            )

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. Local files are hosted first."""
        del key
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        body = codec.element_body(
            request,
            callback_url=callback_url,
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
        )

    async def credit(self) -> float:
        """Return how many credits the account has left."""
        return await self._transport.request("GET", self._transport.base_url + codec.CREDITS_PATH, codec.read_credits)

    def read_callback(self, headers: Mapping[str, str], body: bytes, *, now: float, tolerance: float) -> CallbackEvent:
        """Parse a callback. Evolink does not sign them.

        Raises:
            InvalidCallbackError: It is no callback of Evolink.
        """
        del headers, now, tolerance
        read = partial(codec.read_snapshot, provider=self.name)
        return read_event(body, claimed=codec.claimed_task, read=read, provider=self.name)

    async def _url_of(self, source: Source) -> str:
        path = path_of(source)
        if path is None:
            return str(source)
        if self._hosting is None:
            raise TypeError("Evolink takes URLs only; a local file needs hosting=")
        return await self._hosting.url_of(path)
