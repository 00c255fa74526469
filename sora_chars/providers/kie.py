"""kie.ai: the job API (createTask, recordInfo) with uploads, and the synchronous omni route, as coroutines."""

from __future__ import annotations

import asyncio
import io
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from sora_chars.models import SUCCESS, OmniCharacterRequest, TaskRequest, TaskSnapshot, UploadProgress, is_url
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import Transport, clean_url, resolve_key

from . import kie_codec as codec
from .base import HTTPProvider

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import ModelInfo, Request

DOCUMENTED_LIMITS = Limits(creates=(20, 10.0), polls=(10, 1.0))

_MB = 1024 * 1024
_VIDEO_LIMIT = 10 * _MB
_IMAGE_LIMIT = 20 * _MB
_ROUNDING = 0.1  # seconds; containers pad the sound, so a clip of 4 s may call itself 4.02 s


class Kie(HTTPProvider):
    """kie.ai. `callback_url`: the public URL under which a `CallbackReceiver` of yours is mounted.

    `limits`: the documented ones (20 creates in 10 s, 10 polls in 1 s for an account); None for none. `on_upload`
    is told how far the upload of a local file is. The other options are those of `Transport`.

    Raises:
        ConfigurationError: no key, or a URL that is none.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str = "https://api.kie.ai",
        upload_url: str = "https://kieai.redpandaai.co",
        callback_url: str | None = None,
        name: str = "kie",
        limits: Limits | None = DOCUMENTED_LIMITS,
        on_upload: Callable[[UploadProgress], None] | None = None,
        timeout: float = 60.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        super().__init__(
            Transport(
                provider=name,
                base_url=clean_url(base_url, field="base_url"),
                api_key=resolve_key(api_key, variable="KIE_API_KEY", provider=name),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self.callback_url = None if callback_url is None else clean_url(callback_url, field="callback_url")
        self._upload_url = clean_url(upload_url, field="upload_url")
        self._on_upload = on_upload
        self._record_url = self._api("jobs/recordInfo")

    async def poll_capacity(self) -> int:
        """See `Provider.ready`."""
        return await self._transport.account.windows["poll"].available()

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Local files are looked at: size, type, and the duration where the headers say it."""
        if isinstance(request, TaskRequest):
            return []
        if isinstance(request, OmniCharacterRequest):
            blank = [] if request.descriptions.strip() else ["descriptions: is required and must not be empty"]
            image = request.image
            return blank + ([] if is_url(image) else _file_problems("image", Path(image), _IMAGE_LIMIT))
        video = request.video_path
        return codec.character_problems(request) + ([] if video is None else _video_problems(video))

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider.submit`. A local file is uploaded first, for free."""
        if isinstance(request, OmniCharacterRequest):
            return await self._omni(request, on_send)
        if isinstance(request, TaskRequest):
            body: dict[str, Any] = {"model": request.model, "input": dict(request.input)}
        else:
            video = request.video
            body = codec.character_task(request, video_url=None if video is None else await self._url_of(video))
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

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider.fetch`."""
        return await self._look(task_id, None)

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """See `Provider.fetch_if_changed`. What did not change is not read again."""
        return await self._look(seen.task_id, seen)

    async def credit(self) -> float:
        """How many credits the account has left."""
        return await self._transport.request("GET", self._api("chat/credit"), codec.read_credit)

    async def models(self) -> list[ModelInfo]:
        """Which models the job API serves now: free, so that a dead one is seen before anything is paid."""
        return await self._transport.request("GET", self._api("models"), codec.read_models)

    async def upload(self, path: str | os.PathLike[str]) -> str:
        """Upload a local file for the input of a `TaskRequest`, free of charge; its public URL lives for 3 days.

        Raises:
            OSError: the file cannot be read.
            ProviderError: the upload failed.
        """
        path = Path(path)
        content = await asyncio.to_thread(path.read_bytes)
        name = f"{uuid.uuid4().hex}{path.suffix.lower()}"  # the same name overwrites, behind a cache

        def form() -> aiohttp.FormData:
            fields = aiohttp.FormData({"uploadPath": "sora-chars", "fileName": name})
            fields.add_field("file", _Reported(content, path, self._on_upload), filename=name)
            return fields

        url = f"{self._upload_url}/api/file-stream-upload"
        return await self._transport.request("POST", url, codec.read_upload, body=form)

    async def _look(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        return await self._transport.request(
            "GET",
            self._record_url,
            partial(codec.read_record, task_id=task_id, provider=self.name, seen=seen),
            kind="poll",
            params={"taskId": task_id},
        )

    def _api(self, route: str) -> str:
        return f"{self._transport.base_url}/api/v1/{route}"

    async def _omni(
        self, request: OmniCharacterRequest, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        body = {
            "descriptions": request.descriptions,
            "image_urls": [await self._url_of(request.image)],
            "audio_ids": list(request.audio_ids) or None,
            "character_name": request.name,
        }
        character = await self._transport.request(
            "POST",
            self._api("omni/character/create"),
            partial(codec.read_omni, provider=self.name),
            kind="create",
            on_send=on_send,
            json={name: value for name, value in body.items() if value is not None},
        )
        return TaskSnapshot(
            task_id=character.id, provider=self.name, state=SUCCESS, character=character, raw=character.raw
        )

    async def _url_of(self, place: str | os.PathLike[str]) -> str:
        return str(place) if is_url(place) else await self.upload(place)


class _Reported(io.BytesIO):
    """A file's content that tells how much of it was read."""

    def __init__(self, content: bytes, path: Path, report: Callable[[UploadProgress], None] | None) -> None:
        super().__init__(content)
        self._path, self._total, self._report = path, len(content), report

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if self._report and chunk:
            self._report(UploadProgress(self._path, self.tell(), self._total))
        return chunk


def _file_problems(field: str, path: Path, limit: int) -> list[str]:
    try:
        if not path.is_file():
            return [f"{field}: {path} is no file here, and no http(s) URL"]
        with path.open("rb"):  # it may also be read
            size = path.stat().st_size
    except OSError as error:
        return [f"{field}: {path} cannot be read: {error.strerror}"]
    if not 0 < size <= limit:
        return [f"{field}: must have 1 byte to {limit // _MB} MB, {path} has {size} bytes"]
    return []


def _video_problems(path: Path) -> list[str]:
    problems = _file_problems("video", path, _VIDEO_LIMIT)
    if problems:
        return problems
    from .media import probe  # noqa: PLC0415 # most videos are named by a URL, or by a task

    facts = probe(path)
    if facts.container is None:
        problems.append(f"video: must be mp4, webm or avi, {path} is none of them")
    if facts.duration is not None and not 1 - _ROUNDING <= facts.duration <= 4 + _ROUNDING:
        problems.append(f"video: must run 1 to 4 s, {path} runs {facts.duration:.2f} s")
    return problems
