"""Names that end in a digest of the idempotency key, where a provider takes no id of the client but has a list."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sora_chars.errors import NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.models import TaskSnapshot

_DIGEST_LENGTH = 10  # characters
SUFFIX_LENGTH = _DIGEST_LENGTH + 1
"""The number of characters that `key_suffix` adds to a name."""


def key_suffix(key: str) -> str:
    """Return the end of a name, by which a lost response is found in the list."""
    return f"_{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:_DIGEST_LENGTH]}"


def only_match(found: Sequence[TaskSnapshot], *, shown: str, provider: str) -> TaskSnapshot | None:
    """Return the only record of a key, or None if there is none.

    A list that changes while its pages are read may show a record twice.

    Args:
        found: The records whose names end in the digest of the key.
        shown: What the provider calls them, such as "subjects".
        provider: Name of the provider.

    Raises:
        NoAnswerError: There are several, so the outcome is unknown.
    """
    different = {snapshot.task_id: snapshot for snapshot in found}
    if len(different) > 1:
        raise NoAnswerError(f"{provider} shows {len(different)} {shown} of this key.", provider=provider)
    return next(iter(different.values()), None)
