"""Identifiers: idempotency keys, provider ids, and the tokens of callback URLs."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid

_MAX_ID_LENGTH = 200  # characters
_TOKEN_BYTES = 24


def new_key() -> str:
    """Return a new idempotency key: a UUID of version 7 (RFC 9562), so keys sort by creation time."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    return str(uuid.UUID(int=bits | 0b10 << 62 | secrets.randbits(62)))


def is_id(text: str) -> bool:
    """Return whether a provider's text can serve as a task or character id: short and printable."""
    return 0 < len(text) <= _MAX_ID_LENGTH and text.isprintable()


def as_id(value: object) -> str | None:
    """Return a provider's id as text: of JSON, text without surrounding blanks and integers serve; None for others."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = strip_blanks(value) if isinstance(value, str) else None
    return text if text and is_id(text) else None


def strip_blanks(text: str | None) -> str | None:
    """Return a key or an id without surrounding blanks and line ends; what is no text is returned as it is."""
    return text.strip() if isinstance(text, str) else text


def new_token() -> str:
    """Return a new secret for the last path segment of a callback URL."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def is_token(text: str) -> bool:
    """Return whether the text is shaped like a callback token, which avoids a ledger query for most invalid tokens."""
    return len(text) == _TOKEN_BYTES * 4 // 3 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def token_digest(token: str) -> str:
    """Return the SHA-256 of a callback token; looking up the digest leaks no timing information."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
