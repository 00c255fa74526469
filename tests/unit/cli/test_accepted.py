"""What the help texts state of the providers is what the providers accept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.cli import accepted, app
from sora_chars.cli.options import PROVIDERS, Settings
from sora_chars.providers.kkiai import GATEWAYS

if TYPE_CHECKING:
    import pytest


def test_every_provider_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers of the command line are described by their own rules, the gateways by those of kkiai."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", "http://127.0.0.1:1")
    assert set(accepted.ACCEPTS) == set(PROVIDERS) - set(GATEWAYS) | {"kkiai"}
    for name in PROVIDERS:
        made = Settings(provider=name, base_url=None, timeout=None).make_provider()
        assert made.accepts == accepted.ACCEPTS["kkiai" if name in GATEWAYS else name]


def test_lists() -> None:
    """Providers are listed as text, with the gateways under one name."""
    assert accepted.listed(["kie"]) == "kie"
    assert accepted.listed(["kie", "vidu", "kkiai"]) == "kie, vidu and kkiai and its gateways"


def test_help_of_create(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names every provider that an option serves."""
    app.main(["create", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{accepted.local_takers()} take a local file" in text
    assert f"the frontal one first: {accepted.image_counts()}." in text
    assert "kling, wavespeed and evolink 2 to 4; vidu 1 to 3" in text
    assert f"needed with --from-task by {accepted.clip_takers('from_task')}" in text
    assert f"Name of the character; required by {accepted.requiring('name')}." in text
    assert "KLING_WEBHOOK_SECRET and WAVESPEED_WEBHOOK_SECRET" in text
    assert "for vidu, kkiai and its gateways, for the response" in text
