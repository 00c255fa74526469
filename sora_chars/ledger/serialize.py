"""What stands in the ledger's entries, and how it is read back: requests, results, errors.

Everything is JSON. No token is kept: a record repeats the `callBackUrl` that it was asked with, and it is hidden here.
"""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars import errors
from sora_chars.errors import InvalidRequestError, MissingCharacterError, ProviderError, SoraCharsError, printable
from sora_chars.ids import is_id, token_digest
from sora_chars.models import (
    FAIL,
    SUCCESS,
    Character,
    CharacterRequest,
    Clip,
    OmniCharacterRequest,
    Request,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
    is_url,
)
from sora_chars.redaction import hide_tokens

from . import Entry, EntryState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from . import Ledger

KINDS: dict[str, type[Request]] = {"character": CharacterRequest, "task": TaskRequest, "omni": OmniCharacterRequest}
_PLACES = {"video", "image"}


@attrs.frozen(kw_only=True)
class SavedCharacter:
    """A character of the ledger, with what it was made from and what it cost.

    `source`: the task, URL or path it came from. `credits` as the provider counted them. `created_at`: epoch seconds
    of when it was asked for.
    """

    character: Character
    source: str
    clip: Clip | None
    prompt: str | None
    key: str
    credits: float | None
    created_at: float


def to_record(request: Request) -> tuple[str, dict[str, Any]]:
    """The kind of a request, and all of it but its key, as JSON. Local paths are made absolute."""
    kind = next(kind for kind, made in KINDS.items() if isinstance(request, made))
    facts = {
        field.name: _plain(field.name, getattr(request, field.name))
        for field in attrs.fields(type(request))
        if field.name != "key"
    }
    return kind, {name: value for name, value in facts.items() if value is not None}


def _plain(name: str, value: Any) -> Any:
    if name in _PLACES and value is not None and not is_url(value):
        return str(Path(os.fspath(value)).absolute())
    return str(value) if isinstance(value, Clip) else list(value) if isinstance(value, tuple) else value


def to_request(entry: Entry) -> Request:
    """The request of an entry."""
    return KINDS[entry.kind](**entry.request, key=entry.key)


def to_result(snapshot: TaskSnapshot) -> dict[str, Any]:
    """A finished snapshot as JSON, free of tokens."""
    facts = _facts(snapshot)
    for part in facts.keys() & {"character", "failure"}:
        facts[part] = _facts(facts[part])
    text = json.dumps(facts)
    clean = hide_tokens(text)
    return facts if clean == text else json.loads(clean)


def _facts(value: TaskSnapshot | Character | TaskFailure) -> dict[str, Any]:
    """What is known of it; not deeper, since the provider's raw answer may be long."""
    return attrs.asdict(value, recurse=False, filter=lambda field, fact: fact is not None and field.name != "digest")


def to_snapshot(entry: Entry) -> TaskSnapshot:
    """The finished snapshot of an entry."""
    facts = dict(entry.result)
    if character := facts.get("character"):
        facts["character"] = Character(**character)
    if failure := facts.get("failure"):
        facts["failure"] = TaskFailure(**({"code": None} | failure))
    return TaskSnapshot(**facts)


def is_of_another(snapshot: TaskSnapshot, digest: str | None) -> bool:
    """Whether a record repeats a callback URL, and none of ours: its last part has another digest."""
    text = json.dumps(snapshot.raw).replace("\\", "")
    urls = re.findall(r'callBackUrl["\s:]+(https?:[^"\s]+)', text, re.IGNORECASE)
    tokens = [url.rpartition("/")[2] for url in urls]
    return bool(tokens) and all(token_digest(token) != digest for token in tokens)


def without_character(provider: str, error: MissingCharacterError) -> TaskSnapshot:
    """The success that held no character, as a snapshot."""
    return TaskSnapshot(task_id=error.task_id or "", provider=provider, state=SUCCESS, result=error.payload)


def ending(snapshot: TaskSnapshot, kind: str) -> tuple[EntryState, dict[str, Any]]:
    """The state that a finished snapshot leads to, and the facts to record."""
    facts: dict[str, Any] = {"task_id": snapshot.task_id, "result": to_result(snapshot), "credits": snapshot.credits}
    if snapshot.state != FAIL and (snapshot.character or kind == "task"):
        return EntryState.SUCCEEDED, facts
    failure = snapshot.failure or TaskFailure(None, "" if snapshot.state == FAIL else "it holds no character")
    return EntryState.FAILED, facts | {"error": {"code": failure.code, "message": printable(failure.message)}}


def to_error(error: SoraCharsError) -> dict[str, Any]:
    """An error as JSON: its type's name and its plain facts."""
    facts = {field.name: getattr(error, field.name) for field in attrs.fields(type(error))}
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float) and value != ""}
    return {"type": type(error).__name__, **plain}


def rejection(entry: Entry) -> ProviderError:
    """The error with which the provider refused the entry's request."""
    facts: dict[str, Any] = {"message": ""} | (entry.error or {})
    kind = getattr(errors, facts.get("type", ""), ProviderError)
    known = {field.name for field in attrs.fields(kind)}
    made: ProviderError = kind(**{name: value for name, value in facts.items() if name in known})
    return made


async def characters(
    ledger: Ledger, word: str | None = None, *, limit: int | None = None
) -> AsyncGenerator[SavedCharacter, None]:
    """The characters of a ledger, newest first: up to `limit` of those that mention `word`, in any case."""
    left = limit
    async for entry in ledger.entries(states={EntryState.SUCCEEDED}, newest_first=True, query=word):
        if left == 0:
            return
        if saved := _saved(entry):
            left = None if left is None else left - 1
            yield saved


async def endings(ledger: Ledger, *, limit: int) -> list[TaskSnapshot]:
    """The last tasks that ended, up to `limit`, the oldest first. A row that cannot be read as one is left out."""
    found: list[TaskSnapshot] = []
    async for entry in ledger.entries(states={EntryState.SUCCEEDED, EntryState.FAILED}, newest_first=True, limit=limit):
        with suppress(ValueError, TypeError, OverflowError):  # a row that somebody else has written
            snapshot = to_snapshot(entry)
            readable = math.isfinite(snapshot.duration or 0.0) and isinstance(snapshot.model, str | None)
            if readable and snapshot.provider == entry.provider:
                found.append(snapshot)
    return found[::-1]


def _saved(entry: Entry) -> SavedCharacter | None:
    character = to_snapshot(entry).character
    if character is None:
        return None
    asked = entry.request
    return SavedCharacter(
        character=attrs.evolve(character, name=character.name or asked.get("name")),
        source=asked.get("from_task") or asked.get("video") or asked.get("image") or "",
        clip=Clip.parse(asked["clip"]) if "clip" in asked else None,
        prompt=asked.get("prompt") or asked.get("descriptions"),
        key=entry.key,
        credits=entry.credits,
        created_at=entry.created_at,
    )


async def resolve(
    ledger: Ledger, key: str, *, task_id: str | None = None, never_sent: bool = False, give_up: bool = False
) -> Entry:
    """Record what a person found out about an entry whose outcome is unknown; asking for nothing new.

    Exactly one of: `task_id`, the task that it became; `never_sent`, it may be sent when it is asked for again;
    `give_up`, it is to count as failed for good (also for a task that runs and that nobody will hear of again).

    Raises:
        InvalidRequestError: not exactly one of them, no such entry, or one that leaves nothing to resolve.
        StaleEntryError: somebody else moved it meanwhile.
    """
    if (task_id is not None) + never_sent + give_up != 1:
        raise InvalidRequestError("resolve: give exactly one of task_id, never_sent and give_up.")
    entry = await _in_doubt(ledger, key, running=give_up)
    if task_id is not None:
        return await ledger.transition(
            entry, EntryState.RUNNING, task_id=await _free(ledger, entry, task_id), claim=False
        )
    if never_sent:
        return await ledger.transition(entry, EntryState.PENDING)
    failure = TaskFailure("given_up", "a person gave it up")
    given_up = TaskSnapshot(task_id=entry.task_id or "", provider=entry.provider, state=FAIL, failure=failure)
    to, facts = ending(given_up, entry.kind)
    facts["task_id"] = entry.task_id
    return await ledger.transition(entry, to, **facts)


async def _in_doubt(ledger: Ledger, key: str, *, running: bool) -> Entry:
    entry = await mark_orphaned(ledger, await find(ledger, key))
    allowed = {EntryState.UNKNOWN, EntryState.RUNNING} if running else {EntryState.UNKNOWN}
    if entry.state is EntryState.SENDING:
        raise InvalidRequestError(
            f"key: {key} is being sent by a living process.", hint="Wait for it, or end that process first."
        )
    if entry.state not in allowed:
        raise InvalidRequestError(f"key: {key} is {entry.state}, so there is nothing to resolve.")
    return entry


async def _free(ledger: Ledger, entry: Entry, task_id: str) -> str:
    if not is_id(task_id):
        raise InvalidRequestError(f"task_id: must be the id of a task, got {printable(repr(task_id), limit=60)}.")
    other = await ledger.by_task(entry.provider, task_id)
    if other:
        raise InvalidRequestError(f"task_id: {task_id} is the task of key {other.key} already.")
    return task_id


async def find(ledger: Ledger, key: str) -> Entry:
    """The entry of a key.

    Raises:
        InvalidRequestError: there is none.
    """
    entry = await ledger.get(key)
    if entry is None:
        raise InvalidRequestError(f"key: the ledger has no entry {printable(key, limit=60)!r}.")
    return entry


async def mark_orphaned(ledger: Ledger, entry: Entry) -> Entry:
    """The entry; `unknown` from now on if the process that was sending it has ended."""
    if entry.state is not EntryState.SENDING or not await ledger.is_dead(entry.owner or ""):
        return entry
    why = {"message": "the process that sent it ended before an answer was on record"}
    try:
        return await ledger.transition(entry, EntryState.UNKNOWN, error=why)
    except errors.StaleEntryError as error:
        moved: Entry = error.entry
        return moved
