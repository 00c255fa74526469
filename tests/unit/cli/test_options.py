"""Option values, the shared settings, and the location of the ledger."""

from __future__ import annotations

from typing import Any

import click
import pytest

from sora_chars.cli import options
from sora_chars.cli.ledger_location import LedgerLocation
from sora_chars.cli.options import Settings
from sora_chars.errors import ConfigurationError

DATABASE = "postgresql://me:secret@db/chars"


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("30", 30.0), ("1e3", 1000.0)])
def test_seconds(text: str, value: float) -> None:
    """Any finite number above 0 is a number of seconds."""
    assert options.seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "soon"])
def test_rejects_invalid_seconds(text: str) -> None:
    """Zero, infinity and text are bad usage."""
    with pytest.raises(click.BadParameter, match="seconds above 0"):
        options.seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:65535", ("::1", 65535)), ("localhost:1", ("localhost", 1))],
)
def test_host_and_port(text: str, value: tuple[str, int]) -> None:
    """An address is a host and a port; an IPv6 host is in brackets."""
    assert options.host_and_port(text) == value


@pytest.mark.parametrize("text", ["", "8090", ":8090", "host:", "host:0", "host:65536", "host:x", "host:²"])
def test_rejects_invalid_addresses(text: str) -> None:
    """An address needs a host, and a port from 1 to 65535."""
    with pytest.raises(click.BadParameter, match="HOST:PORT"):
        options.host_and_port(text)


def test_listens_on_ipv6(free_port: int) -> None:
    """An IPv6 host opens an IPv6 socket."""
    settings = Settings(provider="kie", base_url=None, timeout=None, callback_url="http://x", listen=("::1", free_port))
    listener = settings.open_listener()
    assert listener
    with listener:
        assert listener.getsockname()[0] == "::1"


@pytest.mark.parametrize("text", ["{", "NaN", "@/nowhere/input.json"])
def test_rejects_unreadable_input(text: str) -> None:
    """Invalid JSON and a missing file are bad usage."""
    with pytest.raises(click.BadParameter, match=r"not valid JSON|cannot be read"):
        options.json_input(text)


@pytest.mark.parametrize(
    ("location", "args"),
    [
        (LedgerLocation(), ()),
        (LedgerLocation("a.db"), ()),
        (LedgerLocation("a.db", explicit=True), ("--ledger", "a.db")),
        (LedgerLocation("memory:", explicit=True), ()),
        (LedgerLocation(DATABASE, explicit=True), ("--ledger", "postgresql://...")),
    ],
)
def test_ledger_arguments_hold_no_password(location: LedgerLocation, args: tuple[str, ...]) -> None:
    """Suggested commands repeat `--ledger` if it was given, without the password of a URL."""
    assert location.args == args
    assert "secret" not in repr(location) + str(location)


def settings(**more: Any) -> Settings:
    """Return the settings of a command without options."""
    values: dict[str, Any] = {"provider": "kie", "base_url": None, "timeout": None} | more
    return Settings(**values)


@pytest.mark.parametrize(
    ("given", "providers", "expected"),
    [
        ({}, ["kie"], 60.0),
        ({}, ["kkiai"], 300.0),
        *(({}, [name], 60.0) for name in ("kling", "wavespeed", "evolink")),
        ({}, ["kie", "yunwu"], 300.0),
        ({"timeout": 900.0}, ["kie"], 60.0),
        ({"timeout": 900.0}, ["kkiai"], 900.0),
        ({"shutdown_timeout": 8.0}, ["kie", "kkiai"], 8.0),
    ],
)
def test_shutdown_lasts_as_long_as_a_response_may_take(
    given: dict[str, float], providers: list[str], expected: float
) -> None:
    """The default depends on the slowest provider; an option replaces it."""
    assert settings(**given).shutdown_seconds(providers) == expected


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_rejects_an_empty_key(key: str) -> None:
    """An empty key would turn the check of signatures off."""
    with pytest.raises(ConfigurationError, match="--webhook-key and KIE_WEBHOOK_HMAC_KEY must not be empty"):
        settings(webhook_key=key)


@pytest.mark.parametrize(
    ("given", "args"),
    [
        ({}, ()),
        ({"base_url": "http://x"}, ("--base-url", "http://x")),
        ({"provider": "kkiai"}, ("--provider", "kkiai")),
        ({"provider": "kkiai", "base_url": "http://x"}, ("--provider", "kkiai", "--base-url", "http://x")),
    ],
)
def test_provider_arguments(given: dict[str, str], args: tuple[str, ...]) -> None:
    """Suggested commands repeat the provider and its address."""
    assert settings(**given).provider_args == args
