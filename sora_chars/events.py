"""What happens to requests, as values for observers: metrics, traces and live displays.

A session passes each event to its observers, at once and in the order in which they
happen:

    def show(event: Event) -> None:
        if isinstance(event, Ended):
            print(event.key, event.state, event.duration)

    session = CharacterSession(Kie(), observers=[show])

`CharacterSession.events` yields the same events. No event is made while nothing observes
the session.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to a request, or to the account that it uses.

    Attributes:
        key: The idempotency key of the request, if it is known.
        provider: The name of the provider, if it is known.
        elsewhere: Whether another process on the ledger did it. Only `CharacterSession.events` yields such events.
        at: When it happened, in epoch seconds.
    """

    key: str | None = None
    provider: str | None = None
    elsewhere: bool = False
    at: float = attrs.field(factory=time.time)


@attrs.frozen(kw_only=True)
class Registered(Event):
    """A request was recorded under its key, or found on record.

    Attributes:
        kind: The kind of request: "character" or "task".
        state: The state of the entry.
        is_new: Whether the key was new.
    """

    kind: str
    state: str
    is_new: bool


@attrs.frozen(kw_only=True)
class Queued(Event):
    """A request is checked and recorded, and waits for a place within the limits and for a connection."""


@attrs.frozen(kw_only=True)
class Sent(Event):
    """A paid request is about to leave this process.

    Attributes:
        waited: Seconds since the request was queued.
    """

    waited: float


@attrs.frozen(kw_only=True)
class Answered(Event):
    """One HTTP exchange with the provider has ended.

    Attributes:
        request: The kind of exchange: "create" (the paid request), "poll" or "other".
        method: The HTTP method.
        url: The URL, without secrets.
        status: The HTTP status; None without a response.
        error: The name of the exception that replaced the response.
        seconds: Seconds from sending to the end of the response.
        resend: Number of the attempt: 0, or more for one that `sora_chars` repeats.
    """

    request: str
    method: str
    url: str
    status: int | None
    error: str | None = None
    seconds: float
    resend: int = 0


@attrs.frozen(kw_only=True)
class Cooldown(Event):
    """The provider answered 429, and the whole account pauses.

    Attributes:
        request: The kind of exchange that was answered with 429.
        seconds: Seconds until the account sends again.
    """

    request: str
    seconds: float


@attrs.frozen(kw_only=True)
class Recorded(Event):
    """The ledger has recorded a change of a request's state.

    Attributes:
        before: The state before, such as "running"; None if another process changed it.
        state: The state from now on.
        task_id: The provider's id of the task, once it is known.
        version: The version of the entry.
        seconds: Seconds that the write took; None if another process wrote it.
    """

    before: str | None
    state: str
    task_id: str | None = None
    version: int
    seconds: float | None = None


@attrs.frozen(kw_only=True)
class Polled(Event):
    """A task was polled.

    Attributes:
        task_id: The provider's id of the task.
        state: The provider's word for the state of the task; None if the poll failed.
        age: Seconds since the task was created; None if no poll has shown it yet.
        polls: Number of polls of this task in this process; None where it is not known.
        error: The name of the error with which the poll failed.
    """

    task_id: str
    state: str | None
    age: float | None
    polls: int | None
    error: str | None = None


@attrs.frozen(kw_only=True)
class Ended(Event):
    """A request has ended, and its end is recorded.

    One process sees it: that which recorded the end.

    Attributes:
        kind: The kind of request: "character" or "task".
        state: "succeeded", "failed" or "rejected".
        task_id: The provider's id of the task; None for a request that was rejected.
        created_at: When the key was registered, in epoch seconds.
        duration: Seconds from registering to the record of the end.
        lag: Seconds from the end at the provider, by its clock, to its record; None where the provider states no time.
        credits: What the task cost, as the provider counts it.
        polls: Number of polls in this process; None where it is not known.
        woken_by: What caused the last poll: "poll" or "callback"; None if no poll found the end.
        error: Why it failed or was rejected.
        meta: The user's own facts in the entry.
    """

    kind: str
    state: str
    task_id: str | None
    created_at: float
    duration: float
    lag: float | None = None
    credits: float | None = None
    polls: int | None = None
    woken_by: Literal["poll", "callback"] | None = None
    error: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    meta: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen(kw_only=True)
class InDoubt(Event):
    """The outcome of a request that was sent is unknown. It is not sent again automatically.

    Attributes:
        reason: Why it is unknown.
    """

    reason: str


@attrs.frozen(kw_only=True)
class TakenOver(Event):
    """This process polls a task from now on that a process which has ended polled before.

    Attributes:
        task_id: The provider's id of the task.
    """

    task_id: str


@attrs.frozen(kw_only=True)
class CallbackReceived(Event):
    """A callback arrived.

    Attributes:
        task_id: The task that it names; None if it was refused before its body was read.
        status: The HTTP status of the answer: 200 if it was taken, another if it was refused.
        reason: Why it was refused.
    """

    task_id: str | None = None
    status: int
    reason: str | None = None


@attrs.frozen(kw_only=True)
class LedgerFailed(Event):
    """The ledger could not be read or written.

    Attributes:
        error: The message of the error.
    """

    error: str


class Observer(Protocol):
    """A function of one event, or an object that is called with it.

    It runs in the event loop, in the context of the request, and must return quickly. One that raises is logged and
    dropped.
    """

    def __call__(self, event: Event, /) -> object:
        """Take note of an event."""
        ...
