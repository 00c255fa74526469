"""HeyGen's envelope, `{"data"}` or `{"error": {"code", "message"}}`, and the errors that its codes mean.

Source: HeyGen's OpenAPI of version 3 (July 2026).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sora_chars.errors import (
    AuthenticationError,
    InsufficientCreditsError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskNotFoundError,
    printable,
)
from sora_chars.responses import GATEWAY_FAULTS, Response, json_object

from .base import blocked

if TYPE_CHECKING:
    from collections.abc import Mapping

    _Row = tuple[type[ProviderError], str]

_NOT_READY = "resource_not_ready"
_MONEY: _Row = (InsufficientCreditsError, "Top up the HeyGen account, or choose another plan.")
_BUSY: _Row = (RateLimitedError, "")
_DOWN: _Row = (ServiceUnavailableError, "")
_ERRORS: Mapping[str, _Row] = {
    "rate_limit_exceeded": _BUSY,
    **dict.fromkeys(("service_unavailable", "internal_error", "gateway_timeout", _NOT_READY), _DOWN),
    **dict.fromkeys(("insufficient_credit", "quota_exceeded", "plan_upgrade_required", "trial_limit_exceeded"), _MONEY),
    "avatar_not_found": (TaskNotFoundError, "An avatar of another account is never shown."),
}
_ERRORS_BY_STATUS: Mapping[int, _Row] = {
    HTTPStatus.UNAUTHORIZED: (AuthenticationError, "Check the key."),
    HTTPStatus.PAYMENT_REQUIRED: _MONEY,
    HTTPStatus.FORBIDDEN: (PermissionDeniedError, "Use a key that may make avatars."),
    HTTPStatus.NOT_FOUND: (ModelUnavailableError, "Check base_url. HeyGen serves no such route there."),
    HTTPStatus.TOO_MANY_REQUESTS: _BUSY,
}


def read_envelope(response: Response, *, paid: bool = False) -> dict[str, Any]:
    """Return the envelope of a successful response.

    Args:
        response: The response.
        paid: Whether the request makes an avatar. A server error then leaves its outcome unknown.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    body = json_object(response) or {}
    match body.get("error"):
        case {"code": str(code), **rest}:
            raise _error(response, code, rest.get("message"), paid=paid)
        case _:
            if "data" in body and response.is_success:
                return body
            raise _foreign_error(response, paid=paid)


def read_data(response: Response) -> dict[str, Any]:
    """Return the `data` of a successful response.

    Raises:
        ProviderError: The request was rejected, or `data` is no object.
    """
    data = read_envelope(response)["data"]
    if not isinstance(data, dict):
        raise unreadable(response, "no data")
    return data


def _error(response: Response, code: str | None, text: object, *, paid: bool) -> ProviderError:
    kind, hint = _ERRORS.get(code or "") or _by_status(response.status)
    is_harmless = code == _NOT_READY  # the file is still processed, so no avatar was made
    if paid and kind is ServiceUnavailableError and not is_harmless:
        kind = NoAnswerError
    if paid and kind is TaskNotFoundError:
        kind = RequestRejectedError
    shown = f"HTTP {response.status}" if code is None else f"{response.status} with code {printable(code, limit=100)}"
    error = kind(
        f"HeyGen answered {shown}: {printable(text if isinstance(text, str) else '') or 'no message'}",
        hint=hint,
        status=response.status,
        code=code,
        retry_after=response.retry_after,
    )
    error.harmless |= is_harmless
    return error


def _by_status(status: int) -> _Row:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_FAULTS:
        return _DOWN
    return _ERRORS_BY_STATUS.get(status, (RequestRejectedError, ""))


def _foreign_error(response: Response, *, paid: bool) -> ProviderError:
    """Return the error for a response that something in front of HeyGen wrote."""
    if rejection := blocked(response, "HeyGen"):
        return rejection
    if response.status not in _ERRORS_BY_STATUS:
        return unreadable(response)
    text = printable(response.body[:1000].decode(errors="replace"), limit=200)
    error = _error(response, None, text, paid=paid)
    error.transient |= not paid  # a login page of the network ends no wait
    return error


def unreadable(response: Response, why: str = "") -> NoAnswerError:
    """Return the error for a response that HeyGen did not write or that cannot be read."""
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200)
    reason = f", {why}" if why else ""
    return NoAnswerError(
        f"HeyGen sent an unreadable response (HTTP {response.status}{reason}): {shown!r}",
        status=response.status,
        retry_after=response.retry_after,
    )
