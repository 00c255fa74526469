"""Vidu's subjects as plain functions: requests to bodies, responses to values. No network, no clock.

Source: Vidu docs, "Create subject" and "List subjects" (August 2026). Errors are not
published: the HTTP status and the message decide.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sora_chars.errors import (
    AuthenticationError,
    InsufficientCreditsError,
    ModelUnavailableError,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    printable,
)
from sora_chars.ids import as_id
from sora_chars.models import SUCCESS, Accepts, Character, MediaRule, TaskSnapshot, TextRule
from sora_chars.responses import GATEWAY_FAULTS, Response, json_object

from .base import blocked
from .named_keys import SUFFIX_LENGTH, key_suffix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sora_chars.models import CharacterRequest

SUBJECTS_PATH = "/ent/v2/subjects"
_MIB = 1024 * 1024
_MAX_NAME_LENGTH = 64 - SUFFIX_LENGTH  # Vidu takes 64; the rest is the digest of the key
VIDEO = MediaRule(local="inline", formats=("mp4", "avi", "mov"), seconds=(0, 5), max_bytes=100 * _MIB, min_pixels=128)
ACCEPTS = Accepts(
    video=VIDEO,
    images=MediaRule(
        count=(1, 3),
        local="inline",
        formats=("png", "jpeg", "webp"),
        max_bytes=20 * _MIB - 1,
        ratio=(0.25, 4),
    ),
    name=TextRule(max_length=_MAX_NAME_LENGTH, required=True),
    voice=("video", "images"),
)
"""What Vidu accepts. Source: Vidu docs, "Create subject". An image at a URL may have 50 MB, a local one below 20 MB."""

_ERRORS: Mapping[int, tuple[type[ProviderError], str]] = {
    HTTPStatus.UNAUTHORIZED: (AuthenticationError, "Check the key. The hosts inside and outside China have own keys."),
    HTTPStatus.PAYMENT_REQUIRED: (InsufficientCreditsError, "Top up the Vidu account."),
    HTTPStatus.FORBIDDEN: (AuthenticationError, "Use a key that may make subjects."),
    HTTPStatus.NOT_FOUND: (ModelUnavailableError, "Check base_url. Vidu serves no such route there."),
    HTTPStatus.TOO_MANY_REQUESTS: (RateLimitedError, ""),
}


def subject_body(request: CharacterRequest, *, key: str, video: str | None, images: Sequence[str]) -> dict[str, Any]:
    """Return the body of the create. The video and the images are URLs or data URLs."""
    body: dict[str, Any] = {
        "name": f"{request.name}{key_suffix(key)}",
        "images": list(images) or None,
        "videos": None if video is None else [video],
        "voice_id": request.voice,
    }
    return {name: value for name, value in body.items() if value is not None}


def read_created(response: Response, *, provider: str) -> TaskSnapshot:
    """Return the finished snapshot in the response to a create. An id names the subject, whatever the status is.

    An id beside the message of an error is that of the HTTP request.

    Raises:
        NoAnswerError: The outcome is unknown, also after a success without an id: the list shows the subject.
        ProviderError: The request was rejected.
    """
    body = json_object(response, exact_integers=True)
    is_error = body is not None and not response.is_success and "name" not in body and _message(body) is not None
    if body and not is_error and (subject := _snapshot(body, provider)):
        return subject
    if body is not None and response.is_success:
        shown = printable(response.body[:1000].decode(errors="replace"), limit=200)
        raise NoAnswerError(
            f"Vidu answered HTTP {response.status} without the id of a subject: {shown}",
            status=response.status,
            retry_after=response.retry_after,
        )
    raise _error(response, body, paid=True)


def read_page(response: Response, *, provider: str) -> tuple[list[TaskSnapshot], str | None]:
    """Return the subjects of a page of the list, and the token of the next page.

    Raises:
        ProviderError: The list was not sent.
    """
    body = json_object(response, exact_integers=True)
    match body:
        case {"subjects": list(subjects), **rest} if response.is_success:
            token = rest.get("next_page_token")
            snapshots = [_snapshot(subject, provider) for subject in subjects if isinstance(subject, dict)]
            return [one for one in snapshots if one], token if isinstance(token, str) and token else None
        case _:
            raise _error(response, body, paid=False)


def _snapshot(subject: Mapping[str, Any], provider: str) -> TaskSnapshot | None:
    """Return a subject as the finished task that made it; None without an id."""
    found = as_id(subject.get("id"))
    if found is None:
        return None
    name = subject.get("name")
    name = name if isinstance(name, str) and name else None
    raw = _without_files(subject)
    character = Character(
        id=found,
        provider=provider,
        username=name,
        name=name,
        usage={"prompt": f"@{name}", "subjects": [{"name": name, "server_id": found}]} if name else None,
        raw=raw,
    )
    cost = subject.get("credits")
    is_number = isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost)
    return TaskSnapshot(
        task_id=found,
        provider=provider,
        state=SUCCESS,
        character=character,
        credits=float(cost) if isinstance(cost, int | float) and is_number else None,
        raw=raw,
    )


def _without_files(value: Any) -> Any:
    """Return a value of JSON without the data URLs in it, which repeat the files that were sent."""
    match value:
        case str():
            return f"{value.partition(',')[0]},..." if value.startswith("data:") else value
        case list():
            return [_without_files(part) for part in value]
        case dict():
            return {name: _without_files(part) for name, part in value.items()}
        case _:
            return value


def _error(response: Response, body: dict[str, Any] | None, *, paid: bool) -> ProviderError:
    """Return the error for a response without a subject. A server's error leaves the outcome of a create unknown."""
    status = response.status
    if body is None and (rejection := blocked(response, "Vidu")):
        return rejection
    text = _message(body or {})
    shown = response.body[:1000].decode(errors="replace") if text is None else text
    kind, hint = _classify(status, (text or "").lower())
    if kind is ServiceUnavailableError and paid:
        kind = NoAnswerError
    error = kind(
        f"Vidu answered HTTP {status}: {printable(shown, limit=200) or 'no message'}",
        hint=hint,
        status=status,
        retry_after=response.retry_after,
    )
    error.transient |= body is None and not paid
    return error


def _message(body: Mapping[str, Any]) -> str | None:
    """Return the message of an error, or else its reason, such as "CreditInsufficient"."""
    texts = (body.get(name) for name in ("message", "err_msg", "reason"))
    return next((text for text in texts if isinstance(text, str) and text), None)


def _classify(status: int, text: str) -> tuple[type[ProviderError], str]:
    """Return the error class and the hint. A text about credits decides before the status."""
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and "credit" in text:
        return _ERRORS[HTTPStatus.PAYMENT_REQUIRED]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_FAULTS or status < HTTPStatus.BAD_REQUEST:
        return ServiceUnavailableError, ""
    return _ERRORS.get(status, (RequestRejectedError, ""))
