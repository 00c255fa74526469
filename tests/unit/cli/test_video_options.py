"""The uploads that `--hosting` uses, and the providers that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sora_chars.cli.options import Settings
from sora_chars.cli.video_options import HOSTS, upload_of
from sora_chars.errors import ConfigurationError

if TYPE_CHECKING:
    from sora_chars.models import Accepts

KEYS = {"kie": "KIE_API_KEY", "wavespeed": "WAVESPEED_API_KEY", "seedance": "ICOVER_API_KEY"}


@pytest.mark.parametrize("name", HOSTS)
def test_uploads_need_their_own_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the upload of the provider of that name, whose key is in the environment."""
    with pytest.raises(ConfigurationError, match=KEYS[name]):
        upload_of(name, None, None, None)
    monkeypatch.setenv(KEYS[name], "key")
    owner = getattr(upload_of(name, None, None, None), "__self__", None)
    assert owner is not None
    assert owner.name == name


@pytest.mark.parametrize(("provider", "local"), [("kling", "upload"), ("evolink", "upload"), ("vidu", "inline")])
def test_only_providers_that_take_urls_are_hosted(provider: str, local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that takes local files itself ignores the option, since rows of a batch may be for several."""
    for variable in (*KEYS.values(), f"{provider.upper()}_API_KEY"):
        monkeypatch.setenv(variable, "key")
    made = Settings(provider=provider, base_url=None, timeout=None, hosting="kie").make_provider()
    accepts: Accepts | None = made.accepts
    assert accepts
    assert accepts.video
    assert accepts.video.local == local
