"""The transport's pure parts: headers, JSON, API keys, base URLs and retry delays."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars import responses
from sora_chars.errors import ConfigurationError, NoAnswerError, RateLimitedError
from sora_chars.providers.base import clean_url, resolve_key
from sora_chars.ratelimit.window import Limits
from sora_chars.responses import Response, parse_json
from sora_chars.transport import Transport, _delays, _log_retry
from tests.support.log_events import events


@pytest.fixture(params=["orjson", "the standard library's"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse JSON with orjson, or as if it were not installed."""
    if request.param != "orjson":
        monkeypatch.setattr(responses, "_fast", None)


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
def test_retry_after_accepts_seconds_below_a_day(header: str, seconds: float | None) -> None:
    """`Retry-After` is a number of seconds below a day; any other value is ignored."""
    assert Response(429, {"Retry-After": header}, b"").retry_after == seconds


def test_missing_retry_after() -> None:
    """A response without the header has no retry delay."""
    assert Response(429, {}, b"").retry_after is None


@pytest.mark.parametrize("body", [b"NaN", b"Infinity", b"[-Infinity]", b"[" * 100_000, b"\xff", b"", b"{", b"9" * 5000])
@pytest.mark.usefixtures("parser")
def test_invalid_json_raises_value_error(body: bytes) -> None:
    """Every kind of invalid JSON (depth, NaN, encoding, length of a number) raises `ValueError`."""
    with pytest.raises(ValueError):  # noqa: PT011 # the reason is json's own
        parse_json(body)


@given(st.binary())
def test_any_bytes_parse_or_raise_value_error(body: bytes) -> None:
    """No bytes raise any other error."""
    try:
        parse_json(body)
    except ValueError:
        return


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "text", ['{"a": [1]}', '"\\ud800"', "18446744073709551615", "-0.5", '"\u20ac"', "[" * 900 + "]" * 900]
)
def test_parses_json(text: str) -> None:
    """Bytes and text are parsed like by the standard library, with or without orjson."""
    assert parse_json(text.encode()) == parse_json(text) == json.loads(text)


def test_works_without_orjson() -> None:
    """Without orjson the standard library parses responses."""
    code = """
import sys
sys.modules["orjson"] = None
from sora_chars.redaction import mask
from sora_chars.responses import parse_json
from sora_chars.responses import _fast
print(_fast, parse_json(b"[1]"))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert printed.stdout == "None [1]\n"


def test_api_key_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument takes precedence over the variable, and surrounding spaces are dropped."""
    monkeypatch.setenv("SOME_KEY", " from-env\n")
    assert resolve_key(" given ", variable="SOME_KEY", provider="kie") == "given"
    assert resolve_key(None, variable="SOME_KEY", provider="kie") == "from-env"


@pytest.mark.parametrize("key", [None, "", "  "])
def test_missing_api_key_names_the_variable(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key the error names the environment variable and the argument."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="Set SOME_KEY, or pass api_key="):
        resolve_key(key, variable="SOME_KEY", provider="kie")


@pytest.mark.parametrize("key", ["se cret", "sec\nret", "sécret", "sec\x00ret"])
def test_rejected_api_key_is_not_repeated(key: str) -> None:
    """A key that no header can contain is rejected, and the error does not repeat it."""
    with pytest.raises(ConfigurationError) as caught:
        resolve_key(key, variable="SOME_KEY", provider="kie")
    assert key not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("url", ["https://a.invalid", "http://127.0.0.1:80", "https://a.invalid/api/v1"])
def test_base_url_loses_trailing_slashes(url: str) -> None:
    """The path of a base URL is kept, and slashes at its end are dropped."""
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
def test_rejects_invalid_base_urls(url: str) -> None:
    """The error names the setting and the expected form."""
    with pytest.raises(ConfigurationError, match="base_url: must be like https://host"):
        clean_url(url, field="base_url")


def test_retry_delays_grow_to_30_seconds() -> None:
    """Retry delays double from 0.5 s to 30 s, and a longer `Retry-After` takes precedence."""
    delays = _delays()
    next(delays)
    ceilings = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    for ceiling in ceilings:
        assert ceiling / 2 <= delays.send(NoAnswerError("reset")) <= ceiling
    assert delays.send(RateLimitedError("busy", retry_after=77.0)) == 77.0


def test_repr_hides_the_api_key() -> None:
    """The repr of a transport names the provider and hides the key."""
    transport = Transport(provider="kie", base_url="https://a.invalid", api_key="sk-SECRET", limits=Limits())
    assert "SECRET" not in repr(transport)
    assert "kie" in repr(transport)


@pytest.mark.parametrize(
    ("key", "shown"), [("sk-0123456789abcdef", "a *** b"), ("kie1", "a *** b"), ("kie", "a kie b")]
)
def test_hides_api_keys_of_four_or_more_characters(key: str, shown: str) -> None:
    """A shorter key, as used in tests, is not removed from messages."""
    transport = Transport(provider="kie", base_url="https://a.invalid", api_key=key)
    assert transport._hide(f"a {key} b") == shown


def test_rejects_zero_connections() -> None:
    """A transport without connections could never send, so it is rejected."""
    with pytest.raises(ValueError, match="connections"):
        Transport(provider="kie", base_url="https://a.invalid", api_key="k", connections=0)


@pytest.mark.parametrize(("wait", "logged"), [(0.05, []), (3.0, ["request.repeated"])])
def test_logs_noticeable_waits(wait: float, logged: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """A request that is sent again after a noticeable wait is logged with its reason."""
    caplog.set_level(logging.INFO)
    call = SimpleNamespace(kind="create")
    error = RateLimitedError("slow down")
    _log_retry({"args": (SimpleNamespace(provider="kie"), call), "exception": error, "wait": wait})
    assert events(caplog.records) == logged
