"""What the command line shows: JSON objects, and rows of a label and a text. No terminal here.

All text of a provider goes through `printable` before it becomes a row: no escape code and no line break gets through.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sora_chars.errors import SoraCharsError, WaitTimeoutError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sora_chars.models import Character, ModelInfo, TaskSnapshot

Rows = list[tuple[str, str]]

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


def _rows(fields: Mapping[str, str | None]) -> Rows:
    return [(label, shown(value)) for label, value in fields.items() if value is not None]
