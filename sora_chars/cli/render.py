"""What the command line shows: JSON objects, and rows of a label and a text. No terminal here.

All text of a provider goes through `printable` before it becomes a row: no escape code and no line break gets through.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import SoraCharsError, WaitTimeoutError, printable
from sora_chars.ledger import Entry
from sora_chars.ledger.serialize import to_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sora_chars.ledger.queries import SavedCharacter
    from sora_chars.models import Character, ModelInfo, TaskSnapshot

Rows = list[tuple[str, str]]
Cells = tuple[str, ...]

SAVED_HEAD = ("mention", "key", "source", "clip", "provider", "credits", "made")
ENTRY_HEAD = ("key", "state", "asked", "provider", "credits", "what")

_ROOM = 100_000  # characters; a result is shown whole


def shown(value: object) -> str:
    """Any value as one line that is safe on a terminal."""
    return printable(value, limit=_ROOM)


def character_json(character: Character, *, key: str | None) -> dict[str, Any]:
    """The object of a character. `task_id` is null where the provider has no tasks, `key` where nobody knows it."""
    names = ("id", "username", "mention", "name", "permalink", "picture_url")
    return {
        "provider": character.provider,
        "task_id": character.task_id,
        "key": key,
        "character": {name: getattr(character, name) for name in names},
    }


def task_json(snapshot: TaskSnapshot) -> dict[str, Any]:
    """The object of a task that makes no character, or has not ended yet."""
    return {name: getattr(snapshot, name) for name in ("provider", "task_id", "model", "state", "result")}


def models_json(provider: str, models: Iterable[ModelInfo]) -> dict[str, Any]:
    """The object of a list of models."""
    names = ("model", "title", "provider", "task_type")
    return {"provider": provider, "models": [{name: getattr(model, name) for name in names} for model in models]}


def error_json(error: SoraCharsError, *, task_id: str | None = None, key: str | None = None) -> dict[str, Any]:
    """The object of an error: its own facts first, then what is known of the task that was paid for."""
    handle = error.handle if isinstance(error, WaitTimeoutError) else None
    facts = {
        "type": type(error).__name__,
        "message": error.message,
        "code": getattr(error, "code", None),
        "problems": list(getattr(error, "problems", ())) or None,
        "task_id": getattr(error, "task_id", None) or getattr(handle, "task_id", None) or task_id,
        "key": getattr(error, "key", None) or key,
        "hint": error.hint or None,
    }
    return {"error": {name: value for name, value in facts.items() if value is not None}}


def character_rows(character: Character, *, key: str | None = None, how: str | None = None) -> Rows:
    """The rows of a character, those first that are needed next."""
    return _rows(
        {
            "id": character.id,
            "mention": character.mention,
            "name": character.name,
            "permalink": character.permalink,
            "picture": character.picture_url,
            "provider": character.provider,
            "task": character.task_id,
            "key": key,
            "time": how,
        }
    )


def task_rows(snapshot: TaskSnapshot, *, how: str | None = None) -> Rows:
    """The rows of a task."""
    took = None if snapshot.duration is None else f"{snapshot.duration:.1f} s"
    return _rows(
        {
            "task": snapshot.task_id,
            "provider": snapshot.provider,
            "model": snapshot.model,
            "state": snapshot.state,
            "progress": None if snapshot.progress is None else f"{snapshot.progress:g} %",
            "ran for": took,
            "credits": None if snapshot.credits is None else f"{snapshot.credits:g}",
            "time": how,
            "result": None if snapshot.result is None else json.dumps(snapshot.result, ensure_ascii=False),
        }
    )


def model_rows(models: Iterable[ModelInfo]) -> list[tuple[str, str, str]]:
    """A row for each model: its name, what it makes, its title."""
    return [(shown(model.model), shown(model.task_type or ""), shown(model.title or "")) for model in models]


def saved_json(saved: SavedCharacter) -> dict[str, Any]:
    """The object of a character in the ledger: as `create` shows it, and what it was made from."""
    made = {name: getattr(saved, name) for name in ("source", "prompt", "credits", "created_at")}
    return character_json(saved.character, key=saved.key) | {"clip": saved.clip and str(saved.clip)} | made


def saved_row(saved: SavedCharacter, now: float) -> Cells:
    """A character of the ledger as the cells of `SAVED_HEAD`; without a user name its id stands for the mention."""
    character = saved.character
    clip = str(saved.clip or "")
    cells = (character.mention or character.id, saved.key, saved.source, clip, character.provider)
    return (*map(shown, cells), _credits(saved.credits), _age(saved.created_at, now))


def entry_json(entry: Entry) -> dict[str, Any]:
    """The whole entry. Times are epoch seconds."""
    names = [field.name.removesuffix("_json") for field in attrs.fields(Entry)]
    return {name: getattr(entry, name) for name in names}


def entry_row(entry: Entry, now: float) -> Cells:
    """An entry as the cells of `ENTRY_HEAD`."""
    asked = entry.request
    what = [asked.get(name) for name in ("model", "name", "from_task", "video", "image", "clip", "prompt")]
    cells = (entry.key, entry.state, _age(entry.created_at, now), entry.provider, _credits(entry.credits))
    return (*map(shown, cells), shown("  ".join(filter(None, what))))


def entry_rows(entry: Entry) -> Rows:
    """The rows of an entry, with what came of it."""
    ended = to_snapshot(entry) if entry.result else None
    made = ended.character if ended else None
    error = entry.error or {}
    result = ended.result if ended and entry.kind == "task" else None
    return _rows(
        {
            "key": entry.key,
            "state": entry.state,
            "why": " ".join(str(error[name]) for name in ("code", "message") if error.get(name)) or None,
            "id": made.id if made else None,
            "mention": made.mention if made else None,
            "permalink": made.permalink if made else None,
            "result": None if result is None else json.dumps(result, ensure_ascii=False),
            "provider": entry.provider,
            "task": entry.task_id,
            "credits": _credits(entry.credits) or None,
            "asked": _moment(entry.created_at),
            "changed": _moment(entry.updated_at),
            "request": json.dumps(entry.request, ensure_ascii=False),
        }
    )


def _credits(credit: float | None) -> str:
    return "" if credit is None else f"{credit:g}"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _age(at: float, now: float) -> str:
    """How long ago that was; a date where that says more."""
    for limit, seconds, unit in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if now - at < limit:
            return f"{max(0, now - at) // seconds:.0f} {unit}"
    return _moment(at).partition(" ")[0]


def _rows(fields: Mapping[str, str | None]) -> Rows:
    return [(label, shown(value)) for label, value in fields.items() if value is not None]
