"""The base URL of each provider: an option, an environment variable, or the default."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import ConfigurationError, Evolink, HeyGen, Kie, Kkiai, Kling, SeedanceAssets, Vidu, Wavespeed

if TYPE_CHECKING:
    from collections.abc import Callable

PROVIDERS: list[Any] = [
    pytest.param(Kie, "KIE_BASE_URL", "https://api.kie.ai", id="kie"),
    pytest.param(Kkiai, "KKIAI_BASE_URL", "https://www.kkiai.com", id="kkiai"),
    pytest.param(partial(Kkiai.gateway, "kkiai"), "KKIAI_BASE_URL", "https://www.kkiai.com", id="kkiai as a gateway"),
    pytest.param(partial(Kkiai.gateway, "yunwu"), "YUNWU_BASE_URL", "https://yunwu.ai", id="yunwu"),
    pytest.param(Kling, "KLING_BASE_URL", "https://api-singapore.klingai.com", id="kling"),
    pytest.param(Wavespeed, "WAVESPEED_BASE_URL", "https://api.wavespeed.ai", id="wavespeed"),
    pytest.param(Evolink, "EVOLINK_BASE_URL", "https://api.evolink.ai", id="evolink"),
    pytest.param(HeyGen, "HEYGEN_BASE_URL", "https://api.heygen.com", id="heygen"),
    pytest.param(SeedanceAssets, "SEEDANCE_BASE_URL", "https://icover.ai", id="seedance"),
    pytest.param(Vidu, "VIDU_BASE_URL", "https://api.vidu.com", id="vidu"),
]


@pytest.mark.parametrize(("make", "variable", "default"), PROVIDERS)
def test_base_url(make: Callable[..., Any], variable: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option comes before the variable, and the variable before the default; an empty variable is none."""
    monkeypatch.setenv(variable, "")
    assert f"base_url='{default}'" in repr(make("key"))
    monkeypatch.setenv(variable, "https://proxy.example/")
    assert "base_url='https://proxy.example'" in repr(make("key"))
    assert "base_url='http://127.0.0.1:8765'" in repr(make("key", base_url="http://127.0.0.1:8765"))


@pytest.mark.parametrize(("make", "variable", "default"), PROVIDERS)
def test_invalid_base_url(
    make: Callable[..., Any], variable: str, default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable or the option that is wrong; a variable that an option replaces is not read."""
    monkeypatch.setenv(variable, "proxy.example")
    with pytest.raises(ConfigurationError, match=f"^{variable}: must be like https://"):
        make("key")
    with pytest.raises(ConfigurationError, match=r"^base_url: must be like https://"):
        make("key", base_url="proxy.example")
    assert default in repr(make("key", base_url=default))


def test_upload_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host of kie.ai's uploads has a variable of its own."""
    monkeypatch.setenv("KIE_UPLOAD_URL", "upload.example")
    with pytest.raises(ConfigurationError, match=r"^KIE_UPLOAD_URL: must be like https://"):
        Kie("key")
    assert Kie("key", upload_url="https://upload.example/")._upload_url == "https://upload.example"
    monkeypatch.setenv("KIE_UPLOAD_URL", "https://upload.example/")
    assert Kie("key")._upload_url == "https://upload.example"
    monkeypatch.delenv("KIE_UPLOAD_URL")
    assert Kie("key")._upload_url == "https://kieai.redpandaai.co"
