"""The session manager: owns the connections, drives the providers' coroutines, hands out handles."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import attrs

from .errors import (
    ConfigurationError,
    InvalidRequestError,
    NoAnswerError,
    SessionClosedError,
    SoraCharsError,
    SubmissionUnknownError,
    WrongLoopError,
    printable,
)
from .handle import Live, TaskHandle
from .models import Character, CharacterRequest, OmniCharacterRequest, TaskRequest, TaskSnapshot, new_key
from .pacing import LadderPace
from .tokens import CallbackTokens
from .watcher import TaskWatcher, Watch

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .models import ModelInfo, Request
    from .protocols import Pace, Provider

log = logging.getLogger("sora_chars.session")

_DRAIN = 30.0


@attrs.define(eq=False)
class _Submission:
    """One paid request on its way. It has an asyncio task of its own, so that no caller's end can lose the answer."""

    provider: Provider
    request: Request
    key: str
    token: str | None
    sent: bool = False

    async def sending(self) -> None:
        """From here on the request may arrive: nothing cancels it any more."""
        self.sent = True

    async def run(self) -> TaskSnapshot:
        """Send.

        Raises:
            SubmissionUnknownError: the outcome is unknown.
        """
        base = self.provider.callback_url
        url = f"{base}/{self.token}" if self.token else None
        try:
            return await self.provider.submit(self.request, callback_url=url, sending=self.sending)
        except NoAnswerError as error:
            if error.harmless or not self.sent:
                raise
            raise self._unknown(error.message) from error

    def cut_off(self) -> SoraCharsError:
        """What a caller is told whose session was closed meanwhile."""
        if self.sent:
            return self._unknown("the session was closed before an answer came.")
        return SessionClosedError("The session was closed before this request was sent. Nothing was sent.")

    def _unknown(self, why: str) -> SubmissionUnknownError:
        return SubmissionUnknownError(
            f"Nobody knows whether {self.provider.name} made this character (key {self.key}): {why}",
            hint="It may exist and be charged, so it is not sent again by itself: look at the provider's own task "
            "list first, and ask anew only if it is not there.",
            provider=self.provider.name,
            key=self.key,
        )


class CharacterSession:
    """Makes characters through one or more providers. Use it inside `async with`, in one event loop.

    `pace`: when to poll (kie.ai's documented ladder). `wait`: seconds a wait lasts unless told otherwise. `drain`:
    seconds that closing waits for the answers of requests already sent. `watcher`: a `TaskWatcher` of your own.

    Raises:
        ConfigurationError: no provider, or two of the same name.
    """

    def __init__(
        self,
        *providers: Provider,
        pace: Pace | None = None,
        wait: float = 1800.0,
        drain: float = _DRAIN,
        watcher: TaskWatcher | None = None,
    ) -> None:
        names = [provider.name for provider in providers]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"providers: one or more with different names are needed, got {names}.")
        self.providers = providers
        self.wait = wait
        self.watcher = watcher or TaskWatcher(pace=pace or LadderPace())
        self.tokens = CallbackTokens()
        self._drain = drain
        self._submissions: dict[asyncio.Task[TaskHandle[Any]], _Submission] = {}
        self.closed: asyncio.Future[None]  # since `open`; done when the session is closed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Open the connections, where `async with` is not at hand; `aclose` closes them.

        Raises:
            SessionClosedError: the session is open already.
        """
        if self._loop:
            self.check_open()
            raise SessionClosedError("This session is open already.")
        async with AsyncExitStack() as stack:
            for provider in self.providers:
                await stack.enter_async_context(provider)
            self._stack = stack.pop_all()
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        return self

    async def aclose(self) -> None:
        """Close everything. Requests already sent get `drain` seconds for their answers; waiters hear why they end."""
        if self._loop is None:
            return
        self.check_open()
        self._loop = None  # nothing new begins while the last answers come
        self.closed.set_result(None)
        try:
            await self._finish_submissions()
        finally:
            await self.watcher.aclose()
            await self._stack.aclose()

    @overload
    async def submit(self, request: TaskRequest, /, *, provider: str | None = None) -> TaskHandle[TaskSnapshot]: ...
    @overload
    async def submit(
        self, request: CharacterRequest | OmniCharacterRequest, /, *, provider: str | None = None
    ) -> TaskHandle[Character]: ...
    @overload
    async def submit(self, /, *, provider: str | None = None, **fields: Any) -> TaskHandle[Character]: ...
    async def submit(
        self, request: Request | None = None, /, *, provider: str | None = None, **fields: Any
    ) -> TaskHandle[Any]:
        """Start a task and return its handle, without waiting for its end; a synchronous provider's is done.

        Give a request, or the fields of a `CharacterRequest`. It goes to the provider named, else to the first
        that can serve it. Once sent it is carried through, also when the caller is cancelled meanwhile.

        Raises:
            InvalidRequestError: no provider can serve the request; nothing was sent.
            SubmissionUnknownError: it was sent, and nobody said what became of it.
            ProviderError: the provider refused.
            SessionClosedError: the session was closed before the request was sent.
        """
        self.check_open()
        wish = _request(request, fields)
        chosen = self._choose(wish, provider)
        token = self.tokens.mint(chosen.name) if chosen.callback_url and not chosen.synchronous else None
        submission = _Submission(chosen, wish, wish.key or new_key(), token)
        carrier = asyncio.create_task(self._carry(submission), name=f"sora_chars submit {submission.key}")
        self._submissions[carrier] = submission
        carrier.add_done_callback(self._submissions.pop)
        try:
            await asyncio.wait((carrier,))
        except asyncio.CancelledError:
            if not submission.sent:
                carrier.cancel()
            carrier.add_done_callback(partial(_log_orphan, submission))
            raise
        if carrier.cancelled():  # a caller that nobody cancelled must not look as if it were
            raise submission.cut_off()
        return carrier.result()

    @overload
    async def create(
        self, request: TaskRequest, /, *, provider: str | None = None, timeout: float | None = None
    ) -> TaskSnapshot: ...
    @overload
    async def create(
        self,
        request: CharacterRequest | OmniCharacterRequest,
        /,
        *,
        provider: str | None = None,
        timeout: float | None = None,
    ) -> Character: ...
    @overload
    async def create(
        self, /, *, provider: str | None = None, timeout: float | None = None, **fields: Any
    ) -> Character: ...
    async def create(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Character | TaskSnapshot:
        """Submit and wait: `submit` and then `handle.result`, whose errors are this one's.

        `timeout`: seconds for both together. A request that is being sent is not given up for it.
        """
        began = asyncio.get_running_loop().time()
        handle: TaskHandle[Any] = await self.submit(_request(request, fields), provider=provider)
        limit = self.wait if timeout is None else timeout
        left = max(0.0, began + limit - asyncio.get_running_loop().time())
        try:
            outcome: Character | TaskSnapshot = await handle.result(left)
        except asyncio.CancelledError:
            _log_outlived(handle)
            raise
        return outcome

    def resume(
        self, task: str | TaskHandle[Any], *, provider: str | None = None, key: str | None = None
    ) -> TaskHandle[Any]:
        """Pick a task up again, by its id or a rebuilt handle; polling starts at once, nothing is paid.

        Raises:
            InvalidRequestError: the id is empty or not printable.
            ConfigurationError: no provider of that name here.
        """
        self.check_open()
        if not isinstance(task, TaskHandle):
            if not task or not str(task).isprintable():
                raise InvalidRequestError(f"task_id: must be the id of a task, got {printable(repr(task), limit=60)}.")
            task = TaskHandle(task_id=task, provider=self._provider(provider).name, key=key or new_key())
        owner = self._provider(task.provider)
        return task.within(self._live(owner, self.watcher.watch(owner, task.task_id)))

    async def credit(self, provider: str | None = None) -> float:
        """How many credits the account has left, at the provider named, else at the first that has tasks."""
        self.check_open()
        return await self._provider(provider).credit()

    async def models(self, provider: str | None = None) -> list[ModelInfo]:
        """Which models can be asked for now; free, so that a dead model is seen before anything is paid."""
        self.check_open()
        return await self._provider(provider).models()

    async def _carry(self, submission: _Submission) -> TaskHandle[Any]:
        """Send, and turn the first snapshot into a watched handle without a pause in between."""
        try:
            snapshot = await submission.run()
        except BaseException:
            if submission.token:
                self.tokens.retire(submission.token)
            raise
        provider, token = submission.provider, submission.token
        watch = self.watcher.watch(provider, snapshot.task_id, snapshot=snapshot, expects_callback=token is not None)
        if token:
            watch.future.add_done_callback(lambda _: self.tokens.retire(token))
            if self.tokens.bind(token, snapshot.task_id):
                self.watcher.nudge(provider.name, snapshot.task_id)
        request = submission.request
        return TaskHandle(
            task_id=snapshot.task_id,
            provider=provider.name,
            key=submission.key,
            name=None if isinstance(request, TaskRequest) else request.name,
            wants=TaskSnapshot if isinstance(request, TaskRequest) else Character,
            live=self._live(provider, watch),
        )

    def _live(self, provider: Provider, watch: Watch) -> Live:
        return Live(watch, partial(self.watcher.look, provider, watch), self.wait)

    def _choose(self, request: Request, name: str | None) -> Provider:
        reasons: list[str] = []
        for provider in self.providers if name is None else (self._provider(name),):
            problems = provider.check(request)
            if not problems:
                return provider
            reasons += [f"{provider.name}: {problem}" for problem in problems]
        raise InvalidRequestError(f"Nothing was sent. {'; '.join(reasons)}.", problems=tuple(reasons))

    def _provider(self, name: str | None) -> Provider:
        """The provider named, else the first that has tasks, else the first."""
        if name is None:
            return next((provider for provider in self.providers if not provider.synchronous), self.providers[0])
        for provider in self.providers:
            if provider.name == name:
                return provider
        names = ", ".join(provider.name for provider in self.providers)
        raise ConfigurationError(f"provider: must be one of {names}, got {printable(name)!r}.")

    def check_open(self) -> None:
        """Say so if this session cannot be used here and now.

        Raises:
            SessionClosedError: it is closed, or was never opened.
            WrongLoopError: it was opened in another event loop.
        """
        if self._loop is None:
            raise SessionClosedError("This session is not open.", hint="Use it inside `async with`.")
        if self._loop is not asyncio.get_running_loop():
            raise WrongLoopError(
                "This session was opened in another event loop. Nothing was sent.",
                hint="Open a session inside each asyncio.run(), and close it there.",
            )

    async def _finish_submissions(self) -> None:
        for carrier, submission in list(self._submissions.items()):
            if not submission.sent:
                carrier.cancel()
        try:
            if self._submissions:
                await asyncio.wait(self._submissions, timeout=self._drain)
        finally:
            late = list(self._submissions)
            for carrier in late:
                carrier.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _request(request: Request | None, fields: dict[str, Any]) -> Request:
    if request is None:
        allowed = [field.name for field in attrs.fields(CharacterRequest)]
        if unknown := sorted(fields.keys() - allowed):
            raise InvalidRequestError(
                f"{', '.join(unknown)}: no such field. Allowed are {', '.join(allowed)}.", problems=tuple(unknown)
            )
        return CharacterRequest(**fields)
    allowed_types = (CharacterRequest, TaskRequest, OmniCharacterRequest)
    if fields or not isinstance(request, allowed_types):
        came = f"{type(request).__name__} with {', '.join(fields) or 'no fields'}"
        raise InvalidRequestError(
            f"request: give either a CharacterRequest, TaskRequest or OmniCharacterRequest, or fields; got {came}."
        )
    return request


def _log_orphan(submission: _Submission, carrier: asyncio.Task[TaskHandle[Any]]) -> None:
    """Nobody is left to hear how it ended, so the log does: an id that was paid for is never lost."""
    facts = {"provider": submission.provider.name, "key": submission.key}
    if carrier.cancelled():
        log.log(
            logging.ERROR if submission.sent else logging.INFO,
            "submission.cancelled",
            extra=facts | {"sent": submission.sent},
        )
    elif error := carrier.exception():
        log.error("submission.failed", extra=facts | {"error": printable(error)})
    else:
        _log_outlived(carrier.result())


def _log_outlived(handle: TaskHandle[Any]) -> None:
    facts = {"provider": handle.provider, "key": handle.key, "task_id": handle.task_id}
    log.warning("submission.outlived_its_caller", extra=facts)
