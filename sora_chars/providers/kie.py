"""kie.ai: the job API with uploads, and the synchronous route for omni characters, as coroutines.

Source: kie.ai docs, Market API, File Upload API and omni/character/create (August 2026).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs

from sora_chars.errors import printable
from sora_chars.logs import event_logger
from sora_chars.models import (
    SUCCESS,
    CharacterRequest,
    Source,
    TaskRequest,
    TaskSnapshot,
    is_url,
)
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport

from . import kie_account
from . import kie_codec as codec
from .base import PolledProvider, clean_url, resolve_key, resolve_url
from .kie_omni import omni_body
from .kie_uploads import FOLDER, LIFETIME, expires_at
from .local_files import request_problems
from .upload_body import UploadBody

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import ModelInfo, Request, UploadProgress

DOCUMENTED_LIMITS = Limits(creates=(20, 10.0), polls=(10, 1.0))
"""The limits of an account: 20 creates in 10 seconds and 10 polls in 1 second. Source: kie.ai docs."""

log = event_logger("sora_chars.providers")


class Kie(PolledProvider):
    """The provider kie.ai.

    Args:
        api_key: The API key. Defaults to the environment variable KIE_API_KEY.
        base_url: Base URL of the API. Defaults to KIE_BASE_URL, or else to
            https://api.kie.ai. A trailing "/api/v1" is removed.
        upload_url: Base URL of the upload service. Defaults to KIE_UPLOAD_URL, or else to
            https://kieai.redpandaai.co.
        callback_url: Public URL under which a `CallbackReceiver` is mounted. Without it,
            tasks are only polled.
        name: Name of the provider in requests, results and the ledger.
        limits: Rate limits of the account. Defaults to the documented ones, 20 creates
            in 10 seconds and 10 polls in 1 second; None switches them off.
        on_upload: Called with the progress of the upload of a local file.
        timeout: Seconds for a create, from sending to the end of its response.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy. Defaults to HTTPS_PROXY or HTTP_PROXY of the
            environment, except for the hosts of NO_PROXY.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or a URL is invalid.
    """

    calls_back = True

    accepts = codec.ACCEPTS

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        upload_url: str | None = None,
        callback_url: str | None = None,
        name: str = "kie",
        limits: Limits | None = DOCUMENTED_LIMITS,
        on_upload: Callable[[UploadProgress], None] | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        base_url = resolve_url(base_url, variable="KIE_BASE_URL", default="https://api.kie.ai")
        super().__init__(
            Transport(
                provider=name,
                base_url=base_url.removesuffix("/api/v1"),
                api_key=resolve_key(api_key, variable="KIE_API_KEY", provider=name),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self.callback_url = None if callback_url is None else clean_url(callback_url, field="callback_url")
        self._upload_url = resolve_url(
            upload_url, variable="KIE_UPLOAD_URL", default="https://kieai.redpandaai.co", field="upload_url"
        )
        self._on_upload = on_upload
        self._record_url = self._api("jobs/recordInfo")

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks the size, the container and the declared duration of local files."""
        if isinstance(request, TaskRequest):
            return []
        if not isinstance(request, CharacterRequest):
            return [f"request must be a CharacterRequest or a TaskRequest, got {type(request).__name__}"]
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
        del key
        if isinstance(request, CharacterRequest) and request.images is not None:
            return await self._create_omni(request, request.images, on_send)
        if isinstance(request, TaskRequest):
            body: dict[str, Any] = {"model": request.model, "input": dict(request.input)}
        elif not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        else:
            video = request.video
            body = codec.character_task(
                request, video_url=None if video is None else await self._url_of(video, request.key)
            )
        if callback_url:
            body["callBackUrl"] = callback_url
        task_id = await self._transport.request(
            "POST",
            self._api("jobs/createTask"),
            codec.read_task_id,
            kind="create",
            on_send=on_send,
            json=body,
        )
        return TaskSnapshot(task_id=task_id, provider=self.name, state="waiting", model=body["model"])

    async def credit(self) -> float:
        """Return the number of credits that the account has left."""
        return await self._transport.request("GET", self._api("chat/credit"), kie_account.read_credit)

    async def models(self) -> list[ModelInfo]:
        """Return the models that the job API serves now, free of charge."""
        return await self._transport.request("GET", self._api("models"), kie_account.read_models)

    async def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a local file, for the input of a `TaskRequest`, free of charge; return its public URL.

        The file is temporary: kie.ai's pages state lifetimes of 24 hours, 3 days and 14 days.

        Raises:
            OSError: The file cannot be read.
            ProviderError: The upload failed.
        """
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)
        # A repeated name would overwrite the file, and a cache would still serve the old one.
        name = f"{uuid.uuid4().hex}{path.suffix.lower()}"

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData({"uploadPath": FOLDER, "fileName": name})
            fields.add_field("file", UploadBody(content, path, self._on_upload), filename=name)
            return fields

        url = f"{self._upload_url}/api/file-stream-upload"
        return await self._transport.request("POST", url, kie_account.read_upload, body=form)

    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        return await self._transport.request(
            "GET",
            self._record_url,
            partial(codec.read_record, task_id=task_id, provider=self.name, seen=seen),
            kind="poll",
            params={"taskId": task_id},
        )

    def _api(self, route: str) -> str:
        return f"{self._transport.base_url}/api/v1/{route}"

    async def _create_omni(
        self,
        request: CharacterRequest,
        images: Sequence[Source],
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        body = omni_body(request, [await self._url_of(image, request.key) for image in images])
        character = await self._transport.request(
            "POST",
            self._api("omni/character/create"),
            partial(codec.read_omni, provider=self.name),
            kind="create",
            on_send=on_send,
            json=body,
        )
        character = attrs.evolve(character, expires_at=expires_at(body, time.time()))
        return TaskSnapshot(
            task_id=character.id, provider=self.name, state=SUCCESS, character=character, raw=character.raw
        )

    async def _url_of(self, source: Source, key: str | None) -> str:
        if is_url(source):
            return str(source)
        url = await self.upload(source)
        facts = {"provider": self.name, "key": key, "file": printable(source), "why": LIFETIME}
        log.warning("upload.temporary", extra=facts)
        return url
