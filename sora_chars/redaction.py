"""What must not reach a log line, an error or a ledger row: callback tokens, signed links and API keys."""

from __future__ import annotations

import re

HIDDEN = "***"

_IN_URL = r'(?:[^\s"\\?]|\\+/)'  # in JSON, and in JSON inside JSON, where a slash may be escaped
# Possessive quantifiers ("++") and the optional query prevent catastrophic backtracking on hostile input.
# Only a URL is replaced: replacing a null would make the surrounding JSON invalid.
_TOKEN = re.compile(rf'(callBackUrl[\\"\s:]++)https?:{_IN_URL}+', re.IGNORECASE)
_QUERY = re.compile(rf'(https?:(?:\\*/){{2}}{_IN_URL}++)(\?(?:[^\s"\\]|\\+[/u])+)?')  # any query may be a signature


def hide_tokens(text: str) -> str:
    """Return the text without callback URLs, whose last path segment is a secret."""
    if "callbackurl" not in text.lower():  # ten times as fast as the search, and true of most texts
        return text
    return _TOKEN.sub(rf"\1{HIDDEN}", text)


def mask(text: str) -> str:
    """Return the text without callback URLs and without the query strings of links, which may be signatures."""
    return _QUERY.sub(lambda link: f"{link[1]}?{HIDDEN}" if link[2] else link[0], hide_tokens(text))
