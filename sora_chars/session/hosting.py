"""The callbacks of a session that an application serves under one public URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import ConfigurationError
from sora_chars.providers.base import clean_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.protocols import Provider

    from .session import CharacterSession

_KEY_VARIABLE = "KIE_WEBHOOK_HMAC_KEY"


def give_callback_urls(providers: Sequence[Provider], public_url: str) -> str:
    """Give the URL to each provider that sends callbacks and has no URL of its own; return the URL as it is used.

    Raises:
        ConfigurationError: It is not an http(s) URL with a host, or a provider calls only https:// URLs.
    """
    url = clean_url(public_url, field="public_url")
    for provider in providers:
        if getattr(provider, "calls_back", False) and provider.callback_url is None:
            if getattr(provider, "calls_https_only", False) and not url.startswith("https://"):
                raise ConfigurationError(
                    f"public_url must be an https:// URL, since {provider.name} calls no other, got {url}."
                )
            provider.callback_url = url
    return url


def receiver_of(session: CharacterSession) -> CallbackReceiver:
    """Return a receiver with the default options. Signatures of kie.ai are checked if the environment has the key."""
    return CallbackReceiver(session, os.environ.get(_KEY_VARIABLE))
