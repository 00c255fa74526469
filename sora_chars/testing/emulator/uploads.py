"""The upload routes of kie.ai, and the files that were uploaded (contracts: kie.ai, Uploads)."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import BodyPartReader, web

from .files import SAMPLE_VIDEO, File
from .kie import json_object
from .responses import Refusal, Reply, upload
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .state import World

LARGEST_BASE64 = 10 * 1024 * 1024
LARGEST_FILE = 100 * 1024 * 1024


async def stream_upload(world: World, request: web.Request) -> Reply:
    """multipart/form-data: `file`, `uploadPath`, `fileName`."""
    if request.content_type != "multipart/form-data":
        return upload(400, "Content type must be multipart/form-data")
    fields: dict[str, object] = {}
    content: bytes | None = None
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                fields.setdefault("fileName", part.filename)
                content = bytes(await part.read(decode=False))
            elif isinstance(part, BodyPartReader):
                fields[str(part.name)] = await part.text()
    except ValueError as error:  # aiohttp's word for a broken multipart body
        raise Refusal(upload(400, "Malformed multipart body")) from error
    if content is None:
        return upload(400, "file is required")
    return _stored(world, fields, content)


async def base64_upload(world: World, request: web.Request) -> Reply:
    """JSON: `base64Data` (bare or as a data: URL), `uploadPath`, `fileName`; at most 10 MB."""
    body = await json_object(request)
    data = body.get("base64Data")
    if not isinstance(data, str) or not data:
        return upload(400, "base64Data is required")
    try:
        content = base64.b64decode(data.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(upload(400, "base64Data is not valid base64")) from error
    if len(content) > LARGEST_BASE64:
        return upload(400, "File size exceeds 10MB")
    return _stored(world, body, content)


async def url_upload(world: World, request: web.Request) -> Reply:
    """JSON: `fileUrl`, `uploadPath`, `fileName`. Its own files are copied, for others it keeps a sample."""
    body = await json_object(request)
    url = body.get("fileUrl")
    if not is_url(url):
        return upload(400, "fileUrl is required")
    file = world.files.at(url)
    body.setdefault("fileName", str(url).partition("?")[0].rpartition("/")[2])
    return _stored(world, body, SAMPLE_VIDEO if file is None else file.content)


def _stored(world: World, fields: Mapping[str, object], content: bytes) -> Reply:
    folder = fields.get("uploadPath")
    if not isinstance(folder, str) or not folder:
        return upload(400, "uploadPath is required")
    if folder != folder.strip("/"):
        return upload(400, "uploadPath must not start or end with a slash")
    if len(content) > LARGEST_FILE:
        return upload(400, "File size exceeds 100MB")
    now = datetime.now(UTC)
    name = str(fields.get("fileName") or f"{round(time.time() * 1000)}-{world.book.hex_id()[:11]}")
    mime = mimetypes.guess_type(name)[0] or "application/octet-stream"
    path = f"kieai/100000/{folder}/{name}"
    world.counts.uploads += 1
    return upload(
        200,
        "File uploaded successfully",
        {
            "success": True,
            "fileName": name,
            "filePath": path,
            "downloadUrl": world.files.keep(path, File(mime, content)),
            "fileSize": len(content),
            "mimeType": mime,
            "uploadedAt": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        },
    )
