"""Every error of this package, in one tree, with its facts as attributes.

::

    SoraCharsError
    ├── ConfigurationError       a key, address or setting is missing or wrong; nothing was sent
    ├── InvalidRequestError      the request breaks limits (all of them listed); nothing was sent
    ├── SessionClosedError       the session (or handle) can no longer be used
    ├── WrongLoopError           the session belongs to another event loop
    ├── ProviderError            the provider, or the way to it, said no
    │   ├── AuthenticationError        the key is bad or missing
    │   ├── InsufficientCreditsError   the account is out of credits or quota
    │   ├── UsageCapError              the key's own cap is used up
    │   ├── PermissionDeniedError      the key may not use this model
    │   ├── ModelUnavailableError      the model or the route is gone
    │   ├── RequestRejectedError        the provider refused the request's content
    │   ├── RateLimitedError           too many requests; nothing was done
    │   ├── ServiceUnavailableError    the provider failed or is in maintenance
    │   ├── TaskNotFoundError          the provider knows no such task
    │   └── NoAnswerError              no answer, or none that the provider itself wrote
    ├── LedgerError              the ledger could not be read or written
    ├── KeyConflictError         the key was asked before, for something else; nothing was sent
    ├── StaleEntryError          somebody else moved the entry first
    ├── InvalidTransitionError         a move that the ledger's states do not allow: a bug
    ├── SubmissionUnknownError   a paid request was sent and its outcome is unknown
    ├── TaskFailedError          the task ended without a result
    ├── MissingCharacterError    the task succeeded and its result holds no character id
    ├── WaitTimeoutError         the wait ended, the task goes on (also a TimeoutError)
    ├── WatcherStoppedError      nobody polls this task any more
    └── InvalidCallbackError     an incoming callback is forged, stale, too large or junk
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

_MESSAGE_LIMIT = 500


def printable(text: object, *, limit: int = _MESSAGE_LIMIT) -> str:
    """Foreign text made fit for a message: one line, no control characters, at most `limit` characters."""
    if isinstance(text, str) and len(text) <= limit and text.isprintable() and "  " not in text:
        return text.strip()  # as most is
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: limit * 4]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _rebuild(kind: type[SoraCharsError], facts: dict[str, Any]) -> SoraCharsError:
    return kind(**facts)


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class SoraCharsError(Exception):
    """The base of all errors of this package. `hint` says what to do about it."""

    message: str = attrs.field(kw_only=False)
    hint: str = ""

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?", "…")) else "."
        return f"{self.message}{stop} {self.hint}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    def __reduce__(self) -> tuple[Callable[..., SoraCharsError], tuple[Any, ...]]:
        facts = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return _rebuild, (type(self), facts)


class ConfigurationError(SoraCharsError):
    """A key, an address or a setting is missing or wrong. Nothing was sent."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class InvalidRequestError(SoraCharsError, ValueError):
    """The request breaks limits that the provider would refuse. Nothing was sent.

    `problems` holds one line for each broken limit: the field, what came, what is allowed.
    """

    problems: tuple[str, ...] = ()


class SessionClosedError(SoraCharsError):
    """The session was closed, or the handle was rebuilt and belongs to none yet."""


class WrongLoopError(SoraCharsError):
    """The session was opened in another event loop. Nothing was sent."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class ProviderError(SoraCharsError):
    """The provider, or the way to it, said no.

    `status` is the HTTP status, `code` the provider's own (kie.ai answers HTTP 200 with a code inside).
    `transient`: the same GET may work later. `harmless`: nothing was done, so that even a paid request may
    be sent again. `retry_after`: seconds the provider asked to wait.
    """

    provider: str | None = None
    status: int | None = None
    code: str | int | None = None
    request_id: str | None = None
    retry_after: float | None = None
    transient: bool = False
    harmless: bool = False


class AuthenticationError(ProviderError):
    """The API key is bad or missing."""


class InsufficientCreditsError(ProviderError):
    """The account is out of credits or quota."""


class UsageCapError(ProviderError):
    """The key's own cap (hour, day or total) is used up; not soon over."""


class PermissionDeniedError(ProviderError):
    """The key may not use this model or route."""


class ModelUnavailableError(ProviderError):
    """The model or the route is gone at this provider."""


class RequestRejectedError(ProviderError):
    """The provider looked at the request and refused its content."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class RateLimitedError(ProviderError):
    """Too many requests. The request was rejected, not queued: nothing was done."""

    transient: bool = True
    harmless: bool = True


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class ServiceUnavailableError(ProviderError):
    """The provider failed or is in maintenance. A create is repeated only where it says that nothing was done."""

    transient: bool = True


class TaskNotFoundError(ProviderError):
    """The provider knows no task of this id (yet: right after a create it may take seconds to appear)."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class NoAnswerError(ProviderError):
    """No answer came, or one that the provider itself did not write (a proxy's 502, 504, 524, an HTML page).

    Unless `harmless`, the provider may have received the request and acted on it.
    """

    transient: bool = True


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class LedgerError(SoraCharsError):
    """The ledger could not be read or written. Nothing is sent that it could not record first.

    With a `task_id` the provider had made that task under `key` already; `snapshot` is its answer.
    """

    key: str | None = None
    task_id: str | None = None
    snapshot: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class KeyConflictError(SoraCharsError):
    """The key was asked before, for something else. Nothing was sent. `first` and `second` are both requests."""

    key: str
    first: Any = None
    second: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class StaleEntryError(SoraCharsError):
    """Somebody else moved the entry first, and it was not touched. `entry` is the entry as it is now."""

    entry: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class InvalidTransitionError(SoraCharsError):
    """A move that the ledger's states do not allow, which is a bug of whoever asked for it."""

    key: str
    state: str
    to: str


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class SubmissionUnknownError(SoraCharsError):
    """A paid request left this machine and nobody said what became of it. It is never sent again by itself.

    `key` names the wish, `provider` where it went; the cause is the `NoAnswerError` that was met.
    """

    provider: str
    key: str


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class TaskFailedError(SoraCharsError):
    """The task ended without a result: the provider's `code` and text, the task's id, its last snapshot."""

    provider: str
    task_id: str
    code: str | None = None
    snapshot: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class MissingCharacterError(SoraCharsError):
    """The task succeeded and its result holds no character id. `payload` is the raw result."""

    provider: str
    task_id: str | None
    payload: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class WaitTimeoutError(SoraCharsError, TimeoutError):
    """The wait ran out and the task goes on. `handle` is alive: await it again, now or in another process."""

    handle: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class WatcherStoppedError(SoraCharsError):
    """The watcher stopped or died, and nobody polls this task any more. The task itself goes on."""

    task_id: str


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class InvalidCallbackError(SoraCharsError):
    """An incoming callback was refused. `status` is the HTTP status that says so to its sender."""

    status: int = 400
