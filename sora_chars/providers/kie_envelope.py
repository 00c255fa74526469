"""kie.ai's envelope, `{"code", "msg", "data"}`, and the errors that its codes mean.

kie.ai reports errors inside responses of HTTP status 200: the code of the envelope
decides, and the HTTP status only where the envelope has no integer code.

Source: kie.ai docs, "Response codes", and recorded traffic of April 2026. Pages of
older dates write `message` for `msg`, so both are read.
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
    TaskNotFoundError,
    UsageCapError,
    printable,
)
from sora_chars.responses import GATEWAY_FAULTS, Response, json_object

from .base import REDIRECTS, blocked

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAINTENANCE = 455
# The error and the hint for each code. Other codes become RequestRejectedError from 400
# to 499. Beyond that range they prove nothing and become ServiceUnavailableError.
_ERRORS: Mapping[int, tuple[type[ProviderError], str]] = {
    401: (AuthenticationError, "Check KIE_API_KEY."),
    402: (InsufficientCreditsError, "Top up the kie.ai account."),
    403: (PermissionDeniedError, "Use a key that may call this route."),
    404: (ModelUnavailableError, "kie.ai no longer serves this route."),
    429: (RateLimitedError, ""),
    433: (UsageCapError, "Raise the usage cap of this key, or wait until its period ends."),
    _MAINTENANCE: (ServiceUnavailableError, "kie.ai is in maintenance; try again later."),
    505: (ModelUnavailableError, "kie.ai has disabled this feature."),
}
_MODEL_GONE = "List the current models with `sora-chars models`. kie.ai has listed no Sora model since 2026-09-24."
_TASK_UNKNOWN = "The task may not be visible yet, or belong to another account."


@attrs.frozen(eq=False, repr=False)
class Envelope:
    """A parsed envelope.

    Attributes:
        code: The effective code: that of the envelope if it is an integer, else the HTTP status.
        message: `msg`, or `message` as older pages name it.
        data: Content, parsed from JSON.
        response: The response that held the envelope.
        has_code: Whether the code is the envelope's own, which proves that kie.ai wrote it.
    """

    code: int
    message: str
    data: Any
    response: Response
    has_code: bool = True

    def error(self) -> ProviderError:
        """Return the error that an envelope without success means."""
        kind, hint = _classify(self.code, self.message.lower())
        error = kind(
            f"kie.ai answered {printable(self.code, limit=20)}: {printable(self.message) or 'no message'}",
            hint=hint,
            status=self.response.status,
            code=self.code,
            retry_after=self.response.retry_after,
        )
        error.harmless |= self.code == _MAINTENANCE
        error.transient |= not self.has_code  # a login page or a proxy's text ends no wait
        if isinstance(error, ServiceUnavailableError) and not error.harmless:
            error.charged = "maybe"  # a server that failed may have made the task before
        return error


def _classify(code: int, text: str) -> tuple[type[ProviderError], str]:
    """Return the error class and the hint; some texts are more specific than their code, which varies."""
    if "credits insufficient" in text or "insufficient credit" in text:
        return _ERRORS[402]
    if "model name" in text and "not supported" in text:
        return ModelUnavailableError, _MODEL_GONE
    if "recordinfo is null" in text or "task not found" in text:
        return TaskNotFoundError, _TASK_UNKNOWN
    if code == HTTPStatus.INTERNAL_SERVER_ERROR and "is required" in text:
        return RequestRejectedError, ""
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _ERRORS.get(code, (ServiceUnavailableError, ""))
    is_rejection = code >= HTTPStatus.BAD_REQUEST
    return _ERRORS.get(code, (RequestRejectedError if is_rejection else ServiceUnavailableError, ""))


def read_envelope(response: Response) -> Envelope:
    """Parse the envelope of a response.

    Raises:
        NoAnswerError: The body is not an envelope, or comes from a proxy.
        BlockedError: The body is not an envelope, and the HTTP status proves that kie.ai did nothing.
        ProviderError: The body is not an envelope, and the HTTP status alone names the error (401, 404, 429).
    """
    body = json_object(response)
    if body is None:
        if response.status in {401, 404, 429}:
            raise Envelope(response.status, "", None, response, has_code=False).error()
        raise blocked(response, "kie.ai") or unreadable(response)
    code = body.get("code")
    if response.status in GATEWAY_FAULTS and code != response.status:  # an equal code proves that kie.ai wrote it
        raise unreadable(response)
    message = str(body.get("msg") or body.get("message") or "")
    if isinstance(code, int) and not isinstance(code, bool):
        return Envelope(code, message, body.get("data"), response)
    if response.status in REDIRECTS:
        raise blocked(response, "kie.ai") or unreadable(response)
    return Envelope(response.status, message, body.get("data"), response, has_code=False)


def unreadable(response: Response, why: str = "") -> NoAnswerError:
    """Return the error for a response that kie.ai did not write or that cannot be parsed."""
    shown = printable(response.body[:1000].decode(errors="replace"), limit=200)
    reason = f", {why}" if why else ""
    return NoAnswerError(
        f"kie.ai sent an unreadable response (HTTP {response.status}{reason}): {shown!r}",
        status=response.status,
        retry_after=response.retry_after,
    )


def read_data(response: Response) -> Any:
    """Return the `data` of a successful response.

    Raises:
        ProviderError: The code is not 200.
    """
    envelope = read_envelope(response)
    if envelope.code != HTTPStatus.OK:
        raise envelope.error()
    return envelope.data
