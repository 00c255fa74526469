"""Kling's envelope, `{"code", "message", "request_id", "data"}`, and the errors that its codes mean.

Source: Kling docs, "Error codes" (September 2026).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

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
    printable,
)
from sora_chars.responses import GATEWAY_FAULTS, Response, as_code, parse_json

from .base import blocked

if TYPE_CHECKING:
    from collections.abc import Mapping

_INVALID_PARAMETER = 1201
_TOO_MANY_TASKS = 1303
_ALREADY_EXISTS = "already exist"
_KEY = (AuthenticationError, "Check the key. Singapore and Beijing have accounts and keys of their own.")
_MONEY = (InsufficientCreditsError, "Top up the Kling account, or buy a resource pack.")
_GONE = (ModelUnavailableError, "Check base_url. Kling serves no such route or model there.")
_POLICY = (RequestRejectedError, "Change the source, the name or the description. It breaks Kling's content policy.")
_ERRORS: Mapping[int, tuple[type[ProviderError], str]] = {
    **dict.fromkeys(range(1000, 1005), _KEY),
    **dict.fromkeys((1100, 1101, 1102), _MONEY),
    1103: (PermissionDeniedError, "Use a key that may call this API or model."),
    **dict.fromkeys((1200, _INVALID_PARAMETER), (RequestRejectedError, "")),
    **dict.fromkeys((1202, 1203), _GONE),
    **dict.fromkeys((1300, 1301), _POLICY),
    1302: (RateLimitedError, ""),
    _TOO_MANY_TASKS: (RateLimitedError, "Wait until some of the account's tasks have ended."),
    1304: (PermissionDeniedError, "Add this computer's IP address to the account's allowed addresses."),
    **dict.fromkeys((5000, 5001, 5002), (ServiceUnavailableError, "")),
}
_ERRORS_BY_STATUS: Mapping[int, tuple[type[ProviderError], str]] = {
    HTTPStatus.UNAUTHORIZED: _KEY,
    HTTPStatus.PAYMENT_REQUIRED: _MONEY,
    HTTPStatus.FORBIDDEN: _ERRORS[1103],
    HTTPStatus.NOT_FOUND: _GONE,
    HTTPStatus.TOO_MANY_REQUESTS: _ERRORS[1302],
}


@attrs.frozen(eq=False, repr=False)
class Envelope:
    """A parsed envelope.

    Attributes:
        code: Kling's code, 0 for success; None if something in front of Kling wrote the response.
        message: Kling's message.
        request_id: Kling's id of the request.
        data: Content, parsed from JSON with exact integers.
        response: The response that held the envelope.
    """

    code: int | None
    message: str
    request_id: str | None
    data: Any
    response: Response

    @property
    def is_invalid_parameter(self) -> bool:
        """Whether the code is 1201. It also means that an `external_task_id` was used, or an element is gone."""
        return self.code == _INVALID_PARAMETER

    @property
    def is_duplicate(self) -> bool:
        """Whether the `external_task_id` belongs to a task that was made before."""
        return self.is_invalid_parameter and _ALREADY_EXISTS in self.message.lower()

    def error(self, *, paid: bool = False) -> ProviderError:
        """Return the error that an envelope without success means.

        Args:
            paid: Whether the request costs money. A server error then leaves its outcome unknown.
        """
        status = self.response.status
        kind, hint = _ERRORS.get(self.code or 0) or _by_status(status)
        if kind is ServiceUnavailableError and paid:
            kind = NoAnswerError
        shown = f"HTTP {status}" if self.code is None else f"{status} with code {self.code}"
        error = kind(
            f"Kling answered {shown}: {printable(self.message) or 'no message'}",
            hint=hint,
            status=status,
            code=self.code,
            request_id=self.request_id,
            retry_after=self.response.retry_after,
        )
        if isinstance(error, RateLimitedError):
            error.creates_only = self.code == _TOO_MANY_TASKS
        return error


def _by_status(status: int) -> tuple[type[ProviderError], str]:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in GATEWAY_FAULTS:
        return ServiceUnavailableError, ""
    return _ERRORS_BY_STATUS.get(status, (RequestRejectedError, ""))


def json_value(response: Response) -> Any:
    """Return the JSON value in a response, with exact integers; None if it is not JSON."""
    try:
        return parse_json(response.body, exact_integers=True)
    except ValueError:
        return None


def read_envelope(response: Response, *, paid: bool = False) -> Envelope:
    """Parse the envelope of a response.

    Raises:
        NoAnswerError: The response is not Kling's, and the request may have been carried out.
        ProviderError: The response is not Kling's, and its HTTP status proves that nothing was done.
    """
    body = json_value(response)
    match body:
        case {"code": given} if (code := as_code(given)) is not None:
            message = body.get("message")
            request_id = body.get("request_id")
            return Envelope(
                code,
                message if isinstance(message, str) else "",
                request_id if isinstance(request_id, str) and request_id else None,
                body.get("data"),
                response,
            )
        case _:
            raise _foreign(response, body, paid=paid)


def _foreign(response: Response, body: Any, *, paid: bool) -> ProviderError:
    """Return the error for a response without Kling's code, which a proxy or a gateway wrote."""
    if rejection := blocked(response, "Kling"):
        return rejection
    if response.status not in _ERRORS_BY_STATUS:
        return unreadable(response)
    text = body.get("message") if isinstance(body, dict) else None
    shown = text if isinstance(text, str) else response.body[:1000].decode(errors="replace")
    error = Envelope(None, printable(shown, limit=200), None, None, response).error()
    error.transient |= not paid  # a login page of the network ends no wait
    return error


def read_data(response: Response) -> Any:
    """Return the `data` of a successful response.

    Raises:
        ProviderError: The code is not 0.
    """
    envelope = read_envelope(response)
    if envelope.code != 0:
        raise envelope.error()
    return envelope.data


def unreadable(response: Response, why: str = "") -> NoAnswerError:
    """Return the error for a response that Kling did not write or that cannot be read."""
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200)
    reason = f", {why}" if why else ""
    return NoAnswerError(
        f"Kling sent an unreadable response (HTTP {response.status}{reason}): {shown!r}",
        status=response.status,
        retry_after=response.retry_after,
    )
