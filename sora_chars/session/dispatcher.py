"""Where wishes are taken up: the ledger is asked, one provider is chosen, and a handle is made.

What is under way here is carried through, whatever becomes of the caller.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sora_chars.errors import (
    ConfigurationError,
    InvalidCallbackError,
    InvalidRequestError,
    LedgerError,
    MissingCharacterError,
    ProviderError,
    SessionClosedError,
    TaskNotFoundError,
    printable,
)
from sora_chars.ids import new_key
from sora_chars.ledger import EntryState
from sora_chars.ledger.serialize import find, is_of_another, mark_orphaned, to_record, to_request
from sora_chars.models import Character, TaskRequest, TaskSnapshot
from sora_chars.polling.handle import HandleContext, TaskHandle
from sora_chars.polling.watched_task import wait_until_done

from .submission import Submission, not_sent
from .tracker import TaskTracker
from .writer import LedgerWriter

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request
    from sora_chars.polling.watched_task import OnFinished, WatchedTask
    from sora_chars.polling.watcher import TaskWatcher
    from sora_chars.protocols import Provider

    from .pictures import Pictures

T = TypeVar("T")

log = logging.getLogger("sora_chars.session")

_MOST_ASKED = 64  # at once, so that thousands do not all go on in one turn of the event loop
_AGAIN = 5.0  # seconds after which a step that came too early, or met a fault, is worth another


@attrs.frozen
class Step:
    """What `CharacterSession.advance` found: the entry as it is now, and when to call again.

    `retry_in`: seconds; None when nothing is left to do for this key.
    """

    entry: Entry
    retry_in: float | None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.retry_in is None


@attrs.define(eq=False, repr=False)
class Dispatcher:
    """The inner workings of one opening of a session. `wait`: seconds a wait lasts unless told otherwise."""

    providers: Sequence[Provider]
    ledger: Ledger
    watcher: TaskWatcher
    timeout: float
    pictures: Pictures | None = None
    closing: bool = False
    closed: asyncio.Future[None] = attrs.field(init=False)
    on_finished: tuple[OnFinished, ...] = attrs.field(init=False)  # shared by all tasks of the session
    _writer: LedgerWriter = attrs.field(init=False)
    _tracker: TaskTracker = attrs.field(init=False)
    _asking: asyncio.Semaphore = attrs.field(factory=partial(asyncio.Semaphore, _MOST_ASKED))
    _submissions: dict[asyncio.Task[Any], Submission] = attrs.field(factory=dict["asyncio.Task[Any]", Submission])

    def __attrs_post_init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._writer = LedgerWriter(self.ledger)
        self.on_finished = (self._settle_task,)
        self._tracker = TaskTracker(self.ledger, self.watcher, self.on_finished)

    async def aclose(self, shutdown_timeout: float) -> None:
        """Carry through what was sent, for up to `shutdown_timeout` seconds, and write down what can be."""
        self.closing = True  # nothing new begins while the last answers come
        self.closed.set_result(None)
        async with AsyncExitStack() as closing:  # all of it, also when one of them is cancelled
            closing.push_async_callback(self._writer.aclose)
            closing.push_async_callback(self.watcher.aclose)
            closing.push_async_callback(self._tracker.aclose)
            await self._finish_submissions(shutdown_timeout)

    async def register(self, request: Request, provider: str | None) -> Submission:
        """Put a wish on record, or find it there."""
        async with self._asking:
            chosen = self._choose(request, provider)
            kind, record = to_record(request)
            key = request.key or new_key()
            try:
                entry = await self.ledger.register(key=key, provider=chosen.name, kind=kind, request=record)
            except LedgerError as error:
                raise not_sent(error, key) from error
            return self._submission(chosen, request, entry)

    async def submit(self, submission: Submission) -> TaskHandle[Any]:
        """Send if need be, and return a live handle."""
        return await self._through(submission, self._carry(submission))

    async def advance(self, entry: Entry) -> Step:
        """The next step of an entry; see `CharacterSession.advance`."""
        entry = await mark_orphaned(self.ledger, entry)
        match entry.state:
            case EntryState.PENDING | EntryState.UNKNOWN:  # the latter only raises
                return await self._advance_wish(entry)
            case EntryState.RUNNING:
                return await self._advance_task(entry)
            case EntryState.SENDING:
                return Step(entry, _AGAIN)
            case _:
                return Step(entry, None)

    async def recover(self, entry: Entry) -> TaskHandle[Any] | None:
        """A live handle if its task runs, at a provider that is here; what is in doubt or left alone is logged."""
        entry = await mark_orphaned(self.ledger, entry)
        facts = {"provider": entry.provider, "key": entry.key}
        if entry.state is EntryState.UNKNOWN:
            log.warning("recovery.unknown", extra=facts)
        elif entry.state is EntryState.RUNNING:
            if any(provider.name == entry.provider for provider in self.providers):
                return await self.handle(entry)
            log.warning("recovery.no_provider", extra=facts)
        return None

    async def handle_callback(self, entry: Entry, task_id: str) -> None:
        """Take a callback that bears the token of `entry` and names `task_id`; a nudge, that repairs a lost answer.

        Raises:
            InvalidCallbackError: the task was asked for under another token.
            ProviderError: the provider does not confirm the task (yet).
            ConfigurationError: there is no such provider here.
            LedgerError: the ledger could not be read or written.
        """
        if self.watcher.nudge(entry.provider, task_id):
            return
        provider = self.provider(entry.provider)
        if entry.task_id is None and entry.state is not EntryState.FAILED:
            snapshot = await provider.fetch(task_id)  # the sender's word is not enough for what will count as paid
            if is_of_another(snapshot, entry.token_digest):
                raise InvalidCallbackError("Callback refused: its token belongs to another task.", status=401)
            entry = await self._writer.record(entry, EntryState.RUNNING, task_id=task_id)
        if entry.state is EntryState.RUNNING and entry.task_id == task_id:
            await self._tracker.join(provider, entry)
            self.watcher.nudge(entry.provider, task_id)

    async def handle(
        self, entry: Entry, *, request: Request | None = None, snapshot: TaskSnapshot | None = None
    ) -> TaskHandle[Any]:
        """A live handle of an entry that runs or has ended; `snapshot` is what its submission has just brought."""
        request = request or to_request(entry)
        provider = self.provider(entry.provider)
        watch = await self._tracker.join(provider, entry, snapshot)
        return TaskHandle(
            task_id=watch.task_id,
            provider=provider.name,
            key=entry.key,
            name=None if isinstance(request, TaskRequest) else request.name,
            wants=TaskSnapshot if isinstance(request, TaskRequest) else Character,
            context=self.live(provider, watch),
        )

    def live(self, provider: Provider, watch: WatchedTask) -> HandleContext:
        """What a handle borrows."""
        return HandleContext(watch, provider, self.watcher, self.timeout)

    def provider(self, name: str | None) -> Provider:
        """The provider named, else the first that has tasks, else the first.

        Raises:
            ConfigurationError: there is none of that name.
        """
        if name is None:
            return next((provider for provider in self.providers if not provider.synchronous), self.providers[0])
        for provider in self.providers:
            if provider.name == name:
                return provider
        names = ", ".join(provider.name for provider in self.providers)
        raise ConfigurationError(f"provider: must be one of {names}, got {printable(name)!r}.")

    def _choose(self, request: Request, name: str | None) -> Provider:
        reasons: list[str] = []
        for provider in self.providers if name is None else (self.provider(name),):
            problems = provider.check(request)
            if not problems:
                return provider
            reasons += [f"{provider.name}: {problem}" for problem in problems]
        raise InvalidRequestError(f"Nothing was sent. {'; '.join(reasons)}.", problems=tuple(reasons))

    def _submission(self, provider: Provider, request: Request, entry: Entry, *, watched: bool = True) -> Submission:
        return Submission(
            provider=provider,
            request=request,
            entry=entry,
            ledger=self.ledger,
            writer=self._writer,
            patience=self.timeout,
            watched=watched,
        )

    async def _settle_task(self, outcome: TaskSnapshot | MissingCharacterError) -> None:
        await self._writer.settle(outcome.provider, outcome)
        if isinstance(outcome, TaskSnapshot):
            self._keep_picture(outcome)

    def _keep_picture(self, snapshot: TaskSnapshot) -> asyncio.Task[object] | None:
        if self.pictures and snapshot.character:
            return self._writer.start(self.pictures.save(snapshot.character))
        return None

    async def _picture_of(self, snapshot: TaskSnapshot) -> None:
        if saving := self._keep_picture(snapshot):
            await asyncio.wait((saving,))

    async def _carry(self, submission: Submission) -> TaskHandle[Any]:
        snapshot = await submission.run()
        if snapshot:
            self._keep_picture(snapshot)  # of a synchronous provider
        return await self.handle(submission.entry, request=submission.request, snapshot=snapshot)

    async def _through(self, submission: Submission, way: Coroutine[Any, Any, T]) -> T:
        """Give `way` an asyncio task of its own, and wait for it: once sent, no caller's end stops it."""
        if self.closing:
            way.close()
            raise submission.cut_off()
        carrier = asyncio.create_task(way, name=f"sora_chars submit {submission.entry.key}")
        self._submissions[carrier] = submission
        carrier.add_done_callback(self._submissions.pop)
        try:
            await wait_until_done(carrier)
        except asyncio.CancelledError:
            if not submission.sent:
                carrier.cancel()
            carrier.add_done_callback(partial(_log_orphan, submission))
            raise
        if carrier.cancelled():  # a caller that nobody cancelled must not look as if it were
            raise submission.cut_off()
        return carrier.result()

    async def _advance_wish(self, entry: Entry) -> Step:
        provider = self.provider(entry.provider)
        submission = self._submission(provider, to_request(entry), entry, watched=False)
        try:
            snapshot = await self._through(submission, submission.run())
        except ProviderError as error:
            if submission.entry.state is EntryState.REJECTED:
                return Step(submission.entry, None)
            if not error.transient:
                raise
            return Step(submission.entry, error.retry_after or _AGAIN)
        if snapshot:
            await self._picture_of(snapshot)
        running = submission.entry.state is EntryState.RUNNING
        return Step(submission.entry, self.watcher.polling.delay(snapshot, 0.0) if running else None)

    async def _advance_task(self, entry: Entry) -> Step:
        provider, task_id = self.provider(entry.provider), entry.task_id or ""
        try:
            seen: TaskSnapshot | MissingCharacterError = await provider.fetch(task_id)
        except MissingCharacterError as error:
            seen = error
        except ProviderError as error:
            if not (error.transient or isinstance(error, TaskNotFoundError)):
                raise
            return Step(entry, error.retry_after or _AGAIN)
        if isinstance(seen, TaskSnapshot) and not seen.finished:
            age = max(0.0, self.watcher.clock() - (seen.created_at or entry.created_at))
            return Step(entry, seen.retry_after or self.watcher.polling.delay(seen, age))
        if self.closing:  # nothing is written any more
            raise SessionClosedError(f"The session was closed before the end of key {entry.key} was on record.")
        await self._writer.settle(provider.name, seen)
        if isinstance(seen, TaskSnapshot):
            age = seen.duration or 0.0
            self.watcher.observe(seen, age, age)
            await self._picture_of(seen)
        entry = await find(self.ledger, entry.key)
        return Step(entry, _AGAIN if entry.state is EntryState.RUNNING else None)

    async def _finish_submissions(self, shutdown_timeout: float) -> None:
        for carrier, submission in list(self._submissions.items()):
            if not submission.sent:
                carrier.cancel()
        try:
            if self._submissions:
                await asyncio.wait(self._submissions, timeout=shutdown_timeout)
        finally:
            late = list(self._submissions)
            for carrier in late:
                carrier.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _log_orphan(submission: Submission, carrier: asyncio.Task[Any]) -> None:
    """Nobody is left to hear how it ended, so the log does: an id that was paid for is never lost."""
    facts = {"provider": submission.provider.name, "key": submission.entry.key}
    if carrier.cancelled():
        log.log(
            logging.ERROR if submission.sent else logging.INFO,
            "submission.cancelled",
            extra=facts | {"sent": submission.sent},
        )
    elif error := carrier.exception():
        log.error("submission.failed", extra=facts | {"error": printable(error)})
    else:
        log_outlived(submission.entry)


def log_outlived(entry: Entry | TaskHandle[Any]) -> None:
    """Say which task runs on without anybody who waits for it."""
    facts = {"provider": entry.provider, "key": entry.key, "task_id": entry.task_id}
    log.warning("submission.outlived_its_caller", extra=facts)
