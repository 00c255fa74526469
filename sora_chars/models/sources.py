"""Where a video or an image comes from: a URL or a local path, in the forms in which people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sora_chars.errors import printable

Source: TypeAlias = str | os.PathLike[str]
"""An http(s) URL or a local path. "~" is the home directory, and a file:// URL is a path."""

_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)
_MAX_SOURCE_LENGTH = 8192  # characters; signed links have up to 2000
_MAX_SHOWN_LENGTH = 120  # characters of a source in a message


def is_url(source: object) -> bool:
    """Return whether the source of a video or an image is an http(s) URL; any other text is a local path."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_file(path: Path) -> bool:
    """Return whether there is a file at a path; False for what the system rejects as a path, such as a data URL."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_whole_url(value: object) -> bool:
    """Return whether what a service returned can be sent on as a URL: with a host, without spaces and line breaks."""
    return isinstance(value, str) and value.isprintable() and is_url(value) and not source_problems("url", value)


def to_source(value: Any) -> Any:
    """Return a path for a file:// URL and for a path that starts with "~"; any other value as it is."""
    if isinstance(value, str):
        value = value.strip()
        if value.lower().startswith("file://"):
            parts = urlsplit(value)
            return Path(url2pathname(parts.path)) if parts.netloc in {"", "localhost"} and parts.path else value
    if isinstance(value, str | os.PathLike) and isinstance(text := os.fspath(value), str) and text.startswith("~"):
        home = os.path.expanduser(text)  # noqa: PTH111 # Path.expanduser raises for "~clip.mp4"
        return value if home == text else Path(home)
    return value


def to_sources(value: Any) -> Any:
    """Return a list of sources as a tuple. A single source is a list of one."""
    return tuple(map(to_source, value if isinstance(value, list | tuple) else (value,)))


def source_problems(field: str, source: object) -> list[str]:
    """Check the source of a video or an image: a URL needs a host, and a path must not be empty."""
    if isinstance(source, str):
        reason = _text_problem(source)
        return [f"{field} {reason}"] if reason else []
    if isinstance(source, os.PathLike) and isinstance(os.fspath(source), str):
        return []
    return [f"{field} must be a URL or a local path, got {type(source).__name__}"]


def _text_problem(source: str) -> str:
    if not source:
        return "must not be empty"
    if source[:5].lower() == "data:":
        return "must be a URL or a local path, got a data URL; save it as a file first"
    if len(source) > _MAX_SOURCE_LENGTH:
        return f"must have at most {_MAX_SOURCE_LENGTH} characters, got {len(source)}"
    shown = repr(printable(source, limit=_MAX_SHOWN_LENGTH))
    if is_url(source) and not _URL.fullmatch(source):
        return f"must be an http(s) URL with a host and without spaces, got {shown}"
    if source.lower().startswith("file://"):
        return f"must be a file:// URL of this computer, such as file:///clips/dog.mp4, got {shown}"
    return "must not contain a NUL character" if "\0" in source else ""


def path_of(source: Source) -> Path | None:
    """Return the local path of a source; None for a URL."""
    return None if is_url(source) else Path(source)
