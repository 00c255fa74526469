"""How long kie.ai keeps the files that are uploaded to it, and the characters that are made from them.

Source: kie.ai docs. Three pages state 24 hours, 3 days and 14 days for an upload, and one says that a character is
valid only while its file is.
"""

from __future__ import annotations

import json
import re
from typing import Any

FOLDER = "sora-chars"
"""The folder of this package's uploads, which is a part of their URLs."""

SHORTEST_LIFETIME = 24 * 3600.0
"""Seconds that an upload is kept, by the page that states the least."""

LIFETIME = (
    "kie.ai keeps an upload for 24 hours, 3 days or 14 days, by three of its pages, and says that a character is "
    "valid only while the file is; to keep the character longer, pass the URL of a file of yours"
)
"""The warning of an upload from which a character is made."""

_UPLOADED = re.compile(rf"/{FOLDER}/[0-9a-f]{{32}}(?![0-9a-f])")


def expires_at(request: Any, created_at: float | None) -> float | None:
    """Return when a character may end with the upload that it was made from, at the earliest, in epoch seconds.

    Args:
        request: The request, as JSON or as a record repeats it.
        created_at: When its task was made, in epoch seconds.

    Returns:
        None if the request names no upload of this package, or the time is not known.
    """
    if created_at is None or not _UPLOADED.search(json.dumps(request, default=str)):
        return None
    return created_at + SHORTEST_LIFETIME
