"""Options of a batch, and how many of its requests may be submitted at a time."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import attrs

from sora_chars.errors import printable
from sora_chars.models import JobFields, Request, RowFields, raise_if_invalid, seconds_problems
from sora_chars.ratelimit.window import UNLIMITED

from .budget import amount_problems

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

    from .budget import Price

Row = Request | RowFields | JobFields
"""A request, or the fields of a `CharacterRequest` or a `TaskRequest` and optionally its provider."""
Rows = Iterable[Row] | AsyncIterable[Row]
Start = Callable[[Request, str | None], "Awaitable[TaskHandle[Any]]"]
CostBefore = Callable[[Request], "Awaitable[float]"]

_MAX_SUBMITTERS = 250  # above the connection limit, else polls starve creates; low enough to keep batches fair


class BatchKeywords(TypedDict, total=False):
    """The keyword arguments of `CharacterSession.create_many`."""

    concurrency: int
    provider: str | None
    budget: float | None
    price: Price | None
    timeout: float | None
    retry_failed: bool


@attrs.frozen(kw_only=True)
class BatchOptions:
    """Options of a batch.

    Attributes:
        requests: The rows, read only as fast as they can be submitted.
        start: Submits a request to the named provider.
        cost_before: Returns the credits that earlier attempts of a request cost.
        concurrency: Most requests in flight, and most unread outcomes.
        submit_concurrency: Most requests being submitted at a time.
        timeout: Seconds to wait for each task, from its submission.
        budget: Credits that the batch may spend; None for no limit.
        price: Expected credits of a request, or a function that returns them.

    Raises:
        InvalidRequestError: `requests` is no iterable of requests, or an option is
            invalid.
    """

    requests: Rows
    start: Start
    cost_before: CostBefore
    concurrency: int
    submit_concurrency: int
    timeout: float
    budget: float | None
    price: Price | None

    def __attrs_post_init__(self) -> None:
        problems: list[str] = []
        rows: object = self.requests
        if not isinstance(rows, Iterable | AsyncIterable) or isinstance(rows, str | bytes | Mapping):
            problems.append(f"requests must be an iterable of requests, got {type(rows).__name__}")
        if type(self.concurrency) is not int or self.concurrency < 1:
            got = printable(repr(self.concurrency), limit=60)
            problems.append(f"concurrency must be a whole number, at least 1, got {got}")
        problems += seconds_problems("timeout", self.timeout)
        if self.budget is not None:
            problems += amount_problems("budget", self.budget, "credits")
        if not (self.price is None or callable(self.price)):
            problems += amount_problems("price", self.price, "credits")
        raise_if_invalid(problems, what="The batch")


def submit_concurrency(provider: Provider) -> int:
    """Return how many creates of one batch may be submitted to a provider at a time.

    More would only wait in the queue of its rate limit.
    """
    if provider.synchronous:  # a response arrives when the task ends, not when it starts
        return UNLIMITED
    limit = provider.account.windows["create"].limit if provider.account else None
    return min(limit[0], _MAX_SUBMITTERS) if limit else _MAX_SUBMITTERS
