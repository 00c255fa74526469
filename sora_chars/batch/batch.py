"""A batch: many requests, a bounded number of tasks in flight, and an outcome for each as it ends.

One asyncio task takes the requests up, a few submit them, and none waits: a task in flight costs a callback at the
future that all its waiters share.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sized
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sora_chars.errors import (
    AuthenticationError,
    InsufficientCreditsError,
    SessionClosedError,
    SoraCharsError,
    UsageCapError,
    printable,
)
from sora_chars.ids import new_key
from sora_chars.ledger import EntryState
from sora_chars.models import Character, Request, as_request, raise_if_invalid
from sora_chars.ratelimit.window import UNLIMITED, flow

from .budget import Budget, amount_problems
from .outcome import Outcome, state_of
from .progress import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from types import TracebackType
    from typing import Self

    from sora_chars.errors import ProviderError
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

    from .budget import Price
    from .progress import Progress

log = logging.getLogger("sora_chars.batch")

Row = Request | Mapping[str, Any]
Rows = Iterable[Row] | AsyncIterable[Row]
Start = Callable[[Request, str | None], "Awaitable[TaskHandle[Any]]"]

_END = object()
_SENDERS = 250  # more than connections, so that looks do not hold up creates; few, so that another batch's turn is near
_OF_THE_ACCOUNT = (AuthenticationError, InsufficientCreditsError, UsageCapError)  # all others would meet it, too


@attrs.define(eq=False)
class _Job:
    """One request that was taken up and has not ended. `cost`: the credits it is expected to take, if known."""

    index: int
    given: Any
    request: Request
    provider: str | None
    began: float
    cost: float | None = None
    handle: TaskHandle[Any] | None = None


@attrs.frozen(kw_only=True)
class BatchOptions:
    """What was asked for. `start` submits one request to the provider named; `submit_concurrency`: how many it does at a time.

    Raises:
        InvalidRequestError: the requests are no iterable, or an option is wrong.
    """

    requests: Rows
    start: Start
    concurrency: int
    submit_concurrency: int
    timeout: float
    budget: float | None
    price: Price | None

    def __attrs_post_init__(self) -> None:
        problems: list[str] = []
        rows: object = self.requests
        if not isinstance(rows, Iterable | AsyncIterable) or isinstance(rows, str | bytes | Mapping):
            problems.append(f"requests: must be an iterable of requests, got {type(rows).__name__}")
        if type(self.concurrency) is not int or self.concurrency < 1:
            problems.append(
                f"concurrency: must be a whole number above 0, got {printable(repr(self.concurrency), limit=60)}"
            )
        if self.timeout != math.inf:
            problems += amount_problems("timeout", self.timeout, "seconds")
        if self.budget is not None:
            problems += amount_problems("budget", self.budget, "credits")
        if not (self.price is None or callable(self.price)):
            problems += amount_problems("price", self.price, "credits")
        raise_if_invalid(problems, what="The batch")


@attrs.define(eq=False, kw_only=True, repr=False)
class Batch:
    """The outcomes of a batch, as they end: `async for outcome in outcomes`, inside `async with`.

    `stopped` says why submitting ended before the requests did: "account" (a provider refused a key, or its credits or
    its cap are used up; `refusal` is the last such error); "budget"; "price" (there is a budget, and neither the
    caller nor the provider tells what a task costs); "closed" (the session was).
    """

    _options: BatchOptions = attrs.field(alias="options")
    stopped: Literal["account", "budget", "price", "closed"] | None = attrs.field(default=None, init=False)
    refusal: ProviderError | None = attrs.field(default=None, init=False)
    _budget: Budget = attrs.field(init=False)
    _meter: Meter = attrs.field(init=False)  # since `async with`
    _feeder: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _submitting: set[asyncio.Task[None]] = attrs.field(factory=set["asyncio.Task[None]"], init=False)
    _in_flight: set[_Job] = attrs.field(factory=set[_Job], init=False)
    _deadlines: dict[_Job, float] = attrs.field(factory=dict[_Job, float], init=False)  # the first is the earliest
    _timer: asyncio.TimerHandle | None = attrs.field(default=None, init=False)
    _youngest: TaskHandle[Any] | None = attrs.field(default=None, init=False)
    _unread: deque[Outcome] = attrs.field(factory=deque[Outcome], init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _told: bool = attrs.field(default=False, init=False)  # whether the consumer knows what the requests raised
    _left: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._budget = Budget(self._options.budget, self._options.price)

    @property
    def progress(self) -> Progress:
        """How far the batch is now."""
        self._entered()
        learned = self._youngest.eta if self._youngest else None
        return self._meter.progress(asyncio.get_running_loop().time(), last=learned.median if learned else None)

    async def updates(self) -> AsyncGenerator[Progress, None]:
        """How far the batch is: now, after changes, and at its end. A slow reader misses what lies between."""
        seen: Progress | None = None
        while True:
            now = self.progress
            if now != seen:
                seen = now
                yield now
            elif self._finished():
                return
            else:
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        if self._feeder:
            raise SessionClosedError("This batch was opened before.", hint="Call `create_many` again.")
        loop = asyncio.get_running_loop()
        total = len(self._options.requests) if isinstance(self._options.requests, Sized) else None
        self._meter = Meter(began=loop.time(), total=total)
        self._feeder = loop.create_task(self._feed(), name="sora_chars batch")
        self._feeder.add_done_callback(lambda _: self._ring())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Submit nothing more, and wait for no task: what was sent is on record and goes on."""
        feeder, self._left = self._entered(), True
        asyncio_tasks = (feeder, *self._submitting)
        for asyncio_task in asyncio_tasks:
            asyncio_task.cancel()
        try:
            await asyncio.wait(asyncio_tasks)
        finally:
            if self._in_flight:
                log.info("batch.left", extra={"in_flight": len(self._in_flight)})
            if self._timer:
                self._timer.cancel()
            self._deadlines.clear()
            self._in_flight.clear()
            self._ring()
        broken = None if feeder.cancelled() else feeder.exception()
        if broken and error is None and not self._told:
            raise broken

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        feeder = self._entered()
        while not self._unread:
            if self._finished():
                if not (self._left or self._told):
                    self._told = True
                    feeder.result()  # raises what the requests raised
                raise StopAsyncIteration
            await self._changed.wait()
        outcome = self._unread.popleft()
        self._ring()
        return outcome

    def _entered(self) -> asyncio.Task[None]:
        if self._feeder is None:
            raise SessionClosedError("This batch is not open. Nothing was sent.", hint="Use it inside `async with`.")
        return self._feeder

    def _finished(self) -> bool:
        return self._left or (self._entered().done() and not self._in_flight)

    def _ring(self) -> None:
        """Wake all who wait for a change; each looks for itself."""
        self._changed.set()
        self._changed.clear()

    async def _feed(self) -> None:
        """Take up one request after the other, each as late as can be. It ends with what the requests raise."""
        flow.set(object())  # also of all that is begun from here, which may outlive this batch
        index = 0
        async with aclosing(_each(self._options.requests)) as rows:
            while await self._room():
                row = await anext(rows, _END)
                if row is _END:
                    self._meter.total = index
                    return
                await self._take_up(index, row)
                index += 1

    async def _room(self) -> bool:
        """Wait until one more may be taken up; False when none will be."""
        while not self.stopped and (
            len(self._in_flight) >= self._options.concurrency
            or len(self._unread) >= self._options.concurrency  # a slow consumer holds us back
            or len(self._submitting) >= self._options.submit_concurrency
        ):
            await self._changed.wait()
        return not self.stopped

    async def _take_up(self, index: int, row: Any) -> None:
        now = asyncio.get_running_loop().time()
        try:
            job = _job(index, row, now)
            affordable = await self._afford(job)
        except Exception as error:  # noqa: BLE001 # the border: a row is made by the caller, as is its price
            self._meter.count_registered(now)
            self._tell(Outcome(index=index, request=row, state=EntryState.REJECTED, error=error), began=now)
            return
        if affordable:
            job.began = asyncio.get_running_loop().time()
            self._meter.count_registered(job.began)
            self._in_flight.add(job)
            asyncio_task = asyncio.create_task(self._submit(job), name=f"sora_chars batch {job.request.key}")
            self._submitting.add(asyncio_task)
            asyncio_task.add_done_callback(self._submitted)

    async def _afford(self, job: _Job) -> bool:
        """Wait until the budget allows it; False when it never will."""
        while not self.stopped:
            job.cost = self._budget.expected_cost(job.request)
            match self._budget.decide(job.cost, in_flight=bool(self._in_flight)):
                case "go":
                    self._budget.reserve(job.cost)
                    return True
                case "wait":
                    await self._changed.wait()
                case why:
                    self.stopped = why
        return False

    async def _submit(self, job: _Job) -> None:
        try:
            job.handle = await self._options.start(job.request, job.provider)
            self._youngest = job.handle
            job.handle.add_done_callback(partial(Batch._settle, self, job))
        except Exception as error:  # noqa: BLE001 # the border: one must not stop the others
            if isinstance(error, SessionClosedError):
                self.stopped = "closed"
            self._settle(job, error=error)
        else:
            if self._options.timeout != math.inf:
                self._deadlines[job] = asyncio.get_running_loop().time() + self._options.timeout
                if self._timer is None:
                    self._expire()

    def _submitted(self, asyncio_task: asyncio.Task[None]) -> None:
        self._submitting.discard(asyncio_task)
        self._ring()

    def _expire(self) -> None:
        """End the waits that are over. One timer serves all, since they are equally long."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._deadlines and self._timer is None:
            job, deadline = next(iter(self._deadlines.items()))
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._expire)
            else:
                self._settle(job)

    def _settle(self, job: _Job, _: object = None, *, error: Exception | None = None) -> None:
        """Take the end of a task, or of our waiting for it."""
        if job not in self._in_flight:  # it came after its time-out, or after we left
            return
        self._in_flight.remove(job)
        self._deadlines.pop(job, None)
        outcome = _outcome(job, error)
        if isinstance(outcome.error, _OF_THE_ACCOUNT):
            self.stopped, self.refusal = "account", outcome.error
        self._budget.record_cost(job.cost, outcome.credits, outcome.state)
        self._tell(outcome, began=job.began)

    def _tell(self, outcome: Outcome, *, began: float) -> None:
        if outcome.error and not isinstance(outcome.error, SoraCharsError):
            log.error("batch.broken", exc_info=outcome.error, extra={"index": outcome.index, "key": outcome.key})
        self._meter.end(outcome.state, outcome.credits, began=began, now=asyncio.get_running_loop().time())
        self._unread.append(outcome)
        self._ring()


async def _each(requests: Rows) -> AsyncGenerator[Any, None]:
    if isinstance(requests, AsyncIterable):
        async for row in requests:
            yield row
    else:
        for row in requests:
            yield row


def _job(index: int, row: Any, now: float) -> _Job:
    """Make a row a request with a key, so that its outcome can name it whatever happens."""
    provider = None
    if isinstance(row, Mapping):
        fields = dict(row)
        provider = fields.pop("provider", None)
        row = as_request(None, fields)
    request = as_request(row, {})
    keyed = request if request.key else attrs.evolve(request, key=new_key())
    return _Job(index, request, keyed, provider, now)


def _outcome(job: _Job, error: Exception | None) -> Outcome:
    handle, made = job.handle, None
    if handle:
        try:
            made = handle.outcome()
        except Exception as caught:  # noqa: BLE001 # the border; it is told, and logged unless it is ours
            error = caught
    return Outcome(
        index=job.index,
        request=job.given,
        state=state_of(error, waiting=handle is not None),
        key=job.request.key,
        provider=handle.provider if handle else getattr(error, "provider", None) or job.provider,
        task_id=handle.task_id if handle else getattr(error, "task_id", None),
        character=made if isinstance(made, Character) else None,
        snapshot=handle.snapshot if handle else getattr(error, "snapshot", None),
        error=error,
    )


def submit_concurrency(provider: Provider) -> int:
    """How many creates of one batch are under way at a time: more would only stand in line."""
    if provider.synchronous:  # it answers when the task ends, not when it begins
        return UNLIMITED
    limit = provider.account.windows["create"].limit if provider.account else None
    return min(limit[0], _SENDERS) if limit else _SENDERS
