from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars import transport
from sora_chars.errors import ConfigurationError, NoAnswerError, RateLimitedError
from sora_chars.ratelimit.window import Limits
from sora_chars.redaction import mask
from sora_chars.transport import Response, Transport, _delays, clean_url, parse_json, resolve_key


@pytest.fixture(params=["orjson", "the standard library's"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read JSON with orjson, or as where it is not installed."""
    if request.param != "orjson":
        monkeypatch.setattr(transport, "_fast", None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("86399", 86399.0),
        ("86400", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_read_when_it_is_a_sane_number(header: str, seconds: float | None) -> None:
    """Seconds below a day count, and nothing else does."""
    assert Response(429, {"Retry-After": header}, b"").retry_after == seconds


def test_an_answer_without_retry_after_asks_for_nothing() -> None:
    """A missing header is no wait."""
    assert Response(429, {}, b"").retry_after is None


@pytest.mark.parametrize("body", [b"NaN", b"Infinity", b"[-Infinity]", b"[" * 100_000, b"\xff", b"", b"{", b"9" * 5000])
@pytest.mark.usefixtures("reader")
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    """Junk of any kind (depth, NaN, encoding, length of a number) is one type of error."""
    with pytest.raises(ValueError):  # noqa: PT011 # the reason is json's own
        parse_json(body)


@given(st.binary())
def test_any_bytes_are_json_or_a_value_error(body: bytes) -> None:
    """No bytes make the reader raise anything else."""
    try:
        parse_json(body)
    except ValueError:
        return


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    "text", ['{"a": [1]}', '"\\ud800"', "18446744073709551615", "-0.5", '"\u20ac"', "[" * 900 + "]" * 900]
)
def test_json_is_read(text: str) -> None:
    """Bytes and text give what they hold, whichever reader is installed."""
    assert parse_json(text.encode()) == parse_json(text) == json.loads(text)


def test_no_reader_but_the_standard_one_is_needed() -> None:
    """Without orjson, answers are read all the same."""
    code = """
import sys
sys.modules["orjson"] = None
from sora_chars.redaction import mask
from sora_chars.transport import _fast, parse_json
print(_fast, parse_json(b"[1]"))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert printed.stdout == "None [1]\n"


def test_the_key_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is taken from the argument, else from the variable; spaces around it are dropped."""
    monkeypatch.setenv("SOME_KEY", " from-env\n")
    assert resolve_key(" given ", variable="SOME_KEY", provider="kie") == "given"
    assert resolve_key(None, variable="SOME_KEY", provider="kie") == "from-env"


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_names_its_variable(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is an error that says where it may stand."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="Set SOME_KEY, or pass api_key="):
        resolve_key(key, variable="SOME_KEY", provider="kie")


@pytest.mark.parametrize("key", ["se cret", "sec\nret", "sécret", "sec\x00ret"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    """The error does not repeat the key."""
    with pytest.raises(ConfigurationError) as caught:
        resolve_key(key, variable="SOME_KEY", provider="kie")
    assert key not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("url", ["https://a.invalid", "http://127.0.0.1:80", "https://a.invalid/api/v1"])
def test_a_base_url_loses_its_trailing_slashes(url: str) -> None:
    """A path is kept, the slashes at its end are not."""
    assert clean_url(url, field="base_url") == clean_url(f"{url}//", field="base_url") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.invalid",
        "ftp://a.invalid",
        "https://",
        "https://user:password@a.invalid",
        "https://a.invalid?x=1",
        "https://a.invalid#x",
        "https://a.invalid/a b",
        "https://a.invalid:99999",
        "https://[::1",
    ],
)
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    """The error names the setting and what it must look like."""
    with pytest.raises(ConfigurationError, match="base_url: must be like https://host"):
        clean_url(url, field="base_url")


CALLBACK = "https://a.invalid/cb/TOKEN"
SIGNED = "https://b.invalid/p.png?sig=SIGNATURE&exp=1"


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped slashes"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tokens_and_signed_links_are_masked_at_any_depth(depth: int, *, escaped: bool) -> None:
    """JSON inside JSON inside JSON, with or without escaped slashes, shows no token and no signature."""
    text = json.dumps({"callBackUrl": CALLBACK, "progressCallBackUrl": CALLBACK, "url": SIGNED, "model": "kept"})
    for _ in range(depth):
        text = json.dumps({"param": text.replace("/", "\\/") if escaped else text, "state": "kept too"})
    masked = mask(text)
    assert "TOKEN" not in masked
    assert "SIGNATURE" not in masked
    assert "kept" in masked
    assert "kept too" in masked


def test_a_link_without_a_query_is_shown() -> None:
    """What holds no secret stays readable."""
    assert mask("see https://a.invalid/x.") == "see https://a.invalid/x."


def test_waits_grow_and_are_never_shorter_than_asked() -> None:
    """Between two tries 0.5 s at most, then twice as much, up to 30 s; a longer Retry-After wins."""
    waits = _delays()
    next(waits)
    ceilings = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    for ceiling in ceilings:
        assert ceiling / 2 <= waits.send(NoAnswerError("reset")) <= ceiling
    assert waits.send(RateLimitedError("busy", retry_after=77.0)) == 77.0


def test_a_repr_shows_no_key() -> None:
    """The transport's own repr names the provider and hides the key."""
    transport = Transport(provider="kie", base_url="https://a.invalid", api_key="sk-SECRET", limits=Limits())
    assert "SECRET" not in repr(transport)
    assert "kie" in repr(transport)


@pytest.mark.parametrize(
    ("key", "shown"), [("sk-0123456789abcdef", "a *** b"), ("kie1", "a *** b"), ("kie", "a kie b")]
)
def test_a_key_is_hidden_when_it_is_long_enough_to_be_one(key: str, shown: str) -> None:
    """A test key of a few letters does not eat the words of a message."""
    transport = Transport(provider="kie", base_url="https://a.invalid", api_key=key)
    assert transport._hide(f"a {key} b") == shown


def test_some_connections_are_needed() -> None:
    """A transport that may never send is refused."""
    with pytest.raises(ValueError, match="connections"):
        Transport(provider="kie", base_url="https://a.invalid", api_key="k", connections=0)


def test_a_wait_of_nothing_is_not_a_number_of_seconds() -> None:
    """The longest Retry-After stays below infinity, so that no pause is for ever."""
    assert Response(429, {"Retry-After": str(math.inf)}, b"").retry_after is None
