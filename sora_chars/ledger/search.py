"""How entries are searched: the text that a store indexes, and the parts of a query.

A store may find too many entries. `Entry.mentions` decides.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sora_chars.errors import UnreadableEntryError

if TYPE_CHECKING:
    from .entry import Entry

TRIGRAM = 3  # characters
_MAX_TRIGRAMS = 24  # of a query; more make it no faster
_UNSTORABLE = dict.fromkeys((0, *range(0xD800, 0xE000)), " ")  # NUL and surrogates, which databases reject


def fold(text: str) -> str:
    """Return text in the form in which it is compared, without characters that a database rejects."""
    return text.casefold().translate(_UNSTORABLE)


def searchable_text(entry: Entry) -> str:
    """Return the folded text by which an entry is found. An unreadable entry is found by its key and task id."""
    texts = [entry.key, entry.task_id or ""]
    with suppress(UnreadableEntryError):
        texts = entry.texts()
    return fold("\n".join(texts))


def trigrams(query: str) -> list[str]:
    """Return the parts of a query, three characters long, that an index is searched for; none if it is shorter."""
    folded = fold(query)
    parts = dict.fromkeys(folded[start : start + TRIGRAM] for start in range(len(folded) - TRIGRAM + 1))
    return [*parts][:_MAX_TRIGRAMS]


def like(query: str) -> str:
    """Return the pattern that SQL's LIKE compares folded text with."""
    escaped = fold(query).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
