"""icover's routes of the asset library, and its uploads, as plain functions.

Source: apiyi docs, "Seedance 2.0 asset library" (2026).
"""

from __future__ import annotations

import mimetypes
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs

from sora_chars.errors import ProviderError, RequestRejectedError, ServiceUnavailableError, printable
from sora_chars.models import is_whole_url
from sora_chars.responses import GATEWAY_FAULTS, json_object

from .local_files import image_format
from .seedance_codec import PAGE_SIZE, Call
from .seedance_envelope import read_result, unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.responses import Response
    from sora_chars.signing import Sign

HOST = "https://icover.ai"
_ASSETS = "/api/asset-library/assets"
_PRESIGN = "/api/storage/presign"
_HEAD_BYTES = 12


@attrs.frozen
class Icover:
    """icover's routes."""

    def create(self, *, url: str, asset_type: str, name: str, group_id: str | None) -> Call:
        """See `Door.create`."""
        body = {"imageUrl": url, "label": name, "assetType": asset_type}
        return Call("POST", _ASSETS, {"json": body | ({"groupId": group_id} if group_id else {})})

    def fetch(self, asset_id: str) -> Call:
        """See `Door.fetch`."""
        return Call("GET", f"{_ASSETS}/{quote(asset_id, safe='')}")

    def list(self, page: int, *, name: str, group_id: str | None) -> Call:
        """See `Door.list`. icover has no filter for names."""
        del name
        params = {"pageNumber": page, "pageSize": PAGE_SIZE} | ({"groupId": group_id} if group_id else {})
        return Call("GET", _ASSETS, {"params": params})

    def delete(self, asset_id: str) -> Call:
        """See `Door.delete`."""
        return Call("DELETE", f"{_ASSETS}/{quote(asset_id, safe='')}")


def bearer(base_url: str, api_key: str) -> Sign:
    """Return a signer that sends the key to icover only, and not to the storage of an upload."""
    own = f"{base_url}/api/"
    headers = {"Authorization": f"Bearer {api_key}"}
    return lambda _method, url, _headers, _body: headers if url.startswith(own) else {}


@attrs.frozen
class Presigned:
    """Where a file is uploaded, and where it is then public."""

    upload_url: str = attrs.field(repr=False)
    public_url: str


def media_type(path: Path, content: bytes) -> str:
    """Return the media type of a local file, by its first bytes or else by its name."""
    found = image_format(content[:_HEAD_BYTES])
    return f"image/{found}" if found else mimetypes.guess_type(path.name)[0] or "video/mp4"


def presign(path: Path, mime: str) -> Call:
    """Return the call for the address of an upload."""
    extension = path.suffix.lstrip(".").lower() or mime.partition("/")[2]
    return Call("POST", _PRESIGN, {"json": {"ext": extension, "contentType": mime}})


def read_presigned(response: Response, *, base_url: str) -> Presigned:
    """Return the addresses of an upload. The file is sent over TLS, or to the host of `base_url`.

    Raises:
        ProviderError: The response holds none.
    """
    match json_object(response):
        case {"code": 0, "data": {"uploadUrl": str(upload_url), "publicUrl": str(public_url)}} if _is_safe(
            upload_url, base_url
        ) and is_whole_url(public_url):
            return Presigned(upload_url, public_url)
        case {"code": 0}:
            raise unreadable(response, "no address for the upload")
        case {"code": int(code), **rest}:
            raise RequestRejectedError(
                f"icover answered code {code} to a request for an upload: {_text(rest.get('message'))}",
                status=response.status,
                code=code,
            )
        case _:
            read_result(response)
            raise unreadable(response, "no address for the upload")


def _is_safe(url: str, base_url: str) -> bool:
    return url.isprintable() and (url.lower().startswith("https://") or url.startswith(f"{base_url}/"))


def _text(message: object) -> str:
    return printable(message, limit=200) if isinstance(message, str) and message else "no message"


def read_stored(response: Response) -> None:
    """Check the response of the storage to an upload.

    Raises:
        ProviderError: The file was not stored.
    """
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    is_transient = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_FAULTS
    kind: type[ProviderError] = ServiceUnavailableError if is_transient else RequestRejectedError
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200) or "no message"
    raise kind(
        f"icover's storage answered HTTP {status} to an upload: {shown}",
        status=status,
        retry_after=response.retry_after,
    )
