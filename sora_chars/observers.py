"""Who observes a session, and where the work that is observed finds them.

The events are in `events`, which is imported with the first observer: it takes longer to
import than this module, and few sessions are observed.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .logs import event_logger

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import ModuleType
    from typing import Literal

    from .events import Event, Observer
    from .kinds import Kind

log = event_logger("sora_chars.events")


class Observers:
    """The observers of one session.

    Attributes:
        listening: Whether there is any observer. Without one no event is made.
    """

    __slots__ = ("_observers", "listening")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._set(observers)

    def add(self, observer: Observer) -> None:
        """Pass the events to one more observer."""
        self._set((*self._observers, observer))

    def remove(self, observer: Observer) -> None:
        """Pass no more events to an observer."""
        self._set(other for other in self._observers if other != observer)

    def meta(self) -> dict[str, Any]:
        """Return the facts that the observers add to the `meta` of a new request, by their method `request_meta`."""
        found: dict[str, Any] = {}
        for observer in self._observers:
            if request_meta := getattr(observer, "request_meta", None):
                try:
                    found |= json.loads(json.dumps(dict(request_meta()), allow_nan=False))
                except Exception:  # an observer changes no result
                    self.remove(observer)
                    log.exception("observer.failed", extra={"observer": type(observer).__name__})
        return found

    def emit(self, event: Event) -> None:
        """Pass an event to every observer, and drop each one that raises."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # an observer changes no result
                self.remove(observer)
                log.exception("observer.failed", extra={"observer": type(observer).__name__})

    def _set(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self.listening = bool(self._observers)


class Observation:
    """The observed work of one context: makes the events of its request.

    Attributes:
        observers: Those who observe the session that does the work.
        key: The idempotency key of the request.
        provider: The name of the provider.
        polls: Number of polls of the task so far; None where it is not known.
        woken_by: What caused the last poll.
        completed_at: When the task ended, in epoch seconds by the provider's clock.
    """

    __slots__ = ("completed_at", "key", "observers", "polls", "provider", "woken_by")

    def __init__(
        self,
        observers: Observers,
        key: str | None = None,
        provider: str | None = None,
        *,
        polls: int | None = None,
        woken_by: Literal["poll", "callback"] | None = None,
    ) -> None:
        self.observers = observers
        self.key = key
        self.provider = provider
        self.polls = polls
        self.woken_by: Literal["poll", "callback"] | None = woken_by
        self.completed_at: float | None = None

    def emit(self, event: Event) -> None:
        """Pass an event to the observers."""
        self.observers.emit(event)

    def queued(self) -> None:
        """Report that the request waits for a place within the limits."""
        self.emit(_events().Queued(key=self.key, provider=self.provider))

    def sent(self, waited: float) -> None:
        """Report that the request leaves this process, `waited` seconds after it was queued."""
        self.emit(_events().Sent(key=self.key, provider=self.provider, waited=waited))

    def answered(
        self,
        request: Kind,
        method: str,
        url: str,
        *,
        status: int | None,
        error: Exception | None,
        seconds: float,
        resend: int,
    ) -> None:
        """Report the end of an HTTP exchange; see `Answered`."""
        self.emit(
            _events().Answered(
                key=self.key,
                provider=self.provider,
                request=request,
                method=method,
                url=url,
                status=status,
                error=type(error).__name__ if error else None,
                seconds=seconds,
                resend=resend,
            )
        )

    def cooled_down(self, request: Kind, seconds: float) -> None:
        """Report that the account pauses for `seconds` after a 429."""
        self.emit(_events().Cooldown(key=self.key, provider=self.provider, request=request, seconds=seconds))

    def polled(
        self,
        task_id: str,
        state: str | None,
        age: float | None,
        *,
        completed_at: float | None = None,
        error: str | None = None,
    ) -> None:
        """Report a poll of the task, and remember when the task ended."""
        self.completed_at = completed_at
        facts = {"task_id": task_id, "state": state, "age": age, "polls": self.polls, "error": error}
        self.emit(_events().Polled(key=self.key, provider=self.provider, **facts))

    def callback(self, status: int, *, task_id: str | None = None, reason: str | None = None) -> None:
        """Report the answer to a callback."""
        self.emit(
            _events().CallbackReceived(
                key=self.key, provider=self.provider, task_id=task_id, status=status, reason=reason
            )
        )

    def ledger_failed(self, error: str) -> None:
        """Report that the ledger could not be read or written."""
        self.emit(_events().LedgerFailed(key=self.key, provider=self.provider, error=error))


def _events() -> ModuleType:
    """Return the module of the events, which is imported with the first one."""
    from . import events  # noqa: PLC0415 # few sessions are observed

    return events


UNOBSERVED = Observers()
"""The observers of work that no session does."""

observation: ContextVar[Observation | None] = ContextVar("sora_chars_observation", default=None)
"""The observed work of this context. None where nothing observes it."""


@contextmanager
def observing(
    observers: Observers, key: str | None = None, provider: str | None = None
) -> Generator[Observation | None]:
    """Let the observers see the work of this block; yield what makes its events, or None without observers.

    An async generator must not yield in such a block, because it may continue in another context.
    """
    if not observers.listening:
        yield None
        return
    observed = Observation(observers, key, provider)
    token = observation.set(observed)
    try:
        yield observed
    finally:
        observation.reset(token)
