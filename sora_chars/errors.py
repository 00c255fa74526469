"""Every error of this package, in one tree, with its facts as attributes.

::

    SoraCharsError
    ├── ConfigurationError       a key, address or setting is missing or wrong; nothing was sent
    ├── InvalidRequestError      the request breaks limits (all of them listed); nothing was sent
    ├── SessionClosedError       the session (or handle) can no longer be used
    ├── WrongLoopError           the session belongs to another event loop
    ├── ProviderError            the provider rejected a request, failed or could not be reached
    │   ├── AuthenticationError        the key is bad or missing
    │   ├── InsufficientCreditsError   the account is out of credits or quota
    │   ├── UsageCapError              the key's own cap is used up
    │   ├── PermissionDeniedError      the key may not use this model
    │   ├── ModelUnavailableError      the model or the route is no longer available
    │   ├── RequestRejectedError       the provider rejected the content of the request
    │   ├── RateLimitedError           too many requests; nothing was done
    │   ├── ServiceUnavailableError    the provider failed or is in maintenance
    │   ├── TaskNotFoundError          the provider knows no such task
    │   ├── BlockedError               a firewall, a proxy or a redirect in front of the provider rejected the request
    │   └── NoAnswerError              no response, or none that the provider itself wrote
    ├── LedgerError              the ledger could not be read or written
    │   └── UnreadableEntryError       a newer version or another program wrote the entry
    ├── KeyConflictError         the key belongs to another request; nothing was sent
    ├── StaleEntryError          another process changed the entry first
    ├── InvalidTransitionError   the ledger's states do not allow this transition: a bug
    ├── SubmissionUnknownError   a paid request was sent and its outcome is unknown
    ├── TaskFailedError          the task ended without a result
    ├── MissingCharacterError    the task succeeded and its result holds no character id
    ├── CharacterDeletedError    the character of the key was deleted; nothing was sent
    ├── WaitTimeoutError         the wait timed out (also a TimeoutError)
    ├── WatcherStoppedError      the task is no longer polled
    └── InvalidCallbackError     an incoming callback is forged, stale, too large or junk
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs

from .redaction import mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_MESSAGE_LENGTH = 500  # characters

Charged = Literal["no", "maybe", "yes"]
"""Whether the request that an error belongs to was charged, as far as this process knows."""


def printable(text: object, *, limit: int = _MAX_MESSAGE_LENGTH) -> str:
    """Make text of unknown origin safe for a message: one line, no control characters, at most `limit` characters."""
    if isinstance(text, str) and len(text) <= limit and text.isprintable() and "  " not in text:
        return text.strip()  # the usual case
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: limit * 4]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _mask_all(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(mask, lines))


def _rebuild(kind: type[SoraCharsError], facts: dict[str, Any]) -> SoraCharsError:
    return kind(**facts)


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class SoraCharsError(Exception):
    """Base class of all errors of this package.

    An error that leaves `create`, `submit` or a handle carries all facts that are known
    of its request.

    Attributes:
        message: What happened. The secret parts of links are masked.
        hint: What to do about it; empty if there is no advice.
        key: Idempotency key of the request.
        provider: Name of the provider.
        task_id: The provider's id of the task.
        request_id: The provider's id of the HTTP request, for its support.
        retry_after: Seconds after which the provider allows the next request.
        charged: Whether the request under `key` was charged: "no", "maybe" or "yes".
            "yes" means that its task exists; a provider may refund a failed task.
    """

    message: str = attrs.field(kw_only=False, converter=mask)
    hint: str = attrs.field(default="", converter=mask)
    key: str | None = None
    provider: str | None = None
    task_id: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    charged: Charged = "no"

    @property
    def may_have_been_paid(self) -> bool:
        """Whether the request may have been charged, so sending another one may pay twice."""
        return self.charged != "no"

    def add_facts(self, **facts: str | None) -> None:
        """Set the facts that the error does not have yet, such as `key` and `task_id`."""
        for name, value in facts.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

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
    """The request is malformed or breaks a documented limit of the provider. Nothing was sent.

    Attributes:
        problems: One line for each broken rule: the field, the rule and the value.
    """

    problems: tuple[str, ...] = attrs.field(default=(), converter=_mask_all)


class SessionClosedError(SoraCharsError):
    """The session is closed, or the handle was unpickled and is not attached to a session yet."""


class WrongLoopError(SoraCharsError):
    """The session was opened in another event loop. Nothing was sent."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class ProviderError(SoraCharsError):
    """The provider rejected a request, failed, or could not be reached.

    An error that rejects a paid request has `charged` "maybe" if the response does not
    prove that the provider did nothing. The same key is then sent again only by
    `CharacterSession.retry`.

    Attributes:
        status: HTTP status of the response.
        code: The provider's own code. kie.ai sends it inside responses of HTTP status 200.
        transient: True if the same GET request may succeed later.
        harmless: True if the provider did nothing, so sending even a paid request again
            is safe.
    """

    status: int | None = None
    code: str | int | None = None
    transient: bool = False
    harmless: bool = False


class AuthenticationError(ProviderError):
    """The API key is bad or missing."""


class InsufficientCreditsError(ProviderError):
    """The account is out of credits or quota."""


class UsageCapError(ProviderError):
    """The key's own cap for an hour, a day or in total is used up. It does not end soon."""


class PermissionDeniedError(ProviderError):
    """The key may not use this model or route."""


class ModelUnavailableError(ProviderError):
    """The model or the route is no longer available at this provider."""


class RequestRejectedError(ProviderError):
    """The provider rejected the content of the request."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class RateLimitedError(ProviderError):
    """Too many requests. The provider rejected the request, did not queue it, and did nothing.

    Attributes:
        creates_only: True if only creates are rejected, such as for too many tasks at
            once. Polls then go on, and only creates pause.
    """

    transient: bool = True
    harmless: bool = True
    creates_only: bool = False


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class ServiceUnavailableError(ProviderError):
    """The provider failed or is in maintenance.

    A paid request is sent again only if the error is `harmless`.
    """

    transient: bool = True


class TaskNotFoundError(ProviderError):
    """The provider knows no task of this id. A new task may take seconds to become visible."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class BlockedError(ProviderError):
    """A firewall, a proxy or a redirect in front of the provider rejected the request. The provider did nothing.

    Attributes:
        location: The target of a redirect, without its query.
    """

    transient: bool = True
    location: str | None = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class NoAnswerError(ProviderError):
    """No response came, or one that the provider did not write, such as a proxy's HTML page or status 504.

    Unless the error is `harmless`, the provider may have received and processed the request.
    """

    transient: bool = True


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class LedgerError(SoraCharsError):
    """The ledger could not be read or written. A request that cannot be recorded first is not sent.

    `task_id` is set if the provider had created the task before the ledger failed.

    Attributes:
        snapshot: The provider's response about that task, as a `TaskSnapshot`.
    """

    snapshot: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class UnreadableEntryError(LedgerError):
    """An entry of the ledger cannot be read: a newer version of this package or another program wrote it."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class KeyConflictError(SoraCharsError):
    """The idempotency key belongs to another request. Nothing was sent.

    Attributes:
        first: The request that the ledger holds under this key.
        second: The request that was given now.
    """

    first: Any = None
    second: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class StaleEntryError(SoraCharsError):
    """Another process or task changed the entry first. That change is kept; this one was not made.

    Attributes:
        entry: The current `Entry`.
    """

    entry: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class InvalidTransitionError(SoraCharsError):
    """The ledger's states do not allow this transition: a bug in the code that requested it.

    Attributes:
        state: Current state of the entry.
        to: State that was requested.
    """

    state: str
    to: str


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class SubmissionUnknownError(SoraCharsError):
    """A paid request was sent and its outcome is unknown. It is never sent again automatically.

    If the request was sent by this call, `__cause__` is the `NoAnswerError` that ended it.
    """

    charged: Charged = "maybe"


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class TaskFailedError(SoraCharsError):
    """The task ended without a result.

    Attributes:
        code: The provider's code of the failure.
        snapshot: The last `TaskSnapshot` of the task.
    """

    code: str | None = None
    snapshot: Any = None
    charged: Charged = "maybe"


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class MissingCharacterError(SoraCharsError):
    """The task succeeded and its result holds no character id.

    Attributes:
        payload: The result, as the provider sent it.
    """

    payload: Any = None
    charged: Charged = "yes"


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class CharacterDeletedError(SoraCharsError):
    """The character of this key was deleted with `CharacterSession.delete`. Nothing was sent."""


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class WaitTimeoutError(SoraCharsError, TimeoutError):
    """The wait timed out.

    Attributes:
        handle: The live `TaskHandle` of a task that keeps running; it can be awaited
            again, now or in another process. None if nothing was sent, and if a
            callback was awaited.
    """

    handle: Any = None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class WatcherStoppedError(SoraCharsError):
    """The watcher stopped or crashed, so the task is no longer polled. The task itself keeps running."""

    charged: Charged = "yes"


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class InvalidCallbackError(SoraCharsError):
    """An incoming callback was rejected.

    Attributes:
        status: HTTP status of the response to the sender.
    """

    status: int = 400
