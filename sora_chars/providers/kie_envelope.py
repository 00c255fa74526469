"""kie.ai's envelope: `{"code", "msg", "data"}` inside HTTP 200, and what its codes mean.

Source: kie.ai docs ("Response codes") and recorded traffic of April 2026.
"""

from __future__ import annotations

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
from sora_chars.transport import GATEWAY_FAULTS, Response, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

_ERRORS: Mapping[int, tuple[type[ProviderError], str]] = {
    401: (AuthenticationError, "Check KIE_API_KEY."),
    402: (InsufficientCreditsError, "Top up the kie.ai account."),
    403: (PermissionDeniedError, "The key may not do this."),
    404: (ModelUnavailableError, "The route is gone."),
    429: (RateLimitedError, ""),
    433: (UsageCapError, "Raise the cap of this sub-key, or wait until it starts anew."),
    455: (ServiceUnavailableError, "kie.ai is in maintenance; try again later."),
    505: (ModelUnavailableError, "The feature is switched off at kie.ai."),
}
_GONE = "See which models there are with `sora-chars models`; kie.ai lists no Sora model since autumn 2026."


@attrs.frozen(eq=False, repr=False)
class Envelope:
    """`{"code", "msg", "data"}`; `code` is the effective one: the inner one if it is an int, else the HTTP status."""

    code: int
    message: str
    data: Any
    answer: Response

    def error(self) -> ProviderError:
        """What this envelope says, when it says no."""
        code, text = self.code, self.message.lower()
        kind, hint = _ERRORS.get(code, (ServiceUnavailableError if code >= 500 else RequestRejectedError, ""))  # noqa: PLR2004
        if "credits insufficient" in text or "insufficient credit" in text:
            kind, hint = _ERRORS[402]
        elif "model name" in text and "not supported" in text:
            kind, hint = ModelUnavailableError, _GONE
        elif "recordinfo is null" in text or "task not found" in text:
            kind, hint = TaskNotFoundError, "It may not be visible yet, or belong to another account."
        elif code == 500 and "is required" in text:  # noqa: PLR2004
            kind = RequestRejectedError
        error = kind(
            f"kie.ai answered {printable(code, limit=20)}: {printable(self.message) or 'no message'}",
            hint=hint,
            status=self.answer.status,
            code=code,
            retry_after=self.answer.retry_after,
        )
        error.harmless |= code == 455  # noqa: PLR2004 # maintenance: nothing was created
        return error


def read_envelope(answer: Response) -> Envelope:
    """Open an answer.

    Raises:
        NoAnswerError: a proxy answered, or it is no envelope.
        ProviderError: no envelope, but a status that says enough (401, 404, 429).
    """
    try:
        body = parse_json(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        if answer.status in {401, 404, 429}:
            raise Envelope(answer.status, "", None, answer).error()
        raise unreadable(answer)
    code = body.get("code")
    if answer.status in GATEWAY_FAULTS and code != answer.status:  # else kie.ai itself says so
        raise unreadable(answer)
    if not isinstance(code, int) or isinstance(code, bool):
        code = answer.status
    return Envelope(code, str(body.get("msg") or body.get("message") or ""), body.get("data"), answer)


def unreadable(answer: Response, why: str = "") -> NoAnswerError:
    """An answer that kie.ai did not write, or that nobody can read."""
    shown = printable(answer.body[:1000].decode(errors="replace"), limit=200)
    return NoAnswerError(
        f"kie.ai gave an unreadable answer (HTTP {answer.status}{why and f', {why}'}): {shown!r}",
        status=answer.status,
        retry_after=answer.retry_after,
    )


def read_data(answer: Response) -> Any:
    """The `data` of a good answer.

    Raises:
        ProviderError: the code is not 200.
    """
    envelope = read_envelope(answer)
    if envelope.code != 200:  # noqa: PLR2004
        raise envelope.error()
    return envelope.data
