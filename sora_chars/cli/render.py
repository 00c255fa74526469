"""Turns results into JSON objects, and into rows of a label and a text.

Text from a provider passes through `one_line` before it becomes a row, so escape
codes and line breaks never reach the terminal.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import SoraCharsError, UnreadableEntryError, WaitTimeoutError, printable
from sora_chars.ledger import Entry
from sora_chars.ledger.serialize import to_snapshot
from sora_chars.redaction import mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sora_chars.ledger.queries import SavedCharacter
    from sora_chars.models import Character, ModelInfo, TaskSnapshot, Voice

Rows = list[tuple[str, str]]
Cells = tuple[str, ...]

CHARACTER_COLUMNS = ("mention", "key", "source", "clip", "provider", "credits", "age", "may end")
ENTRY_COLUMNS = ("key", "state", "age", "provider", "credits", "request")
MODEL_COLUMNS = ("model", "type", "title")

_OPTIONS = (
    ("pass hosting=", "add --hosting NAME"),
    ("Pass hosting=", "Add --hosting NAME"),
    ("by hosting=", "by --hosting NAME"),
    ("choose the part with clip", "choose the part with --clip"),
)
"""What messages name in Python, and what the command line has for it."""

_MAX_LENGTH = 100_000  # characters of a value; results are shown whole


def one_line(value: object) -> str:
    """Return any value as one line of printable text."""
    return printable(value, limit=_MAX_LENGTH)


def in_options(text: str) -> str:
    """Return a message with the options of the command line in place of the arguments of Python."""
    for python, option in _OPTIONS:
        text = text.replace(python, option)
    return text


def character_json(character: Character, *, key: str | None) -> dict[str, Any]:
    """Return the object of a character.

    `task_id` is null if the provider has no tasks, `key` if it is not known.
    """
    names = ("id", "username", "mention", "name", "permalink", "picture_url", "usage", "expires_at")
    return {
        "provider": character.provider,
        "task_id": character.task_id,
        "key": key,
        "character": {name: getattr(character, name) for name in names},
    }


def voice_json(voice: Voice, *, key: str | None) -> dict[str, Any]:
    """Return the object of a voice."""
    found = {"id": voice.id, "name": voice.name}
    return {"provider": voice.provider, "task_id": voice.task_id, "key": key, "voice": found}


def voice_rows(voice: Voice, *, key: str | None = None, time_taken: str | None = None) -> Rows:
    """Return the rows of a voice."""
    facts = {"id": voice.id, "name": voice.name, "provider": voice.provider, "task": voice.task_id}
    return _rows(facts | {"key": key, "time": time_taken})


def task_json(snapshot: TaskSnapshot) -> dict[str, Any]:
    """Return the object of a task that creates no character, or is still running."""
    task = {name: getattr(snapshot, name) for name in ("provider", "task_id", "model", "state", "result")}
    return task | ({"waiting_for": snapshot.waiting_for} if snapshot.waiting_for else {})


def models_json(provider: str, models: Iterable[ModelInfo]) -> dict[str, Any]:
    """Return the object of a list of models."""
    names = ("model", "title", "provider", "task_type")
    return {"provider": provider, "models": [{name: getattr(model, name) for name in names} for model in models]}


def error_json(error: SoraCharsError, *, task_id: str | None = None, key: str | None = None) -> dict[str, Any]:
    """Return the object of an error. Members that are not known are left out.

    Args:
        error: The error, whose own attributes take precedence.
        task_id: The task that the command created, if any.
        key: The idempotency key of the command's paid request, if any.
    """
    handle = error.handle if isinstance(error, WaitTimeoutError) else None
    facts = {
        "type": type(error).__name__,
        "message": in_options(error.message),
        "code": getattr(error, "code", None),
        "problems": list(map(in_options, getattr(error, "problems", ()))) or None,
        "task_id": error.task_id or getattr(handle, "task_id", None) or task_id,
        "key": error.key or key,
        "request_id": error.request_id,
        "charged": error.charged if error.may_have_been_paid else None,
        "hint": in_options(error.hint) or None,
        "waiting_for": handle.snapshot.waiting_for if handle and handle.snapshot else None,
    }
    return {"error": {name: value for name, value in facts.items() if value is not None}}


def character_rows(character: Character, *, key: str | None = None, time_taken: str | None = None) -> Rows:
    """Return the rows of a character."""
    return _rows(
        {
            "id": character.id,
            "mention": character.mention,
            "name": character.name,
            "permalink": character.permalink,
            "picture": character.picture_url,
            "usage": None if character.usage is None else json.dumps(character.usage, ensure_ascii=False),
            "provider": character.provider,
            "task": character.task_id,
            "key": key,
            "may end": None if character.expires_at is None else _local_time(character.expires_at),
            "time": time_taken,
        }
    )


def task_rows(snapshot: TaskSnapshot, *, time_taken: str | None = None) -> Rows:
    """Return the rows of a task."""
    return _rows(
        {
            "task": snapshot.task_id,
            "provider": snapshot.provider,
            "model": snapshot.model,
            "state": snapshot.state,
            "waiting for": snapshot.waiting_for,
            "progress": None if snapshot.progress is None else f"{snapshot.progress:g} %",
            "ran for": None if snapshot.duration is None else f"{snapshot.duration:.1f} s",
            "credits": None if snapshot.credits is None else f"{snapshot.credits:g}",
            "time": time_taken,
            "result": None if snapshot.result is None else json.dumps(snapshot.result, ensure_ascii=False),
        }
    )


def model_rows(models: Iterable[ModelInfo]) -> list[tuple[str, str, str]]:
    """Return the cells of `MODEL_COLUMNS` for each model."""
    return [(one_line(model.model), one_line(model.task_type or ""), one_line(model.title or "")) for model in models]


def saved_json(saved: SavedCharacter) -> dict[str, Any]:
    """Return the object of a recorded character: that of `create`, and what it was created from."""
    origin = {name: getattr(saved, name) for name in ("prompt", "credits", "created_at")}
    made_from = {"clip": saved.clip and str(saved.clip), "source": mask(saved.source)}
    return character_json(saved.character, key=saved.key) | made_from | origin


def saved_row(saved: SavedCharacter, now: float) -> Cells:
    """Return the cells of `CHARACTER_COLUMNS`; the id replaces the mention of a character without a user name."""
    character = saved.character
    clip = str(saved.clip or "")
    cells = (character.mention or character.id, saved.key, mask(saved.source), clip, character.provider)
    end = "" if character.expires_at is None else _distance(character.expires_at, now)
    return (*map(one_line, cells), _credits(saved.credits), _age(saved.created_at, now), end)


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return the whole entry. Times are epoch seconds. It holds links as they were requested: for `ledger export`."""
    names = [field.name.removesuffix("_json") for field in attrs.fields(Entry)]
    return {name: getattr(entry, name) for name in names}


def shown_entry_json(entry: Entry) -> dict[str, Any]:
    """Return the whole entry without the secret parts of the links that were requested."""
    return entry_json(attrs.evolve(entry, request_json=mask(entry.request_json), error_json=_masked(entry.error_json)))


def _masked(text: str | None) -> str | None:
    return None if text is None else mask(text)


def entry_row(entry: Entry, now: float) -> Cells:
    """Return the cells of `ENTRY_COLUMNS`."""
    try:
        request = entry.request
        values = [
            request.get(name) for name in ("model", "name", "from_task", "video", "image", "source", "clip", "prompt")
        ]
    except (AttributeError, UnreadableEntryError):
        values = ["(unreadable)"]
    cells = (entry.key, entry.state, _age(entry.created_at, now), entry.provider, _credits(entry.credits))
    return (*map(one_line, cells), one_line(mask("  ".join(filter(None, values)))))


def entry_rows(entry: Entry) -> Rows:
    """Return the rows of an entry and of its result."""
    snapshot = to_snapshot(entry) if entry.result else None
    character = snapshot.character if snapshot else None
    made = character or (snapshot.voice if snapshot else None)
    error = entry.error or {}
    result = snapshot.result if snapshot and entry.kind == "task" else None
    return _rows(
        {
            "key": entry.key,
            "state": entry.state,
            "error": mask(" ".join(str(error[name]) for name in ("code", "message") if error.get(name))) or None,
            "id": made.id if made else None,
            "mention": character.mention if character else None,
            "permalink": character.permalink if character else None,
            "result": None if result is None else json.dumps(result, ensure_ascii=False),
            "provider": entry.provider,
            "task": entry.task_id,
            "credits": _credits(entry.credits) or None,
            "created": _local_time(entry.created_at),
            "updated": _local_time(entry.updated_at),
            "request": mask(json.dumps(entry.request, ensure_ascii=False)),
        }
    )


def _credits(amount: float | None) -> str:
    return "" if amount is None else f"{amount:g}"


def _local_time(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def _age(epoch: float, now: float) -> str:
    """Return an age in seconds, minutes or hours, and after two days the date."""
    for limit, seconds, unit in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if now - epoch < limit:
            return f"{max(0, now - epoch) // seconds:.0f} {unit}"
    return _local_time(epoch).partition(" ")[0]


def _distance(epoch: float, now: float) -> str:
    """Return a time as "in 22 h" or "3 h ago"; beyond two days the date."""
    if abs(epoch - now) >= 48 * 3600:
        return _local_time(epoch).partition(" ")[0]
    return f"in {_age(now, epoch)}" if epoch > now else f"{_age(epoch, now)} ago"


def _rows(fields: Mapping[str, str | None]) -> Rows:
    return [(label, one_line(value)) for label, value in fields.items() if value is not None]
