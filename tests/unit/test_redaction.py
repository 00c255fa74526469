"""Tokens and signed links are masked in text."""

from __future__ import annotations

import json

import pytest

from sora_chars.redaction import mask

CALLBACK = "https://a.invalid/cb/TOKEN"
SIGNED = "https://b.invalid/p.png?sig=SIGNATURE&exp=1"


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped slashes"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_masks_nested_json(depth: int, *, escaped: bool) -> None:
    """Tokens and signatures are masked in JSON inside JSON, with or without escaped slashes."""
    text = json.dumps({"callBackUrl": CALLBACK, "progressCallBackUrl": CALLBACK, "url": SIGNED, "model": "kept"})
    for _ in range(depth):
        text = json.dumps({"param": text.replace("/", "\\/") if escaped else text, "state": "kept too"})
    masked = mask(text)
    assert "TOKEN" not in masked
    assert "SIGNATURE" not in masked
    assert "kept" in masked
    assert "kept too" in masked


def test_keeps_links_without_a_query() -> None:
    """A link without a query contains no secret and stays readable."""
    assert mask("see https://a.invalid/x.") == "see https://a.invalid/x."
