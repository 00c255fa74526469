"""The interfaces of a provider and of a polling strategy. Inherit from them to write your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from .errors import ConfigurationError, printable
from .ratelimit.window import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from .models import Accepts, Eta, ModelInfo, Request, TaskSnapshot
    from .ratelimit.accounts import Account

    Settles = Literal["lookup"]


class Provider(Protocol):
    """A service that makes characters.

    Inherit from it and write `submit` and `fetch`; a `synchronous` provider needs
    `submit` only. The other methods have defaults.

        class Studio(Provider):
            name = "studio"

            async def submit(self, request, *, key, callback_url, on_send):
                async with on_send():
                    task = await studio.start(request.from_task)
                return TaskSnapshot(task_id=task.id, provider=self.name, state="waiting")

            async def fetch(self, task_id):
                task = await studio.status(task_id)
                return TaskSnapshot(task_id=task_id, provider=self.name, state=task.state)

    Attributes:
        name: The name by which requests and ledgers refer to the provider.
        synchronous: Whether `submit` returns a finished snapshot.
        callback_url: The base URL at which callbacks of this provider's tasks arrive.
            None if there are none.
        calls_back: Whether the provider can be given a callback URL. A session with
            `public_url` then sets `callback_url`, unless the provider has one.
        account: The account whose rate limits the provider keeps. Processes that share
            a ledger divide these limits between them. None without known limits.
        accepts: What the provider accepts, as data. None if it is not described.
        settles: How a request whose response was lost can be settled: "lookup" if
            `lookup` finds the task by the key. None if the provider cannot be asked.
        makes_voices: Whether `submit` takes a `VoiceRequest`.
    """

    name: str
    synchronous: bool = False
    callback_url: str | None = None
    calls_back: bool = False
    account: Account | None = None
    accepts: Accepts | None = None
    settles: Settles | None = None
    makes_voices: bool = False

    def check(self, request: Request) -> Sequence[str]:
        """Return why this provider cannot serve a request: one line for each reason, naming the field.

        An empty sequence means that it can. Do not use the network, and read no more
        of a local file than its header.
        """
        del request
        return ()

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Start a task, and return its first snapshot.

        Args:
            request: A request for which `check` returned no reasons.
            key: The idempotency key of the entry. Send it, where the provider takes an
                id of the client, and find the task by it in `lookup`.
            callback_url: The URL to which the provider should send the callback of
                this task.
            on_send: Returns the context manager in which to send the request that
                costs money. Enter it once, when nothing is left to wait for. It records
                the request in the ledger; from then on the session no longer cancels
                this coroutine when its caller is cancelled. A `harmless` error that
                leaves the block reverts the record.

        Raises:
            NoAnswerError: No response came. Unless the error is `harmless`, the request
                may have arrived and is never sent again.
            ProviderError: The provider rejected the request.
        """
        ...

    async def lookup(self, key: str) -> TaskSnapshot | None:
        """Return the task that was requested under a key, or None if the provider shows none. Free of charge.

        A task that is missing proves nothing while its request may still be on its way.

        Raises:
            ConfigurationError: The provider cannot be asked.
            ProviderError: The provider was not reached, or rejected the question.
        """
        raise ConfigurationError(f"{self.name} cannot be asked for the task of a key, got {key!r}.")

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Poll a task once.

        Raises:
            ProviderError: The poll failed. A `transient` error is retried.
            TaskNotFoundError: The provider has no such task, or does not show it yet.
            MissingCharacterError: The task succeeded, but its result holds no character id.
        """
        raise ConfigurationError(f"{self.name} is synchronous and has no tasks to poll, got {task_id!r}.")

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """Poll a task whose last snapshot is `seen`. May return `seen` itself if nothing has changed.

        Raises:
            ProviderError: As `fetch`.
        """
        return await self.fetch(seen.task_id)

    async def poll_capacity(self) -> int:
        """Wait until a poll may be sent, and return how many may be sent now.

        Tasks are picked only after this returns. If more tasks are due than may be
        polled, those with the highest priority are polled first.
        """
        return UNLIMITED

    async def delete(self, character_id: str) -> None:
        """Delete a character. One that is gone already counts as deleted.

        Raises:
            ConfigurationError: The provider has no route for it.
            ProviderError: The provider was not reached, or rejected the request.
        """
        raise ConfigurationError(
            f"{self.name} has no route that deletes characters, so {printable(character_id, limit=60)} was not deleted."
        )

    async def credit(self) -> float:
        """Return how many credits the account has left.

        Raises:
            ConfigurationError: The provider does not report credits.
        """
        raise ConfigurationError(f"{self.name} does not report how many credits are left.")

    async def models(self) -> list[ModelInfo]:
        """Return the models that are available now.

        Raises:
            ConfigurationError: The provider does not list its models.
        """
        raise ConfigurationError(f"{self.name} does not list its models.")

    async def __aenter__(self) -> Self:
        """Open connections. Each session that uses the provider enters it once."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave a session. Close the connections when the last session leaves."""
        del kind, error, traceback


class PollingStrategy(Protocol):
    """Decides when to poll a task next.

    Inherit from it and write `delay`. The other methods are for strategies that learn
    how long tasks take; their defaults learn nothing.

        class Doubling(PollingStrategy):
            def delay(self, snapshot, age):
                return min(max(age, 1.0), 30.0)

    In all methods `snapshot` is the last one of the task, None if there is none yet.
    `age` is the age of the task and `unseen` the time since its previous poll, both in
    seconds.
    """

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Return the seconds until the next poll."""
        ...

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """Learn from a finished task, whether it succeeded or failed.

        A session that opens also passes the finished tasks of its ledger.
        """
        del snapshot

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """Learn from a poll. An error raised here is logged and ends no wait.

        By default `observe_finished` is called if the task has ended.
        """
        del age, unseen
        if snapshot.finished:
            self.observe_finished(snapshot)

    def priority(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """Return the priority of polling now: the expected reduction in detection delay, in seconds.

        If more tasks are due than may be polled, the one with the highest priority is
        polled first. Must be 0 or more, and grow with `unseen`: then no task starves.
        """
        del snapshot, age
        return unseen

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """Return how many seconds a running task has left, or None if nothing is known."""
        del snapshot, age
        return None
