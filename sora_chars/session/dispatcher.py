"""Takes requests: registers each in the ledger, chooses its provider, sends it, and returns its handle.

What has been sent is carried through, even if the caller is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import (
    ConfigurationError,
    InvalidCallbackError,
    InvalidRequestError,
    LedgerError,
    MissingCharacterError,
    WaitTimeoutError,
    printable,
)
from sora_chars.ids import is_id, new_key
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import echoes_other_token, to_record, to_request
from sora_chars.logs import event_logger
from sora_chars.models import Character, CharacterRequest, TaskRequest, TaskSnapshot, Voice, VoiceRequest
from sora_chars.observers import UNOBSERVED, Observation, Observers, observation
from sora_chars.polling.handle import HandleContext, TaskHandle
from sora_chars.polling.watched_task import wait_until_done
from sora_chars.timeouts import submit_deadline

from .choosing import first_serving
from .learning import train
from .orphans import log_orphan
from .owner_checks import OwnerChecks
from .settling import Settlement
from .streaming import EventStreams
from .submission import Submission, not_sent
from .tracker import TaskTracker
from .videos import CutVideos
from .writer import LedgerWriter, log_second_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request
    from sora_chars.polling.watched_task import WatchedTask
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider

    from .pictures import Pictures

log = event_logger("sora_chars.session")

_ENDED = {EntryState.SUCCEEDED, EntryState.FAILED}
_WANTED = {CharacterRequest: Character, TaskRequest: TaskSnapshot, VoiceRequest: Voice}  # the results of requests
_REGISTER_CONCURRENCY = 64  # keeps thousands of requests from continuing in one iteration of the event loop


@attrs.define(eq=False, repr=False)
class Dispatcher:
    """The parts of an open session, from its opening to its closing.

    Attributes:
        providers: The providers of the session, in the order in which they are tried.
        ledger: Where requests are recorded.
        watcher: Polls the tasks.
        timeout: Seconds to wait for a task unless a call says otherwise.
        pictures: Saves profile pictures, if they are kept.
        videos: Cuts the videos of requests to what their providers take.
        observers: Those who observe the session.
        writer: Records answers and results.
        streams: The events of the session, for those who iterate over them.
        owner_checks: The checks of whether other processes have ended.
        closing: Whether the session takes no more requests.
        closed: Done once the session is closing.
    """

    providers: Sequence[Provider]
    ledger: Ledger
    watcher: TaskWatcher
    timeout: float
    pictures: Pictures | None = None
    videos: CutVideos = attrs.field(factory=CutVideos)
    observers: Observers = UNOBSERVED
    writer: LedgerWriter = attrs.field(init=False)
    streams: EventStreams = attrs.field(init=False)
    owner_checks: OwnerChecks = attrs.field(init=False)
    closing: bool = False
    closed: asyncio.Future[None] = attrs.field(init=False)
    _opened: AsyncExitStack = attrs.field(init=False)
    _tracker: TaskTracker = attrs.field(init=False)
    _registering: asyncio.Semaphore = attrs.field(factory=partial(asyncio.Semaphore, _REGISTER_CONCURRENCY))
    _submissions: dict[asyncio.Task[Any], Submission] = attrs.field(factory=dict)
    _is_patient: bool = True

    def __attrs_post_init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.writer = LedgerWriter(self.ledger)
        self.owner_checks = OwnerChecks(self.ledger)
        self.streams = EventStreams(self.observers, self.ledger)
        on_finished = (self.writer.record_result, self._on_finished)
        self._tracker = TaskTracker(self.ledger, self.watcher, on_finished, self.observers)

    @property
    def responses_awaited(self) -> int:
        """How many requests were sent and have no recorded outcome yet."""
        return sum(submission.sent for submission in self._submissions.values())

    async def open(self) -> None:
        """Open the ledger and the providers, share their limits, and train the polling strategy."""
        async with AsyncExitStack() as stack:
            if not self.ledger.is_open:
                await stack.enter_async_context(self.ledger)
            for provider in self.providers:
                await stack.enter_async_context(provider)
                if self.ledger.quota_store:
                    from sora_chars.ratelimit.distributed import shared  # noqa: PLC0415 # few ledgers share limits

                    await stack.enter_async_context(shared(provider.account, self.ledger.quota_store))
            await train(self.watcher.polling, self.ledger)
            self._opened = stack.pop_all()

    async def aclose(self, shutdown_timeout: float) -> None:
        """Wait up to `shutdown_timeout` seconds for answers, record them, and close what `open` opened."""
        self.closing = True  # no request begins while the last answers arrive
        self.closed.set_result(None)
        async with AsyncExitStack() as stack:  # runs every callback, even if one of them is cancelled
            stack.push_async_callback(self._opened.aclose)
            stack.push_async_callback(self.videos.aclose)
            stack.push_async_callback(self.streams.aclose)
            stack.push_async_callback(self.owner_checks.aclose)
            stack.push_async_callback(self.writer.aclose)
            stack.push_async_callback(self.watcher.aclose)
            stack.push_async_callback(self._tracker.aclose)
            await self._finish_submissions(shutdown_timeout)

    async def register(self, request: Request, provider: str | None) -> Submission:
        """Record a request, or find it on record."""
        async with self._registering:
            chosen = self.choose(request, provider)
            kind, record = to_record(request)
            key = request.key or new_key()
            try:
                meta = self.observers.meta() if self.observers.listening else None
                entry = await self.ledger.register(key=key, provider=chosen.name, kind=kind, request=record, meta=meta)
            except LedgerError as error:
                if observed := observation.get():
                    observed.ledger_failed(printable(error))
                raise not_sent(error, key, chosen.name) from error
            return self.submission(chosen, request, entry, on_recorded=self.handle_of)

    async def submit(self, request: Request, provider: str | None, *, deadline: float = math.inf) -> TaskHandle[Any]:
        """Register a request, send it unless it was sent before, and return a live handle.

        Raises:
            WaitTimeoutError: `deadline`, a loop time, passed before the request was sent.
        """
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                submission = await self.register(request, provider)
        except TimeoutError as error:
            raise WaitTimeoutError(
                "The request was not recorded in the ledger within the time-out.",
                hint="Nothing was sent. Call again with the same key.",
                key=request.key,
                provider=provider,
            ) from error
        handle: TaskHandle[Any] = await self.carry_through(submission, deadline=deadline)
        return handle

    async def handle_callback(
        self, entry: Entry, task_id: str, digest: str | None, *, settle_only: bool = False
    ) -> None:
        """Poll the task that a callback names. The callback carries a token of `entry`, which has this digest.

        A callback whose create was never answered names the task; the entry records it once the provider confirms it.
        The token may be that of an earlier attempt. With `settle_only` the task is polled once and not watched.

        Raises:
            InvalidCallbackError: The task was requested under another token.
            ProviderError: The provider does not confirm the task, or not yet.
            ConfigurationError: The session has no such provider.
            LedgerError: The ledger could not be read or written.
        """
        is_late = task_id != entry.task_id and task_id in {one.task_id for one in await self.ledger.attempts(entry.key)}
        if is_late or self.watcher.nudge(entry.provider, task_id):  # late: an earlier attempt has ended with the task
            return
        provider = self.provider(entry.provider)
        snapshot: TaskSnapshot | None = None
        if entry.task_id is None and entry.state is not EntryState.FAILED:
            snapshot = await provider.fetch(task_id)  # the sender's claim alone must not count as paid
            if echoes_other_token(snapshot, digest):
                raise InvalidCallbackError("Callback rejected: its token belongs to another task.", status=401)
            entry = await self.writer.record_answer(entry, EntryState.RUNNING, task_id=task_id, claim=not settle_only)
        if entry.state is EntryState.RUNNING and entry.task_id == task_id:
            if settle_only:
                await self._settle_once(provider, task_id, snapshot)
                return
            # Not in the context of the callback's web request, which does not wait for the owner of a task.
            await self._tracker.join(provider, entry, context=Context(), claims=False)
            self.watcher.nudge(entry.provider, task_id)
        elif entry.task_id != task_id:
            log_second_task(entry, task_id)

    async def _settle_once(self, provider: Provider, task_id: str, snapshot: TaskSnapshot | None) -> None:
        """Poll a task once, unless it was just now, and record its end."""
        try:
            outcome: TaskSnapshot | MissingCharacterError = snapshot or await provider.fetch(task_id)
        except MissingCharacterError as error:
            outcome = error
        if observed := observation.get():
            observed.woken_by = "callback"
            observed.completed_at = None if isinstance(outcome, MissingCharacterError) else outcome.completed_at
        if isinstance(outcome, MissingCharacterError) or outcome.finished:
            await self.writer.record_result(outcome)
            await self._on_finished(outcome)

    async def handle(
        self,
        entry: Entry,
        *,
        request: Request | None = None,
        snapshot: TaskSnapshot | None = None,
        context: Context | None = None,
    ) -> TaskHandle[Any]:
        """Return a live handle of an entry that is running or has ended.

        `snapshot` and `context` are those of its submission.
        """
        request = request or to_request(entry)
        provider = self.provider(entry.provider)
        self.writer.remember(entry)
        task = await self._tracker.join(provider, entry, snapshot, context=context)
        return TaskHandle(
            task_id=task.task_id,
            provider=provider.name,
            key=entry.key,
            name=None if isinstance(request, TaskRequest) else request.name,
            wants=_WANTED[type(request)],
            context=self.context(provider, task, entry.key, from_ledger=snapshot is None and entry.state in _ENDED),
        )

    def resume(self, task: str | TaskHandle[Any], provider: str | None, key: str | None) -> TaskHandle[Any]:
        """Return a live handle of a task, by its id or by a handle that belongs to no session."""
        if not isinstance(task, TaskHandle):
            given: object = task  # callers without a type checker pass anything
            task = given.strip() if isinstance(given, str) else ""
            if not is_id(task):
                raise InvalidRequestError(f"task_id: must be the id of a task, got {printable(repr(given), limit=60)}.")
            task = TaskHandle(task_id=task, provider=self.provider(provider).name, key=key or new_key())
        else:
            key = task.key
        owner = self.provider(task.provider)
        watched = self.watcher.watch(
            owner, task.task_id, on_finished=self._tracker.on_finished, key=key, observers=self.observers
        )
        return task.attach(self.context(owner, watched, key))

    def context(
        self, provider: Provider, task: WatchedTask, key: str | None, *, from_ledger: bool = False
    ) -> HandleContext:
        """Return what a live handle needs of this session."""
        return HandleContext(task, provider, self.watcher, self.timeout, key, from_ledger)

    def provider(self, name: str | None) -> Provider:
        """Return the provider of that name; for None the first one that has tasks, else the first.

        Raises:
            ConfigurationError: The session has no such provider.
        """
        if name is None:
            return next((provider for provider in self.providers if not provider.synchronous), self.providers[0])
        for provider in self.providers:
            if provider.name == name:
                return provider
        names = ", ".join(provider.name for provider in self.providers)
        raise ConfigurationError(f"provider: must be one of {names}, got {printable(name)!r}.")

    def submission(
        self,
        provider: Provider,
        request: Request,
        entry: Entry,
        *,
        on_recorded: Callable[[Submission, TaskSnapshot | None], Awaitable[Any]],
        claims_task: bool = True,
    ) -> Submission:
        """Return the submission of a registered request; `carry_through` runs it."""
        return Submission(
            provider=provider,
            request=request,
            entry=entry,
            ledger=self.ledger,
            writer=self.writer,
            videos=self.videos,
            timeout=self.timeout,
            on_recorded=on_recorded,
            claims_task=claims_task,
            settlement=self.settlement(provider, claims_task=claims_task),
        )

    def settlement(self, provider: Provider, *, claims_task: bool = True) -> Settlement | None:
        """Return what asks a provider for the task of a lost response; None if it cannot be asked."""
        if provider.settles is None:
            return None
        return Settlement(provider, self.ledger, self.writer, self.closed, claims_task)

    async def carry_through(self, submission: Submission, *, deadline: float = math.inf) -> Any:
        """Run a submission in an asyncio task of its own: once it has sent, no caller's cancellation stops it.

        Until then it ends at `deadline`, a loop time.
        """
        if self.closing:
            raise submission.interrupted()
        submission.context = context = copy_context()
        if self.observers.listening:
            observed = Observation(self.observers, submission.entry.key, submission.provider.name, polls=0)
            context.run(observation.set, observed)
        if deadline < math.inf:
            context = context.copy()  # the deadline is none of the polls'
            context.run(submit_deadline.set, deadline)
        asyncio_task = asyncio.create_task(
            submission.run(), name=f"sora_chars submit {submission.entry.key}", context=context
        )
        self._submissions[asyncio_task] = submission
        asyncio_task.add_done_callback(self._submissions.pop)
        if deadline < math.inf:
            timer = asyncio_task.get_loop().call_at(deadline, submission.expire, asyncio_task)
            asyncio_task.add_done_callback(lambda _: timer.cancel())
        try:
            await wait_until_done(asyncio_task)
        except asyncio.CancelledError:
            if not submission.sent:
                asyncio_task.cancel()
            asyncio_task.add_done_callback(partial(log_orphan, submission))
            raise
        if asyncio_task.cancelled():  # the caller was not cancelled, so it must not see a CancelledError
            raise submission.interrupted()
        return asyncio_task.result()

    async def saved_picture(self, snapshot: TaskSnapshot) -> None:
        """Save the profile picture of a new character, if pictures are kept, and wait until it is saved."""
        if saving := self._save_picture(snapshot):
            await asyncio.wait((saving,))

    async def _on_finished(self, outcome: TaskSnapshot | MissingCharacterError) -> None:
        if isinstance(outcome, TaskSnapshot):
            self._save_picture(outcome)

    def _save_picture(self, snapshot: TaskSnapshot) -> asyncio.Task[object] | None:
        if self.pictures and snapshot.character:
            return self.writer.start(self.pictures.save(snapshot.character))
        return None

    async def handle_of(self, submission: Submission, snapshot: TaskSnapshot | None) -> TaskHandle[Any]:
        """Return the live handle of a submission that is on record."""
        if snapshot:
            self._save_picture(snapshot)  # of a synchronous provider
        return await self.handle(
            submission.entry, request=submission.request, snapshot=snapshot, context=submission.context
        )

    def choose(self, request: Request, name: str | None) -> Provider:
        """Return the provider of that name, or else the first, that can serve the request.

        Raises:
            InvalidRequestError: None can; the error lists the reasons of each.
            ConfigurationError: The session has no such provider.
        """
        return first_serving(self.providers if name is None else (self.provider(name),), request)

    def stop_waiting(self) -> None:
        """End the wait of `aclose` for responses, now or when it begins. Their outcomes are recorded as unknown."""
        self._is_patient = False
        for asyncio_task in self._submissions:
            asyncio_task.cancel()

    async def _finish_submissions(self, shutdown_timeout: float) -> None:
        for asyncio_task, submission in list(self._submissions.items()):
            if not submission.sent:
                asyncio_task.cancel()
        try:
            if self._submissions:
                await asyncio.wait(self._submissions, timeout=shutdown_timeout if self._is_patient else 0.0)
        finally:
            late = list(self._submissions)
            for asyncio_task in late:
                asyncio_task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
