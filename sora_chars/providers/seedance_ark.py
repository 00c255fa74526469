"""Ark's actions on its asset library, and the signature over each request, as plain functions.

Source: Volcengine Ark docs, "Private asset library" and "Signing API requests" (2026).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Any

import attrs
from yarl import URL

from .seedance_codec import PAGE_SIZE, Call
from .seedance_envelope import read_result, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sora_chars.responses import Response
    from sora_chars.signing import Sign

INTERNATIONAL = "ap-southeast-1"
HOSTS: Mapping[str, str] = {
    "cn-beijing": "https://ark.cn-beijing.volcengineapi.com",
    INTERNATIONAL: "https://ark.ap-southeast-1.byteplusapi.com",
}
"""The host of each region. Keys, groups and assets of the two are separate."""
GROUP_NAME = "sora-chars"
"""The name of the group for assets, where no group was given."""

_VERSION = "2024-01-01"
_ALGORITHM = "HMAC-SHA256"
_SERVICE = "ark"
_SIGNED_HEADERS = "content-type;host;x-content-sha256;x-date"


@attrs.frozen
class Ark:
    """Ark's actions, in a project of the account."""

    project: str | None = None

    def create(self, *, url: str, asset_type: str, name: str, group_id: str | None) -> Call:
        """See `Door.create`."""
        return self._call("CreateAsset", GroupId=group_id, URL=url, AssetType=asset_type, Name=name)

    def fetch(self, asset_id: str) -> Call:
        """See `Door.fetch`."""
        return self._call("GetAsset", Id=asset_id)

    def list(self, page: int, *, name: str, group_id: str | None) -> Call:
        """See `Door.list`. Ark's filter finds a part of a name."""
        found = ({"Name": name} if name else {}) | ({"GroupIds": [group_id]} if group_id else {})
        return self._call("ListAssets", Filter=found, PageNumber=page, PageSize=PAGE_SIZE)

    def delete(self, asset_id: str) -> Call:
        """See `Door.delete`."""
        return self._call("DeleteAsset", Id=asset_id)

    def groups(self) -> Call:
        """Return the call for the groups that are named like `GROUP_NAME`."""
        found = {"Name": GROUP_NAME, "GroupType": "AIGC"}
        return self._call("ListAssetGroups", Filter=found, PageNumber=1, PageSize=PAGE_SIZE)

    def create_group(self, name: str, description: str) -> Call:
        """Return the call that makes a group for faces that a model made."""
        return self._call("CreateAssetGroup", Name=name, Description=description or None, GroupType="AIGC")

    def _call(self, action: str, **fields: Any) -> Call:
        body = {name: value for name, value in {**fields, "ProjectName": self.project}.items() if value is not None}
        return Call("POST", "/", {"params": {"Action": action, "Version": _VERSION}, "json": body})


def read_group(response: Response) -> str:
    """Return the id of the group that was made.

    Raises:
        ProviderError: The response holds none.
    """
    match read_result(response):
        case {"Id": str(group_id)} if group_id:
            return group_id
        case _:
            raise unreadable(response, "no group id")


def read_groups(response: Response) -> str | None:
    """Return the id of the group that is named `GROUP_NAME`, or None.

    Raises:
        ProviderError: The list was not sent.
    """
    items = read_result(response).get("Items")
    for item in items if isinstance(items, list) else ():
        match item:
            case {"Id": str(group_id), "Name": name} if group_id and name == GROUP_NAME:
                return group_id
            case _:
                continue
    return None


def ark_signer(access_key: str, secret_key: str, region: str, *, clock: Callable[[], float] = time.time) -> Sign:
    """Return a signer over method, path, query, host, time and body of each request."""

    def sign(method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(clock()))
        digest = hashlib.sha256(body).hexdigest()
        target = URL(url)
        canonical = "\n".join(
            (
                method,
                target.raw_path,
                "&".join(sorted(target.raw_query_string.split("&"))),
                f"content-type:{headers['Content-Type']}",
                f"host:{target.host_port_subcomponent}",
                f"x-content-sha256:{digest}",
                f"x-date:{date}",
                "",
                _SIGNED_HEADERS,
                digest,
            )
        )
        scope = f"{date[:8]}/{region}/{_SERVICE}/request"
        text = "\n".join((_ALGORITHM, date, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = secret_key.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        signature = hmac.digest(key, text.encode(), hashlib.sha256).hex()
        return {
            "Authorization": f"{_ALGORITHM} Credential={access_key}/{scope}, "
            f"SignedHeaders={_SIGNED_HEADERS}, Signature={signature}",
            "X-Date": date,
            "X-Content-Sha256": digest,
        }

    return sign
