"""SORA_CHARS_EMULATOR: every provider speaks to the emulator, with a made-up key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sora_chars
from sora_chars import ConfigurationError, HeyGen, Kie, Kkiai, Kling, SeedanceAssets, Vidu
from sora_chars.providers.base import EMULATOR_KEY, HTTPProvider
from sora_chars.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.models import TaskSnapshot

URL = "http://127.0.0.1:8765"
REAL = "sk-real-key-0123456789abcdef"
MADE: dict[str, Callable[[], HTTPProvider]] = {
    "kie": lambda: Kie(REAL, base_url="https://api.kie.ai", upload_url="https://up.example"),
    "kkiai": lambda: Kkiai(REAL, base_url="https://www.kkiai.com"),
    "gateway": lambda: Kkiai.gateway("yunwu", REAL),
    "kling": lambda: Kling(REAL, base_url="https://proxy.example/kling"),
    "kling pair": lambda: Kling(access_key="ak-real", secret_key=REAL),
    "vidu": lambda: Vidu(REAL),
    "heygen": lambda: HeyGen(REAL),
    "seedance": lambda: SeedanceAssets(REAL, base_url="https://icover.ai/api"),
    "seedance at ark": lambda: SeedanceAssets(access_key="ak-real", secret_key=REAL, region="cn-beijing"),
}


class Studio(HTTPProvider):
    """A provider of a user's own."""

    async def submit(self, *_: object, **__: object) -> TaskSnapshot:
        """See `Provider`."""
        raise NotImplementedError


def is_provider(value: object) -> bool:
    """Return whether a public name is a class of providers over HTTP."""
    return isinstance(value, type) and issubclass(value, HTTPProvider)


def signed(provider: HTTPProvider) -> str:
    """Return the headers and the key that a provider would send."""
    transport: Any = provider._transport
    sign = transport.sign or (lambda *_: {"Authorization": f"Bearer {transport.api_key}"})
    return repr(sign("GET", f"{URL}/api/x", {"Content-Type": "application/json"}, b""))


@pytest.mark.parametrize("name", MADE)
def test_no_real_key_and_no_other_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and addresses that were passed are replaced, and no key is needed."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", f"{URL}/")
    provider = MADE[name]()
    assert provider._transport.base_url == URL
    assert getattr(provider, "_upload_url", URL) == URL
    assert EMULATOR_KEY in signed(provider)
    assert not any(secret in signed(provider) + repr(provider) for secret in (REAL, "ak-real"))


def test_every_provider_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public provider is made without a key; keys of the environment are not used."""
    for variable in ("KIE_API_KEY", "KLING_ACCESS_KEY", "KLING_SECRET_KEY", "VIDU_API_KEY"):
        monkeypatch.setenv(variable, REAL)
    monkeypatch.setenv("SORA_CHARS_EMULATOR", URL)
    classes = [value for name in sora_chars.__all__ if is_provider(value := getattr(sora_chars, name))]
    assert len(classes) >= 4
    for made in classes:
        provider = made()
        assert provider._transport.base_url.startswith(URL)
        assert REAL not in signed(provider)


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://127.0.0.1", "http://user@127.0.0.1", "http://a/?b"])
def test_rejects_what_is_no_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable must be an http(s) URL with a host; the error names it."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", url)
    with pytest.raises(ConfigurationError, match="SORA_CHARS_EMULATOR: must be like https://host"):
        Kie("key")


def test_blank_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank variable changes nothing."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", " ")
    assert Vidu("key")._transport.base_url == "https://api.vidu.com"


def test_provider_that_ignores_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of a user's own that would reach another address is refused, so it never receives a key."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", URL)
    with pytest.raises(ConfigurationError, match=r"studio does not support SORA_CHARS_EMULATOR: it would reach https"):
        Studio(Transport(provider="studio", base_url="https://studio.example", api_key=REAL))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.0.0.1:80.studio.example"])
def test_an_address_that_begins_like_the_emulators(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another port or host is another address, even if its text begins like that of the emulator."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", "http://127.0.0.1:80")
    with pytest.raises(ConfigurationError, match="it would reach"):
        Studio(Transport(provider="studio", base_url=url, api_key=EMULATOR_KEY))


def test_provider_that_reads_its_key_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of the user's own that passes a real key on is refused, so the emulator never gets it."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", "http://127.0.0.1:80")
    with pytest.raises(ConfigurationError, match="it would send its key there"):
        Studio(Transport(provider="studio", base_url="http://127.0.0.1:80/v1", api_key=REAL))
    Studio(Transport(provider="studio", base_url="http://127.0.0.1:80/v1", api_key=EMULATOR_KEY))


def test_base_urls_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older providers read their addresses from the environment, too; one that was passed comes first."""
    monkeypatch.setenv("KIE_BASE_URL", "https://kie.example/api/v1/")
    monkeypatch.setenv("KIE_UPLOAD_URL", "https://up.example/")
    monkeypatch.setenv("KKIAI_BASE_URL", "https://kk.example/v1")
    kie = Kie("key")
    assert (kie._transport.base_url, kie._upload_url) == ("https://kie.example", "https://up.example")
    assert Kkiai("key")._transport.base_url == "https://kk.example"
    assert Kkiai("key", base_url="https://other.example")._transport.base_url == "https://other.example"
    assert Kkiai.gateway("yunwu", "key")._transport.base_url == "https://yunwu.ai"
