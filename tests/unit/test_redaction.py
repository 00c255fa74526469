"""Tokens and signed links are masked in text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars.redaction import hide_secret, mask, masked_repr, seal, secret_pattern

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:PASSWORD@b.invalid/x", "https://***@b.invalid/x"),
        ("https://user:PASS@WORD@b.invalid:80/x?SIGNATURE#TOKEN.", "https://***@b.invalid:80/x?***."),
        ("(https://b.invalid/x#TOKEN)", "(https://b.invalid/x#***)"),
        ("https://b.invalid?SIGNATURE", "https://b.invalid?***"),
        ("postgresql://user:PASSWORD@/x?password=PASSWORD", "postgresql://***@/x?***"),
        (r"https:\/\/user:PASSWORD\u0040b.invalid\/x\u003fSIGNATURE", r"https:\/\/***@b.invalid\/x?***"),
        (r"https:\u002f\u002Fb.invalid\u002fx\u0023TOKEN", r"https:\u002f\u002Fb.invalid\u002fx#***"),
        (r'"callBackUrl":"https:\/\/a.invalid\/\u0063b\/TOKEN"', '"callBackUrl":"***"'),
        ("https://b.invalid/@name/x", "https://b.invalid/@name/x"),
        ("a: //b, c@d?e#f", "a: //b, c@d?e#f"),
    ],
)
def test_masks_the_secret_parts_of_links(text: str, shown: str) -> None:
    """The user, the query and the fragment of a link are masked, in every spelling; its host and path stay."""
    assert mask(text) == shown


def test_text_behind_a_link_stays() -> None:
    """The quote and the full stop that follow a link in a message are kept."""
    assert mask(f"got {SIGNED!r}.") == "got 'https://b.invalid/p.png?***'."
    assert masked_repr({"url": SIGNED}) == "{'url': 'https://b.invalid/p.png?***'}"


KEYS = ("sk-0123/456789abcdef", 'sk-"0123"\\456789abcdef')


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spelling", ["plain", "slashes", "escapes"])
def test_hides_a_key_in_every_spelling_of_json(key: str, spelling: str, depth: int) -> None:
    """A key is hidden in JSON inside JSON, also with escaped slashes and with each character as an escape."""
    text = json.dumps({"echo": f"Bearer {key}"})
    for level in range(depth):
        if spelling == "slashes":
            text = text.replace("/", "\\/")
        elif spelling == "escapes" and level == 0:
            spelled = "".join(f"\\u{ord(character):04X}" for character in key)
            text = f'{{"echo":"Bearer {spelled}"}}'
        text = json.dumps({"param": text, "kept": "\\"})
    hidden = hide_secret(text.encode(), key.encode(), secret_pattern(key)).decode()
    for _ in range(depth):
        value = json.loads(hidden)
        hidden = value["param"]
        assert value["kept"] == "\\"
    assert json.loads(hidden) == {"echo": "Bearer ***"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_hides_a_key_in_every_encoding_of_json(encoding: str) -> None:
    """A key is hidden in JSON that is written in UTF-16 or UTF-32, as `json` reads it."""
    body = json.dumps({"echo": KEYS[0], "name": "ü"}, ensure_ascii=False).encode(encoding)
    hidden = hide_secret(body, KEYS[0].encode(), secret_pattern(KEYS[0]))
    assert json.loads(hidden) == {"echo": "***", "name": "ü"}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("body", [b"\\u0073" + b"\\" * 4_000_000, b"\\u0073-" * 500_000, b"\\u0073s" * 500_000])
def test_hiding_a_key_is_fast_on_hostile_bytes(body: bytes) -> None:
    """A search for a key takes time that is proportional to the length of the answer."""
    assert hide_secret(body, KEYS[0].encode(), secret_pattern(KEYS[0])) == body


PARTS = st.lists(st.sampled_from(["https://", "user:pw@", "a.invalid", "/x", "?", "#", "\\", '"', " ", "u0", "é"]))


@given(parts=PARTS, ascii_only=st.booleans())
def test_masked_and_sealed_json_stays_json(parts: list[str], *, ascii_only: bool) -> None:
    """JSON stays JSON when its links are masked or sealed, also as text in JSON."""
    inner = json.dumps({"link": "".join(parts), "kept": 1}, ensure_ascii=ascii_only)
    for text in (inner, json.dumps({"param": inner, "kept": 1})):
        for change in (mask, seal):
            value = json.loads(change(text))
            assert value["kept"] == 1
            assert json.loads(value.get("param", "0")) is not None


def test_sealed_links_identify_the_link() -> None:
    """Equal links have equal seals and other links have others; a sealed text and a plain link do not change."""
    sealed = seal(f'"{SIGNED}"')
    assert sealed == seal(f'"{SIGNED}"') == seal(sealed)
    assert "SIGNATURE" not in sealed
    assert sealed.startswith('"https://b.invalid/p.png?***')
    others = {seal(link) for link in (SIGNED + "0", SIGNED + "#", SIGNED.replace("//", "//user@"))}
    assert len(others) == 3
    assert sealed.strip('"') not in others
    assert seal("https://b.invalid/p.png") == "https://b.invalid/p.png"
