"""What the asset library answers: Ark's envelope, with errors of its own codes, and icover's plain text.

Ark writes `{"ResponseMetadata": {"RequestId", "Error"?: {"Code", "Message"}}, "Result": {...}}`, and its errors come
with HTTP 4xx or 200. icover passes this on, and writes its own errors as plain text that begins with "[client] ".

Sources: Volcengine Ark docs, "Private asset library"; apiyi docs, "Seedance 2.0 asset library" (2026).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sora_chars.errors import (
    AuthenticationError,
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

SERVICE = "The asset library"
_OWN_ERROR = b"[client] "
_KEY = (AuthenticationError, "Check the keys and the clock of this computer. Regions have keys of their own.")
_NOT_FOUND = (
    TaskNotFoundError,
    "A new asset becomes visible within seconds. An asset of another account or region is never shown.",
)
_GONE: tuple[type[ProviderError], str] = (
    ModelUnavailableError,
    "Check base_url. No asset library answers there.",
)
_BUSY = (RateLimitedError, "")
_DOWN = (ServiceUnavailableError, "")
_ERRORS: Mapping[str, tuple[type[ProviderError], str]] = {
    "MissingParameter": (RequestRejectedError, ""),
    "InvalidParameter": (RequestRejectedError, ""),
    "SignatureDoesNotMatch": _KEY,
    "InvalidAccessKeyId": _KEY,
    "AccessDenied": (
        PermissionDeniedError,
        "Sign the letter that Ark asks for in its console, and allow the access key to use the asset library.",
    ),
    "SubscriptionRequired": (PermissionDeniedError, "Subscribe to a plan of Ark that includes the asset library."),
    "InvalidAction": _GONE,  # HTTP 404 of the gateway in front of all services of Volcengine
    "NotFound": _NOT_FOUND,
    "Throttling": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "InternalError": _DOWN,
    "ServiceUnavailable": _DOWN,
}
"""Errors by the start of their codes: Ark writes "InvalidParameter.URL" and "NotFound.Asset", too."""

_ERRORS_BY_STATUS: Mapping[int, tuple[type[ProviderError], str]] = {
    HTTPStatus.UNAUTHORIZED: (
        AuthenticationError,
        "Check the key: icover's asset library has a key of its own, and a token of apiyi is none.",
    ),
    HTTPStatus.FORBIDDEN: (PermissionDeniedError, "Use a key that may do this."),
    HTTPStatus.NOT_FOUND: _NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: _BUSY,
}


def read_result(response: Response, *, paid: bool = False) -> dict[str, Any]:
    """Return the `Result` of a successful response, which is empty after a delete.

    Args:
        response: The response.
        paid: Whether the request makes an asset. A server error then leaves its outcome unknown.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    body = json_object(response)
    if error := _own_error(response, body, paid=paid):
        raise error
    match body:
        case {"Result": dict(result)} if response.is_success:
            return result
        case {"ResponseMetadata": dict()} if response.is_success:
            return {}
        case None if response.status == HTTPStatus.NO_CONTENT:
            return {}
        case dict() if response.is_success and not body:
            return {}
        case _:
            raise _foreign_error(response, paid=paid)


def _own_error(response: Response, body: Mapping[str, Any] | None, *, paid: bool) -> ProviderError | None:
    """Return the error that Ark or icover wrote, or None."""
    match body:
        case {"ResponseMetadata": {"Error": {"Code": str(code), **rest}, **facts}}:
            kind, hint = _by_code(code, response.status)
            error = _made(response, kind, hint, rest.get("Message"), paid=paid, code=code)
            request_id = facts.get("RequestId")
            error.request_id = request_id if isinstance(request_id, str) and request_id else None
            return error
        case None if response.body.startswith(_OWN_ERROR):
            text = response.body[len(_OWN_ERROR) : 1000].decode(errors="replace")
            return _made(response, *_by_status(response.status), text, paid=paid)
        case _:
            return None


def _foreign_error(response: Response, *, paid: bool) -> ProviderError:
    """Return the error for a response that something in front of the asset library wrote."""
    if rejection := blocked(response, SERVICE):
        return rejection
    if response.status not in _ERRORS_BY_STATUS:
        return unreadable(response)
    kind, hint = _GONE if response.status == HTTPStatus.NOT_FOUND else _ERRORS_BY_STATUS[response.status]
    text = printable(response.body[:1000].decode(errors="replace"), limit=200)
    error = _made(response, kind, hint, text, paid=paid)
    error.transient |= not paid  # a login page of the network ends no wait
    return error


def _by_code(code: str, status: int) -> tuple[type[ProviderError], str]:
    family = next((known for known in _ERRORS if code.startswith(known)), None)
    return _ERRORS[family] if family else _by_status(status)


def _by_status(status: int) -> tuple[type[ProviderError], str]:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_FAULTS:
        return _DOWN
    return _ERRORS_BY_STATUS.get(status, (RequestRejectedError, ""))


def _made(
    response: Response, kind: type[ProviderError], hint: str, text: object, *, paid: bool, code: str | None = None
) -> ProviderError:
    if paid and kind is ServiceUnavailableError:
        kind = NoAnswerError
    if paid and kind is TaskNotFoundError:
        kind, hint = RequestRejectedError, "Check group_id: the account must have the group."
    shown = f"HTTP {response.status}" if code is None else f"{response.status} with code {printable(code, limit=100)}"
    return kind(
        f"{SERVICE} answered {shown}: {printable(text if isinstance(text, str) else '') or 'no message'}",
        hint=hint,
        status=response.status,
        code=code,
        retry_after=response.retry_after,
    )


def unreadable(response: Response, why: str = "") -> NoAnswerError:
    """Return the error for a response that the asset library did not write or that cannot be read."""
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200)
    reason = f", {why}" if why else ""
    return NoAnswerError(
        f"{SERVICE} sent an unreadable response (HTTP {response.status}{reason}): {shown!r}",
        status=response.status,
        retry_after=response.retry_after,
    )
