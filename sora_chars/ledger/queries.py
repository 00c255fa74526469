"""What is read from a ledger: one entry, the saved characters, and the tasks that have ended."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import InvalidRequestError, UnreadableEntryError, printable
from sora_chars.logs import event_logger
from sora_chars.models import Character, Clip
from sora_chars.redaction import masked_repr

from .entry import current_form, unreadable
from .serialize import to_snapshot
from .states import EntryState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.models import TaskSnapshot

    from .entry import Attempt, Entry
    from .ledger import Ledger


log = event_logger("sora_chars.ledger")


@attrs.frozen(kw_only=True)
class SavedCharacter:
    """A character of the ledger, with what it was made from and what it cost.

    Attributes:
        character: The character as the provider returned it.
        source: The task, URL or path it was made from; of several images the first.
        clip: The part of the video that was used, if the request named one.
        prompt: The description in the request.
        key: The idempotency key of the request.
        credits: What the provider charged, in its credits, if it says.
        created_at: When the request was registered, in epoch seconds.
    """

    character: Character
    source: str = attrs.field(repr=masked_repr)
    clip: Clip | None
    prompt: str | None
    key: str
    credits: float | None
    created_at: float


async def find(ledger: Ledger, key: str) -> Entry:
    """Return the entry of a key.

    Raises:
        InvalidRequestError: The ledger has no such entry.
    """
    entry = await get(ledger, key)
    if entry is None:
        shown = printable(repr(key), limit=60)
        raise InvalidRequestError(f"key: the ledger has no entry {shown}.", key=printable(key))
    return entry


async def get(ledger: Ledger, key: str) -> Entry | None:
    """Return the entry of a key, or None.

    Raises:
        InvalidRequestError: The key is no text.
    """
    given: object = key  # callers without a type checker pass anything
    if not isinstance(given, str):
        raise InvalidRequestError(f"key must be text, got {printable(repr(given), limit=60)}.")
    return await ledger.get(given.strip())


async def with_attempts(ledger: Ledger) -> AsyncGenerator[tuple[Entry, list[Attempt]], None]:
    """Yield every entry, oldest first, with its earlier attempts."""
    async for page in ledger.pages():
        attempts: dict[str, list[Attempt]] = {entry.key: [] for entry in page}
        for attempt in await ledger.attempts(*attempts):
            attempts[attempt.key].append(attempt)
        for entry in page:
            yield entry, attempts[entry.key]


async def characters(
    ledger: Ledger, query: str | None = None, *, limit: int | None = None
) -> AsyncGenerator[SavedCharacter, None]:
    """Yield the characters of a ledger, newest first. Those that were deleted are left out.

    Args:
        ledger: The ledger to read.
        query: Text that an entry must mention, in any case.
        limit: The maximum number of characters.
    """
    left = limit
    async for entry in ledger.entries(states={EntryState.SUCCEEDED}, newest_first=True, query=query):
        if left == 0:
            return
        if saved := _readable(entry):
            left = None if left is None else left - 1
            yield saved


async def finished_tasks(ledger: Ledger, *, limit: int) -> list[TaskSnapshot]:
    """Return up to `limit` of the tasks that ended last, the oldest first. Unreadable rows are left out."""
    found: list[TaskSnapshot] = []
    states = {EntryState.SUCCEEDED, EntryState.FAILED, EntryState.DELETED}
    async for entry in ledger.entries(states=states, newest_first=True, limit=limit):
        with suppress(UnreadableEntryError, ValueError, TypeError, OverflowError):  # from another program
            snapshot = to_snapshot(entry)
            readable = math.isfinite(snapshot.duration or 0.0) and isinstance(snapshot.model, str | None)
            if readable and snapshot.provider == entry.provider:
                found.append(snapshot)
    return found[::-1]


def _readable(entry: Entry) -> SavedCharacter | None:
    try:
        return _saved(entry)
    except UnreadableEntryError as error:
        log.warning("ledger.unreadable", extra={"key": entry.key, "error": printable(error)})
        return None


def _saved(entry: Entry) -> SavedCharacter | None:
    character = to_snapshot(entry).character
    if character is None:
        return None
    try:
        _, request = current_form(entry.kind, entry.request)
        images = request.get("images") or [""]
        return SavedCharacter(
            character=attrs.evolve(character, name=character.name or request.get("name")),
            source=request.get("from_task") or request.get("video") or images[0],
            clip=Clip.parse(request["clip"]) if "clip" in request else None,
            prompt=request.get("prompt"),
            key=entry.key,
            credits=entry.credits,
            created_at=entry.created_at,
        )
    except (AttributeError, InvalidRequestError, TypeError, ValueError) as error:
        raise unreadable(entry.key, error) from error
