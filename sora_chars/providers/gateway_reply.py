"""Responses of the gateways that make Kling's elements: what they have in common, as plain functions.

Each gateway's codec reads a response into a `Reply`. From there on a task is created and
polled, and an error is classified, in the same way at each of them.
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
    printable,
)
from sora_chars.ids import as_id
from sora_chars.models import TaskSnapshot
from sora_chars.responses import GATEWAY_FAULTS, Response, parse_json

from .base import blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    ErrorTable = Mapping[int, tuple[type[ProviderError], str]]
    """The error class and the hint of each code or HTTP status."""

MONEY = (InsufficientCreditsError, "Top up the account at the gateway.")
BY_STATUS: ErrorTable = {
    HTTPStatus.BAD_REQUEST: (RequestRejectedError, ""),
    HTTPStatus.UNAUTHORIZED: (AuthenticationError, "Check the key. A gateway has keys of its own; Kling's do not fit."),
    HTTPStatus.PAYMENT_REQUIRED: MONEY,
    HTTPStatus.FORBIDDEN: (PermissionDeniedError, "Use a key that may use this model."),
    HTTPStatus.NOT_FOUND: (ModelUnavailableError, "Check base_url. The gateway serves no such route or model there."),
    HTTPStatus.TOO_MANY_REQUESTS: (RateLimitedError, ""),
}


@attrs.frozen(eq=False, kw_only=True)
class Reply:
    """A response of a gateway, as its codec has read it.

    Attributes:
        response: The response.
        label: The name of the gateway.
        is_own: Whether the gateway wrote the response, and not something in front of it.
        task: The record of a task, if the response holds one.
        code: The code of an error.
        message: The message of an error.
        kinds: The meaning of the codes, which decide before the HTTP status.
        money: Words in a message that mean the account's money.
    """

    response: Response
    label: str
    is_own: bool
    task: Mapping[str, Any] | None = None
    code: int | None = None
    message: str = ""
    kinds: ErrorTable = attrs.field(factory=dict)
    money: tuple[str, ...] = ()

    @property
    def task_id(self) -> str | None:
        """The id of the task in the response."""
        return as_id(self.task.get("id")) if self.task else None

    @property
    def is_success(self) -> bool:
        """Whether the response reports success."""
        good = range(HTTPStatus.OK, HTTPStatus.MULTIPLE_CHOICES)
        return self.is_own and self.response.status in good and (self.code is None or self.code in good)

    def error(self, *, paid: bool = False) -> ProviderError:
        """Return the error that a response without a task means.

        Args:
            paid: Whether the request costs money. A server error then leaves its outcome unknown.
        """
        if not self.is_own:
            return self._foreign(paid=paid)
        kind, hint = self._classify()
        if kind is ServiceUnavailableError and paid:
            kind = NoAnswerError
        status = self.response.status
        shown = f"HTTP {status}" if self.code in {None, status} else f"HTTP {status} with code {self.code}"
        return kind(
            f"{self.label} answered {shown}: {printable(self.message, limit=200) or 'no message'}",
            hint=hint,
            status=status,
            code=self.code,
            retry_after=self.response.retry_after,
        )

    def unreadable(self, why: str = "") -> NoAnswerError:
        """Return the error for a response that the gateway did not write, or that lacks what it should hold."""
        shown = printable(self.response.body[:1000].decode(errors="replace"), limit=200)
        reason = f", {why}" if why else ""
        return NoAnswerError(
            f"{self.label} sent an unreadable response (HTTP {self.response.status}{reason}): {shown!r}",
            status=self.response.status,
            retry_after=self.response.retry_after,
        )

    def _classify(self) -> tuple[type[ProviderError], str]:
        """Return the error class and the hint. The HTTP status decides about faults, unless it reports success."""
        status = self.response.status
        number = status if status >= HTTPStatus.BAD_REQUEST else self.code or status
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or number in GATEWAY_FAULTS:
            return ServiceUnavailableError, ""
        if any(word in self.message.lower() for word in self.money):
            return MONEY
        if found := self.kinds.get(self.code or 0) or BY_STATUS.get(number):
            return found
        is_rejection = HTTPStatus.BAD_REQUEST <= number < HTTPStatus.INTERNAL_SERVER_ERROR
        return RequestRejectedError if is_rejection else ServiceUnavailableError, ""

    def _foreign(self, *, paid: bool) -> ProviderError:
        """Return the error for a page that a proxy or a firewall wrote."""
        if rejection := blocked(self.response, self.label):
            return rejection
        if self.response.status not in BY_STATUS:
            return self.unreadable()
        error = attrs.evolve(self, is_own=True, code=None, money=()).error(paid=paid)
        error.transient |= not paid  # a login page of the network ends no wait
        return error


def read_created(reply: Reply, *, model: str, state: str, provider: str) -> TaskSnapshot:
    """Return the first snapshot in the response to a create. A task id names the task, whatever the code is.

    Args:
        reply: The response.
        model: The model of the task.
        state: The state of a new task. The polls report every other one.
        provider: Name of the provider.

    Raises:
        NoAnswerError: The outcome is unknown.
        ProviderError: The request was rejected.
    """
    if task_id := reply.task_id or _bare_id(reply.response):
        return TaskSnapshot(task_id=task_id, provider=provider, state=state, model=model)
    raise reply.unreadable("no task id") if reply.is_success else reply.error(paid=True)


def _bare_id(response: Response) -> str | None:
    """Return the id of a task in a response that lacks the rest of the gateway's format. An error's own id is none."""
    try:
        body = parse_json(response.body, exact_integers=True)
    except ValueError:
        return None
    match body:
        case {"error": dict() | str()}:
            return None
        case {"data": {"id": found}}:
            return as_id(found)
        case {"id": found} if "status" in body or response.is_success:
            return as_id(found)
        case _:
            return None


def read_polled(
    read: Callable[[Response], Reply],
    read_snapshot: Callable[..., TaskSnapshot],
    response: Response,
    *,
    task_id: str,
    provider: str,
    seen: TaskSnapshot | None,
) -> TaskSnapshot:
    """Return the snapshot in the response to a poll.

    Args:
        read: Reads the response.
        read_snapshot: Reads the record of the task.
        response: The response.
        task_id: Id of the task that was polled.
        provider: Name of the provider.
        seen: Last snapshot of the task. It is returned itself if the response has not changed.

    Raises:
        TaskNotFoundError: The gateway shows no such task.
        MissingCharacterError: The task succeeded without an element id.
        ProviderError: The poll failed.
    """
    digest = hash((response.status, response.body))
    if seen and seen.digest == digest and seen.retry_after == response.retry_after:
        return seen
    reply = read(response)
    if reply.task is None:
        raise reply.unreadable("no record") if reply.is_success else _not_found(reply, task_id) or reply.error()
    if reply.task_id != task_id:
        raise reply.unreadable("another task's record")
    snapshot = read_snapshot(reply.task, provider=provider)
    if snapshot.finished and snapshot.completed_at is None and snapshot.created_at is not None:
        # No record states when a task has ended: the clock of the response that shows it first does.
        snapshot = attrs.evolve(snapshot, completed_at=response.date)
    return attrs.evolve(snapshot, retry_after=response.retry_after, digest=digest)


def _not_found(reply: Reply, task_id: str) -> TaskNotFoundError | None:
    if not reply.is_own or HTTPStatus.NOT_FOUND not in {reply.response.status, reply.code}:
        return None
    return TaskNotFoundError(
        f"{reply.label} shows no task {printable(task_id)}: {printable(reply.message, limit=200) or 'no message'}",
        hint="A new task becomes visible within seconds. A task of another account is never shown.",
        status=reply.response.status,
        code=reply.code,
    )
