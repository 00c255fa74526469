"""Seedance's assets and their groups over time (contracts: Seedance assets, Ark itself).

Ark and icover show the same records.
"""

from __future__ import annotations

import io
import math
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import imagesize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .files import File

TYPES = ("Image", "Video", "Audio")
MAX_BYTES = {"Image": 30 * 1024 * 1024 - 1, "Video": 50 * 1024 * 1024, "Audio": 15 * 1024 * 1024}
PIXELS = (300, 6000)
RATIOS = (0.4, 2.5)
DEFAULT_GROUP = "group-20260101000000-dflt1"
LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


@attrs.define(eq=False)
class EmulatedAsset:
    """An asset as Ark knows it. Times are real seconds on the event loop's clock, except `created_at`.

    Attributes:
        asset_id: "asset-", a time and five characters.
        asset_type: Image, Video or Audio.
        group_id: The group that it belongs to.
        name: Its name.
        url: Where the client's file was.
        created: When it was created.
        created_at: The same in seconds since the epoch.
        ends_at: When it is ready; infinity for one that never is.
        clock: The event loop's clock.
        failure: Code and message of why it fails; None if it succeeds.
        polls: How often it was polled.
    """

    asset_id: str
    asset_type: str
    group_id: str
    name: str
    url: str
    created: float
    created_at: float
    ends_at: float
    clock: Callable[[], float] = attrs.field(repr=False)
    failure: tuple[str, str] | None = None
    polls: int = 0

    @property
    def status(self) -> str:
        """The current status."""
        if self.clock() < self.ends_at:
            return "Processing"
        return "Active" if self.failure is None else "Failed"

    def record(self) -> dict[str, object]:
        """Return the record of a poll and of a list."""
        status = self.status
        changed = self.created_at + min(self.clock(), self.ends_at) - self.created
        record: dict[str, object] = {
            "Id": self.asset_id,
            "Name": self.name,
            "URL": f"https://ark-media-asset.invalid/{self.asset_id}?X-Tos-Signature=0123456789abcdef",
            "AssetType": self.asset_type,
            "GroupId": self.group_id,
            "Status": status,
            "ProjectName": "default",
            "CreateTime": _text(self.created_at),
            "UpdateTime": _text(changed),
        }
        if status == "Failed" and self.failure:
            code, message = self.failure
            record["Error"] = {"Code": code, "Message": message}
        return record

    def apply(self, fault: str, settings: Mapping[str, object]) -> None:
        """Change the asset by a fault."""
        if fault == "asset_stuck":
            self.ends_at = math.inf
        else:
            self.failure = (str(settings["code"]), str(settings["message"]))


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@attrs.define(eq=False)
class AssetStore:
    """The assets of one emulated account.

    Attributes:
        clock: The event loop's clock.
        draw_duration: Returns the duration of the next asset in real seconds.
        groups: The names of the groups by their ids.
        assets: Every asset by its id, oldest first.
        uploads: The media type of each announced upload, by its path.
    """

    clock: Callable[[], float] = attrs.field(repr=False)
    draw_duration: Callable[[], float] = attrs.field(repr=False)
    groups: dict[str, str] = attrs.field(factory=lambda: {DEFAULT_GROUP: "default"})
    assets: dict[str, EmulatedAsset] = attrs.field(factory=dict)
    uploads: dict[str, str] = attrs.field(factory=dict)
    _rng: random.Random = attrs.field(factory=lambda: random.Random(11), init=False, repr=False)  # noqa: S311

    def new_id(self, kind: str) -> str:
        """Return a new id of a group or an asset."""
        letters = "".join(self._rng.choices(LETTERS, k=5))
        return f"{kind}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{letters}"

    def create(self, *, asset_type: str, group_id: str, name: str, url: str, file: File | None) -> EmulatedAsset:
        """Start to process a file. The emulator looks at files of its own only."""
        now = self.clock()
        asset = EmulatedAsset(
            asset_id=self.new_id("asset"),
            asset_type=asset_type,
            group_id=group_id,
            name=name,
            url=url,
            created=now,
            created_at=time.time(),
            ends_at=now + self.draw_duration(),
            clock=self.clock,
            failure=None if file is None else file_problem(asset_type, file),
        )
        self.assets[asset.asset_id] = asset
        return asset


def file_problem(asset_type: str, file: File) -> tuple[str, str] | None:
    """Return code and message of what is wrong with a file, or None."""
    if not file.mime.startswith(f"{asset_type.lower()}/"):
        return "InvalidParameter.AssetType", f"the file is no {asset_type}"
    if len(file.content) > MAX_BYTES[asset_type]:
        return "InvalidParameter.FileSize", "the file is too large"
    if asset_type != "Image":
        return None
    width, height = imagesize.get(io.BytesIO(file.content))
    if not (PIXELS[0] <= min(width, height) and max(width, height) <= PIXELS[1]):
        return "InvalidParameter.ImagePixel", "the image must have 300 to 6000 pixels a side"
    if not RATIOS[0] <= width / height <= RATIOS[1]:
        return "InvalidParameter.ImageRatio", "the ratio of the image must be 0.4 to 2.5"
    return None
