"""HeyGen's looks and their groups over time (contracts: HeyGen)."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

PREVIEW = "https://files2.heygen.invalid/avatar/v3"


@attrs.define(eq=False)
class Look:
    """A look as HeyGen knows it. Times are real seconds on the event loop's clock, except `created_at`.

    Attributes:
        look_id: 32 hex digits.
        group_id: The group that it belongs to.
        name: Its name.
        kind: digital_twin or photo.
        created: When it was created.
        created_at: The same in seconds since the epoch.
        duration: How long it takes, after consent if consent is needed.
        clock: The event loop's clock.
        needs_consent: Whether a person must consent.
        consented: When that person did; None before.
        failure: Code and message of why it fails; None if it succeeds.
        polls: How often it was polled.
    """

    look_id: str
    group_id: str
    name: str
    kind: str
    created: float
    created_at: float
    duration: float
    clock: Callable[[], float] = attrs.field(repr=False)
    needs_consent: bool = False
    consented: float | None = None
    failure: tuple[str, str] | None = None
    polls: int = 0

    @property
    def ends_at(self) -> float:
        """When it is ready; infinity while consent is needed."""
        if self.needs_consent:
            return math.inf if self.consented is None else self.consented + self.duration
        return self.created + self.duration

    @property
    def status(self) -> str:
        """The current status."""
        if self.needs_consent and self.consented is None:
            return "pending_consent"
        if self.clock() < self.ends_at:
            return "processing"
        return "completed" if self.failure is None else "failed"

    def never_end(self) -> None:
        """Keep the look from ending by itself."""
        self.duration = math.inf

    def record(self) -> dict[str, object]:
        """Return the look as its creation, a poll and a list show it."""
        status = self.status
        is_ready = status == "completed"
        failure = self.failure if status == "failed" else None
        return {
            "id": self.look_id,
            "name": self.name,
            "avatar_type": "photo_avatar" if self.kind == "photo" else self.kind,
            "group_id": self.group_id,
            "status": status,
            "error": failure and {"code": failure[0], "message": failure[1]},
            "default_voice_id": "voice-1" if is_ready else None,
            "preview_image_url": f"{PREVIEW}/{self.look_id}/half/preview.webp" if is_ready else None,
            "preview_video_url": None,
            "created_at": round(self.created_at),
        }


@attrs.define(eq=False)
class LookStore:
    """The looks of one emulated account.

    Attributes:
        clock: The event loop's clock.
        draw_duration: Returns the duration of the next look in real seconds.
        groups: The names of the groups by their ids.
        looks: Every look by its id, oldest first.
        files: The extension of each uploaded file, by its id.
        pages: The group of each page of consent, by the token in its address.
    """

    clock: Callable[[], float] = attrs.field(repr=False)
    draw_duration: Callable[[], float] = attrs.field(repr=False)
    groups: dict[str, str] = attrs.field(factory=dict)
    looks: dict[str, Look] = attrs.field(factory=dict)
    files: dict[str, str] = attrs.field(factory=dict)
    pages: dict[str, str] = attrs.field(factory=dict)
    _rng: random.Random = attrs.field(factory=lambda: random.Random(13), init=False, repr=False)  # noqa: S311

    def create(self, kind: str, name: str, group_id: str | None) -> Look:
        """Start to make a look, in a new group unless one is given."""
        if group_id is None:
            group_id = f"{self._rng.getrandbits(128):032x}"
            self.groups[group_id] = name
        look = Look(
            look_id=f"{self._rng.getrandbits(128):032x}",
            group_id=group_id,
            name=name,
            kind=kind,
            created=self.clock(),
            created_at=time.time(),
            duration=self.draw_duration(),
            clock=self.clock,
        )
        self.looks[look.look_id] = look
        return look

    def group(self, look: Look) -> dict[str, object]:
        """Return the group of a look."""
        waits = look.status == "pending_consent"
        return {
            "id": look.group_id,
            "name": self.groups[look.group_id],
            "consent_status": "pending" if waits else "approved",
            "status": look.status,
            "created_at": round(look.created_at),
        }

    def first_looks(self) -> list[Look]:
        """Return the first look of each group that has one, oldest first."""
        first: dict[str, Look] = {}
        for look in self.looks.values():
            first.setdefault(look.group_id, look)
        return list(first.values())

    def consent(self, group_id: str) -> None:
        """Record the consent of the person of a group."""
        for look in self.looks.values():
            if look.group_id == group_id and look.consented is None:
                look.consented = self.clock()
