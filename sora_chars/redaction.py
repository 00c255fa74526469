"""What must not be shown: callback tokens, the secret parts of links, and API keys.

A link may be secret in its user, its query and its fragment: a signature is a part of the query.
"""

from __future__ import annotations

import hashlib
import json
import re

HIDDEN = "***"

# In JSON, and in JSON inside JSON, a slash may be escaped, and any character may be written as \u and four digits.
_QUESTION = r"(?:\?|\\+u003[fF])"
_HASH = r"(?:\#|\\+u0023)"
_AT = r"(?:@|\\+u0040)"
_SLASH = r"(?:\\*+/|\\++u002[fF])"
_PLAIN = r'(?:[^\s"\\/?\#@]|\\+(?:/|u(?!002[fF]|003[fF]|0023|0040)))'  # of a user or a host
_PATH = r'(?:[^\s"\\?\#]|\\+(?:/|u(?!003[fF]|0023)))'
_REST = r'(?:[^\s"\\]|\\+[/u])'
# Possessive quantifiers ("++") and optional parts prevent catastrophic backtracking on hostile input.
# Only a URL is replaced: replacing a null would make the surrounding JSON invalid.
_TOKEN = re.compile(rf'(callBackUrl[\\"\s:]++)https?:{_REST}+', re.IGNORECASE)
_LINK = re.compile(
    rf"(:{_SLASH}{{2}})(?P<user>(?:{_PLAIN}*+{_AT})++)?({_PATH}*+)(?P<query>{_QUESTION}{_REST}++|{_HASH}{_REST}++)?"
)
_SEALED = re.compile(r"\?\*\*\*[0-9a-f]{32}")
_CLOSING = "')]}>.,:;!…"  # what may follow a link in a sentence; a query may contain it, too


def hide_tokens(text: str) -> str:
    """Return the text without callback URLs, whose last path segment is a secret."""
    if "callbackurl" not in text.lower():  # ten times as fast as the search, and true of most texts
        return text
    return _TOKEN.sub(rf"\1{HIDDEN}", text)


def mask(text: str) -> str:
    """Return the text without callback URLs and without the users, queries and fragments of links."""
    return _LINK.sub(_without_secrets, hide_tokens(text))


def seal(text: str) -> str:
    """Return the text with a digest in place of the secret parts of each link, which no longer can be followed.

    Equal links give equal text, other links give other text, and a sealed text stays as it is.
    """
    return _LINK.sub(_sealed, text) if "://" in text else text


def masked_repr(value: object) -> str:
    """Return the repr of a value that contains links, for `attrs.field(repr=)`."""
    return mask(repr(value))


def _sealed(link: re.Match[str]) -> str:
    start, user, path, query = link.groups()
    if not (user or query) or _SEALED.fullmatch(query or ""):
        return link[0]
    return f"{start}{path}?{HIDDEN}{hashlib.sha256(link[0].encode(errors='replace')).hexdigest()[:32]}"


def _without_secrets(link: re.Match[str]) -> str:
    start, user, path, query = link.groups()
    shown = f"{start}{HIDDEN}@{path}" if user else start + path
    if not query:
        return shown
    sign = "#" if re.match(_HASH, query) else "?"
    return f"{shown}{sign}{HIDDEN}{query[len(query.rstrip(_CLOSING)) :]}"


def secret_pattern(secret: str) -> re.Pattern[bytes]:
    """Return a pattern for a secret in the bytes of an answer, in every spelling that JSON has for its characters."""
    # Without the lookbehind, a search in a run of backslashes would begin at each of them.
    return re.compile("".join((_spellings(secret[0], r"(?<!\\)\\++"), *map(_spellings, secret[1:]))).encode())


def _spellings(character: str, backslashes: str = r"\\++") -> str:
    """Return a pattern for a character as it is, as an escape, or as the escape of an escape."""
    digits = "".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(character):04x}")
    if character == "\\":
        return rf"(?:\\++(?:u{digits})?)"
    short = rf"|{backslashes}{character}" if character in '/"' else ""
    return rf"(?:{re.escape(character)}|{backslashes}u{digits}{short})"


def hide_secret(body: bytes, secret: bytes, pattern: re.Pattern[bytes]) -> bytes:
    r"""Return an answer without a secret, however its JSON is written: in UTF-16 or UTF-32, or with `\/` or `\u0073`.

    Args:
        body: The answer.
        secret: The secret, as it was sent.
        pattern: The `secret_pattern` of the secret.
    """
    if b"\0" in body[:4]:
        text = body.decode(json.detect_encoding(body), "replace").encode()
        return pattern.sub(HIDDEN.encode(), text) if pattern.search(text) else body
    if b"\\u00" in body or (b"\\" in body and not _ESCAPABLE.isdisjoint(secret)):
        return pattern.sub(HIDDEN.encode(), body)  # slow, and rarely needed
    return body.replace(secret, HIDDEN.encode())


_ESCAPABLE = frozenset(b'/"\\')  # characters that have a short escape
