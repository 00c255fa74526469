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
from .responses import Rejection, Reply, upload
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .state import EmulatorState

MAX_BASE64_BYTES = 10 * 1024 * 1024
MAX_FILE_BYTES = 100 * 1024 * 1024


async def stream_upload(state: EmulatorState, request: web.Request) -> Reply:
    """Store the `file` of a multipart/form-data body with `uploadPath` and `fileName`."""
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
    except ValueError as error:  # raised by aiohttp for a broken multipart body
        raise Rejection(upload(400, "Malformed multipart body")) from error
    if content is None:
        return upload(400, "file is required")
    return _store(state, fields, content)


async def base64_upload(state: EmulatorState, request: web.Request) -> Reply:
    """Store the `base64Data`, bare or as a data: URL, of a JSON body; at most 10 MB."""
    body = await json_object(request)
    data = body.get("base64Data")
    if not isinstance(data, str) or not data:
        return upload(400, "base64Data is required")
    try:
        content = base64.b64decode(data.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejection(upload(400, "base64Data is not valid base64")) from error
    if len(content) > MAX_BASE64_BYTES:
        return upload(400, "File size exceeds 10MB")
    return _store(state, body, content)


async def url_upload(state: EmulatorState, request: web.Request) -> Reply:
    """Store the file behind the `fileUrl` of a JSON body.

    The emulator copies a file of its own. For any other URL it stores a sample, without
    fetching the URL.
    """
    body = await json_object(request)
    url = body.get("fileUrl")
    if not is_url(url):
        return upload(400, "fileUrl is required")
    file = state.files.find(url)
    body.setdefault("fileName", str(url).partition("?")[0].rpartition("/")[2])
    return _store(state, body, SAMPLE_VIDEO if file is None else file.content)


def _store(state: EmulatorState, fields: Mapping[str, object], content: bytes) -> Reply:
    """Check the path and the size, store the file, and respond with its URL."""
    folder = fields.get("uploadPath")
    if not isinstance(folder, str) or not folder:
        return upload(400, "uploadPath is required")
    if folder != folder.strip("/"):
        return upload(400, "uploadPath must not start or end with a slash")
    if len(content) > MAX_FILE_BYTES:
        return upload(400, "File size exceeds 100MB")
    name = str(fields.get("fileName") or f"{round(time.time() * 1000)}-{state.task_store.new_id()[:11]}")
    mime = mimetypes.guess_type(name)[0] or "application/octet-stream"
    path = f"kieai/100000/{folder}/{name}"
    state.counts.uploads += 1
    data = {
        "success": True,
        "fileName": name,
        "filePath": path,
        "downloadUrl": state.files.add(path, File(mime, content)),
        "fileSize": len(content),
        "mimeType": mime,
        "uploadedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return upload(200, "File uploaded successfully", data)
