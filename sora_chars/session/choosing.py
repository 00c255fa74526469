"""Which provider serves a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.errors import InvalidRequestError
from sora_chars.models import VoiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sora_chars.models import Request
    from sora_chars.protocols import Provider


def first_serving(providers: Iterable[Provider], request: Request) -> Provider:
    """Return the first provider that can serve a request.

    Raises:
        InvalidRequestError: None can; the error lists the reasons of each.
    """
    reasons: list[str] = []
    for provider in providers:
        problems = _problems(provider, request)
        if not problems:
            return provider
        reasons += [f"{provider.name}: {problem}" for problem in problems]
    raise InvalidRequestError(f"Nothing was sent. {'; '.join(reasons)}.", problems=tuple(reasons))


def _problems(provider: Provider, request: Request) -> Sequence[str]:
    if isinstance(request, VoiceRequest) and not provider.makes_voices:
        return ["request must not be for a voice, since this provider has no route that creates voices"]
    return provider.check(request)
