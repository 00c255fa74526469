"""A batch: many requests, bounded concurrency, and an outcome for each request as it ends.

One asyncio task reads the requests and a bounded number of asyncio tasks submit them. A
task in flight needs no asyncio task: it costs a callback on the future that all its
waiters share.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterable, Mapping, Sized
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sora_chars.errors import (
    AuthenticationError,
    BlockedError,
    InsufficientCreditsError,
    SessionClosedError,
    SoraCharsError,
    UsageCapError,
)
from sora_chars.ids import new_key
from sora_chars.ledger import EntryState
from sora_chars.logs import event_logger
from sora_chars.models import Character, as_request, of_row
from sora_chars.ratelimit.window import flow

from .budget import Budget
from .outcome import Outcome, state_of
from .progress import ProgressCounter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType
    from typing import Self

    from sora_chars.errors import ProviderError
    from sora_chars.models import Request
    from sora_chars.polling.handle import TaskHandle

    from .options import BatchOptions, Rows
    from .progress import Progress

log = event_logger("sora_chars.batch")

_EXHAUSTED = object()
# Every later request would fail too.
_ACCOUNT_ERRORS = (AuthenticationError, InsufficientCreditsError, UsageCapError, BlockedError)


@attrs.define(eq=False)
class _Item:
    """A request that was read and has not ended.

    Attributes:
        index: Position of the request, from 0.
        given: The row as the caller gave it.
        request: The request, with a key.
        provider: Name of the provider that the row names.
        began: Loop time at which the request was registered.
        cost: Expected credits, if known.
        handle: Handle of the task, once it is submitted.
    """

    index: int
    given: Any
    request: Request
    provider: str | None
    began: float
    cost: float | None = None
    handle: TaskHandle[Any] | None = None


@attrs.define(eq=False, kw_only=True, repr=False)
class Batch:
    """The outcomes of a batch, as its requests end.

    `CharacterSession.create_many` returns a batch. Enter it to start submitting, and
    iterate over it to receive the outcomes:

        async with session.create_many(requests, concurrency=50) as batch:
            async for outcome in batch:
                print(outcome.index, outcome.state, batch.progress.remaining)
        if batch.stopped == "account":
            print(batch.rejection)

    Leaving the block submits nothing more. Tasks that were submitted continue; submit
    their requests again under the same keys to receive their results.

    Attributes:
        stopped: Why submitting ended before the last request; None if it did not.

            - "account": a provider rejected the API key, its credits or its usage cap
              are exhausted, or something in front of it rejects the requests.
            - "budget": the budget allows no further request.
            - "price": there is a budget, but neither the caller nor the provider
              states what a task costs.
            - "closed": the session was closed.
        rejection: Latest error of that kind.
    """

    _options: BatchOptions = attrs.field(alias="options")
    stopped: Literal["account", "budget", "price", "closed"] | None = attrs.field(default=None, init=False)
    rejection: ProviderError | None = attrs.field(default=None, init=False)
    _budget: Budget = attrs.field(init=False)
    _counter: ProgressCounter = attrs.field(init=False)  # once entered
    _reader: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _submitting: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _in_flight: set[_Item] = attrs.field(factory=set, init=False)
    _deadlines: dict[_Item, float] = attrs.field(factory=dict, init=False)  # earliest first
    _timer: asyncio.TimerHandle | None = attrs.field(default=None, init=False)
    _newest: TaskHandle[Any] | None = attrs.field(default=None, init=False)
    _unread: deque[Outcome] = attrs.field(factory=deque, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _reader_error_raised: bool = attrs.field(default=False, init=False)
    _exited: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._budget = Budget(self._options.budget, self._options.price)

    @property
    def progress(self) -> Progress:
        """Progress of the batch now."""
        self._entered()
        eta = self._newest.eta if self._newest else None
        return self._counter.progress(asyncio.get_running_loop().time(), newest_eta=eta.median if eta else None)

    @property
    def tasks_running(self) -> int:
        """Number of tasks that were created and have not ended. Requests that wait to be sent do not count."""
        return len(self._in_flight) - len(self._submitting)

    async def updates(self) -> AsyncGenerator[Progress, None]:
        """Yield the progress now, after changes, and at the end.

        A slow consumer skips intermediate values.
        """
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
        if self._reader:
            raise SessionClosedError("This batch was opened before.", hint="Call `create_many` again.")
        loop = asyncio.get_running_loop()
        total = len(self._options.requests) if isinstance(self._options.requests, Sized) else None
        self._counter = ProgressCounter(began=loop.time(), total=total)
        self._reader = loop.create_task(self._read_requests(), name="sora_chars batch")
        self._reader.add_done_callback(lambda _: self._notify())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop submitting, without waiting for tasks in flight."""
        reader = self._entered()
        self._exited = True
        asyncio_tasks = (reader, *self._submitting)
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
            self._notify()
        reader_error = None if reader.cancelled() else reader.exception()
        if reader_error and error is None and not self._reader_error_raised:
            raise reader_error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        reader = self._entered()
        while not self._unread:
            if self._finished():
                if not (self._exited or self._reader_error_raised):
                    self._reader_error_raised = True
                    reader.result()  # raises what iterating the requests raised
                raise StopAsyncIteration
            await self._changed.wait()
        outcome = self._unread.popleft()
        self._notify()
        return outcome

    def _entered(self) -> asyncio.Task[None]:
        """Return the asyncio task that reads the requests, if the batch was entered."""
        if self._reader is None:
            raise SessionClosedError("This batch is not open. Nothing was sent.", hint="Use it inside `async with`.")
        return self._reader

    def _finished(self) -> bool:
        return self._exited or (self._entered().done() and not self._in_flight)

    def _notify(self) -> None:
        """Wake every waiter for a change; each checks its own condition."""
        self._changed.set()
        self._changed.clear()

    async def _read_requests(self) -> None:
        """Read each request when it can be submitted; raise what iterating them raises."""
        flow.set(object())  # inherited by all asyncio tasks that start here and may outlive the batch
        index = 0
        async with aclosing(_iterate(self._options.requests)) as rows:
            while await self._wait_for_capacity():
                row = await anext(rows, _EXHAUSTED)
                if row is _EXHAUSTED:
                    self._counter.total = index
                    return
                await self._process(index, row)
                index += 1

    async def _wait_for_capacity(self) -> bool:
        """Wait until another request may be read; False if submitting has stopped."""
        while not self.stopped and (
            len(self._in_flight) >= self._options.concurrency
            or len(self._unread) >= self._options.concurrency  # back-pressure of a slow consumer
            or len(self._submitting) >= self._options.submit_concurrency
        ):
            await self._changed.wait()
        return not self.stopped

    async def _process(self, index: int, row: Any) -> None:
        now = asyncio.get_running_loop().time()
        try:
            item = _new_item(index, row, now)
            is_affordable = await self._wait_for_budget(item)
        except Exception as error:  # noqa: BLE001 # the border: the caller's row or price function may raise anything
            self._counter.count_registered(now)
            self._emit(Outcome(index=index, request=row, state=EntryState.REJECTED, error=error), began=None)
            return
        if is_affordable:
            item.began = asyncio.get_running_loop().time()
            self._counter.count_registered(item.began)
            self._in_flight.add(item)
            asyncio_task = asyncio.create_task(self._submit(item), name=f"sora_chars batch {item.request.key}")
            self._submitting.add(asyncio_task)
            asyncio_task.add_done_callback(self._on_submitted)

    async def _wait_for_budget(self, item: _Item) -> bool:
        """Reserve the item's cost once the budget allows it; False if submitting has stopped."""
        if self._options.budget is not None:
            # Not `+= await`, which would lose the costs that are recorded during the wait.
            cost_before = await self._options.cost_before(item.request)
            self._budget.spent += cost_before
        while not self.stopped:
            item.cost = self._budget.expected_cost(item.request)
            match self._budget.decide(item.cost, in_flight=bool(self._in_flight)):
                case "go":
                    self._budget.reserve(item.cost)
                    return True
                case "wait":
                    await self._changed.wait()
                case reason:
                    self.stopped = reason
        return False

    async def _submit(self, item: _Item) -> None:
        try:
            item.handle = await self._options.start(item.request, item.provider)
            self._newest = item.handle
            item.handle.add_done_callback(partial(Batch._finish, self, item))
        except Exception as error:  # noqa: BLE001 # the border: one failure must not stop the others
            if isinstance(error, SessionClosedError):
                self.stopped = "closed"
            self._finish(item, error=error)
        else:
            if self._options.timeout != math.inf:
                self._deadlines[item] = asyncio.get_running_loop().time() + self._options.timeout
                if self._timer is None:
                    self._expire_waits()

    def _on_submitted(self, asyncio_task: asyncio.Task[None]) -> None:
        self._submitting.discard(asyncio_task)
        self._notify()

    def _expire_waits(self) -> None:
        """Finish the items whose time-out has passed.

        All time-outs are equally long, so one timer for the earliest serves them all.
        """
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._deadlines and self._timer is None:
            item, deadline = next(iter(self._deadlines.items()))
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._expire_waits)
            else:
                self._finish(item)

    def _finish(self, item: _Item, _: object = None, *, error: Exception | None = None) -> None:
        """Record that a task ended, could not be submitted, or timed out."""
        if item not in self._in_flight:  # it timed out before, or the batch was exited
            return
        self._in_flight.remove(item)
        self._deadlines.pop(item, None)
        outcome = _outcome_of(item, error)
        if isinstance(outcome.error, _ACCOUNT_ERRORS):
            self.stopped = "account"
            self.rejection = outcome.error
        is_unproven = isinstance(outcome.error, SoraCharsError) and outcome.error.may_have_been_paid
        state = EntryState.UNKNOWN if is_unproven and outcome.state is EntryState.REJECTED else outcome.state
        self._budget.record_cost(item.cost, outcome.credits, state)
        self._emit(outcome, began=None if item.handle and item.handle.from_ledger else item.began)

    def _emit(self, outcome: Outcome, *, began: float | None) -> None:
        if outcome.error and not isinstance(outcome.error, SoraCharsError):
            log.error("batch.broken", exc_info=outcome.error, extra={"index": outcome.index, "key": outcome.key})
        now = asyncio.get_running_loop().time()
        self._counter.count_ended(outcome.state, outcome.credits, began=began, now=now)
        self._unread.append(outcome)
        self._notify()


async def _iterate(requests: Rows) -> AsyncGenerator[Any, None]:
    if isinstance(requests, AsyncIterable):
        async for row in requests:
            yield row
    else:
        for row in requests:
            yield row


def _new_item(index: int, row: Any, now: float) -> _Item:
    """Convert a row to a request with a key, by which its outcome can be identified."""
    provider = None
    if isinstance(row, Mapping):
        fields = dict(row)
        provider = fields.pop("provider", None)
        row = of_row(fields)
    request = as_request(row, {})
    keyed = request if request.key else attrs.evolve(request, key=new_key())
    return _Item(index, request, keyed, provider, now)


def _outcome_of(item: _Item, error: Exception | None) -> Outcome:
    handle = item.handle
    result: Any = None
    if handle:
        try:
            result = handle.outcome()
        except Exception as caught:  # noqa: BLE001 # the border: it becomes the outcome's error
            error = caught
    return Outcome(
        index=item.index,
        request=item.given,
        state=state_of(error, waiting=handle is not None),
        key=item.request.key,
        provider=handle.provider if handle else getattr(error, "provider", None) or item.provider,
        task_id=handle.task_id if handle else getattr(error, "task_id", None),
        character=result if isinstance(result, Character) else None,
        snapshot=handle.snapshot if handle else getattr(error, "snapshot", None),
        error=error,
    )
