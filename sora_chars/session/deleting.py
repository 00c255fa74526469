"""Deletes characters at their providers, and records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import (
    InvalidRequestError,
    StaleEntryError,
    UnreadableEntryError,
    printable,
)
from sora_chars.ledger import EntryState
from sora_chars.ledger.queries import find
from sora_chars.ledger.serialize import to_snapshot
from sora_chars.models import Character

if TYPE_CHECKING:
    from sora_chars.ledger import Entry, Ledger

    from .dispatcher import Dispatcher

_MAX_SHOWN = 60  # characters of a key or an id in a message


@attrs.frozen
class Target:
    """A character to delete.

    Attributes:
        provider: Name of its provider.
        character_id: The provider's id of the character.
        entry: Its entry; None if the ledger does not record it.
    """

    provider: str
    character_id: str
    entry: Entry | None = None

    @property
    def is_deleted(self) -> bool:
        """Whether the ledger records that it was deleted."""
        return self.entry is not None and self.entry.state is EntryState.DELETED


async def find_target(ledger: Ledger, character: Character | str, provider: str | None) -> Target:
    """Return the character that is meant by a character, a key or a character id.

    A key comes before an id. An id counts only if one provider's entries have it.

    Raises:
        InvalidRequestError: The ledger has no such key or id and no provider was given, or the key has no character.
    """
    if isinstance(character, Character):
        task_id = character.task_id or character.id
        entry = await ledger.by_task(character.provider, task_id)
        is_same = entry is not None and _character_id(entry) == character.id
        return Target(character.provider, character.id, entry if is_same else None)
    given: object = character  # callers without a type checker pass anything
    name = given.strip() if isinstance(given, str) else ""
    if entry := await ledger.get(name):
        if provider in {None, entry.provider}:
            return _target_of(entry)
        raise InvalidRequestError(f"provider: key {name} belongs to {entry.provider}, got {printable(provider)!r}.")
    found = [target for target in await _by_character_id(ledger, name) if provider in {None, target.provider}]
    if len({target.provider for target in found}) == 1:
        return found[0]
    shown = printable(repr(given), limit=_MAX_SHOWN)
    if found:
        names = " and ".join(sorted({target.provider for target in found}))
        raise InvalidRequestError(f"provider must be given, since {names} have a character {shown}.")
    if provider is None or not name:
        raise InvalidRequestError(
            f"character must be a recorded character, its key or its id, got {shown}.",
            hint="To delete a character that this ledger does not record, name its provider.",
        )
    return Target(provider, name)


async def _by_character_id(ledger: Ledger, character_id: str) -> list[Target]:
    """Return the characters of this id, newest first."""
    if not character_id:
        return []
    states = {EntryState.SUCCEEDED, EntryState.DELETED}
    entries = ledger.entries(states=states, newest_first=True, query=character_id)
    return [
        Target(entry.provider, character_id, entry) async for entry in entries if _character_id(entry) == character_id
    ]


def _target_of(entry: Entry) -> Target:
    character_id = _character_id(entry)
    if character_id is None:
        raise InvalidRequestError(
            f"key: {entry.key} is {entry.state} and has no character to delete.",
            key=entry.key,
            provider=entry.provider,
            task_id=entry.task_id,
        )
    return Target(entry.provider, character_id, entry)


def _character_id(entry: Entry) -> str | None:
    """Return the id of the character that an entry records; None if there is none, or it cannot be read."""
    if entry.state not in {EntryState.SUCCEEDED, EntryState.DELETED}:
        return None
    try:
        character = to_snapshot(entry).character
    except UnreadableEntryError:
        return None
    return character.id if character else None


async def delete(dispatcher: Dispatcher, character: Character | str, provider: str | None) -> Entry | None:
    """Delete a character and record it; see `CharacterSession.delete`.

    It is recorded after the provider has confirmed it. A process that ends in between
    leaves the entry as it was, and the next call completes it.
    """
    target = await find_target(dispatcher.ledger, character, provider)
    if target.is_deleted:
        return target.entry
    await dispatcher.provider(target.provider).delete(target.character_id)
    if target.entry is None:
        return None
    try:
        return await dispatcher.ledger.transition(target.entry, EntryState.DELETED, result=target.entry.result)
    except StaleEntryError as error:  # another process has deleted it
        return await find(dispatcher.ledger, error.entry.key)
